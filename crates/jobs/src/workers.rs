//! The other end of a worker's stream: it takes the worker's hello, seats it, hears heartbeats, notes and outcomes, and
//! answers each once it is durable.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, Kind, clock, crash_point, grpc::Call};
use proto::{
    jobs::{ListWorkersRequest, ListWorkersResponse, workers_server as list_server},
    worker::{
        AttemptRef, Credit, FromWorker, Heartbeat, Hello, Outcome as ToldOutcome, Receipt, Renewed, Report, Stop,
        StopAttempt, ToWorker, Welcome, from_worker, outcome, to_worker, workers_server,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    Core, attempts,
    engine::{self, End, Fault, Line, Note, Outcome, Progress, Said, Seat},
    reads,
};

/// Messages that wait for a slow worker.
const OUT_MAX: usize = 256;
/// Reports that wait to be written; a worker that sends more waits itself.
const REPORTS_MAX: usize = 64;
/// Outcomes from which on no further report joins those that are written together: what more there is in the last of them is
/// bound by the size of a message.
const OUTCOMES_AT_ONCE: usize = 1_000;
/// How long one stream lasts. A token is looked at when a stream is opened and at no message after, so this is how long a
/// key that was changed lives on in it. A worker opens the next one with a new token, and goes on.
const LIVES_AT_MOST: TimeDelta = TimeDelta::hours(1);
/// Most slots of one worker.
pub const SLOTS_MAX: u32 = 1_000;
const TASKS_MAX: usize = 1_000;
const QUEUES_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 200;
const LOG_BYTES_MAX: usize = 8 * 1024;
const STAGE_BYTES_MAX: usize = 200;
const RESULT_BYTES_MAX: usize = 256 * 1024;
const ERROR_BYTES_MAX: usize = 4 * 1024;

/// The gRPC services: the stream itself, and the list of who is connected.
#[derive(Clone)]
pub(crate) struct Workers(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl list_server::Workers for Workers {
    async fn list(&self, request: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        Call::of(&request)?.caller()?;
        Ok(Response::new(reads::list_workers(&self.0, request.get_ref()).await?))
    }
}

#[tonic::async_trait]
impl workers_server::Workers for Workers {
    type WorkStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::WorkStream>, Status> {
        let mut from = request.into_inner();
        let Some(FromWorker { message: Some(from_worker::Message::Hello(hello)) }) = from.message().await? else {
            return Err(Fail::malformed("workers.hello_first", "A worker says hello first.").into());
        };
        let ends_at = self.0.clock.now() + LIVES_AT_MOST;
        let (out, answers) = mpsc::channel(OUT_MAX);
        let seat = Arc::new(greet(&self.0, hello, out).await?);
        let core = Arc::clone(&self.0);
        self.0.tasks.detach("jobs.worker", async move {
            if let Err(fail) = serve(&core, &seat, from, ends_at).await {
                warn!(worker.id = %seat.worker, error = %fail, "a worker's stream ended with an error");
                seat.fail(fail).await;
            }
            core.engine.unseat(&seat);
            info!(worker.id = %seat.worker, "a worker's stream has ended");
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Writes the worker and what it offers down, and welcomes it.
async fn greet(core: &Core, hello: Hello, out: mpsc::Sender<Result<ToWorker, Status>>) -> Result<Seat, Fail> {
    let is_name = |name: &String| name.len() <= NAME_BYTES_MAX && !name.contains('\0');
    if hello.slots == 0 || hello.slots > SLOTS_MAX || hello.tasks.len() > TASKS_MAX || hello.queues.len() > QUEUES_MAX {
        return Err(Fail::invalid(
            "workers.invalid_hello",
            format!("A worker has 1 to {SLOTS_MAX} slots, at most {TASKS_MAX} tasks and {QUEUES_MAX} queues."),
        ));
    }
    if !([&hello.profile, &hello.host, &hello.version].into_iter().all(is_name) && hello.queues.iter().all(is_name)) {
        return Err(Fail::invalid(
            "workers.invalid_hello",
            format!("A name is text of at most {NAME_BYTES_MAX} bytes."),
        ));
    }
    let now = core.clock.now();
    // A worker that was here before goes on under its id; any other gets a new one.
    let worker = Uuid::try_parse(&hello.worker_id).unwrap_or_else(|_| core.clock.new_id());
    let stream = core.clock.new_id();
    let tasks: Vec<String> = hello.tasks.iter().map(|task| task.name.clone()).collect();
    let mut transaction = core.pool.begin().await?;
    crate::tasks::offer(&mut transaction, &hello.tasks, now).await?;
    sqlx::query!(
        "insert into jobs.worker (id, profile, host, version, queues, tasks, slots, connected_at, seen_at, expires_at,
           stream)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $10)
         on conflict (id) do update
         set profile = excluded.profile, host = excluded.host, version = excluded.version, queues = excluded.queues,
           tasks = excluded.tasks, slots = excluded.slots, is_draining = false, connected_at = excluded.connected_at,
           seen_at = excluded.seen_at, expires_at = excluded.expires_at, stream = excluded.stream",
        worker,
        hello.profile,
        hello.host,
        hello.version,
        &hello.queues,
        &tasks,
        i32::try_from(hello.slots).unwrap_or(i32::MAX),
        now,
        engine::lease_end(&core.engine.ground, now),
        stream,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    core.catalogue.workers_changed();
    info!(worker.id = %worker, worker.profile = hello.profile, worker.slots = hello.slots, tasks = tasks.len(), "a worker is here");
    let seat = Seat::new(worker, stream, hello.queues, tasks, out);
    let welcome = Welcome {
        worker_id: worker.to_string(),
        lease_s: core.settings.lease_s,
        heartbeat_s: core.settings.heartbeat_s,
    };
    seat.send(to_worker::Message::Welcome(welcome)).await;
    Ok(seat)
}

/// Hears a worker until it goes, or its stream has lasted its time.
async fn serve(
    core: &Arc<Core>,
    seat: &Arc<Seat>,
    mut from: Streaming<FromWorker>,
    ends_at: DateTime<Utc>,
) -> Result<(), Fail> {
    core.engine.seat(seat);
    let (reports, waiting) = mpsc::channel(REPORTS_MAX);
    core.tasks.detach("jobs.reports", write_reports(Arc::clone(core), Arc::clone(seat), waiting));
    let stopping = core.tasks.stopping();
    loop {
        let message = tokio::select! {
            message = from.message() => message,
            // The worker is told by the end of the stream, and comes back to another replica or to the next process.
            () = stopping.cancelled() => return Ok(()),
        };
        let message = match message {
            Ok(Some(FromWorker { message: Some(message) })) => message,
            Ok(Some(FromWorker { message: None })) => continue,
            // The end, or a broken line: the lease decides what becomes of its attempts.
            Ok(None) | Err(_) => return Ok(()),
        };
        match message {
            from_worker::Message::Hello(_) => {
                return Err(Fail::malformed("workers.hello_twice", "A worker says hello once."));
            }
            from_worker::Message::Credit(Credit { slots }) => {
                seat.credit(slots);
                core.engine.wake();
            }
            // A worker that sends none to get around it is given nothing once its lease is over.
            from_worker::Message::Heartbeat(_) if core.clock.now() >= ends_at => return Err(over()),
            from_worker::Message::Heartbeat(heartbeat) => hear(core, seat, heartbeat).await?,
            from_worker::Message::Report(report) => {
                if reports.send(report).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// What a worker takes for word that its token is of no use any longer.
fn over() -> Fail {
    Fail::unauthenticated("workers.stream_over", "The stream has lasted its time: open another, with a new token.")
}

/// Renews the lease, and compares what the worker holds with what the database says it holds.
async fn hear(core: &Core, seat: &Seat, heartbeat: Heartbeat) -> Result<(), Fail> {
    if heartbeat.draining {
        seat.drain();
    }
    // Held until the comparison is done, so that no claim is between database and stream.
    let mut assigned = seat.assigned.lock().await;
    let now = core.clock.now();
    // One transaction: a hello over another stream waits for it, so that nothing which was assigned there is missed here.
    let mut transaction = core.pool.begin().await?;
    let renewed = sqlx::query!(
        "update jobs.worker set seen_at = $2, expires_at = $3, is_draining = $4 where id = $1 and stream = $5",
        seat.worker,
        now,
        engine::lease_end(&core.engine.ground, now),
        heartbeat.draining,
        seat.stream,
    )
    .execute(&mut *transaction)
    .await?;
    if heartbeat.draining {
        core.catalogue.workers_changed();
    }
    if renewed.rows_affected() == 0 {
        return Err(Fail::conflict(
            "workers.lease_over",
            "The worker's lease was over, or it is here by another stream; over this one it has to say hello again.",
        ));
    }
    let rows = sqlx::query!("select id, token, state from jobs.job where worker_id = $1", seat.worker)
        .fetch_all(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let named: HashSet<(Uuid, i64)> =
        heartbeat.holding.iter().filter_map(|attempt| attempts::parse(Some(attempt)).ok()).collect();
    let held: HashSet<(Uuid, i64)> = rows.iter().map(|row| (row.id, row.token)).collect();
    let lost: Vec<Outcome> = held
        .iter()
        .filter(|attempt| !named.contains(attempt) && !assigned.is_on_its_way(**attempt, heartbeat.assignments_read))
        .map(|&(job, token)| Outcome { job, token, end: lost_end(assigned.was_sent((job, token))) })
        .collect();
    assigned.forget(|attempt| held.contains(attempt));
    seat.forget_entangled(|attempt| held.contains(attempt));
    drop(assigned);

    let stop = |(job, token): (Uuid, i64), why: &str| StopAttempt {
        attempt: Some(AttemptRef { job_id: job.to_string(), token: token.unsigned_abs() }),
        why: why.to_owned(),
        grace_s: core.settings.cancel_grace_s,
    };
    let fenced = named.difference(&held).map(|attempt| stop(*attempt, "fenced"));
    let cancelled = rows.iter().filter(|row| row.state == "cancelling").map(|row| stop((row.id, row.token), "cancel"));
    let items: Vec<StopAttempt> = fenced.chain(cancelled).collect();
    if !items.is_empty() {
        seat.send(to_worker::Message::Stop(Stop { items })).await;
    }
    seat.send(to_worker::Message::Renewed(Renewed { sequence: heartbeat.sequence })).await;
    let ended = core.engine.finish(&lost, |_| false).await;
    ended.into_iter().try_for_each(|verdict| verdict.map(drop))
}

/// What becomes of an attempt that its worker does not name. One that it has read and dropped has failed. One of an earlier
/// stream was lost on the way there, as happens when this process dies after a claim: no code ran, and nothing is spent.
fn lost_end(was_sent: bool) -> End {
    if was_sent {
        End::Failed(Fault::new("heartbeat_lost", "Its worker does not know of the attempt any more.", true), None)
    } else {
        End::Interrupted
    }
}

/// Writes a worker's reports in their order, those that have gathered together, and sends receipts. An outcome that cannot
/// be written now ends the stream: on the next one the worker tells again what no receipt has named.
async fn write_reports(core: Arc<Core>, seat: Arc<Seat>, mut waiting: mpsc::Receiver<Report>) {
    while let Some(mut report) = waiting.recv().await {
        let mut told = Vec::new();
        loop {
            for note in notes(&core, &report) {
                core.engine.note(note);
            }
            told.append(&mut report.outcomes);
            if told.len() >= OUTCOMES_AT_ONCE {
                break;
            }
            let Ok(next) = waiting.try_recv() else { break };
            report = next;
        }
        if !told.is_empty() {
            crash_point("result-not-finished");
        }
        let ended = end(&core, &seat, &mut told).await;
        let mut receipt = Receipt::default();
        let mut unwritten = None;
        for (outcome, verdict) in told.into_iter().zip(ended) {
            match (outcome.attempt, verdict) {
                (Some(attempt), Ok(true)) => receipt.accepted.push(attempt),
                (Some(attempt), Ok(false)) => receipt.refused.push(attempt),
                (None, _) => {}
                (Some(attempt), Err(fail)) => {
                    warn!(job.id = attempt.job_id, error = %fail, "an outcome was not written; its worker will tell it again");
                    unwritten = Some(fail);
                }
            }
        }
        if !(receipt.accepted.is_empty() && receipt.refused.is_empty()) {
            crash_point("finished-not-receipted");
            seat.send(to_worker::Message::Receipt(receipt)).await;
        }
        if let Some(fail) = unwritten {
            seat.fail(fail).await;
            return;
        }
    }
}

fn notes(core: &Core, report: &Report) -> Vec<Note> {
    let logs = report.logs.iter().filter_map(|entry| {
        let (job, token) = attempts::parse(entry.attempt.as_ref()).ok()?;
        let level = match entry.level.as_str() {
            level @ ("debug" | "info" | "warn" | "error") => level.to_owned(),
            _ => "info".to_owned(),
        };
        let at = entry.at.as_ref().and_then(clock::from_timestamp).unwrap_or_else(|| core.clock.now());
        let line = Line { level, message: cut(&entry.message, LOG_BYTES_MAX), at };
        Some(Note { job, token, said: Said::Log(line) })
    });
    let progress = report.progress.iter().filter_map(|update| {
        let (job, token) = attempts::parse(update.attempt.as_ref()).ok()?;
        let percent = if update.percent.is_finite() { update.percent.clamp(0.0, 100.0) } else { 0.0 };
        let progress = Progress {
            percent,
            stage: cut(&update.stage, STAGE_BYTES_MAX),
            message: cut(&update.message, STAGE_BYTES_MAX),
        };
        Some(Note { job, token, said: Said::Progress(progress) })
    });
    logs.chain(progress).collect()
}

/// Ends attempts as their worker tells it, and takes the ends out of what it told; of each, whether it was accepted.
async fn end(core: &Core, seat: &Seat, told: &mut [ToldOutcome]) -> Vec<Result<bool, Fail>> {
    let (mut places, mut outcomes) = (Vec::with_capacity(told.len()), Vec::with_capacity(told.len()));
    for (place, told) in told.iter_mut().enumerate() {
        if let Ok((job, token)) = attempts::parse(told.attempt.as_ref()) {
            places.push(place);
            outcomes.push(Outcome { job, token, end: end_of(told.end.take()) });
        }
    }
    let entangled: HashSet<(Uuid, i64)> = outcomes
        .iter()
        .map(|outcome| (outcome.job, outcome.token))
        .filter(|attempt| seat.ends_entangled(*attempt))
        .collect();
    let is_entangled = |outcome: &Outcome| entangled.contains(&(outcome.job, outcome.token));
    let mut ended = core.engine.finish(&outcomes, is_entangled).await;

    let (mut failed, mut failures) = (Vec::new(), Vec::new());
    for (at, verdict) in ended.iter().enumerate() {
        // What it says cannot be (a file it did not write) or cannot be kept: it fails instead of being told for ever.
        if let Err(fail) = verdict
            && !matches!(fail.kind(), Kind::Unavailable | Kind::Limited | Kind::Timeout)
        {
            let end = End::Failed(Fault::new("internal", fail.message(), false), None);
            failed.push(at);
            failures.push(Outcome { end, ..outcomes[at] });
        }
    }
    for (at, verdict) in failed.into_iter().zip(core.engine.finish(&failures, is_entangled).await) {
        ended[at] = verdict;
    }
    // What names no attempt is none that counts.
    let mut verdicts: Vec<Result<bool, Fail>> = told.iter().map(|_| Ok(false)).collect();
    for (place, verdict) in places.into_iter().zip(ended) {
        verdicts[place] = verdict;
    }
    verdicts
}

/// An end as a worker tells it.
fn end_of(told: Option<outcome::End>) -> End {
    let internal = |message: &str| End::Failed(Fault::new("internal", message, false), None);
    match told {
        None => internal("The worker told no outcome."),
        Some(outcome::End::Succeeded(done)) if done.result_json.len() > RESULT_BYTES_MAX => {
            internal("The result is larger than 256 KiB; large output belongs into a file.")
        }
        Some(outcome::End::Succeeded(done))
            if serde_json::from_str::<serde::de::IgnoredAny>(&done.result_json).is_err() =>
        {
            internal("The result is not JSON.")
        }
        Some(outcome::End::Succeeded(done)) => End::Succeeded { result: done.result_json.into(), files: done.files },
        Some(outcome::End::Failed(failed)) => {
            let fault = Fault {
                kind: cut(&failed.kind, NAME_BYTES_MAX),
                message: cut(&failed.message, ERROR_BYTES_MAX),
                is_retryable: failed.retryable,
            };
            End::Failed(fault, failed.retry_after_s.map(delay))
        }
        Some(outcome::End::Snoozed(snoozed)) => End::Snoozed(delay(snoozed.seconds)),
        Some(outcome::End::Cancelled(cancelled)) => End::Cancelled(cut(&cancelled.reason, ERROR_BYTES_MAX)),
        Some(outcome::End::Stopped(_)) => End::Stopped,
        Some(outcome::End::Suspended(suspended)) => match Uuid::try_parse(&suspended.batch_id) {
            Ok(batch) => End::Suspended { batch },
            Err(_) => internal("The worker suspended the job for no batch."),
        },
        Some(outcome::End::Interrupted(_)) => End::Interrupted,
    }
}

/// A delay that a worker asks for. What is no length of time is none, and what is too long is as long as may be.
fn delay(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, engine::ASKED_DELAY_MAX.as_secs_f64())).unwrap_or_default()
}

/// At most `bytes_max` bytes of a text that a task wrote, cut at a character, without NUL, which Postgres cannot keep.
fn cut(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max.min(text.len()));
    text[..end].replace('\0', "\u{fffd}")
}
