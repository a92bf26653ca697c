-- When a complete batch is finalized, and its finalizes one after the other, as a batch that was retried has several:
-- engine/policy.rs, engine/finalizes.rs. What of a batch is still to be retried: engine/repair.rs.
alter table jobs.batch
  add column policy text not null default 'always' check (policy in ('always', 'all', 'any', 'threshold')),
  -- How many must have succeeded under `threshold`.
  add column at_least integer check (at_least between 1 and 100000),
  add constraint batch_threshold_has_a_number check ((policy = 'threshold') = (at_least is not null)),
  -- Why the policy let no finalize start.
  add column finalize_skipped text,
  add constraint batch_is_over_when_it_skips check (finalize_skipped is null or finished_at is not null),
  -- The states of jobs that are being queued again; none when nothing is. Jobs up to an ordinal have had their turn.
  add column retry_states text[],
  add column retry_after integer,
  add constraint batch_is_retried_from_somewhere check ((retry_states is null) = (retry_after is null)),
  add constraint batch_is_not_over_while_retried check (retry_states is null or state in ('open', 'running'));
create index batch_retrying on jobs.batch (id) where retry_states is not null;

create table jobs.batch_finalize (
  batch_id uuid not null references jobs.batch on delete cascade,
  -- From 1.
  round integer not null,
  -- None where it was skipped.
  job_id uuid,
  state text not null check (state in ('running', 'succeeded', 'failed', 'cancelled', 'expired', 'skipped')),
  -- Why it was skipped.
  reason text,
  -- What it found.
  total integer not null,
  succeeded integer not null,
  failed integer not null,
  cancelled integer not null,
  expired integer not null,
  started_at timestamptz not null,
  finished_at timestamptz,
  primary key (batch_id, round),
  constraint batch_finalize_is_over_or_runs check ((finished_at is null) = (state = 'running')),
  constraint batch_finalize_has_a_job_or_a_reason check ((job_id is null) = (state = 'skipped') and (reason is not null) = (state = 'skipped'))
);

-- The finalizes of batches from before, of which only the last is known.
insert into jobs.batch_finalize (batch_id, round, job_id, state, total, succeeded, failed, cancelled, expired, started_at,
  finished_at)
select batch.id, 1, batch.finalize_job_id,
  case when batch.finished_at is null then 'running' else coalesce(past.state, 'succeeded') end,
  batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.expired,
  coalesce(past.created_at, batch.finished_at, batch.created_at),
  batch.finished_at
from jobs.batch
left join jobs.job_history as past on past.id = batch.finalize_job_id
where batch.finalize_job_id is not null;
