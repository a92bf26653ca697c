-- What administrators see. Owned by the role of `admin` alone; fed by events and reports, never by another's tables.

-- One row an act, by the id of the event that told of it. An event's id is a UUIDv7, so a span of ids is a span of time:
-- a partition holds a month, and is dropped whole when its retention ends. Text that does not apply is empty.
create table audit_entry (
  id uuid primary key,
  at timestamptz not null,
  service text not null,
  actor_kind text not null,
  actor_id text not null,
  on_behalf_of text not null,
  credential text not null,
  remote_address text not null,
  user_agent text not null,
  action text not null,
  target_kind text not null,
  target_id text not null,
  outcome text not null,
  reason text not null,
  before_json text not null,
  after_json text not null,
  request_id text not null
) partition by range (id);
create index audit_entry_service on audit_entry (service, id desc);
create index audit_entry_actor on audit_entry (actor_id, id desc);
create index audit_entry_action on audit_entry (action, id desc);
create index audit_entry_target on audit_entry (target_id, id desc);
create index audit_entry_request on audit_entry (request_id, id desc);
-- What is older than every month there is, as a repeat of old events may be.
create table audit_entry_default partition of audit_entry default;

-- Events that a consumer could not handle. The event is kept byte for byte, so that a replay is what was sent.
create table parked_event (
  id uuid primary key,
  -- The event's, or of what is no event the digest of its bytes.
  event_id text not null,
  type text not null,
  source text not null,
  subject text not null,
  consumer text not null,
  reason text not null,
  event bytea not null,
  parked_at timestamptz not null,
  replayed_at timestamptz,
  -- One that fails again after a replay is the same parking, not another.
  constraint parked_event_once unique (consumer, event_id)
);
create index parked_event_waiting on parked_event (id) where replayed_at is null;
create index parked_event_replayed_at on parked_event (replayed_at) where replayed_at is not null;

-- The last report of each process. Lost with a crash of the database, and told again within seconds.
create unlogged table replica (
  id uuid primary key,
  -- `guildhall.admin.v1.Replica`, as it was reported.
  report bytea not null,
  reported_at timestamptz not null
);
create index replica_reported_at on replica (reported_at);

-- Secrets of the service itself, such as the key that signs cursors. Made at first start.
create table secret (
  name text primary key,
  value bytea not null
);

-- What kit asks of a service that tells events and hears them: kit/src/outbox.rs, kit/src/inbox.rs.

create table outbox (
  -- The order in which a subject's events are told.
  seq bigint generated always as identity primary key,
  id uuid not null,
  type text not null,
  subject text not null,
  data bytea not null,
  traceparent text,
  at timestamptz not null,
  published_at timestamptz
);
create index outbox_unpublished on outbox (seq) where published_at is null;
create index outbox_at on outbox (at);

create table outbox_replay (generation bigint not null);
insert into outbox_replay values (0);

create table inbox (
  consumer text not null,
  id uuid not null,
  at timestamptz not null,
  primary key (consumer, id)
);
create index inbox_at on inbox (at);

create table inbox_consumer (
  name text primary key,
  types text[] not null,
  losses bigint not null,
  caught_up bigint not null
);

create table inbox_source (
  consumer text not null,
  source text not null,
  generation bigint not null,
  primary key (consumer, source)
);
