//! Plain SQL over Guildhall's own tables: what Postgres takes for the rows of a drain, when nobody does anything but write
//! them. Two connections claim in groups with `skip locked`, tell it in the outbox, and commit; then they move what they
//! claimed into the history, tell that, and commit. No worker is asked, nothing runs, nobody hears of it, and a crash
//! between the two loses the claim. How far it is from plain SQL on a narrow table tells what the rows cost, whoever writes them.

use std::time::Instant;

use futures::future::try_join;
use prost::Message as _;
use proto::events::JobChanged;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::raw_sql::{CLAIM, STRAIGHT};
use crate::{Fault, proof::count};

/// A job's id, owner, task, queue, attempt and arguments.
type Claimed = (Uuid, Uuid, String, String, i32, String);

/// Works off the `jobs` that wait in the tables of a house which is closed; jobs a second.
///
/// # Errors
/// As the database, or when not every job came to its end.
pub(crate) async fn measure(url: &str, jobs: u32) -> Result<f64, Fault> {
    let (mut one, mut other) = (PgConnection::connect(url).await?, PgConnection::connect(url).await?);
    let started = Instant::now();
    try_join(work(&mut one), work(&mut other)).await?;
    let rate = f64::from(jobs) / started.elapsed().as_secs_f64();
    let finished = count(&mut one, "select count(*) from jobs.job_history where state = 'succeeded'").await?;
    if finished != i64::from(jobs) {
        return Err(format!("plain SQL has finished {finished} of the house's {jobs} jobs").into());
    }
    one.close().await?;
    other.close().await?;
    Ok(rate)
}

async fn work(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let worker = Uuid::from_u128(1);
    sqlx::raw_sql(STRAIGHT).execute(&mut *connection).await?;
    loop {
        let mut transaction = connection.begin().await?;
        let claimed: Vec<Claimed> = sqlx::query_as(
            "with next as (
               select ctid as place from jobs.job
               where state = 'queued' and lane is null and queue = 'default'
               order by rank
               limit $1
               for update skip locked
             )
             update jobs.job
             set state = 'running', attempt = attempt + 1, token = nextval('jobs.attempt_token'), worker_id = $2,
               attempt_started_at = now(), started_at = now(), since = now(), events = events + 1,
               started_event = events + 1
             from next
             where job.ctid = next.place
             returning job.id, owner_id, task, queue, attempt, args",
        )
        .bind(CLAIM)
        .bind(worker)
        .fetch_all(&mut *transaction)
        .await?;
        if claimed.is_empty() {
            return transaction.rollback().await;
        }
        tell(&mut transaction, "jobs.job.started", "running", &claimed).await?;
        transaction.commit().await?;

        let (ids, results): (Vec<Uuid>, Vec<&str>) = claimed.iter().map(|job| (job.0, job.5.as_str())).unzip();
        let mut transaction = connection.begin().await?;
        sqlx::query(
            "with gone as (
               delete from jobs.job
               using unnest($1::uuid[], $2::text[]) as final (id, result)
               where job.id = final.id
               returning job.*, final.result
             )
             insert into jobs.job_history (id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts,
               attempt_timeout_s, backoff, worker_id, started_at, batch_id, ordinal, is_finalize, events, request_id,
               traceparent, tags, args, result, created_at, finished_at, queue_timeout_s, deadline_s, deadline_at, retry_on,
               concurrency_key, lane, unique_key, is_unique_for_all, unique_hold, token, attempt_started_at, started_event)
             select id, owner_id, task, queue, 'succeeded', priority, run_at, attempt, max_attempts, attempt_timeout_s,
               backoff, worker_id, started_at, batch_id, ordinal, is_finalize, events + 1, request_id, traceparent, tags,
               args, result, created_at, now(), queue_timeout_s, deadline_s, deadline_at, retry_on, concurrency_key, lane,
               unique_key, is_unique_for_all, unique_hold, token, attempt_started_at, started_event
             from gone",
        )
        .bind(&ids)
        .bind(results)
        .execute(&mut *transaction)
        .await?;
        tell(&mut transaction, "jobs.job.succeeded", "succeeded", &claimed).await?;
        transaction.commit().await?;
    }
}

/// A row of the outbox with what the engine tells of these jobs, and the ids of as many events.
async fn tell(connection: &mut PgConnection, kind: &str, state: &str, jobs: &[Claimed]) -> Result<(), sqlx::Error> {
    let (clock, mut data) = (kit::Clock::system(), Vec::new());
    for (id, owner, task, queue, attempt, _) in jobs {
        let told = JobChanged {
            job_id: id.to_string(),
            owner_id: owner.to_string(),
            task: task.clone(),
            queue: queue.clone(),
            state: state.to_owned(),
            attempt: attempt.unsigned_abs(),
            ..JobChanged::default()
        };
        data.extend_from_slice(clock.new_id().as_bytes());
        data.extend_from_slice(told.job_id.as_bytes());
        data.extend(told.encode_to_vec());
    }
    sqlx::query("insert into jobs.outbox (type, events, data, at) values ($1, $2, $3, now())")
        .bind(kind)
        .bind(i32::try_from(jobs.len()).unwrap_or(i32::MAX))
        .bind(data)
        .execute(connection)
        .await?;
    Ok(())
}
