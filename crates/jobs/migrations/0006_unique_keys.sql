-- Unique jobs: who holds which key (engine/unique.rs). One row a key that is held, or was until lately. A job that has no
-- key pays three columns with nothing in them.
create table jobs.unique_key (
  -- Whose keys these are: the owner's, or those that hold for all, under the nil id.
  scope uuid not null,
  -- Compared byte by byte, as they are sorted where several are locked.
  task text collate "C" not null,
  key text collate "C" not null,
  job_id uuid not null,
  -- How long the job itself holds it: until it starts, until it is over, or also while it is a dead letter.
  hold text not null check (hold in ('waiting', 'live', 'dead_letter')),
  -- It is nobody else's before this time, whatever has become of the job.
  held_until timestamptz not null,
  -- The job holds it no more.
  is_let_go boolean not null default false,
  primary key (scope, task, key)
);

alter table jobs.job
  add column unique_key text,
  add column is_unique_for_all boolean not null default false,
  add column unique_hold text check (unique_hold in ('waiting', 'live', 'dead_letter')),
  add constraint job_holds_its_key_in_some_way check ((unique_key is null) = (unique_hold is null)),
  add constraint job_is_unique_by_a_key check (unique_key is not null or not is_unique_for_all);

alter table jobs.job_history
  add column unique_key text,
  add column is_unique_for_all boolean not null default false,
  add column unique_hold text;

create or replace view jobs.any_job as
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, null::text as result, since, created_at,
  null::timestamptz as finished_at, queue_until, deadline_at, cancel_reason, unique_key
from jobs.job
union all
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, result, finished_at as since, created_at,
  finished_at, null::timestamptz, deadline_at, cancel_reason, unique_key
from jobs.job_history;
