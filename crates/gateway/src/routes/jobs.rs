//! Jobs: submit, look, stop, try again, follow.

mod shapes;
mod unique;

use std::time::Duration;

use kit::{Fail, clock::to_timestamp};
use proto::jobs as rpc;

pub(super) use shapes::{AcceptedJobs, NewJob, NewJobs, Reason};
use shapes::{Attempt, Job, JobFilter, LogLine};
use unique::Submitted;

use super::SMALL;
use crate::{
    live,
    route::{
        AcceptedOrThere, Access, Ask, Events, Fails, Id, Idempotency, Json, JsonOrNothing, Limits, Nothing, Query,
        Reply, Route,
    },
    wire::{LIMIT, List, Paging},
};

const TAG: &str = "jobs";
const READ: Access = Access::Permission("jobs:read");
const SUBMIT: Access = Access::Permission("jobs:submit");
/// One job: its arguments may have 256 KiB.
const ONE: Limits = Limits { body_bytes_max: 512 * 1024, within: Duration::from_secs(30) };
/// Many jobs: what one gRPC message holds, with room for what JSON is written shorter than it is passed on.
pub(super) const MANY: Limits = Limits { body_bytes_max: 8 * 1024 * 1024, within: Duration::from_secs(60) };
pub(super) const SUBMIT_FAILS: Fails =
    Fails(&[(403, "jobs.forbidden"), (422, "jobs.invalid"), (503, "jobs.busy"), (503, "jobs.stopping")]);
