-- Schedules. What is asked for is kept as the checked message `ScheduleSpec` of proto/jobs.proto; beside it stands what is
-- decided by.
create table jobs.schedule (
  id uuid primary key,
  owner_id uuid not null,
  spec bytea not null,
  -- The roles of whoever wrote the spec: its job is submitted by what these may do.
  roles text[] not null,
  -- Counts the specs.
  revision bigint not null default 1,
  -- The next occurrence, moved on in the transaction that submits its job. None when nothing comes any more.
  next_at timestamptz,
  paused_at timestamptz,
  -- None when it paused itself.
  paused_by uuid,
  pause_reason text,
  failures integer not null default 0 check (failures >= 0),
  missed bigint not null default 0 check (missed >= 0),
  skipped bigint not null default 0 check (skipped >= 0),
  last_error text,
  last_error_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint schedule_is_paused_as_a_whole check (paused_at is not null or (paused_by is null and pause_reason is null)),
  constraint schedule_error_has_a_time check ((last_error is null) = (last_error_at is null))
);
create index schedule_due on jobs.schedule (next_at) where next_at is not null and paused_at is null;
create index schedule_owner on jobs.schedule (owner_id, id desc);

-- Which job runs, or ran, which occurrence. The job knows nothing of it: what became of it is found by its id.
create table jobs.schedule_run (
  schedule_id uuid not null references jobs.schedule on delete cascade,
  occurrence_at timestamptz not null,
  job_id uuid not null,
  kind text not null check (kind in ('due', 'run', 'backfill')),
  -- `waiting` before its job is there, `live` until its end was noticed, `gone` when it left no history.
  state text not null check (state in ('waiting', 'live', 'succeeded', 'failed', 'cancelled', 'expired', 'gone')),
  primary key (schedule_id, occurrence_at, job_id)
);
create index schedule_run_live on jobs.schedule_run (schedule_id, occurrence_at, job_id) where state = 'live';
create index schedule_run_waiting on jobs.schedule_run (schedule_id, occurrence_at) where state = 'waiting';
create index schedule_run_age on jobs.schedule_run (occurrence_at);
