-- Jobs that a job of a batch has added to it while it ran: crates/jobs/src/attempts/siblings.rs
--
-- How many there are: their places in the batch follow those that are given from outside, the first being 100,000.
alter table jobs.batch add column siblings integer not null default 0;

-- Which they are, so that a repeated attempt adds each once.
create table jobs.sibling (
  batch_id uuid not null references jobs.batch on delete cascade,
  added_by uuid not null,
  -- As the task has numbered it.
  number integer not null,
  job_id uuid not null,
  primary key (batch_id, added_by, number)
);
