//! Runs that somebody asks for: one now, or the occurrences of a past span that have not run.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, audit::Act, clock::from_timestamp, fail::Violation, grpc::Call, idempotency, telemetry::span};
use proto::jobs::{BackfillScheduleRequest, BackfillScheduleResponse, RunScheduleResponse};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    RUN, check_may, find,
    firing::{self, Prepared},
    invalid,
    occurrences::Timing,
    plan,
    rows::{self, Row},
    runs::{self, Run},
    spec::Overlap,
};
use crate::{
    Core, SCHEMA, acts,
    engine::{self, Ground, Keys, NewJob, Telling},
};

/// Occurrences that one backfill may span.
const OCCURRENCES_MAX: usize = 1_000;
/// Occurrences of one schedule that may wait for a backfill.
const WAITING_MAX: usize = 1_000;

/// Submits the job now. It is a run beside the occurrences, so each call is one more.
pub(super) async fn run(core: &Core, call: &Call, id: &str) -> Result<RunScheduleResponse, Fail> {
    let (id, owner) = find(core, id).await?;
    let act = Act::of(call, &acts::RUN_SCHEDULE, id).owned_by(owner);
    let came_to = run_now(core, call, id, owner, act.clone()).await;
    core.witness(act, came_to).await
}

async fn run_now(core: &Core, call: &Call, id: Uuid, owner: Uuid, act: Act) -> Result<RunScheduleResponse, Fail> {
    check_may(call.caller()?, RUN, owner)?;
    let prepared = prepared(core, call, id).await?;
    let (now, job_id) = (core.clock.now(), core.clock.new_id());
    let ground = Arc::clone(&core.engine.ground);
    let _told = span::transaction("jobs.run_schedule");
    let transaction = core.pool.begin().await?;
    let (key, caller) = (call.idempotency.as_ref(), call.caller()?.subject);
    let (answer, replayed): (RunScheduleResponse, bool) =
        idempotency::once(transaction, SCHEMA, caller, key, now, |conn| {
            Box::pin(async move {
                rows::lock(conn, id).await?;
                let job = NewJob { id: job_id, ..prepared.job? };
                let keys = submit(conn, &ground, std::slice::from_ref(&job), now).await?;
                if let Some(fail) = firing::held(&job, &keys) {
                    return Err(fail.map_pointers(|_| "/job/unique_key".to_owned()));
                }
                // Where another job holds its unique key, that is the run.
                let job_id = keys.holder(&job).unwrap_or(job_id);
                runs::insert(conn, &[Run { schedule: id, at: now, job: job_id }], "run", "live").await?;
                ground.audit.record(conn, act.after("job_id", job_id)).await?;
                Ok(RunScheduleResponse { job_id: job_id.to_string(), replayed: false })
            })
        })
        .await?;
    core.engine.after(vec![job_id], true);
    Ok(RunScheduleResponse { replayed, ..answer })
}

/// Runs what has not run of a past span: all of it at once where runs may overlap, else one after another.
pub(super) async fn backfill(
    core: &Core,
    call: &Call,
    asked: BackfillScheduleRequest,
) -> Result<BackfillScheduleResponse, Fail> {
    let (id, owner) = find(core, &asked.id).await?;
    let act = Act::of(call, &acts::BACKFILL_SCHEDULE, id).owned_by(owner);
    let came_to = fill(core, call, id, owner, &asked, act.clone()).await;
    core.witness(act, came_to).await
}

async fn fill(
    core: &Core,
    call: &Call,
    id: Uuid,
    owner: Uuid,
    asked: &BackfillScheduleRequest,
    act: Act,
) -> Result<BackfillScheduleResponse, Fail> {
    check_may(call.caller()?, RUN, owner)?;
    let now = core.clock.now();
    let span = span_of(core, asked, now);
    let prepared = prepared(core, call, id).await?;
    let ground = Arc::clone(&core.engine.ground);
    let _told = span::transaction("jobs.backfill_schedule");
    let transaction = core.pool.begin().await?;
    let (key, caller) = (call.idempotency.as_ref(), call.caller()?.subject);
    let (answer, replayed): (BackfillScheduleResponse, bool) =
        idempotency::once(transaction, SCHEMA, caller, key, now, |conn| {
            Box::pin(async move {
                let (from, until) = span?;
                let row = rows::lock(conn, id).await?;
                let occurrences = occurrences(&prepared.spec.timing, from, until)?;
                write(conn, &ground, &row, prepared, &occurrences, act, now).await
            })
        })
        .await?;
    let streams = answer.job_ids.iter().filter_map(|id| id.parse().ok()).collect();
    core.engine.after(streams, true);
    core.schedules.notify_one();
    Ok(BackfillScheduleResponse { replayed, ..answer })
}

