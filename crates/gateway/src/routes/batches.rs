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
        Route::post("/api/v1/batches/{id}/retry", TAG, "Queue what failed or expired again; the batch finalizes anew")
            .access(Access::Permission("batches:retry"), &["/guildhall.jobs.v1.Batches/Retry"])
            .limits(SMALL)
            .idempotency(Idempotency::Never)
            .refuses(Fails(&[
                (404, "jobs.batch_not_found"),
                (409, "jobs.batch_finalizing"),
                (409, "jobs.batch_cancelling"),
                (409, "jobs.nothing_to_retry"),
                (422, "jobs.invalid"),
            ]))
            .by(retry),
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
    /// When the finalize runs; `always` unless said.
    #[serde(default)]
    policy: Option<Policy>,
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

/// Whether a complete batch is finalized. Where it is not, it ends without.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Policy {
    kind: PolicyKind,
    /// For `threshold` alone: how many must have succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    at_least: Option<u32>,
}

/// `always`: whatever became of the jobs; `all`: if every job succeeded; `any`: if one did; `threshold`: if `at_least` did.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PolicyKind {
    Always,
    All,
    Any,
    Threshold,
}

/// What is queued again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Retry {
    /// Of jobs that ended so; failed and expired unless said.
    #[serde(default)]
    #[schemars(length(min = 1, max = 3))]
    states: Option<Vec<Retryable>>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Retryable {
    Failed,
    Expired,
    Cancelled,
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
    policy: Policy,
    /// Why no finalize started, where the policy was not met.
    finalize_skipped: Option<String>,
    /// The newest 20, oldest first; several where it was retried.
    finalizes: Vec<Finalized>,
    /// Whether jobs of it are still being queued again.
    retrying: bool,
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

/// One finalize of a batch.
#[derive(Debug, Serialize, JsonSchema)]
struct Finalized {
    /// From 1.
    round: u32,
    /// None where it was skipped.
    job_id: Option<String>,
    /// `running`, `succeeded`, `failed`, `cancelled`, `expired` or `skipped`.
    state: String,
    /// Why it was skipped.
    reason: Option<String>,
    /// What had become of the jobs when it began.
    counts: Counts,
    started_at: Time,
    finished_at: Option<Time>,
}

async fn create(ask: Ask<Nothing, Nothing, Json<NewBatch>>) -> Result<Reply<202, Batch>, Fail> {
    let Json(NewBatch { jobs, finalize, policy, open }) = ask.body;
    let message = rpc::CreateBatchRequest {
        jobs: jobs.into_iter().map(super::jobs::NewJob::write).collect(),
        finalize: finalize.map(|last| rpc::FinalizeSpec { task: last.task, args_json: last.args.to_string() }),
        open,
        policy: policy.map(Policy::write),
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

async fn retry(ask: Ask<Id, Nothing, JsonOrNothing<Retry>>) -> Result<Reply<202, Batch>, Fail> {
    let states = ask.body.0.states.unwrap_or_default();
    let message = rpc::RetryBatchRequest {
        id: ask.path.0.to_string(),
        states: states.into_iter().map(|state| rpc::JobState::from(state).into()).collect(),
    };
    Ok(Reply::new(Batch::read(ask.door.batches().retry(ask.call.request(message)).await?.into_inner())?))
}

async fn events(ask: Ask<Id>) -> Result<Events, Fail> {
    live::follow(ask, async |door, request| door.batches().watch(request).await).await
}

impl From<Retryable> for rpc::JobState {
    fn from(state: Retryable) -> Self {
        match state {
            Retryable::Failed => Self::Failed,
            Retryable::Expired => Self::Expired,
            Retryable::Cancelled => Self::Cancelled,
        }
    }
}

impl Policy {
    fn write(self) -> rpc::BatchPolicy {
        let kind = match self.kind {
            PolicyKind::Always => "always",
            PolicyKind::All => "all",
            PolicyKind::Any => "any",
            PolicyKind::Threshold => "threshold",
        };
        rpc::BatchPolicy { kind: kind.to_owned(), at_least: self.at_least }
    }

    fn read(policy: Option<rpc::BatchPolicy>) -> Result<Self, Fail> {
        // A role from before it knew of policies says none.
        let policy = policy.unwrap_or_else(|| rpc::BatchPolicy { kind: "always".to_owned(), at_least: None });
        let kind = match policy.kind.as_str() {
            "always" => PolicyKind::Always,
            "all" => PolicyKind::All,
            "any" => PolicyKind::Any,
            "threshold" => PolicyKind::Threshold,
            other => return Err(Fail::internal(format!("jobs showed a batch with the policy `{other}`"))),
        };
        Ok(Self { kind, at_least: policy.at_least })
    }
}

impl Counts {
    fn read(counts: Option<rpc::BatchCounts>) -> Self {
        let counts = counts.unwrap_or_default();
        Self {
            total: counts.total,
            succeeded: counts.succeeded,
            failed: counts.failed,
            cancelled: counts.cancelled,
            expired: counts.expired,
        }
    }
}

impl Finalized {
    fn read(finalize: rpc::BatchFinalize) -> Result<Self, Fail> {
        Ok(Self {
            round: finalize.round,
            job_id: maybe(finalize.job_id),
            state: finalize.state,
            reason: maybe(finalize.reason),
            counts: Counts::read(finalize.counts),
            started_at: time(finalize.started_at)?,
            finished_at: maybe_time(finalize.finished_at),
        })
    }
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
        Ok(Self {
            id: batch.id,
            owner_id: batch.owner_id,
            state,
            counts: Counts::read(batch.counts),
            finalize_job_id: maybe(batch.finalize_job_id),
            policy: Policy::read(batch.policy)?,
            finalize_skipped: maybe(batch.finalize_skipped),
            finalizes: batch.finalizes.into_iter().map(Finalized::read).collect::<Result<_, _>>()?,
            retrying: batch.retrying,
            parent_job_id: maybe(batch.parent_job_id),
            created_at: time(batch.created_at)?,
            finished_at: maybe_time(batch.finished_at),
        })
    }
}
