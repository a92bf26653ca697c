-- The outbox as a relay reads it: in the order of writing, and what is published apart from what is not. Rows from before
-- are numbered in the order of their ids, which is that of time, and are published once the relay runs.
alter table jobs.outbox add column seq bigint, add column published_at timestamptz;

update jobs.outbox
set seq = numbered.seq
from (select id, row_number() over (order by id) as seq from jobs.outbox) as numbered
where outbox.id = numbered.id;

-- Rows are found by their place alone; an index less is kept up with each event by doing without one of the ids, which
-- are made so that they differ.
alter table jobs.outbox drop constraint outbox_pkey;
alter table jobs.outbox alter column seq set not null;
alter table jobs.outbox alter column seq add generated always as identity;
select setval(pg_get_serial_sequence('jobs.outbox', 'seq'), (select coalesce(max(seq), 0) + 1 from jobs.outbox), false);
alter table jobs.outbox add primary key (seq);
create index outbox_unpublished on jobs.outbox (seq) where published_at is null;

-- How often the service was asked to send again what it keeps.
create table jobs.outbox_replay (generation bigint not null);
insert into jobs.outbox_replay values (0);
