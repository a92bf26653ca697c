//! The one statement by which jobs that are over leave the live table for the history.

use chrono::{DateTime, Utc};
use kit::Fail;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{finish::Fault, states::State};

/// The end of a live job.
#[derive(Debug)]
pub(super) struct Final<'a> {
    pub(super) id: Uuid,
    pub(super) state: State,
    pub(super) result: Option<&'a str>,
    pub(super) error: Option<&'a Fault>,
    /// The row in the history alone tells of the attempt that ends here: see `events.rs`.
    pub(super) stays: bool,
    /// For a job whose row nobody has locked and looked at: it ends only if this is the token of the attempt that holds it,
    /// and its end concerns nobody else: see `lone.rs`.
    pub(super) lone: Option<i64>,
}

/// A job that is in the history now.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) id: Uuid,
    pub(super) owner_id: Uuid,
    pub(super) task: String,
    pub(super) queue: String,
    pub(super) attempt: i32,
    /// Of the attempt that the row alone tells of.
    pub(super) token: Option<i64>,
    pub(super) lane: Option<String>,
    pub(super) traceparent: Option<String>,
}

/// Moves jobs and says which: all whose rows the caller holds, and of the others those that may be. Whoever gives some that it
/// does not hold gives them in the order of their ids, in a transaction of `straight.rs`: by its plans they are found one after
/// another, and so locked in that order.
///
/// # Errors
/// As the database.
pub(super) async fn into_history(
    conn: &mut PgConnection,
    finals: &[Final<'_>],
    now: DateTime<Utc>,
) -> Result<Vec<Moved>, Fail> {
    if finals.is_empty() {
        return Ok(Vec::new());
    }
    let error =
        |part: fn(&Fault) -> &str| -> Vec<Option<&str>> { finals.iter().map(|end| end.error.map(part)).collect() };
    let moved = sqlx::query_as!(
        Moved,
        "with gone as (
           delete from jobs.job
           using unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $8::boolean[], $9::bigint[])
             as final (id, state, result, kind, message, retryable, stays, lone)
           where job.id = final.id
             and (
               final.lone is null
               or job.token = final.lone and job.worker_id is not null and job.started_event is not null
                 and job.batch_id is null and job.child_batch_id is null and job.unique_key is null
                 and not job.has_dependents
                 and (
                   -- Seen once for all of them, where nobody writes any.
                   (select not exists (select from jobs.file where job_id is not null and state = 'writing'))
                   or not exists (
                     select from jobs.file where file.job_id = job.id and file.token = job.token and file.state = 'writing'
                   )
                 )
             )
           returning job.*, final.state as end_state, final.result, final.kind, final.message, final.retryable, final.stays
         )
         insert into jobs.job_history (id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts,
           attempt_timeout_s, backoff, worker_id, started_at, progress_percent, progress_stage, progress_message,
           error_kind, error_message, error_retryable, batch_id, ordinal, is_finalize, child_batch_id, cancel_asked_at,
           cancel_asked_by, cancel_reason, events, request_id, traceparent, tags, args, result, created_at, finished_at,
           queue_timeout_s, deadline_s, deadline_at, retry_on, concurrency_key, lane, unique_key,
           is_unique_for_all, unique_hold, token, attempt_started_at, started_event)
         select id, owner_id, task, queue, end_state, priority, run_at, attempt, max_attempts, attempt_timeout_s,
           backoff, worker_id, started_at, progress_percent, progress_stage, progress_message, kind, message, retryable,
           batch_id, ordinal, is_finalize, child_batch_id, cancel_asked_at, cancel_asked_by, cancel_reason, events + 1,
           request_id, traceparent, tags, args, result, created_at, $7, queue_timeout_s, deadline_s, deadline_at, retry_on,
           concurrency_key, lane, unique_key, is_unique_for_all, unique_hold, case when stays then token end,
           case when stays then attempt_started_at end, case when stays then started_event end
         from gone
         returning id, owner_id, task, queue, attempt, token, lane, traceparent",
        &finals.iter().map(|end| end.id).collect::<Vec<_>>(),
        &finals.iter().map(|end| end.state.as_str()).collect::<Vec<_>>() as &[&str],
        &finals.iter().map(|end| end.result).collect::<Vec<_>>() as &[Option<&str>],
        &error(|fault| &fault.kind) as &[Option<&str>],
        &error(|fault| &fault.message) as &[Option<&str>],
        &finals.iter().map(|end| end.error.map(|fault| fault.is_retryable)).collect::<Vec<_>>() as &[Option<bool>],
        now,
        &finals.iter().map(|end| end.stays).collect::<Vec<_>>(),
        &finals.iter().map(|end| end.lone).collect::<Vec<_>>() as &[Option<i64>],
    )
    .fetch_all(conn)
    .await?;
    Ok(moved)
}
