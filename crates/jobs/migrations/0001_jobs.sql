-- The schema of the role `jobs`. Applied as the service's own database role with `search_path` set to its schema.
--
-- Live jobs stand in one narrow table; final ones are moved into `job_history`, which together with attempts and events
-- is partitioned by the job's id. An id is a UUIDv7, so a partition is a span of time, a look-up by id touches one
-- partition, and everything about a job leaves with the same partition when its retention ends.

-- A queue is paused or not; jobs name it.
create table queue (
  name text primary key check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  paused_at timestamptz
);
insert into queue (name) values ('default'), ('priority'), ('maintenance');

-- What some worker has offered. A task stays known when its workers have gone, so that its jobs may be submitted and wait.
create table task (
  name text primary key check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  queue text not null references queue,
  schema_json text not null,
  description text not null,
  offered_at timestamptz not null
);

-- One row a connected worker; its lease covers every attempt that it holds.
create table worker (
  id uuid primary key,
  profile text not null,
  host text not null,
  version text not null,
  queues text[] not null,
  tasks text[] not null,
  slots integer not null check (slots between 0 and 1000),
  is_draining boolean not null default false,
  connected_at timestamptz not null,
  seen_at timestamptz not null,
  expires_at timestamptz not null
);
create index worker_expires on worker (expires_at);

create table batch (
  id uuid primary key,
  owner_id uuid not null,
  -- The states of a batch and their moves: engine/states.rs
  state text not null check (state in ('open', 'running', 'finalizing', 'finished', 'cancelled')),
  parent_job_id uuid,
  total integer not null default 0 check (total between 0 and 100000),
  succeeded integer not null default 0,
  failed integer not null default 0,
  cancelled integer not null default 0,
  expired integer not null default 0,
  finalize_task text,
  finalize_args text,
  finalize_job_id uuid,
  cancel_asked_at timestamptz,
  cancel_asked_by uuid,
  cancel_reason text,
  -- Offset of the newest event of its stream.
  events bigint not null default 0,
  created_at timestamptz not null,
  finished_at timestamptz,
  constraint batch_counts_add_up check (succeeded + failed + cancelled + expired <= total),
  constraint batch_is_over_when_finished check ((finished_at is not null) = (state in ('finished', 'cancelled')))
);
create index batch_owner on batch (owner_id, id desc);
create index batch_parent on batch (parent_job_id) where parent_job_id is not null;
create index batch_cancelling on batch (id) where cancel_asked_at is not null and finished_at is null;

create sequence attempt_token;

create table job (
  id uuid primary key,
  owner_id uuid not null,
  task text not null,
  queue text not null,
  state text not null check (state in ('scheduled', 'queued', 'running', 'suspended', 'cancelling')),
  priority smallint not null check (priority between 0 and 100),
  run_at timestamptz not null,
  -- Place in the queue: the earlier the sooner. A priority is an offset of time, so that what waits long gets its turn.
  rank timestamptz not null,
  attempt integer not null default 0,
  -- The attempt that must not be exceeded by a retry.
  attempts_until integer not null,
  max_attempts integer not null check (max_attempts between 1 and 100),
  attempt_timeout_s double precision not null,
  backoff text,
  -- The running attempt: its fencing token, the worker that holds it, and when it began.
  token bigint not null default 0,
  worker_id uuid,
  attempt_started_at timestamptz,
  started_at timestamptz,
  since timestamptz not null,
  progress_percent double precision,
  progress_stage text,
  progress_message text,
  error_kind text,
  error_message text,
  error_retryable boolean,
  batch_id uuid,
  ordinal integer,
  is_finalize boolean not null default false,
  child_batch_id uuid,
  cancel_asked_at timestamptz,
  cancel_asked_by uuid,
  cancel_reason text,
  events bigint not null default 0,
  request_id text not null,
  traceparent text,
  tags text[] not null,
  args text not null,
  created_at timestamptz not null,
  constraint job_runs_on_a_worker check (state <> 'running' or worker_id is not null),
  constraint job_holds_no_worker_while_it_waits check (state not in ('scheduled', 'queued', 'suspended') or worker_id is null),
  constraint job_child_has_an_ordinal check (batch_id is null or (ordinal is null) = is_finalize)
) with (fillfactor = 70);
-- Who may be next, who becomes due, whose lease or time is over; lists of an owner and of a batch.
create index job_next on job (queue, rank) where state = 'queued';
create index job_due on job (run_at) where state = 'scheduled';
create index job_held on job (worker_id) where worker_id is not null;
create index job_owner on job (owner_id, id desc);
create unique index job_ordinal on job (batch_id, ordinal) where ordinal is not null;

