//! Ending attempts: which outcomes count, and what each makes of its job. What follows is carried out by `steps.rs`, in the
//! same transaction. Successes that concern nobody but their own job have been taken out before, by `lone.rs`.
//!
//! An outcome counts only with the fencing token of the attempt that holds the job now. Everything else is refused and
//! changes nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use kit::{Fail, telemetry::span::Shared};
use proto::worker::WrittenFile;
use sqlx::{PgConnection, Postgres, Transaction};
use tracing::info;
use uuid::Uuid;

use super::{
    Ground,
    events::Telling,
    fan_in::BatchChange,
    leader::Lead,
    retries,
    states::State,
    steps::{self, Ended, Row, Step},
    straight,
};
use crate::files;

/// What went wrong with an attempt or a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) is_retryable: bool,
}

impl Fault {
    pub(crate) fn new(kind: &str, message: impl Into<String>, is_retryable: bool) -> Self {
        Self { kind: kind.to_owned(), message: message.into(), is_retryable }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Succeeded {
        /// JSON. Shared, as a group's outcomes are kept until the group is written.
        result: Arc<str>,
        files: Vec<WrittenFile>,
    },
    /// It failed; the delay that the task asks for before the next attempt.
    Failed(Fault, Option<Duration>),
    /// It asks for another attempt after this long, which does not count.
    Snoozed(Duration),
    /// It found that there is nothing to be done, and why.
    Cancelled(String),
    /// It obeyed a stop.
    Stopped,
    /// It waits for its child batch.
    Suspended { batch: Uuid },
    /// It was given back unharmed, which does not count as an attempt.
    Interrupted,
    /// Its worker's lease is over. Counts only if that is still so when it is written.
    LeaseOver,
}

impl End {
    const fn is_lease_over(&self) -> bool {
        matches!(self, Self::LeaseOver)
    }
}

/// One attempt's end, as its worker or a sweep tells it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) job: Uuid,
    pub(crate) token: i64,
    pub(crate) end: End,
}

/// Ends attempts; answers for each whether it was accepted.
///
/// # Errors
/// As the database; nothing is done then.
pub(crate) async fn finish(ground: &Ground, outcomes: Vec<Outcome>) -> Result<Vec<bool>, Fail> {
    let shared = Shared::begin();
    let mut held = ground.kept.take(&ground.pool).await?;
    let transaction = straight::begin(&mut held.connection).await?;
    let accepted = finish_in(ground, transaction, shared, outcomes).await?;
    ground.kept.keep(held, &ground.pool);
    Ok(accepted)
}

/// Ends attempts that the leader has found to be over.
///
/// # Errors
/// `jobs.not_leading`; as the database; nothing is done then.
pub(super) async fn finish_led(ground: &Ground, lead: Lead, outcomes: Vec<Outcome>) -> Result<Vec<bool>, Fail> {
    let shared = Shared::begin();
    let transaction = lead.begin(&ground.pool).await?;
    finish_in(ground, transaction, shared, outcomes).await
}

async fn finish_in(
    ground: &Ground,
    mut transaction: Transaction<'_, Postgres>,
    shared: Shared,
    outcomes: Vec<Outcome>,
) -> Result<Vec<bool>, Fail> {
    let now = ground.clock.now();
    let ids: Vec<Uuid> = outcomes.iter().map(|outcome| outcome.job).collect();
    let mut rows: HashMap<Uuid, Row> =
        steps::lock(&mut transaction, &ids).await?.into_iter().map(|row| (row.id, row)).collect();
    let alive = alive_workers(&mut transaction, &outcomes, &rows, now).await?;

    let mut accepted = Vec::with_capacity(outcomes.len());
    let mut steps = Vec::with_capacity(outcomes.len());
    let mut refused = 0;
    let (mut written, mut doomed) = (Vec::new(), Vec::new());
    let mut changes: BTreeMap<Uuid, BatchChange> = BTreeMap::new();
    for outcome in outcomes {
        let is_held = rows.get(&outcome.job).is_some_and(|row| {
            row.token == outcome.token
                && matches!(row.state.as_str(), "running" | "cancelling")
                && row.worker_id.is_some_and(|worker| !(outcome.end.is_lease_over() && alive.contains(&worker)))
        });
        accepted.push(is_held);
        if !is_held {
            // The row stays: the outcome that counts may stand behind this one.
            refused += u64::from(!outcome.end.is_lease_over());
            continue;
        }
        let Some(row) = rows.remove(&outcome.job) else { continue };
        match &outcome.end {
            End::Succeeded { files, .. } => written.push((outcome.job, outcome.token, files.clone())),
            _ => doomed.push((outcome.job, outcome.token)),
        }
        steps.push(decide(row, outcome.end, now, &mut changes));
    }
    if refused > 0 {
        info!(count = refused, "outcomes of fenced attempts were refused");
        metrics::counter!("guildhall_late_outcomes_total").increment(refused);
    }
    files::make_whole_for_attempts(&mut transaction, &written, now).await?;
    files::doom_for_attempts(&mut transaction, &doomed).await?;
    let callers: Vec<_> =
        if shared.is_told() { steps.iter().map(|step| step.row.traceparent.clone()).collect() } else { Vec::new() };
    let aftermath = steps::carry_out(ground, &mut transaction, steps, changes, Telling::default(), now).await?;
    transaction.commit().await?;
    shared.end("jobs.finish", callers.iter().map(Option::as_deref));
    ground.after(&aftermath);
    Ok(accepted)
}

