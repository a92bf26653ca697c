//! Batches: many jobs and one finalize.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    SMALL,
    jobs::{AcceptedJobs, MANY, NewJobs, Reason, SUBMIT_FAILS},
};
use crate::{
    live,
    route::{Access, Ask, Events, Fails, Id, Idempotency, Json, JsonOrNothing, Nothing, Query, Reply, Route},
    wire::{LIMIT, List, Paging, Time, maybe, maybe_time, time},
};

const TAG: &str = "batches";
const READ: Access = Access::Permission("batches:read");
const CREATE: Access = Access::Permission("batches:create");
const NOT_FOUND: Fails = Fails(&[(404, "jobs.batch_not_found")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/batches", TAG, "Create a batch")
            .access(CREATE, &["/guildhall.jobs.v1.Batches/Create"])
            .limits(MANY)
            .idempotency(Idempotency::ByKey)
            .refuses(SUBMIT_FAILS)
            .by(create),
        Route::get("/api/v1/batches", TAG, "List batches, newest first")
            .access(READ, &["/guildhall.jobs.v1.Batches/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
        Route::get("/api/v1/batches/{id}", TAG, "Show a batch")
            .access(READ, &["/guildhall.jobs.v1.Batches/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(show),
        Route::post("/api/v1/batches/{id}/jobs", TAG, "Add jobs to an open batch, all or nothing")
            .access(CREATE, &["/guildhall.jobs.v1.Batches/AddJobs"])
            .limits(MANY)
            .idempotency(Idempotency::ByKey)
            .refuses(Fails(&[(404, "jobs.batch_not_found"), (409, "jobs.batch_closed"), (422, "jobs.invalid_jobs")]))
            .by(add_jobs),
        Route::post("/api/v1/batches/{id}/close", TAG, "Close an open batch: it takes no more jobs")
            .access(CREATE, &["/guildhall.jobs.v1.Batches/Close"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(close),
        Route::post("/api/v1/batches/{id}/cancel", TAG, "Cancel what is not final yet; the finalize still runs")
            .access(Access::Permission("batches:cancel"), &["/guildhall.jobs.v1.Batches/Cancel"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "jobs.batch_not_found"), (409, "jobs.already_final")]))
            .by(cancel),
        Route::get("/api/v1/batches/{id}/events", TAG, "Follow a batch and its jobs until it is final")
            .access(READ, &["/guildhall.jobs.v1.Batches/Watch"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(400, "live.malformed_event_id"), (404, "jobs.batch_not_found"), (503, "busy")]))
            .by(events),
    ]
}

/// A batch to be made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewBatch {
    /// At most 1,000 a call; an open batch takes more later.
    #[schemars(length(max = 1000))]
    jobs: Vec<super::jobs::NewJob>,
    /// What runs once all jobs are final.
    #[serde(default)]
    finalize: Option<Finalize>,
    /// Whether more jobs will be added before it is closed.
    #[serde(default)]
    open: bool,
}

/// The job that ends a batch.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Finalize {
    task: String,
    args: serde_json::Value,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum BatchState {
    Open,
    Running,
    Finalizing,
    Finished,
    Cancelled,
}

/// A batch.
#[derive(Debug, Serialize, JsonSchema)]
struct Batch {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    #[schemars(extend("format" = "uuid"))]
    owner_id: String,
    state: BatchState,
    counts: Counts,
    finalize_job_id: Option<String>,
    /// The job that fanned it out.
    parent_job_id: Option<String>,
    created_at: Time,
    finished_at: Option<Time>,
}

/// How many of a batch's jobs ended how; the finalize is not counted.
#[derive(Debug, Serialize, JsonSchema)]
struct Counts {
    total: u32,
    succeeded: u32,
    failed: u32,
    cancelled: u32,
    expired: u32,
}

async fn create(ask: Ask<Nothing, Nothing, Json<NewBatch>>) -> Result<Reply<202, Batch>, Fail> {
    let Json(NewBatch { jobs, finalize, open }) = ask.body;
    let message = rpc::CreateBatchRequest {
        jobs: jobs.into_iter().map(super::jobs::NewJob::write).collect(),
        finalize: finalize.map(|last| rpc::FinalizeSpec { task: last.task, args_json: last.args.to_string() }),
        open,
    };
    let batch = ask.door.batches().create(ask.call.request(message)).await?.into_inner();
    let replayed = batch.replayed;
    Ok(Reply::new(Batch::read(batch)?).replayed(replayed))
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Batch>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListBatchesRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.batches().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Batch::read)?))
}

async fn show(ask: Ask<Id>) -> Result<Reply<200, Batch>, Fail> {
    let message = rpc::GetBatchRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Batch::read(ask.door.batches().get(ask.call.request(message)).await?.into_inner())?))
}

async fn add_jobs(ask: Ask<Id, Nothing, Json<NewJobs>>) -> Result<Reply<202, AcceptedJobs>, Fail> {
    let message = rpc::AddBatchJobsRequest { batch_id: ask.path.0.to_string(), jobs: ask.body.0.write() };
    let answer = ask.door.batches().add_jobs(ask.call.request(message)).await?.into_inner();
    Ok(AcceptedJobs::reply(answer))
}

async fn close(ask: Ask<Id>) -> Result<Reply<200, Batch>, Fail> {
    let message = rpc::CloseBatchRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(Batch::read(ask.door.batches().close(ask.call.request(message)).await?.into_inner())?))
}

async fn cancel(ask: Ask<Id, Nothing, JsonOrNothing<Reason>>) -> Result<Reply<202, Batch>, Fail> {
    let message = rpc::CancelBatchRequest { id: ask.path.0.to_string(), reason: ask.body.0.reason.unwrap_or_default() };
    Ok(Reply::new(Batch::read(ask.door.batches().cancel(ask.call.request(message)).await?.into_inner())?))
}

async fn events(ask: Ask<Id>) -> Result<Events, Fail> {
    live::follow(ask, async |door, request| door.batches().watch(request).await).await
}

impl Batch {
    fn read(batch: rpc::Batch) -> Result<Self, Fail> {
        let state = match batch.state() {
            rpc::BatchState::Unspecified => return Err(Fail::internal("jobs showed a batch without a state")),
            rpc::BatchState::Open => BatchState::Open,
            rpc::BatchState::Running => BatchState::Running,
            rpc::BatchState::Finalizing => BatchState::Finalizing,
            rpc::BatchState::Finished => BatchState::Finished,
            rpc::BatchState::Cancelled => BatchState::Cancelled,
        };
        let counts = batch.counts.unwrap_or_default();
        Ok(Self {
            id: batch.id,
            owner_id: batch.owner_id,
            state,
            counts: Counts {
                total: counts.total,
                succeeded: counts.succeeded,
                failed: counts.failed,
                cancelled: counts.cancelled,
                expired: counts.expired,
            },
            finalize_job_id: maybe(batch.finalize_job_id),
            parent_job_id: maybe(batch.parent_job_id),
            created_at: time(batch.created_at)?,
            finished_at: maybe_time(batch.finished_at),
        })
    }
}
