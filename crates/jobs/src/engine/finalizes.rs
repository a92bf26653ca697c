//! The finalizes of a batch, one after the other: a batch that is retried is finalized again, and what the earlier ones
//! found and came to is kept.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kit::{Fail, clock::to_timestamp};
use proto::jobs::{BatchCounts, BatchFinalize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{batch_row::BatchRow, states::State};

/// Finalizes of one batch that are shown, the newest.
const SHOWN_MAX: i64 = 20;

/// What begins, or ends where it begins because the policy was not met.
#[derive(Debug)]
pub(super) struct Round {
    batch: Uuid,
    job: Option<Uuid>,
    reason: Option<String>,
    total: i32,
    succeeded: i32,
    failed: i32,
    cancelled: i32,
    expired: i32,
}

impl Round {
    /// Of a complete batch, whose row names the finalize or says why there is none.
    pub(super) fn of(row: &BatchRow) -> Self {
        Self {
            batch: row.id,
            job: row.finalize_job_id,
            reason: row.finalize_skipped.clone(),
            total: row.total,
            succeeded: row.succeeded,
            failed: row.failed,
            cancelled: row.cancelled,
            expired: row.expired,
        }
    }
}

/// Writes down what begins. The batches' rows are locked, so that the rounds of each have no gap.
pub(super) async fn begin(conn: &mut PgConnection, rounds: &[Round], now: DateTime<Utc>) -> Result<(), Fail> {
    if rounds.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into jobs.batch_finalize (batch_id, round, job_id, state, reason, total, succeeded, failed, cancelled, expired,
           started_at, finished_at)
         select batch_id, coalesce((select max(round) from jobs.batch_finalize as past where past.batch_id = new.batch_id), 0) + 1,
           job_id, case when job_id is null then 'skipped' else 'running' end, reason, total, succeeded, failed, cancelled,
           expired, $9, case when job_id is null then $9::timestamptz end
         from unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
           $8::integer[]) as new (batch_id, job_id, reason, total, succeeded, failed, cancelled, expired)",
        &rounds.iter().map(|round| round.batch).collect::<Vec<_>>(),
        &rounds.iter().map(|round| round.job).collect::<Vec<_>>() as &[Option<Uuid>],
        &rounds.iter().map(|round| round.reason.clone()).collect::<Vec<_>>() as &[Option<String>],
        &rounds.iter().map(|round| round.total).collect::<Vec<_>>(),
        &rounds.iter().map(|round| round.succeeded).collect::<Vec<_>>(),
        &rounds.iter().map(|round| round.failed).collect::<Vec<_>>(),
        &rounds.iter().map(|round| round.cancelled).collect::<Vec<_>>(),
        &rounds.iter().map(|round| round.expired).collect::<Vec<_>>(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down what the finalizes of batches, each by its id, have come to.
pub(super) async fn end(
    conn: &mut PgConnection,
    ended: &[(Uuid, Uuid, State)],
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    if ended.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "update jobs.batch_finalize
         set state = ended.state, finished_at = $4
         from unnest($1::uuid[], $2::uuid[], $3::text[]) as ended (batch_id, job_id, state)
         where batch_finalize.batch_id = ended.batch_id and batch_finalize.job_id = ended.job_id",
        &ended.iter().map(|(batch, ..)| *batch).collect::<Vec<_>>(),
        &ended.iter().map(|(_, job, _)| *job).collect::<Vec<_>>(),
        &ended.iter().map(|(.., state)| state.as_str().to_owned()).collect::<Vec<_>>(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A finalize that had ended runs again: it is the same round.
pub(super) async fn go_on(conn: &mut PgConnection, batch: Uuid, job: Uuid) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.batch_finalize set state = 'running', finished_at = null where batch_id = $1 and job_id = $2",
        batch,
        job,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The newest finalizes of each of these batches, oldest first.
///
/// # Errors
/// As the database.
pub(crate) async fn list(pool: &PgPool, batches: &[Uuid]) -> Result<HashMap<Uuid, Vec<BatchFinalize>>, Fail> {
    let rows = sqlx::query!(
        r#"select batch_id as "batch_id!", round as "round!", job_id as "job_id?", state as "state!", reason as "reason?",
             total as "total!", succeeded as "succeeded!", failed as "failed!", cancelled as "cancelled!",
             expired as "expired!", started_at as "started_at!", finished_at as "finished_at?"
           from unnest($1::uuid[]) as asked (id)
           cross join lateral (
             select * from jobs.batch_finalize
             where batch_id = asked.id
             order by round desc
             limit $2
           ) as newest
           order by batch_id, round"#,
        batches,
        SHOWN_MAX,
    )
    .fetch_all(pool)
    .await?;
    let mut found: HashMap<Uuid, Vec<BatchFinalize>> = HashMap::new();
    for row in rows {
        found.entry(row.batch_id).or_default().push(BatchFinalize {
            round: row.round.unsigned_abs(),
            job_id: row.job_id.map(|id| id.to_string()).unwrap_or_default(),
            state: row.state,
            reason: row.reason.unwrap_or_default(),
            counts: Some(BatchCounts {
                total: row.total.unsigned_abs(),
                succeeded: row.succeeded.unsigned_abs(),
                failed: row.failed.unsigned_abs(),
                cancelled: row.cancelled.unsigned_abs(),
                expired: row.expired.unsigned_abs(),
            }),
            started_at: Some(to_timestamp(row.started_at)),
            finished_at: row.finished_at.map(to_timestamp),
        });
    }
    Ok(found)
}
