//! Jobs: submit, show, list, cancel, retry, watch.

use std::sync::Arc;

use kit::{Fail, audit::Act, grpc::Call, identity::Caller, outbox, telemetry::span};
use proto::jobs::{
    CancelJobRequest, GetJobRequest, Job, ListAttemptsRequest, ListAttemptsResponse, ListJobsRequest, ListJobsResponse,
    ListLogsRequest, ListLogsResponse, RetryJobRequest, SubmitJobsRequest, SubmitJobsResponse, WatchRequest,
    jobs_server,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Core, SCHEMA, acts,
    engine::{self, Holding, Place, State, Stream, Subject, Telling},
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

/// Puts a dead letter, or a job that was cancelled or expired, back into its queue, under its id. Its attempts are counted
/// on, and it is granted `max_attempts` and all its time anew, and takes its unique key again unless another holds that by
/// now. A batch it belongs to is opened again, and will finalize again; a parent starts over with a new batch.
async fn retry(core: &Core, caller: &Caller, id: Uuid, owner: Uuid, act: Act) -> Result<(), Fail> {
    check_may(caller, "jobs:retry", owner)?;
    let now = core.clock.now();
    let _told = span::transaction("jobs.retry");
    let mut transaction = core.pool.begin().await?;
    let Some(job) = sqlx::query!(
        "select state, owner_id, task, queue, priority, attempt, events, batch_id, is_finalize, unique_key,
           is_unique_for_all, unique_hold
         from jobs.job_history
         where id = $1
         for update",
        id,
    )
    .fetch_optional(&mut *transaction)
    .await?
    else {
        return Err(Fail::conflict("jobs.not_final", "It has not ended yet."));
    };
    let was: State = job.state.parse()?;
    if !was.may_become(State::Queued) {
        return Err(Fail::conflict("jobs.already_succeeded", "It has succeeded; there is nothing to retry."));
    }
    sqlx::query!(
        "insert into jobs.job (id, owner_id, task, queue, state, priority, run_at, rank, attempt, attempts_until,
           max_attempts, attempt_timeout_s, backoff, token, started_at, batch_id, ordinal, is_finalize, events, request_id,
           traceparent, tags, args, since, created_at, queue_timeout_s, queue_until, deadline_s, deadline_at, retry_on,
           concurrency_key, lane, unique_key, is_unique_for_all, unique_hold)
         select id, owner_id, past.task, past.queue, 'queued', priority, $2, $3, attempt, attempt + max_attempts, max_attempts,
           attempt_timeout_s, backoff, 0, started_at, batch_id, ordinal, is_finalize, events + 1, request_id, traceparent,
           tags, args, $2, created_at, queue_timeout_s, $2::timestamptz + make_interval(secs => queue_timeout_s), deadline_s,
           $2::timestamptz + make_interval(secs => deadline_s), retry_on, concurrency_key,
           jobs.lane(past.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed), unique_key,
           is_unique_for_all, unique_hold
         from jobs.job_history as past
         left join jobs.queue on queue.name = past.queue
         left join jobs.task on task.name = past.task
         where id = $1",
        id,
        now,
        engine::rank(now, u8::try_from(job.priority).unwrap_or_default()),
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "update jobs.queue
         set has_lanes = true
         where name = $2 and not has_lanes and exists (select from jobs.job where id = $1 and lane is not null)",
        id,
        job.queue,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("delete from jobs.job_history where id = $1", id).execute(&mut *transaction).await?;
    let mut telling = Telling::default();
    if let Some(batch) = job.batch_id {
        engine::reopen(&mut transaction, batch, id, was, job.is_finalize, &mut telling).await?;
    }
    if let (Some(key), Some(hold)) = (&job.unique_key, &job.unique_hold) {
        let own = Holding::new(id, job.owner_id, job.is_unique_for_all, &job.task, key);
        engine::take_key_again(&mut transaction, own, hold, now).await?;
    }
    telling.state(id, job.events + 1, job.batch_id, State::Queued, job.attempt);
    let word = proto::events::JobChanged {
        job_id: id.to_string(),
        owner_id: job.owner_id.to_string(),
        task: job.task,
        queue: job.queue,
        state: State::Queued.as_str().to_owned(),
        attempt: job.attempt.unsigned_abs(),
        batch_id: job.batch_id.map(|id| id.to_string()).unwrap_or_default(),
        error_kind: String::new(),
    };
    let event = outbox::Event::new("jobs.job.retried", id, &word);
    outbox::write(&mut transaction, SCHEMA, &[event], &core.clock, None).await?;
    let act = act.before("state", was.as_str()).after("state", State::Queued.as_str());
    core.engine.ground.audit.record(&mut transaction, act).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    core.engine.after(streams, true);
    Ok(())
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
