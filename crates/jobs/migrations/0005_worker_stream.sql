-- The stream over which a worker is there now: what an earlier one still says or claims does not count.
alter table jobs.worker add column stream uuid;
