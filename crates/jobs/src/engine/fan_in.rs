//! Fan-in: a batch's counters move in the transaction that ends its jobs; the one that completes them starts the
//! finalize, and the end of the finalize ends the batch and sets its parent free. All under the lock of the batch's row,
//! so it happens exactly once, whatever happens to the children.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use kit::{Fail, crash_point, outbox};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Ground,
    events::Telling,
    finish::Fault,
    retries::RetryOn,
    states::State,
    steps::{self, Row, Step},
    submit::{self, NewJob, Place},
};

/// What a transaction does to one batch.
#[derive(Debug, Default)]
pub(crate) struct BatchChange {
    pub(crate) succeeded: i32,
    pub(crate) failed: i32,
    pub(crate) cancelled: i32,
    pub(crate) expired: i32,
    /// No more jobs are added.
    pub(crate) close: bool,
    /// It is to be cancelled: by whom and why.
    pub(crate) cancel: Option<(Option<Uuid>, Option<String>)>,
    /// Its finalize has ended.
    pub(crate) finalized: Option<Finalized>,
    /// The request that led here, for the finalize to belong to.
    pub(crate) request: Option<(String, Option<String>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Finalized {
    /// Ends the batch only if this is the finalize that the batch names.
    pub(crate) id: Uuid,
    pub(crate) state: State,
    pub(crate) result: Option<String>,
    pub(crate) error: Option<Fault>,
}

/// What settling leaves to be done.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Parents whose child batch is over, with their next state.
    pub(crate) parents: Vec<Step>,
    pub(crate) has_work: bool,
    pub(crate) has_cancels: bool,
}

/// A batch, its row locked.
#[derive(Debug)]
struct BatchRow {
    id: Uuid,
    owner_id: Uuid,
    state: String,
    parent_job_id: Option<Uuid>,
    total: i32,
    succeeded: i32,
    failed: i32,
    cancelled: i32,
    expired: i32,
    finalize_task: Option<String>,
    finalize_args: Option<String>,
    finalize_job_id: Option<Uuid>,
    cancel_asked_at: Option<DateTime<Utc>>,
    cancel_asked_by: Option<Uuid>,
    cancel_reason: Option<String>,
    finished_at: Option<DateTime<Utc>>,
}

impl BatchRow {
    fn is_complete(&self) -> bool {
        self.succeeded + self.failed + self.cancelled + self.expired == self.total
    }

    fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }

    /// Takes in what is asked of a batch that is not over.
    fn apply(&mut self, change: &BatchChange, now: DateTime<Utc>) {
        self.succeeded += change.succeeded;
        self.failed += change.failed;
        self.cancelled += change.cancelled;
        self.expired += change.expired;
        if let (Some((by, reason)), None) = (&change.cancel, self.cancel_asked_at) {
            self.cancel_asked_at = Some(now);
            self.cancel_asked_by = *by;
            self.cancel_reason.clone_from(reason);
        }
        if change.close && self.state == "open" {
            "running".clone_into(&mut self.state);
        }
    }

    /// `batch {batch_id, state, counts}`
    fn to_event(&self) -> String {
        json!({
            "batch_id": self.id,
            "state": self.state,
            "counts": {
                "total": self.total,
                "succeeded": self.succeeded,
                "failed": self.failed,
                "cancelled": self.cancelled,
                "expired": self.expired,
            },
        })
        .to_string()
    }
}