/// Also where a job's unique key is held, and it asks to be refused then.
const SUBMIT_UNIQUE_FAILS: Fails = Fails(&[
    (403, "jobs.forbidden"),
    (409, "jobs.unique_key_held"),
    (422, "jobs.invalid"),
    (503, "jobs.busy"),
    (503, "jobs.stopping"),
]);
const NOT_FOUND: Fails = Fails(&[(404, "jobs.job_not_found")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/jobs", TAG, "Submit a job")
            .access(SUBMIT, &["/guildhall.jobs.v1.Jobs/Submit"])
            .limits(ONE)
            .idempotency(Idempotency::ByKey)
            .refuses(SUBMIT_UNIQUE_FAILS)
            .by(submit),
        Route::post("/api/v1/jobs/bulk", TAG, "Submit up to 1,000 jobs, all or nothing")
            .access(SUBMIT, &["/guildhall.jobs.v1.Jobs/Submit"])
            .limits(MANY)
            .idempotency(Idempotency::ByKey)
            .refuses(SUBMIT_UNIQUE_FAILS)
            .by(submit_many),
        Route::get("/api/v1/jobs", TAG, "List jobs, newest first")
            .access(READ, &["/guildhall.jobs.v1.Jobs/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(400, "jobs.invalid_filter")]))
            .by(list),
        Route::get("/api/v1/jobs/{id}", TAG, "Show a job")
            .access(READ, &["/guildhall.jobs.v1.Jobs/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(show),
        Route::post("/api/v1/jobs/{id}/cancel", TAG, "Ask a job to stop")
            .access(Access::Permission("jobs:cancel"), &["/guildhall.jobs.v1.Jobs/Cancel"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "jobs.job_not_found"), (409, "jobs.already_final")]))
            .by(cancel),
        Route::post("/api/v1/jobs/{id}/retry", TAG, "Queue a job that failed or was cancelled again")
            .access(Access::Permission("jobs:retry"), &["/guildhall.jobs.v1.Jobs/Retry"])
            .limits(SMALL)
            .idempotency(Idempotency::Never)
            .refuses(Fails(&[
                (404, "jobs.job_not_found"),
                (409, "jobs.not_final"),
                (409, "jobs.already_succeeded"),
                (409, "jobs.batch_finalizing"),
                (409, "jobs.unique_key_held"),
            ]))
            .by(retry),
        Route::get("/api/v1/jobs/{id}/attempts", TAG, "List a job's attempts, newest first")
            .access(READ, &["/guildhall.jobs.v1.Jobs/ListAttempts"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(attempts),
        Route::get("/api/v1/jobs/{id}/logs", TAG, "Read a job's log, oldest line first")
            .access(READ, &["/guildhall.jobs.v1.Jobs/ListLogs"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(logs),
        Route::get("/api/v1/jobs/{id}/events", TAG, "Follow a job until it is final")
            .access(READ, &["/guildhall.jobs.v1.Jobs/Watch"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(live::FAILS)
            .by(events),
    ]
}

async fn submit(ask: Ask<Nothing, Nothing, Json<NewJob>>) -> Result<AcceptedOrThere<Submitted>, Fail> {
    let message = rpc::SubmitJobsRequest { jobs: vec![ask.body.0.write()] };
    let answer = ask.door.job_client().submit(ask.call.request(message)).await;
    // The role speaks of a list; this caller sent one job.
    let answer = answer
        .map_err(|status| Fail::from(status).map_pointers(|at| at.strip_prefix("/jobs/0").unwrap_or(at).to_owned()))?
        .into_inner();
    Submitted::reply(answer)
}

async fn submit_many(ask: Ask<Nothing, Nothing, Json<NewJobs>>) -> Result<Reply<202, AcceptedJobs>, Fail> {
    let message = rpc::SubmitJobsRequest { jobs: ask.body.0.write() };
    let answer = ask.door.job_client().submit(ask.call.request(message)).await?.into_inner();
    Ok(AcceptedJobs::reply(answer))
}

async fn list(ask: Ask<Nothing, Query<JobFilter>>) -> Result<Reply<200, List<Job>>, Fail> {
    let Query(filter) = ask.query;
    let message = rpc::ListJobsRequest {
        limit: filter.limit.unwrap_or(LIMIT),
        cursor: filter.cursor.unwrap_or_default(),
        states: filter.state.into_iter().map(|state| rpc::JobState::from(state).into()).collect(),
        task: filter.task.unwrap_or_default(),
        queue: filter.queue.unwrap_or_default(),
        tag: filter.tag.unwrap_or_default(),
        owner_id: filter.owner_id.map(|id| id.to_string()).unwrap_or_default(),
        batch_id: filter.batch_id.map(|id| id.to_string()).unwrap_or_default(),
        created_after: filter.created_after.map(to_timestamp),
        created_before: filter.created_before.map(to_timestamp),
    };
    let page = ask.door.job_client().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Job::read)?))
}

async fn show(ask: Ask<Id>) -> Result<Reply<200, Job>, Fail> {
    let message = rpc::GetJobRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Job::read(ask.door.job_client().get(ask.call.request(message)).await?.into_inner())?))
}

async fn cancel(ask: Ask<Id, Nothing, JsonOrNothing<Reason>>) -> Result<Reply<202, Job>, Fail> {
    let message = rpc::CancelJobRequest { id: ask.path.0.to_string(), reason: ask.body.0.reason.unwrap_or_default() };
    Ok(Reply::new(Job::read(ask.door.job_client().cancel(ask.call.request(message)).await?.into_inner())?))
}

async fn retry(ask: Ask<Id>) -> Result<Reply<202, Job>, Fail> {
    let message = rpc::RetryJobRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Job::read(ask.door.job_client().retry(ask.call.request(message)).await?.into_inner())?))
}

async fn attempts(ask: Ask<Id, Query<Paging>>) -> Result<Reply<200, List<Attempt>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListAttemptsRequest {
        job_id: ask.path.0.to_string(),
        limit: limit.unwrap_or(LIMIT),
        cursor: cursor.unwrap_or_default(),
    };
    let page = ask.door.job_client().list_attempts(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, |attempt| Ok(Attempt::read(attempt)))?))
}

async fn logs(ask: Ask<Id, Query<Paging>>) -> Result<Reply<200, List<LogLine>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListLogsRequest {
        job_id: ask.path.0.to_string(),
        limit: limit.unwrap_or(LIMIT),
        cursor: cursor.unwrap_or_default(),
    };
    let page = ask.door.job_client().list_logs(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, LogLine::read)?))
}

async fn events(ask: Ask<Id>) -> Result<Events, Fail> {
    live::follow(ask, async |door, request| door.job_client().watch(request).await).await
}
