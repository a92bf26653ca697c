-- Jobs that run after others: engine/dependencies.rs
alter table jobs.job
  drop constraint job_state_check,
  add constraint job_state_check
    check (state in ('waiting', 'scheduled', 'queued', 'running', 'suspended', 'cancelling')),
  drop constraint job_holds_no_worker_while_it_waits,
  add constraint job_holds_no_worker_while_it_waits
    check (state not in ('waiting', 'scheduled', 'queued', 'suspended') or worker_id is null),
  -- The time over all attempts begins when the first may start.
  drop constraint job_has_a_deadline_of_some_length,
  add constraint job_has_a_deadline_of_some_length
    check ((deadline_at is not null) = (deadline_s is not null and state <> 'waiting')),
  -- Others wait for its end, which has to be told to them.
  add column has_dependents boolean not null default false;

-- Which job runs after which. A row is kept as long as the job that it belongs to, so that a retry asks again for what was
-- not met.
create table jobs.dependency (
  job_id uuid not null,
  after_id uuid not null,
  -- How the other has to end: in success, or at all.
  needs text not null check (needs in ('succeeded', 'ended')),
  -- It was asked for; the other is watched; the other has ended; what that means for this job has been done.
  state text not null check (state in ('asked', 'watched', 'ended', 'settled')),
  -- How the other ended; `gone` where that is not known any more.
  outcome text check (outcome in ('succeeded', 'failed', 'cancelled', 'expired', 'gone')),
  primary key (job_id, after_id),
  constraint dependency_has_an_outcome_when_ended check ((outcome is not null) = (state in ('ended', 'settled'))),
  constraint dependency_on_another check (job_id <> after_id)
);
create index dependency_asked on jobs.dependency (after_id) where state = 'asked';
create index dependency_watched on jobs.dependency (after_id, job_id) where state = 'watched';
create index dependency_ended on jobs.dependency (job_id) where state = 'ended';

-- A watched job that has ended, until all that run after it have been told: they may be many more than one transaction takes.
create table jobs.dependency_end (
  job_id uuid primary key,
  outcome text not null check (outcome in ('succeeded', 'failed', 'cancelled', 'expired'))
);