/// Of the workers whose leases are said to be over, those whose are not. Their rows are held until the end of the
/// transaction, so that a heartbeat comes either before this or finds its attempts gone.
async fn alive_workers(
    conn: &mut PgConnection,
    outcomes: &[Outcome],
    rows: &HashMap<Uuid, Row>,
    now: DateTime<Utc>,
) -> Result<HashSet<Uuid>, Fail> {
    let said_lost: HashSet<Uuid> = outcomes
        .iter()
        .filter(|outcome| outcome.end.is_lease_over())
        .filter_map(|outcome| rows.get(&outcome.job)?.worker_id)
        .collect();
    if said_lost.is_empty() {
        return Ok(HashSet::new());
    }
    let workers = sqlx::query!(
        "select id, expires_at from jobs.worker where id = any($1) order by id for share",
        &said_lost.into_iter().collect::<Vec<_>>(),
    )
    .fetch_all(conn)
    .await?;
    Ok(workers.into_iter().filter(|worker| worker.expires_at >= now).map(|worker| worker.id).collect())
}

fn decide(row: Row, end: End, now: DateTime<Utc>, changes: &mut BTreeMap<Uuid, BatchChange>) -> Step {
    let is_cancelling = row.state == "cancelling";
    match end {
        End::Succeeded { result, .. } => {
            Step { result: Some(result), attempt: Ended::with("succeeded"), ..Step::to(row, State::Succeeded) }
        }
        End::Failed(fault, _) if is_cancelling => Step { attempt: Ended::failed(&fault), ..Step::stopped(row) },
        End::Stopped | End::Interrupted | End::Snoozed(_) | End::Cancelled(_) if is_cancelling => {
            Step { attempt: Ended::with("cancelled"), ..Step::stopped(row) }
        }
        End::Failed(fault, asked) => retries::after_failure(row, fault, asked, now),
        End::Snoozed(asked) => retries::after_snooze(row, asked, now),
        End::Cancelled(reason) => {
            let error = Some(Fault::new("cancelled", reason, false));
            Step { attempt: Ended::with("cancelled"), error, ..Step::to(row, State::Cancelled) }
        }
        End::Stopped | End::Interrupted => Step {
            run_at: Some(now),
            attempt: Ended::with("interrupted"),
            is_attempt_free: true,
            ..Step::to(row, State::Queued)
        },
        End::Suspended { batch } if row.child_batch_id == Some(batch) => {
            let change = changes.entry(batch).or_default();
            change.close = true;
            if is_cancelling {
                change.cancel = Some((row.cancel_asked_by, row.cancel_reason.clone()));
            }
            let next = if is_cancelling { State::Cancelling } else { State::Suspended };
            Step { attempt: Ended::with("suspended"), ..Step::to(row, next) }
        }
        End::Suspended { .. } => {
            let fault = Fault::new("internal", "The task suspended itself for a batch that is not its own.", false);
            if is_cancelling {
                return decide(row, End::Failed(fault, None), now, changes);
            }
            Step { attempt: Ended::failed(&fault), error: Some(fault), ..Step::to(row, State::Failed) }
        }
        End::LeaseOver => {
            let message = "Its worker has not been heard of for the length of a lease.";
            decide(row, End::Failed(Fault::new("heartbeat_lost", message, true), None), now, changes)
        }
    }
}
