-- Limits on what runs at once and on how often it starts: engine/admission.rs
--
-- A queue may bound what runs in it, what runs of one key, and how often either starts, and may share its places fairly.
-- A task may bound what runs of it, in whichever queue.
alter table jobs.queue
  add column concurrency integer check (concurrency > 0),
  add column key_concurrency integer check (key_concurrency > 0),
  -- A token bucket: so many starts in so many seconds, and so many at once.
  add column rate_starts integer check (rate_starts > 0),
  add column rate_seconds double precision check (rate_seconds > 0),
  add column rate_burst integer check (rate_burst > 0),
  add column key_rate_starts integer check (key_rate_starts > 0),
  add column key_rate_seconds double precision check (key_rate_seconds > 0),
  add column key_rate_burst integer check (key_rate_burst > 0),
  -- Between whom its places are shared.
  add column share text not null default 'none' check (share in ('none', 'owner', 'key')),
  -- What an owner's or key's share weighs, as a JSON object; 1 where it is not named.
  add column weights text not null default '{}',
  -- Some job in it has stood in a lane: what such a queue gives out is counted.
  add column has_lanes boolean not null default false,
  add column limits_changed_at timestamptz,
  add constraint queue_rate_is_whole
    check (num_nonnulls(rate_starts, rate_seconds, rate_burst) in (0, 3)),
  add constraint queue_key_rate_is_whole
    check (num_nonnulls(key_rate_starts, key_rate_seconds, key_rate_burst) in (0, 3)),
  -- Every job in it has a key, its owner's where it names none.
  add column is_keyed boolean not null
    generated always as (key_concurrency is not null or key_rate_starts is not null or share <> 'none') stored,
  -- A claim out of it has to count.
  add column is_limited boolean not null generated always as (
    concurrency is not null or rate_starts is not null or key_concurrency is not null or key_rate_starts is not null
      or share <> 'none' or has_lanes
  ) stored;

alter table jobs.task
  add column concurrency integer check (concurrency > 0),
  add column limits_changed_at timestamptz;

-- A job that shares limits with some and not with all of its queue stands in a lane: the task, where that is limited, a
-- space, and the key, where there is one. What stands in one lane starts in its order, and a lane that is full is passed
-- over as a whole, however much stands in it.
create function jobs.lane(task text, is_task_limited boolean, key text, owner_id uuid, is_queue_keyed boolean)
returns text
language sql immutable
return nullif(
  concat(case when is_task_limited then task end, ' ', coalesce(key, case when is_queue_keyed then 'o:' || owner_id end)),
  ' '
);

alter table jobs.job
  -- `k:<owner>:<name>`, or `a:<name>` for all owners.
  add column concurrency_key text,
  add column lane text;
alter table jobs.job_history
  add column concurrency_key text,
  -- Its last one.
  add column lane text;

-- Who may be next: of those without a lane, and in each lane.
drop index jobs.job_next;
create index job_next on jobs.job (queue, rank) where state = 'queued' and lane is null;
create index job_next_of_lane on jobs.job (queue, lane, rank) where state = 'queued' and lane is not null;

-- Tokens that a queue, or a key in it, had at a time. The queue's own has the key ''.
create table jobs.bucket (
  queue text not null,
  key text not null,
  tokens double precision not null,
  at timestamptz not null,
  primary key (queue, key)
);

-- How much of its share an owner or key has had, in starts by weight. Who has had the least comes next.
create table jobs.share (
  queue text not null,
  name text not null,
  had double precision not null,
  at timestamptz not null,
  primary key (queue, name)
);

create or replace view jobs.any_job as
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, null::text as result, since, created_at,
  null::timestamptz as finished_at, queue_until, deadline_at, cancel_reason, unique_key, concurrency_key, lane
from jobs.job
union all
select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at, progress_percent,
  progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize,
  child_batch_id, cancel_asked_at, cancel_asked_by, events, tags, args, result, finished_at as since, created_at,
  finished_at, null::timestamptz, deadline_at, cancel_reason, unique_key, concurrency_key, lane
from jobs.job_history;
