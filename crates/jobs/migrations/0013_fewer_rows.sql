-- A row holds one event, as before, or several of one type that one transaction told, packed into its data; then it has
-- neither id nor subject: kit/src/outbox/bundle.rs. What is there stays as it is, and what a replica of the version before
-- writes meanwhile is read in its place.
alter table jobs.outbox
  alter column id drop not null,
  alter column subject drop not null,
  add column events integer not null default 1,
  -- Not held against the rows that are there: they are many, and each is one event.
  add constraint outbox_is_one_event_or_several
    check ((id is null) = (subject is null) and (id is null or events = 1) and events > 0) not valid;
-- A bundle is long enough to be compressed, and lz4 takes a quarter of the time. Not every Postgres is built with it.
do $$
begin
  alter table jobs.outbox alter column data set compression lz4;
exception
  when feature_not_supported then null;
end
$$;

-- An attempt that is at work, and the one that succeeded, stand in their job's own row and nowhere else: what has a record in
-- jobs.attempt ended in another way, and so has what wrote into jobs.event that it started and ended. engine/steps.rs
alter table jobs.job
  -- The offset under which the job's stream tells that its attempt started, while this row alone says so.
  add column started_event bigint;
alter table jobs.job_history
  -- Of a job that succeeded: its last attempt, and where its stream tells that this started. That it ended is told last.
  add column token bigint,
  add column attempt_started_at timestamptz,
  add column started_event bigint,
  -- Not held against the rows that are there: they are many, and have none of it.
  add constraint job_history_has_an_attempt_whole
    check (num_nonnulls(token, attempt_started_at, started_event) in (0, 3) and (token is null or state = 'succeeded')) not valid;

create function jobs.state_told(job_id uuid, state text, attempt integer)
returns text
language sql stable
return json_build_object('job_id', job_id, 'state', state, 'attempt', attempt)::text;

-- What live streams tell, whichever row says it.
create view jobs.any_event as
select stream_id, at_offset, kind, data, at
from jobs.event
union all
-- A replica of the version before that puts a job back lets go of the start of its attempt and not of the event.
select id, started_event, 'state', jobs.state_told(id, 'running', attempt), coalesce(attempt_started_at, since)
from jobs.job
where started_event is not null
union all
select id, started_event, 'state', jobs.state_told(id, 'running', attempt), attempt_started_at
from jobs.job_history
where started_event is not null
union all
select id, events, 'state', jobs.state_told(id, 'succeeded', attempt), finished_at
from jobs.job_history
where started_event is not null;
