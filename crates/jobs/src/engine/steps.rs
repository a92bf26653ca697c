//! What changes the rows of live jobs: locking them, and carrying a group's steps out in one transaction - the job's next
//! state, the attempt's record, its batch's counters, the finalize or the parent that this sets free, the events and the
//! outbox. Who decides on a step is `finish.rs`, `cancel.rs` and `fan_in.rs`.
//!
//! Order of locks, everywhere: jobs by id, among them first the parents up the line; then batches by id; then unique keys
//! (`unique.rs`). Before all of them come dependencies (`dependencies.rs`), where somebody holds those. A parent is as good as held by whoever holds a job of its child batch,
//! so a batch that is over may go on to its parent's batch.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use kit::{Fail, outbox};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Ground, dependencies,
    events::{self, Telling},
    fan_in::{self, BatchChange},
    finish::Fault,
    moves::{self, Final},
    states::State,
    submit::rank,
    unique::{self, Holding},
};
use crate::SCHEMA;

/// A live job, its row locked.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) owner_id: Uuid,
    pub(crate) task: String,
    pub(crate) queue: String,
    pub(crate) state: String,
    pub(crate) priority: i16,
    pub(crate) attempt: i32,
    pub(crate) attempts_until: i32,
    pub(crate) max_attempts: i32,
    pub(crate) token: i64,
    pub(crate) worker_id: Option<Uuid>,
    pub(crate) attempt_started_at: Option<DateTime<Utc>>,
    pub(crate) backoff: Option<String>,
    pub(crate) batch_id: Option<Uuid>,
    pub(crate) is_finalize: bool,
    pub(crate) child_batch_id: Option<Uuid>,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) cancel_asked_by: Option<Uuid>,
    pub(crate) is_expiring: bool,
    pub(crate) queue_until: Option<DateTime<Utc>>,
    pub(crate) deadline_at: Option<DateTime<Utc>>,
    pub(crate) retry_on: Option<String>,
    pub(crate) crashes: i16,
    pub(crate) lane: Option<String>,
    pub(crate) events: i64,
    /// Where its stream tells that the running attempt started, if this row alone says so.
    pub(crate) started_event: Option<i64>,
    pub(crate) request_id: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) unique_key: Option<String>,
    pub(crate) is_unique_for_all: bool,
    pub(crate) unique_hold: Option<String>,
    pub(crate) run_at: DateTime<Utc>,
    pub(crate) has_dependents: bool,
}

/// How an attempt goes on record.
#[derive(Debug)]
pub(crate) struct Ended {
    outcome: &'static str,
    fault: Option<Fault>,
}

impl Ended {
    pub(crate) const fn with(outcome: &'static str) -> Option<Self> {
        Some(Self { outcome, fault: None })
    }

    pub(crate) fn failed(fault: &Fault) -> Option<Self> {
        Some(Self { outcome: "failed", fault: Some(fault.clone()) })
    }
}

/// A job's next state, decided and not yet written.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) row: Row,
    pub(crate) next: State,
    pub(crate) error: Option<Fault>,
    pub(crate) result: Option<Arc<str>>,
    /// When it may run again.
    pub(crate) run_at: Option<DateTime<Utc>>,
    /// How the running attempt ended, when one ends here.
    pub(crate) attempt: Option<Ended>,
    /// The attempt did not count.
    pub(crate) is_attempt_free: bool,
    /// The attempt was at work when its worker or its slot's process died.
    pub(crate) is_crash: bool,
}

impl Step {
    pub(crate) fn to(row: Row, next: State) -> Self {
        Self {
            row,
            next,
            error: None,
            result: None,
            run_at: None,
            attempt: None,
            is_attempt_free: false,
            is_crash: false,
        }
    }

    /// To where a stop leads: `expired` where the job's deadline was behind it, else `cancelled`, with the reason that was
    /// given when it was asked for.
    pub(crate) fn stopped(row: Row) -> Self {
        if row.is_expiring {
            return Self::expired(row, DEADLINE_OVER);
        }
        let reason = row.cancel_reason.clone().unwrap_or_else(|| "Cancelled on request.".to_owned());
        Self { error: Some(Fault::new("cancelled", reason, false)), ..Self::to(row, State::Cancelled) }
    }

    /// The attempt that ends here has succeeded, and the job's row in the history alone says so: it has no record of its own,
    /// and neither its start nor its end is written into the job's stream. What has succeeded is never queued again.
    fn stays_in_its_row(&self) -> bool {
        self.next == State::Succeeded && self.attempt.is_some() && self.row.started_event.is_some()
    }

