//! Fan-in: a batch's counters move in the transaction that ends its jobs; the one that completes them starts the
//! finalize, and the end of the finalize ends the batch and sets its parent free. All under the lock of the batch's row,
//! so it happens exactly once, whatever happens to the children.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use kit::{Fail, crash_point, outbox};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Ground,
    batch_row::{self, BatchRow},
    dependencies::After,
    events::Telling,
    finalizes::{self, Round},
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
    pub(crate) result: Option<Arc<str>>,
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

/// A batch that is over, and what that is to its parent.
#[derive(Debug)]
struct Over {
    batch: Uuid,
    parent: Uuid,
    is_cancelled: bool,
    finalized: Option<Finalized>,
    /// Why it was not finalized.
    unmet: Option<String>,
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
    let mut rows = batch_row::lock(conn, &ids.into_iter().collect::<Vec<_>>()).await?;
    // What is over stays as it is, whatever ends beside it; a retry opens it again first.
    rows.retain(|row| changes.contains_key(&row.id) && !row.is_over());
    let mut jobs = Vec::new();
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    let mut over = Vec::new();
    for row in &mut rows {
        let Some(change) = changes.get(&row.id) else { continue };
        let before = row.to_event();
        row.apply(change, now);
        settled.has_cancels |= row.cancel_asked_at.is_some();
        let finalized = change.finalized.as_ref().filter(|finalized| row.finalize_job_id == Some(finalized.id));
        let mut is_over = row.state == "finalizing" && finalized.is_some();
        if let (true, Some(finalized)) = (is_over, finalized) {
            ended.push((row.id, finalized.id, finalized.state));
        }
        if row.state == "running" && row.is_complete() {
            row.finalize_skipped = row.unmet()?;
            match &row.finalize_task {
                Some(task) if row.finalize_skipped.is_none() => {
                    let id = ground.clock.new_id();
                    let (request_id, traceparent) = change.request.clone().unwrap_or_default();
                    jobs.push(NewJob {
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
                        after: After::default(),
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
                Some(_) | None => is_over = true,
            }
            if row.finalize_task.is_some() {
                begun.push(Round::of(row));
            }
        }
        if is_over {
            let is_cancelled = row.cancel_asked_at.is_some();
            if is_cancelled { "cancelled" } else { "finished" }.clone_into(&mut row.state);
            row.finished_at = Some(now);
            let traceparent = change.request.as_ref().and_then(|(_, traceparent)| traceparent.clone());
            word.push(finished_event(row).with_traceparent(traceparent));
            if let Some(parent) = row.parent_job_id {
                over.push(Over {
                    batch: row.id,
                    parent,
                    is_cancelled,
                    finalized: finalized.cloned(),
                    unmet: row.finalize_skipped.clone(),
                });
            }
        }
        let event = row.to_event();
        if event != before {
            telling.batch(row.id, event);
        }
    }
    batch_row::write(conn, &rows).await?;
    finalizes::begin(conn, &begun, now).await?;
    finalizes::end(conn, &ended, now).await?;
    if !jobs.is_empty() {
        crash_point("last-child-not-finalized");
        name_queues(conn, &mut jobs).await?;
        submit::insert(conn, &ground.clock, &jobs, now, telling).await?;
        settled.has_work = true;
    }
    settled.parents = free_parents(conn, &over, &rows).await?;
    Ok(settled)
}

/// The parents of batches that are over, each with what the batch came to.
async fn free_parents(conn: &mut PgConnection, over: &[Over], batches: &[BatchRow]) -> Result<Vec<Step>, Fail> {
    if over.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = over.iter().map(|over| over.parent).collect();
    let mut parents: HashMap<Uuid, Row> = steps::lock(conn, &ids).await?.into_iter().map(|row| (row.id, row)).collect();
    let mut steps = Vec::new();
    for Over { batch, parent, is_cancelled, finalized, unmet } in over {
        // A parent that has ended already, or runs a new attempt, is not this batch's to end.
        let is_waiting = parents.get(parent).is_some_and(|row| {
            row.child_batch_id == Some(*batch)
                && row.worker_id.is_none()
                && matches!(row.state.as_str(), "suspended" | "cancelling")
        });
        let Some(row) = parents.remove(parent).filter(|_| is_waiting) else { continue };
        let counts = batches.iter().find(|row| row.id == *batch).map(|row| row.to_event().into());
        let result = finalized.as_ref().map_or(counts, |finalized| finalized.result.clone());
        let step = match (finalized, unmet) {
            _ if *is_cancelled || row.state == "cancelling" => Step { result, ..Step::stopped(row) },
            (Some(Finalized { state: State::Failed | State::Cancelled | State::Expired, error, .. }), _) => {
                Step { error: error.clone(), ..Step::to(row, State::Failed) }
            }
            (None, Some(reason)) => {
                let message = format!("Its child batch was not finalized: {reason}");
                let error = Some(Fault::new("batch_policy", message, false));
                Step { error, ..Step::to(row, State::Failed) }
            }
            _ => Step { result, ..Step::to(row, State::Succeeded) },
        };
        steps.push(step);
    }
    Ok(steps)
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
