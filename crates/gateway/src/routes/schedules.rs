//! Schedules: jobs that are submitted again and again, or once at a later time.

mod shapes;

use std::time::Duration;

use kit::{Fail, clock::to_timestamp};
use proto::jobs as rpc;

use super::{SMALL, jobs::Reason};
use crate::{
    route::{
        Access, Ask, Fails, Id, Idempotency, Json, JsonOrNothing, Limits, NoContent, Nothing, Query, Reply, Route,
    },
    wire::{LIMIT, List, Paging},
};
use shapes::{Backfill, Backfilled, NewSchedule, Occurrences, Preview, Schedule, Started};

const TAG: &str = "schedules";
const READ: Access = Access::Permission("schedules:read");
const WRITE: Access = Access::Permission("schedules:write");
const RUN: Access = Access::Permission("schedules:run");
/// One schedule holds the arguments of one job.
const ONE: Limits = Limits { body_bytes_max: 512 * 1024, within: Duration::from_secs(30) };
const NOT_FOUND: Fails = Fails(&[(404, "schedules.not_found")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/schedules", TAG, "Create a schedule")
            .access(WRITE, &["/guildhall.jobs.v1.Schedules/Create"])
            .limits(ONE)
            .idempotency(Idempotency::ByKey)
            .refuses(Fails(&[
                (403, "jobs.forbidden"),
                (409, "schedules.too_many"),
                (422, "schedules.invalid"),
                (422, "jobs.invalid"),
            ]))
            .by(create),
        Route::post("/api/v1/schedules/preview", TAG, "Show when a timing comes due, with the odd hours marked")
            .access(READ, &["/guildhall.jobs.v1.Schedules/Preview"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(422, "schedules.invalid")]))
            .by(preview),
        Route::get("/api/v1/schedules", TAG, "List schedules, newest first")
            .access(READ, &["/guildhall.jobs.v1.Schedules/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
        Route::get("/api/v1/schedules/{id}", TAG, "Show a schedule and its newest runs")
            .access(READ, &["/guildhall.jobs.v1.Schedules/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(show),
        Route::put("/api/v1/schedules/{id}", TAG, "Put another schedule in the place of one, which keeps its id")
            .access(WRITE, &["/guildhall.jobs.v1.Schedules/Update"])
            .limits(ONE)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[
                (403, "jobs.forbidden"),
                (404, "schedules.not_found"),
                (422, "schedules.invalid"),
                (422, "jobs.invalid"),
            ]))
            .by(update),
        Route::delete("/api/v1/schedules/{id}", TAG, "Remove a schedule; its jobs go on")
            .access(WRITE, &["/guildhall.jobs.v1.Schedules/Remove"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(remove),
        Route::post("/api/v1/schedules/{id}/run", TAG, "Submit a schedule's job now")
            .access(RUN, &["/guildhall.jobs.v1.Schedules/Run"])
            .limits(SMALL)
            .idempotency(Idempotency::ByKey)
            .refuses(Fails(&[(403, "jobs.forbidden"), (404, "schedules.not_found"), (422, "jobs.invalid")]))
            .by(run),
        Route::post("/api/v1/schedules/{id}/pause", TAG, "Pause a schedule: nothing of it comes due")
            .access(WRITE, &["/guildhall.jobs.v1.Schedules/Pause"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "schedules.not_found"), (422, "jobs.invalid")]))
            .by(pause),
        Route::post("/api/v1/schedules/{id}/resume", TAG, "Let a schedule go on with what comes due from now")
            .access(WRITE, &["/guildhall.jobs.v1.Schedules/Resume"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(resume),
        Route::post("/api/v1/schedules/{id}/backfill", TAG, "Run the occurrences of a past span that have not run")
            .access(RUN, &["/guildhall.jobs.v1.Schedules/Backfill"])
            .limits(SMALL)
            .idempotency(Idempotency::ByKey)
            .refuses(Fails(&[
                (403, "jobs.forbidden"),
                (404, "schedules.not_found"),
                (409, "schedules.backfill_waiting"),
                (422, "schedules.invalid"),
                (422, "jobs.invalid"),
            ]))
            .by(backfill),
    ]
}

async fn create(ask: Ask<Nothing, Nothing, Json<NewSchedule>>) -> Result<Reply<201, Schedule>, Fail> {
    let message = rpc::CreateScheduleRequest { spec: Some(ask.body.0.write()) };
    let schedule = ask.door.schedules().create(ask.call.request(message)).await?.into_inner();
    let replayed = schedule.replayed;
    Ok(Reply::new(Schedule::read(schedule)?).replayed(replayed))
}

async fn preview(ask: Ask<Nothing, Nothing, Json<Preview>>) -> Result<Reply<200, Occurrences>, Fail> {
    let message = ask.body.0.write();
    Ok(Reply::new(Occurrences::read(ask.door.schedules().preview(ask.call.request(message)).await?.into_inner())?))
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Schedule>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListSchedulesRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.schedules().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Schedule::read)?))
}

async fn show(ask: Ask<Id>) -> Result<Reply<200, Schedule>, Fail> {
    let message = rpc::GetScheduleRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Schedule::read(ask.door.schedules().get(ask.call.request(message)).await?.into_inner())?))
}

async fn update(ask: Ask<Id, Nothing, Json<NewSchedule>>) -> Result<Reply<200, Schedule>, Fail> {
    let message = rpc::UpdateScheduleRequest { id: ask.path.0.to_string(), spec: Some(ask.body.0.write()) };
    Ok(Reply::new(Schedule::read(ask.door.schedules().update(ask.call.request(message)).await?.into_inner())?))
}

async fn remove(ask: Ask<Id>) -> Result<NoContent, Fail> {
    let message = rpc::RemoveScheduleRequest { id: ask.path.0.to_string() };
    ask.door.schedules().remove(ask.call.request(message)).await?;
    Ok(NoContent)
}

async fn run(ask: Ask<Id>) -> Result<Reply<202, Started>, Fail> {
    let message = rpc::RunScheduleRequest { id: ask.path.0.to_string() };
    let answer = ask.door.schedules().run(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(Started { job_id: answer.job_id }).replayed(answer.replayed))
}

async fn pause(ask: Ask<Id, Nothing, JsonOrNothing<Reason>>) -> Result<Reply<200, Schedule>, Fail> {
    let message =
        rpc::PauseScheduleRequest { id: ask.path.0.to_string(), reason: ask.body.0.reason.unwrap_or_default() };
    Ok(Reply::new(Schedule::read(ask.door.schedules().pause(ask.call.request(message)).await?.into_inner())?))
}

async fn resume(ask: Ask<Id>) -> Result<Reply<200, Schedule>, Fail> {
    let message = rpc::ResumeScheduleRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Schedule::read(ask.door.schedules().resume(ask.call.request(message)).await?.into_inner())?))
}

async fn backfill(ask: Ask<Id, Nothing, Json<Backfill>>) -> Result<Reply<202, Backfilled>, Fail> {
    let Json(Backfill { from, until }) = ask.body;
    let (from, until) = (Some(to_timestamp(from)), Some(to_timestamp(until)));
    let message = rpc::BackfillScheduleRequest { id: ask.path.0.to_string(), from, until };
    let answer = ask.door.schedules().backfill(ask.call.request(message)).await?.into_inner();
    let replayed = answer.replayed;
    Ok(Reply::new(Backfilled { job_ids: answer.job_ids, existing: answer.existing }).replayed(replayed))
}