/// Applies changes to batches and finds what follows. Also locks the batches that are to be told of jobs, since a lock
/// that is taken later would be out of order.
pub(crate) async fn settle(
    ground: &Ground,
    conn: &mut PgConnection,
    changes: BTreeMap<Uuid, BatchChange>,
    now: DateTime<Utc>,
    telling: &mut Telling,
    word: &mut Vec<outbox::Event>,
) -> Result<Settled, Fail> {
    let mut settled = Settled::default();
    if changes.is_empty() {
        return Ok(settled);
    }
    let ids: BTreeSet<Uuid> = changes.keys().copied().chain(telling.batches()).collect();
    let mut rows = lock(conn, &ids.into_iter().collect::<Vec<_>>()).await?;
    // What is over stays as it is, whatever ends beside it; a retry opens it again first.
    rows.retain(|row| changes.contains_key(&row.id) && !row.is_over());
    let mut finalizes = Vec::new();
    let mut over: Vec<(Uuid, Uuid, bool, Option<Finalized>)> = Vec::new();
    for row in &mut rows {
        let Some(change) = changes.get(&row.id) else { continue };
        let before = row.to_event();
        row.apply(change, now);
        settled.has_cancels |= row.cancel_asked_at.is_some();
        let finalized = change.finalized.as_ref().filter(|finalized| row.finalize_job_id == Some(finalized.id));
        let mut is_over = row.state == "finalizing" && finalized.is_some();
        if row.state == "running" && row.is_complete() {
            match &row.finalize_task {
                Some(task) => {
                    let id = ground.clock.new_id();
                    let (request_id, traceparent) = change.request.clone().unwrap_or_default();
                    finalizes.push(NewJob {
                        id,
                        owner_id: row.owner_id,
                        task: task.clone(),
                        queue: String::new(),
                        priority: 50,
                        run_at: None,
                        max_attempts: 3,
                        queue_timeout_s: None,
                        concurrency_key: None,
                        deadline_s: None,
                        retry_on: RetryOn::default(),
                        unique: None,
                        attempt_timeout_s: ground.settings.attempt_timeout_s,
                        backoff: None,
                        tags: Vec::new(),
                        args: row.finalize_args.clone().unwrap_or_else(|| "{}".to_owned()),
                        place: Place::Finalize { batch: row.id },
                        request_id,
                        traceparent,
                    });
                    row.finalize_job_id = Some(id);
                    "finalizing".clone_into(&mut row.state);
                }
                None => is_over = true,
            }
        }
        if is_over {
            let is_cancelled = row.cancel_asked_at.is_some();
            if is_cancelled { "cancelled" } else { "finished" }.clone_into(&mut row.state);
            row.finished_at = Some(now);
            let traceparent = change.request.as_ref().and_then(|(_, traceparent)| traceparent.clone());
            word.push(finished_event(row).with_traceparent(traceparent));
            if let Some(parent) = row.parent_job_id {
                over.push((row.id, parent, is_cancelled, finalized.cloned()));
            }
        }
        let event = row.to_event();
        if event != before {
            telling.batch(row.id, event);
        }
    }
    write(conn, &rows).await?;
    if !finalizes.is_empty() {
        crash_point("last-child-not-finalized");
        name_queues(conn, &mut finalizes).await?;
        submit::insert(conn, &ground.clock, &finalizes, now, telling).await?;
        settled.has_work = true;
    }
    settled.parents = free_parents(conn, &over, &rows).await?;
    Ok(settled)
}

/// Counts an ended job of a batch as live again. A batch that was over is opened: with a job of its own it runs, and will
/// finalize again; with its finalize it finalizes.
///
/// # Errors
/// `jobs.batch_finalizing` while the finalize is at work; `jobs.finalize_superseded` for a finalize that a new one
/// follows.
pub(crate) async fn reopen(
    conn: &mut PgConnection,
    batch: Uuid,
    job: Uuid,
    was: State,
    is_finalize: bool,
    telling: &mut Telling,
) -> Result<(), Fail> {
    let Some(mut row) = lock(conn, &[batch]).await?.pop() else {
        return Err(Fail::internal(format!("the batch {batch} of the job {job} is not there")));
    };
    if row.state == "finalizing" {
        return Err(Fail::conflict("jobs.batch_finalizing", "Its batch is being finalized; retry it after that."));
    }
    if is_finalize {
        if !row.is_over() || row.finalize_job_id != Some(job) {
            return Err(Fail::conflict(
                "jobs.finalize_superseded",
                "Its batch was opened again since, and will be finalized anew.",
            ));
        }
        "finalizing".clone_into(&mut row.state);
    } else {
        row.failed -= i32::from(was == State::Failed);
        row.cancelled -= i32::from(was == State::Cancelled);
        row.expired -= i32::from(was == State::Expired);
        if row.is_over() {
            "running".clone_into(&mut row.state);
            row.finalize_job_id = None;
        }
    }
    if row.is_over() {
        (row.finished_at, row.cancel_asked_at, row.cancel_asked_by, row.cancel_reason) = (None, None, None, None);
    }
    telling.batch(batch, row.to_event());
    write(conn, &[row]).await
}

