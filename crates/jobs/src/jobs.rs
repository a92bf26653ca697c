//! Jobs: submit, show, list, cancel, retry, watch.

use std::sync::Arc;

use kit::{Fail, audit::Act, grpc::Call, identity::Caller};
use proto::jobs::{
    CancelJobRequest, GetJobRequest, Job, ListAttemptsRequest, ListAttemptsResponse, ListJobsRequest, ListJobsResponse,
    ListLogsRequest, ListLogsResponse, RetryJobRequest, SubmitJobsRequest, SubmitJobsResponse, WatchRequest,
    jobs_server,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Core, acts,
    engine::{self, Place, Stream, Subject},
    reads,
    submissions::{self, Origin, Submission},
};

/// Bytes of the reason of a cancel.
const REASON_BYTES_MAX: usize = 1_000;

/// The gRPC service.
pub(crate) struct Jobs(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl jobs_server::Jobs for Jobs {
    async fn submit(&self, request: Request<SubmitJobsRequest>) -> Result<Response<SubmitJobsResponse>, Status> {
        let (call, sending) = submissions::sending(Call::of(&request)?);
        Ok(Response::new(sending.within(submit(&self.0, &call, request.into_inner())).await?))
    }

    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(reads::get_job(&self.0, caller, &request.get_ref().id).await?))
    }

    async fn list(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(reads::list_jobs(&self.0, caller, request.get_ref()).await?))
    }

    async fn cancel(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let call = Call::of(&request)?;
        let (caller, asked) = (call.caller()?, request.get_ref());
        let (id, owner) = find(&self.0, &asked.id).await?;
        let act = Act::of(call, &acts::CANCEL_JOB, id).owned_by(owner).because(&asked.reason);
        let came_to = cancel(&self.0, caller, id, owner, &asked.reason, act.clone()).await;
        self.0.witness(act, came_to).await?;
        Ok(Response::new(reads::get_job(&self.0, caller, &asked.id).await?))
    }

    async fn retry(&self, request: Request<RetryJobRequest>) -> Result<Response<Job>, Status> {
        let call = Call::of(&request)?;
        let (caller, asked) = (call.caller()?, request.get_ref());
        let (id, owner) = find(&self.0, &asked.id).await?;
        let act = Act::of(call, &acts::RETRY_JOB, id).owned_by(owner);
        let came_to = retry(&self.0, caller, id, owner, act.clone()).await;
        self.0.witness(act, came_to).await?;
        Ok(Response::new(reads::get_job(&self.0, caller, &asked.id).await?))
    }

    async fn list_attempts(
        &self,
        request: Request<ListAttemptsRequest>,
    ) -> Result<Response<ListAttemptsResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(reads::list_attempts(&self.0, caller, request.get_ref()).await?))
    }

    async fn list_logs(&self, request: Request<ListLogsRequest>) -> Result<Response<ListLogsResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(reads::list_logs(&self.0, caller, request.get_ref()).await?))
    }

    type WatchStream = Stream;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Stream>, Status> {
        let caller = Call::of(&request)?.caller()?;
        let asked = request.get_ref();
        let (id, owner) = find(&self.0, &asked.id).await?;
        check_may(caller, "jobs:read", owner)?;
        let ground = &self.0.engine.ground;
        Ok(Response::new(engine::watch(ground, &self.0.tasks, Subject::Job, id, asked.after_offset)))
    }
}

async fn submit(core: &Core, call: &Call, asked: SubmitJobsRequest) -> Result<SubmitJobsResponse, Fail> {
    let caller = call.caller()?;
    let is_single = asked.jobs.len() == 1;
    let mut taken = match checked(core, call, asked).await {
        Ok(jobs) => {
            let (key, jobs, call) = (call.idempotency.clone(), jobs.into(), Arc::new(call.clone()));
            let submission = Submission { owner: caller.subject, key, jobs, call };
            core.submitter.write(submission).await??
        }
        Err(fail) => submissions::refuse(core, call, fail).await?,
    };
    if let (true, Some(item)) = (is_single, taken.items.first()) {
        taken.job = Some(reads::get_job(core, caller, &item.id).await?);
    }
    Ok(taken)
}

async fn checked(core: &Core, call: &Call, asked: SubmitJobsRequest) -> Result<Vec<engine::NewJob>, Fail> {
    if asked.jobs.is_empty() {
        return Err(Fail::invalid("jobs.invalid", "There is no job in it.").at(
            "/jobs",
            "min_items",
            "must not be empty",
        ));
    }
    submissions::check(core, call.caller()?, &Origin::of(call)?, asked.jobs, |_| Place::Alone).await
}

/// A job's id, and whose it is.
///
/// # Errors
/// `jobs.job_not_found`, for a malformed id too.
async fn find(core: &Core, id: &str) -> Result<(Uuid, Uuid), Fail> {
    let id = Uuid::try_parse(id).map_err(|_| not_found())?;
    let owner = sqlx::query_scalar!(r#"select owner_id as "owner_id!" from jobs.any_job where id = $1"#, id)
        .fetch_optional(&core.pool)
        .await?
        .ok_or_else(not_found)?;
    Ok((id, owner))
}

/// Lets a caller pass who may touch the owner's jobs under `permission`.
///
/// # Errors
/// `jobs.job_not_found`: a stranger's job is not there.
fn check_may(caller: &Caller, permission: &str, owner: Uuid) -> Result<(), Fail> {
    if caller.may_touch(permission, owner) { Ok(()) } else { Err(not_found()) }
}

async fn cancel(core: &Core, caller: &Caller, id: Uuid, owner: Uuid, reason: &str, act: Act) -> Result<(), Fail> {
    check_may(caller, "jobs:cancel", owner)?;
    check_reason(reason)?;
    core.engine.cancel_job(id, caller.subject, reason, act).await
}

/// Puts a dead letter, or a job that was cancelled or expired, back into its queue, under its id. It takes its unique key
/// again, unless another holds that by now. A parent starts over with a new batch.
async fn retry(core: &Core, caller: &Caller, id: Uuid, owner: Uuid, act: Act) -> Result<(), Fail> {
    check_may(caller, "jobs:retry", owner)?;
    core.engine.retry_job(id, act).await
}

/// Checks why a caller cancels: it is kept with every job that ends by it, and shown.
///
/// # Errors
/// `jobs.invalid` at `/reason`.
pub(crate) fn check_reason(reason: &str) -> Result<(), Fail> {
    if reason.len() <= REASON_BYTES_MAX && !reason.contains('\0') {
        return Ok(());
    }
    Err(Fail::invalid("jobs.invalid", "The reason cannot be taken as it is.").at(
        "/reason",
        "max_length",
        format!("must be text of at most {REASON_BYTES_MAX} bytes"),
    ))
}

pub(crate) fn not_found() -> Fail {
    Fail::not_found("jobs.job_not_found", "There is no such job.")
}
