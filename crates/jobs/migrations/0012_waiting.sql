-- For how long something kept jobs from starting: engine/holdups.rs. What one job has waited for is found from these and from
-- its own states, when it is asked for.
create table jobs.holdup (
  reason text not null check (reason in (
    'queue_paused', 'no_worker', 'queue_limit', 'task_limit', 'key_limit', 'rate_limit', 'key_rate_limit'
  )),
  queue text not null,
  -- Of one task, or of one lane, where not all of the queue was held up; else ''.
  task text not null default '',
  lane text not null default '',
  from_at timestamptz not null,
  to_at timestamptz,
  constraint holdup_has_a_length check (to_at is null or to_at >= from_at)
);
create unique index holdup_open on jobs.holdup (reason, queue, task, lane) where to_at is null;
create index holdup_queue on jobs.holdup (queue, to_at);
create index holdup_over on jobs.holdup (to_at) where to_at is not null;