create table job_history (
  id uuid not null,
  owner_id uuid not null,
  task text not null,
  queue text not null,
  state text not null check (state in ('succeeded', 'failed', 'cancelled')),
  priority smallint not null,
  run_at timestamptz not null,
  attempt integer not null,
  max_attempts integer not null,
  attempt_timeout_s double precision not null,
  backoff text,
  worker_id uuid,
  started_at timestamptz,
  progress_percent double precision,
  progress_stage text,
  progress_message text,
  error_kind text,
  error_message text,
  error_retryable boolean,
  batch_id uuid,
  ordinal integer,
  is_finalize boolean not null,
  child_batch_id uuid,
  cancel_asked_at timestamptz,
  cancel_asked_by uuid,
  cancel_reason text,
  events bigint not null,
  request_id text not null,
  traceparent text,
  tags text[] not null,
  args text not null,
  result text,
  created_at timestamptz not null,
  finished_at timestamptz not null,
  primary key (id)
) partition by range (id);
create index job_history_owner on job_history (owner_id, id desc);
create index job_history_batch on job_history (batch_id, ordinal) where batch_id is not null;
create table job_history_default partition of job_history default;

-- Ended attempts; the running one stands in `job`.
create table attempt (
  job_id uuid not null,
  number integer not null,
  token bigint not null,
  outcome text not null check (outcome in ('succeeded', 'failed', 'cancelled', 'suspended', 'interrupted')),
  worker_id uuid,
  started_at timestamptz not null,
  finished_at timestamptz not null,
  error_kind text,
  error_message text,
  error_retryable boolean,
  primary key (job_id, token)
) partition by range (job_id);
create table attempt_default partition of attempt default;

-- What was told live about a job or batch, by offset. `at_offset` grows by one within a stream: the row that owns the
-- stream is locked while it is taken, so that what a reader sees has no gap before it.
create table event (
  stream_id uuid not null,
  at_offset bigint not null,
  kind text not null check (kind in ('state', 'progress', 'log', 'batch')),
  data text not null,
  at timestamptz not null,
  primary key (stream_id, at_offset)
) partition by range (stream_id);
create table event_default partition of event default;

-- Live and final jobs as one list, for reading.
create view any_job as
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, null::text as result, since, created_at,
  null::timestamptz as finished_at
from job
union all
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, result, finished_at as since, created_at,
  finished_at
from job_history;

-- Rows of files. A file is there for others only when it is whole. A row is written before its bytes, and goes after
-- them, so that nothing lies in storage that no row names.
create table file (
  id uuid primary key,
  owner_id uuid not null,
  name text not null,
  state text not null check (state in ('writing', 'whole', 'doomed')),
  -- An upload writes several files, all or nothing; an attempt writes files that become whole with its result.
  upload_id uuid,
  job_id uuid,
  token bigint,
  content_type text,
  size_bytes bigint check (size_bytes >= 0),
  sha256 bytea,
  created_at timestamptz not null,
  -- A file being written is dropped after this, unless its lease is extended.
  expires_at timestamptz,
  constraint file_is_described_when_whole check (state <> 'whole' or (content_type is not null and size_bytes is not null and sha256 is not null))
);
create index file_owner on file (owner_id, id desc) where state = 'whole';
create index file_upload on file (upload_id) where upload_id is not null;
create index file_attempt on file (job_id, token) where job_id is not null and state = 'writing';
create index file_leaving on file (expires_at) where state in ('writing', 'doomed');

-- Bytes an owner has stored, moved in the transaction that makes a file whole or removes it.
create table file_usage (
  owner_id uuid primary key,
  bytes bigint not null check (bytes >= 0)
);

create table outbox (
  id uuid primary key,
  type text not null,
  subject text not null,
  data bytea not null,
  traceparent text,
  at timestamptz not null
);

create table idempotency_key (
  caller uuid not null,
  key text not null,
  digest bytea not null,
  code text,
  answer bytea not null,
  created_at timestamptz not null,
  primary key (caller, key)
);
create index idempotency_key_age on idempotency_key (created_at);

-- Secrets of the service itself, such as the key that signs cursors. Made at first start.
create table secret (
  name text primary key,
  value bytea not null
);
