//! The row of a batch: its lock, its counters, and what its stream is told of it.

use chrono::{DateTime, Utc};
use kit::Fail;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{fan_in::BatchChange, policy::Policy, states::State};

/// A batch, its row locked.
#[derive(Debug)]
pub(super) struct BatchRow {
    pub(super) id: Uuid,
    pub(super) owner_id: Uuid,
    pub(super) state: String,
    pub(super) parent_job_id: Option<Uuid>,
    pub(super) total: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) cancelled: i32,
    pub(super) expired: i32,
    pub(super) finalize_task: Option<String>,
    pub(super) finalize_args: Option<String>,
    pub(super) finalize_job_id: Option<Uuid>,
    pub(super) cancel_asked_at: Option<DateTime<Utc>>,
    pub(super) cancel_asked_by: Option<Uuid>,
    pub(super) cancel_reason: Option<String>,
    pub(super) finished_at: Option<DateTime<Utc>>,
    pub(super) policy: String,
    pub(super) at_least: Option<i32>,
    /// Why the policy let no finalize start.
    pub(super) finalize_skipped: Option<String>,
    /// The states of jobs that are being queued again, and the ordinal up to which they have been.
    pub(super) retry_states: Option<Vec<String>>,
    pub(super) retry_after: Option<i32>,
}

impl BatchRow {
    pub(super) const STATES: [&str; 5] = ["open", "running", "finalizing", "finished", "cancelled"];

    /// Whether no more comes: all jobs have ended, and none of them is about to be queued again.
    pub(super) fn is_complete(&self) -> bool {
        self.succeeded + self.failed + self.cancelled + self.expired == self.total && self.retry_states.is_none()
    }

    pub(super) fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }

    /// Takes in what is asked of a batch that is not over.
    pub(super) fn apply(&mut self, change: &BatchChange, now: DateTime<Utc>) {
        self.succeeded += change.succeeded;
        self.failed += change.failed;
        self.cancelled += change.cancelled;
        self.expired += change.expired;
        if let (Some((by, reason)), None) = (&change.cancel, self.cancel_asked_at) {
            self.cancel_asked_at = Some(now);
            self.cancel_asked_by = *by;
            self.cancel_reason.clone_from(reason);
            // What was still to be queued again is not.
            (self.retry_states, self.retry_after) = (None, None);
        }
        if change.close && self.state == "open" {
            "running".clone_into(&mut self.state);
        }
    }

    /// A job that was counted as ended in this state is live again.
    pub(super) fn uncount(&mut self, was: State) {
        self.failed -= i32::from(was == State::Failed);
        self.cancelled -= i32::from(was == State::Cancelled);
        self.expired -= i32::from(was == State::Expired);
    }

    /// Where it is over, it runs again, and will be finalized anew.
    pub(super) fn open_again(&mut self) {
        if self.is_over() {
            "running".clone_into(&mut self.state);
            (self.finished_at, self.finalize_job_id, self.finalize_skipped) = (None, None, None);
            (self.cancel_asked_at, self.cancel_asked_by, self.cancel_reason) = (None, None, None);
        }
    }

    /// Why it is not finalized, now that it is complete.
    pub(super) fn unmet(&self) -> Result<Option<String>, Fail> {
        Ok(Policy::read(&self.policy, self.at_least)?.unmet(self.succeeded, self.total))
    }

    /// `batch {batch_id, state, counts, finalize_skipped?}`
    pub(super) fn to_event(&self) -> String {
        let mut event = json!({
            "batch_id": self.id,
            "state": self.state,
            "counts": {
                "total": self.total,
                "succeeded": self.succeeded,
                "failed": self.failed,
                "cancelled": self.cancelled,
                "expired": self.expired,
            },
        });
        if let (Some(reason), Some(event)) = (&self.finalize_skipped, event.as_object_mut()) {
            event.insert("finalize_skipped".to_owned(), reason.as_str().into());
        }
        event.to_string()
    }
}

/// Locks batches in the order of their ids.
pub(super) async fn lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<BatchRow>, Fail> {
    Ok(sqlx::query_as!(
        BatchRow,
        "select id, owner_id, state, parent_job_id, total, succeeded, failed, cancelled, expired, finalize_task,
           finalize_args, finalize_job_id, cancel_asked_at, cancel_asked_by, cancel_reason, finished_at,
           policy, at_least, finalize_skipped, retry_states, retry_after
         from jobs.batch
         where id = any($1)
         order by id
         for update",
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// Writes locked rows as they are to be.
pub(super) async fn write(conn: &mut PgConnection, rows: &[BatchRow]) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.batch
         set state = new.state, succeeded = new.succeeded, failed = new.failed, cancelled = new.cancelled,
           expired = new.expired, finalize_job_id = new.finalize_job_id, cancel_asked_at = new.cancel_asked_at,
           cancel_asked_by = new.cancel_asked_by, cancel_reason = new.cancel_reason, finished_at = new.finished_at,
           finalize_skipped = new.finalize_skipped, retry_states = string_to_array(new.retry_states, ','),
           retry_after = new.retry_after
         from unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::uuid[], $7::timestamptz[],
           $8::uuid[], $9::text[], $10::timestamptz[], $11::integer[], $12::text[], $13::text[], $14::integer[])
           as new (id, state, succeeded, failed, cancelled, finalize_job_id, cancel_asked_at, cancel_asked_by,
             cancel_reason, finished_at, expired, finalize_skipped, retry_states, retry_after)
         where batch.id = new.id",
        &rows.iter().map(|row| row.id).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.state.clone()).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.succeeded).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.failed).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.cancelled).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.finalize_job_id).collect::<Vec<_>>() as &[Option<Uuid>],
        &rows.iter().map(|row| row.cancel_asked_at).collect::<Vec<_>>() as &[Option<DateTime<Utc>>],
        &rows.iter().map(|row| row.cancel_asked_by).collect::<Vec<_>>() as &[Option<Uuid>],
        &rows.iter().map(|row| row.cancel_reason.clone()).collect::<Vec<_>>() as &[Option<String>],
        &rows.iter().map(|row| row.finished_at).collect::<Vec<_>>() as &[Option<DateTime<Utc>>],
        &rows.iter().map(|row| row.expired).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.finalize_skipped.clone()).collect::<Vec<_>>() as &[Option<String>],
        // An array of arrays would have to be rectangular.
        &rows.iter().map(|row| Some(row.retry_states.as_ref()?.join(","))).collect::<Vec<_>>() as &[Option<String>],
        &rows.iter().map(|row| row.retry_after).collect::<Vec<_>>() as &[Option<i32>],
    )
    .execute(conn)
    .await?;
    Ok(())
}