/// The parents of batches that are over, each with what the batch came to.
async fn free_parents(
    conn: &mut PgConnection,
    over: &[(Uuid, Uuid, bool, Option<Finalized>)],
    batches: &[BatchRow],
) -> Result<Vec<Step>, Fail> {
    if over.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = over.iter().map(|(_, parent, ..)| *parent).collect();
    let mut parents: HashMap<Uuid, Row> = steps::lock(conn, &ids).await?.into_iter().map(|row| (row.id, row)).collect();
    let mut steps = Vec::new();
    for (batch, parent, is_cancelled, finalized) in over {
        // A parent that has ended already, or runs a new attempt, is not this batch's to end.
        let is_waiting = parents.get(parent).is_some_and(|row| {
            row.child_batch_id == Some(*batch)
                && row.worker_id.is_none()
                && matches!(row.state.as_str(), "suspended" | "cancelling")
        });
        let Some(row) = parents.remove(parent).filter(|_| is_waiting) else { continue };
        let counts = batches.iter().find(|row| row.id == *batch).map(BatchRow::to_event);
        let result = finalized.as_ref().map_or(counts, |finalized| finalized.result.clone());
        let step = match finalized {
            _ if *is_cancelled || row.state == "cancelling" => Step { result, ..Step::stopped(row) },
            Some(Finalized { state: State::Failed | State::Cancelled | State::Expired, error, .. }) => {
                Step { error: error.clone(), ..Step::to(row, State::Failed) }
            }
            _ => Step { result, ..Step::to(row, State::Succeeded) },
        };
        steps.push(step);
    }
    Ok(steps)
}

async fn lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<BatchRow>, Fail> {
    Ok(sqlx::query_as!(
        BatchRow,
        "select id, owner_id, state, parent_job_id, total, succeeded, failed, cancelled, expired, finalize_task,
           finalize_args, finalize_job_id, cancel_asked_at, cancel_asked_by, cancel_reason, finished_at
         from jobs.batch
         where id = any($1)
         order by id
         for update",
        ids,
    )
    .fetch_all(conn)
    .await?)
}

async fn write(conn: &mut PgConnection, rows: &[BatchRow]) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.batch
         set state = new.state, succeeded = new.succeeded, failed = new.failed, cancelled = new.cancelled,
           expired = new.expired, finalize_job_id = new.finalize_job_id, cancel_asked_at = new.cancel_asked_at,
           cancel_asked_by = new.cancel_asked_by, cancel_reason = new.cancel_reason, finished_at = new.finished_at
         from unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::uuid[], $7::timestamptz[],
           $8::uuid[], $9::text[], $10::timestamptz[], $11::integer[])
           as new (id, state, succeeded, failed, cancelled, finalize_job_id, cancel_asked_at, cancel_asked_by,
             cancel_reason, finished_at, expired)
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
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A finalize goes to the queue of its task.
async fn name_queues(conn: &mut PgConnection, finalizes: &mut [NewJob]) -> Result<(), Fail> {
    let names: Vec<String> = finalizes.iter().map(|job| job.task.clone()).collect();
    let queues: HashMap<String, String> =
        sqlx::query!("select name, queue from jobs.task where name = any($1)", &names)
            .fetch_all(conn)
            .await?
            .into_iter()
            .map(|row| (row.name, row.queue))
            .collect();
    for job in finalizes {
        job.queue = queues.get(&job.task).cloned().unwrap_or_else(|| "default".to_owned());
    }
    Ok(())
}

fn finished_event(row: &BatchRow) -> outbox::Event {
    let count = |number: i32| u32::try_from(number).unwrap_or_default();
    outbox::Event::new(
        "jobs.batch.finished",
        row.id,
        &proto::events::BatchFinished {
            batch_id: row.id.to_string(),
            owner_id: row.owner_id.to_string(),
            succeeded: count(row.succeeded),
            failed: count(row.failed),
            cancelled: count(row.cancelled),
            expired: count(row.expired),
        },
    )
}
