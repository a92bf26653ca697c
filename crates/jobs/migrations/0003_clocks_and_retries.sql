-- Time in the queue and time over all attempts beside the time of one attempt; retries by the kind of error; and the state
-- in which the first two end. A job that uses none of these has nulls here, which cost nothing.
alter table jobs.job
  drop constraint job_state_check,
  add constraint job_state_check check (state in ('scheduled', 'queued', 'running', 'suspended', 'cancelling')),
  -- Seconds that a stay in the queue may take, and when the present one is over.
  add column queue_timeout_s double precision check (queue_timeout_s > 0),
  add column queue_until timestamptz,
  -- Seconds that all attempts and what lies between them may take, and when that is over.
  add column deadline_s double precision check (deadline_s > 0),
  add column deadline_at timestamptz,
  -- It is being stopped because its deadline is over, and not because somebody asked.
  add column is_expiring boolean not null default false,
  -- What to do about an error of a kind, as JSON: engine/retries.rs
  add column retry_on text,
  -- Attempts that were at work when their worker or their slot's process died.
  add column crashes smallint not null default 0,
  add constraint job_has_a_deadline_to_expire_by check (not is_expiring or deadline_at is not null),
  add constraint job_is_stopped_where_it_expires check (not is_expiring or state = 'cancelling'),
  add constraint job_has_a_deadline_of_some_length check ((deadline_s is null) = (deadline_at is null)),
  add constraint job_waits_until_a_time check (queue_until is null or queue_timeout_s is not null);
create index job_queue_over on jobs.job (queue_until) where state = 'queued' and queue_until is not null;
create index job_deadline_over on jobs.job (deadline_at) where deadline_at is not null and state <> 'cancelling';

alter table jobs.job_history
  drop constraint job_history_state_check,
  add constraint job_history_state_check check (state in ('succeeded', 'failed', 'cancelled', 'expired')),
  add column queue_timeout_s double precision,
  add column deadline_s double precision,
  add column deadline_at timestamptz,
  add column retry_on text;

alter table jobs.attempt
  drop constraint attempt_outcome_check,
  add constraint attempt_outcome_check
    check (outcome in ('succeeded', 'failed', 'cancelled', 'suspended', 'interrupted', 'snoozed'));

create or replace view jobs.any_job as
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, null::text as result, since, created_at,
  null::timestamptz as finished_at, queue_until, deadline_at, cancel_reason
from jobs.job
union all
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, result, finished_at as since, created_at,
  finished_at, null::timestamptz, deadline_at, cancel_reason
from jobs.job_history;
