-- A row holds one event, as before, or several of one type that one transaction told, packed into its data; then it has
-- neither id nor subject: kit/src/outbox/bundle.rs. What is there stays as it is, and what a replica of the version before
-- writes meanwhile is read in its place.
alter table auth.outbox
  alter column id drop not null,
  alter column subject drop not null,
  add column events integer not null default 1,
  -- Not held against the rows that are there: they are many, and each is one event.
  add constraint outbox_is_one_event_or_several
    check ((id is null) = (subject is null) and (id is null or events = 1) and events > 0) not valid;
-- A bundle is long enough to be compressed, and lz4 takes a quarter of the time. Not every Postgres is built with it.
do $$
begin
  alter table auth.outbox alter column data set compression lz4;
exception
  when feature_not_supported then null;
end
$$;