/// The span that is asked for. It must be past, and within what is kept: of what lies before, nobody knows what has run.
fn span_of(
    core: &Core,
    asked: &BackfillScheduleRequest,
    now: DateTime<Utc>,
) -> Result<(DateTime<Utc>, DateTime<Utc>), Fail> {
    let days = core.settings.history_days;
    let oldest = now - TimeDelta::days(i64::from(days));
    let time = |pointer: &str, at: Option<&prost_types::Timestamp>| {
        at.and_then(from_timestamp).filter(|at| (oldest..=now).contains(at)).ok_or_else(|| Violation {
            pointer: pointer.to_owned(),
            code: "minimum".to_owned(),
            message: format!("must be a past time within the {days} days that history is kept"),
        })
    };
    match (time("/from", asked.from.as_ref()), time("/until", asked.until.as_ref())) {
        (Ok(from), Ok(until)) if from <= until => Ok((from, until)),
        (Ok(_), Ok(_)) => {
            let message = "must not be before `from`".to_owned();
            Err(invalid(vec![Violation { pointer: "/until".to_owned(), code: "minimum".to_owned(), message }]))
        }
        (from, until) => Err(invalid(from.err().into_iter().chain(until.err()).collect())),
    }
}

fn occurrences(timing: &Timing, from: DateTime<Utc>, until: DateTime<Utc>) -> Result<Vec<DateTime<Utc>>, Fail> {
    let all = std::iter::successors(timing.from(from), |at| timing.after(*at));
    let found: Vec<_> = all.take_while(|at| *at <= until).take(OCCURRENCES_MAX + 1).collect();
    if found.len() > OCCURRENCES_MAX {
        let message = format!("must be sooner: the span has more than {OCCURRENCES_MAX} occurrences");
        return Err(invalid(vec![Violation { pointer: "/until".to_owned(), code: "max_items".to_owned(), message }]));
    }
    Ok(found)
}

async fn write(
    conn: &mut PgConnection,
    ground: &Ground,
    row: &Row,
    prepared: Prepared,
    occurrences: &[DateTime<Utc>],
    act: Act,
    now: DateTime<Utc>,
) -> Result<BackfillScheduleResponse, Fail> {
    let all: Vec<Run> =
        occurrences.iter().map(|at| Run { schedule: row.id, at: *at, job: plan::job_id(row.id, *at) }).collect();
    let mut existing: HashSet<Uuid> = runs::existing(conn, &all).await?.into_iter().collect();
    let mut fresh: Vec<Run> = all.into_iter().filter(|run| !existing.contains(&run.job)).collect();
    let job = prepared.job?;
    if prepared.spec.overlap == Overlap::Allow {
        let jobs: Vec<NewJob> = fresh.iter().map(|run| firing::occurrence(row.id, &job, run.at, 0)).collect();
        let keys = submit(conn, ground, &jobs, now).await?;
        let held: HashSet<Uuid> = jobs.iter().filter(|job| keys.holder(job).is_some()).map(|job| job.id).collect();
        existing.extend(&held);
        fresh.retain(|run| !held.contains(&run.job));
        runs::insert(conn, &fresh, "backfill", "live").await?;
    } else {
        let open = runs::open(conn, &[row.id]).await?.remove(&row.id).unwrap_or_default();
        if open.waiting_backfill + fresh.len() > WAITING_MAX {
            return Err(Fail::conflict(
                "schedules.backfill_waiting",
                format!("{} occurrences wait already, of {WAITING_MAX} that may.", open.waiting_backfill),
            ));
        }
        runs::insert(conn, &fresh, "backfill", "waiting").await?;
    }
    if !fresh.is_empty() {
        ground.audit.record(conn, act.after("occurrences", fresh.len() as u64)).await?;
    }
    Ok(BackfillScheduleResponse {
        job_ids: fresh.iter().map(|run| run.job.to_string()).collect(),
        existing: u32::try_from(existing.len()).unwrap_or(u32::MAX),
        replayed: false,
    })
}

/// Submits those of the jobs that hold the unique keys they ask for; who holds the others'.
async fn submit(conn: &mut PgConnection, ground: &Ground, jobs: &[NewJob], now: DateTime<Utc>) -> Result<Keys, Fail> {
    let (keys, _) = firing::take_keys(ground, conn, jobs, now).await?;
    let own: Vec<NewJob> = jobs.iter().filter(|job| keys.holder(job).is_none()).cloned().collect();
    let mut telling = Telling::default();
    engine::insert(conn, &ground.clock, &own, now, &mut telling).await?;
    telling.append(conn, now).await?;
    Ok(keys)
}

/// The schedule's job as it would be submitted now, in the request that asks for it.
async fn prepared(core: &Core, call: &Call, id: Uuid) -> Result<Prepared, Fail> {
    let row = rows::read(&mut *core.pool.acquire().await?, &[id]).await?.pop().ok_or_else(rows::not_found)?;
    let mut prepared = firing::prepare(core, &row).await?;
    if let Ok(job) = &mut prepared.job {
        (job.request_id, job.traceparent) = (call.request_id.clone(), call.traceparent.clone());
    }
    Ok(prepared)
}
