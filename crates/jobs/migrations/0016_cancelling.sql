-- What is to be stopped, by who holds it: asked for again and again, and to be found without passing everything at work.
create index job_cancelling on jobs.job (worker_id) where state = 'cancelling' and worker_id is not null;