    /// To `expired`.
    pub(crate) fn expired(row: Row, message: impl Into<String>) -> Self {
        Self { error: Some(Fault::new("expired", message, false)), ..Self::to(row, State::Expired) }
    }
}

/// What is told of a job whose deadline is over.
const DEADLINE_OVER: &str = "Its deadline is over.";

/// What a transaction leaves to be done once it is durable.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    /// Streams with news.
    pub(crate) streams: Vec<Uuid>,
    /// Some job may start now.
    pub(crate) has_work: bool,
    /// Some batch or attempt is to be cancelled, or some batch retried.
    pub(crate) has_cancels: bool,
    /// Some job waits for others, or what it waits for has ended.
    pub(crate) has_dependents: bool,
}

/// Locks live jobs in the order of their ids. The parents whose child batches they are in, up the line, are locked with
/// them: the end of a job may end its batch, and that its parent, which must not be asked for while the batch is held.
pub(crate) async fn lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Row>, Fail> {
    let mut rows = sqlx::query_as!(
        Row,
        "with recursive line (id) as (
           select id from unnest($1::uuid[]) as asked (id)
           union
           select batch.parent_job_id
           from line
           join jobs.job on job.id = line.id
           join jobs.batch on batch.id = job.batch_id
           where batch.parent_job_id is not null
         )
         select id, owner_id, task, queue, state, priority, attempt, attempts_until, max_attempts, token, worker_id,
           attempt_started_at, backoff, batch_id, is_finalize, child_batch_id, cancel_reason, cancel_asked_by, is_expiring,
           queue_until, deadline_at, retry_on, crashes, lane, events, started_event, request_id, traceparent, unique_key,
           is_unique_for_all, unique_hold, run_at, has_dependents
         from jobs.job
         where id in (select id from line)
         order by id
         for update of job",
        ids,
    )
    .fetch_all(conn)
    .await?;
    let asked: HashSet<&Uuid> = ids.iter().collect();
    rows.retain(|row| asked.contains(&row.id));
    Ok(rows)
}

/// Locks those of these jobs that no worker was ever given and that no other transaction holds.
pub(super) async fn lock_unstarted(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Row>, Fail> {
    Ok(sqlx::query_as!(
        Row,
        "select id, owner_id, task, queue, state, priority, attempt, attempts_until, max_attempts, token, worker_id,
           attempt_started_at, backoff, batch_id, is_finalize, child_batch_id, cancel_reason, cancel_asked_by, is_expiring,
           queue_until, deadline_at, retry_on, crashes, lane, events, started_event, request_id, traceparent, unique_key,
           is_unique_for_all, unique_hold, run_at, has_dependents
         from jobs.job
         where id = any($1) and state in ('waiting', 'scheduled', 'queued') and attempt = 0
         order by id
         for update skip locked",
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// Locks the live parent of a batch, which comes before the batch itself.
pub(crate) async fn lock_parent(conn: &mut PgConnection, batch: Uuid) -> Result<Option<Row>, Fail> {
    let parent = sqlx::query_scalar!("select parent_job_id from jobs.batch where id = $1", batch)
        .fetch_optional(&mut *conn)
        .await?
        .flatten();
    let Some(parent) = parent else { return Ok(None) };
    // One that was retried has another batch by now.
    Ok(lock(conn, &[parent]).await?.pop().filter(|row| row.child_batch_id == Some(batch)))
}

/// Writes steps and everything that follows from them: batches that are complete, their finalizes, parents that are set
/// free, and what those set free in turn. `telling` holds what the caller has done itself.
pub(crate) async fn carry_out(
    ground: &Ground,
    conn: &mut PgConnection,
    mut steps: Vec<Step>,
    mut changes: BTreeMap<Uuid, BatchChange>,
    mut telling: Telling,
    now: DateTime<Utc>,
) -> Result<Aftermath, Fail> {
    let mut word = Vec::new();
    let mut freed = Vec::new();
    let mut aftermath = Aftermath::default();
    while !steps.is_empty() || !changes.is_empty() {
        record_attempts(conn, &steps, now).await?;
        move_to_history(conn, &steps, now).await?;
        put_back(conn, &steps, now).await?;
        aftermath.has_dependents |= dependencies::note_ends(conn, &steps).await?;
        for step in steps.drain(..) {
            tell(&step, &mut telling, &mut word);
            // In a lane, what ends makes room for another, wherever there is a slot for that.
            let makes_room = step.row.lane.is_some() && step.row.worker_id.is_some();
            aftermath.has_work |= makes_room || matches!(step.next, State::Queued | State::Scheduled);
            note_in_batches(&step, &mut changes);
            freed.extend(Holding::until(&step));
        }
        let changed = std::mem::take(&mut changes);
        let settled = fan_in::settle(ground, conn, changed, now, &mut telling, &mut word).await?;
        aftermath.has_work |= settled.has_work;
        aftermath.has_cancels |= settled.has_cancels;
        steps = settled.parents;
    }
    outbox::write(conn, SCHEMA, &word, &ground.clock, None).await?;
    aftermath.streams = telling.append(conn, now).await?;
    // The streams of batches lock these; keys come after them.
    unique::let_go(conn, &freed, now).await?;
    Ok(aftermath)
}

/// What a step means for the batch the job is in, and for the batch the job has fanned out.
fn note_in_batches(step: &Step, changes: &mut BTreeMap<Uuid, BatchChange>) {
    if !step.next.is_final() {
        return;
    }
    let row = &step.row;
    if let Some(batch) = row.batch_id {
        let change = changes.entry(batch).or_default();
        change.request = Some((row.request_id.clone(), row.traceparent.clone()));
        if row.is_finalize {
            change.finalized = Some(fan_in::Finalized {
                id: row.id,
                state: step.next,
                result: step.result.clone(),
                error: step.error.clone(),
            });
        } else {
            match step.next {
                State::Succeeded => change.succeeded += 1,
                State::Failed => change.failed += 1,
                State::Expired => change.expired += 1,
                _ => change.cancelled += 1,
            }
        }
    }
    // A parent that ends before its children takes them along, be it at work or between two attempts. One that waits for
    // its batch is ended by that, which is over.
    if let Some(child_batch) = row.child_batch_id
        && (row.worker_id.is_some() || !matches!(row.state.as_str(), "suspended" | "cancelling"))
    {
        let change = changes.entry(child_batch).or_default();
        change.close = true;
        let reason = || (row.cancel_asked_by, Some("The job it belongs to has ended.".to_owned()));
        // A cancel of the parent has said why.
        change.cancel.get_or_insert_with(reason);
    }
}

async fn record_attempts(conn: &mut PgConnection, steps: &[Step], now: DateTime<Utc>) -> Result<(), Fail> {
    let recorded = steps.iter().filter(|step| !step.stays_in_its_row());
    let ended: Vec<(&Row, &Ended)> = recorded.filter_map(|step| Some((&step.row, step.attempt.as_ref()?))).collect();
    if ended.is_empty() {
        return Ok(());
    }
    let error = |part: &dyn Fn(&Fault) -> String| -> Vec<Option<String>> {
        ended.iter().map(|(_, ended)| ended.fault.as_ref().map(part)).collect()
    };
    sqlx::query!(
        "insert into jobs.attempt (job_id, number, token, outcome, worker_id, started_at, finished_at, error_kind,
           error_message, error_retryable)
         select job_id, number, token, outcome, worker_id, started_at, $10, error_kind, error_message, error_retryable
         from unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::uuid[], $6::timestamptz[], $7::text[],
           $8::text[], $9::boolean[])
           as ended (job_id, number, token, outcome, worker_id, started_at, error_kind, error_message, error_retryable)",
        &ended.iter().map(|(row, _)| row.id).collect::<Vec<_>>(),
        &ended.iter().map(|(row, _)| row.attempt).collect::<Vec<_>>(),
        &ended.iter().map(|(row, _)| row.token).collect::<Vec<_>>(),
        &ended.iter().map(|(_, ended)| ended.outcome.to_owned()).collect::<Vec<_>>(),
        &ended.iter().map(|(row, _)| row.worker_id).collect::<Vec<_>>() as &[Option<Uuid>],
        &ended.iter().map(|(row, _)| row.attempt_started_at.unwrap_or(now)).collect::<Vec<_>>(),
        &error(&|fault| fault.kind.clone()) as &[Option<String>],
        &error(&|fault| fault.message.clone()) as &[Option<String>],
        &ended.iter().map(|(_, ended)| ended.fault.as_ref().map(|f| f.is_retryable)).collect::<Vec<_>>() as &[Option<bool>],
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn move_to_history(conn: &mut PgConnection, steps: &[Step], now: DateTime<Utc>) -> Result<(), Fail> {
    let ends = steps.iter().filter(|step| step.next.is_final());
    let finals = ends.map(|step| Final {
        id: step.row.id,
        state: step.next,
        result: step.result.as_deref(),
        error: step.error.as_ref(),
        stays: step.stays_in_its_row(),
        lone: None,
    });
    moves::into_history(conn, &finals.collect::<Vec<_>>(), now).await?;
    Ok(())
}

async fn put_back(conn: &mut PgConnection, steps: &[Step], now: DateTime<Utc>) -> Result<(), Fail> {
    let backs: Vec<&Step> = steps.iter().filter(|step| !step.next.is_final()).collect();
    if backs.is_empty() {
        return Ok(());
    }
    let error = |part: &dyn Fn(&Fault) -> String| -> Vec<Option<String>> {
        backs.iter().map(|step| step.error.as_ref().map(part)).collect()
    };
    let ranks = backs
        .iter()
        .map(|step| step.run_at.map(|run_at| rank(run_at, u8::try_from(step.row.priority).unwrap_or_default())));
    sqlx::query!(
        "update jobs.job
         set state = back.state, run_at = coalesce(back.run_at, job.run_at), rank = coalesce(back.rank, job.rank),
           attempts_until = attempts_until + back.free, worker_id = null, attempt_started_at = null,
           started_event = null, since = $9,
           error_kind = back.kind, error_message = back.message, error_retryable = back.retryable, events = events + 1,
           crashes = job.crashes + back.crashes,
           queue_until = case when back.state = 'queued' then $9::timestamptz + make_interval(secs => queue_timeout_s) end,
           deadline_at = case
             when job.state = 'waiting' then back.run_at + make_interval(secs => deadline_s)
             else deadline_at
           end
         from unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::integer[], $6::text[], $7::text[],
           $8::boolean[], $10::smallint[]) as back (id, state, run_at, rank, free, kind, message, retryable, crashes)
         where job.id = back.id",
        &backs.iter().map(|step| step.row.id).collect::<Vec<_>>(),
        &backs.iter().map(|step| step.next.as_str().to_owned()).collect::<Vec<_>>(),
        &backs.iter().map(|step| step.run_at).collect::<Vec<_>>() as &[Option<DateTime<Utc>>],
        &ranks.collect::<Vec<_>>() as &[Option<DateTime<Utc>>],
        &backs.iter().map(|step| i32::from(step.is_attempt_free)).collect::<Vec<_>>(),
        &error(&|fault| fault.kind.clone()) as &[Option<String>],
        &error(&|fault| fault.message.clone()) as &[Option<String>],
        &backs.iter().map(|step| step.error.as_ref().map(|f| f.is_retryable)).collect::<Vec<_>>() as &[Option<bool>],
        now,
        &backs.iter().map(|step| i16::from(step.is_crash)).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The event of a step in the job's streams, and in the outbox where the catalogue has one for it.
fn tell(step: &Step, telling: &mut Telling, word: &mut Vec<outbox::Event>) {
    let row = &step.row;
    debug_assert!(
        row.state.parse::<State>().is_ok_and(|from| from == step.next || from.may_become(step.next)),
        "{} may not become {}",
        row.state,
        step.next,
    );
    let error = step.error.as_ref().map(|fault| (fault.kind.as_str(), fault.message.as_str(), fault.is_retryable));
    let data = || events::state(row.id, step.next, row.attempt, error);
    if step.stays_in_its_row() {
        telling.by_row(row.id, row.batch_id, data);
    } else {
        if let Some(offset) = row.started_event {
            telling.started(row.id, offset, row.attempt, row.attempt_started_at);
        }
        telling.job(row.id, row.events + 1, row.batch_id, "state", data());
    }
    if matches!(step.next, State::Failed | State::Expired) {
        let labels = [("queue", row.queue.clone()), ("task", row.task.clone())];
        metrics::counter!("guildhall_dead_letters_total", &labels).increment(1);
    }
    let kind = match step.next {
        State::Succeeded => "jobs.job.succeeded",
        State::Failed => "jobs.job.failed",
        State::Cancelled => "jobs.job.cancelled",
        State::Expired => "jobs.job.expired",
        State::Scheduled if step.attempt.is_some() && !step.is_attempt_free => {
            metrics::counter!("guildhall_task_retries_total", "task" => row.task.clone()).increment(1);
            "jobs.job.retried"
        }
        State::Waiting | State::Scheduled | State::Queued | State::Running | State::Suspended | State::Cancelling => {
            return;
        }
    };
    let event = outbox::Event::new(kind, row.id, &changed(row, step.next, step.error.as_ref()));
    word.push(event.with_traceparent(row.traceparent.clone()));
}

/// The event data of a job's change.
pub(crate) fn changed(row: &Row, state: State, error: Option<&Fault>) -> proto::events::JobChanged {
    proto::events::JobChanged {
        job_id: row.id.to_string(),
        owner_id: row.owner_id.to_string(),
        task: row.task.clone(),
        queue: row.queue.clone(),
        state: state.as_str().to_owned(),
        attempt: u32::try_from(row.attempt).unwrap_or_default(),
        batch_id: row.batch_id.map(|id| id.to_string()).unwrap_or_default(),
        error_kind: error.map(|fault| fault.kind.clone()).unwrap_or_default(),
    }
}
