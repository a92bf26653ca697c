//! Batches: create, add to, close, show, list, cancel, retry, watch. What ends them is `engine/fan_in.rs`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use kit::{
    Fail, audit::Act, clock::to_timestamp, cursor::page_rows, grpc::Call, idempotency, identity::Caller,
    telemetry::span,
};
use proto::jobs::{
    AddBatchJobsRequest, Batch, BatchCounts, BatchFinalize, BatchPolicy, BatchState, CancelBatchRequest,
    CloseBatchRequest, CreateBatchRequest, GetBatchRequest, ListBatchesRequest, ListBatchesResponse, RetryBatchRequest,
    SubmitJobsResponse, SubmittedJob, WatchRequest, batches_server,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Core, SCHEMA, acts,
    engine::{self, NewJob, Place, Policy, State, Stream, Subject, Telling},
    jobs::check_reason,
    submissions::{self, Origin},
};

/// Jobs that a batch holds at most.
pub(crate) const BATCH_JOBS_MAX: i32 = 100_000;
const CURSOR: &str = "batches";

/// The gRPC service.
pub(crate) struct Batches(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl batches_server::Batches for Batches {
    async fn create(&self, request: Request<CreateBatchRequest>) -> Result<Response<Batch>, Status> {
        let (call, sending) = submissions::sending(Call::of(&request)?);
        Ok(Response::new(sending.within(create(&self.0, &call, request.into_inner())).await?))
    }

    async fn add_jobs(&self, request: Request<AddBatchJobsRequest>) -> Result<Response<SubmitJobsResponse>, Status> {
        let (call, sending) = submissions::sending(Call::of(&request)?);
        Ok(Response::new(sending.within(add_jobs(&self.0, &call, request.into_inner())).await?))
    }

    async fn close(&self, request: Request<CloseBatchRequest>) -> Result<Response<Batch>, Status> {
        let caller = Call::of(&request)?.caller()?;
        let batch = get(&self.0, caller, "batches:create", &request.get_ref().id).await?;
        batch.check_is_free()?;
        self.0.engine.close_batch(batch.id).await?;
        Ok(Response::new(show(&self.0, caller, &request.get_ref().id).await?))
    }

    async fn get(&self, request: Request<GetBatchRequest>) -> Result<Response<Batch>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(show(&self.0, caller, &request.get_ref().id).await?))
    }

    async fn list(&self, request: Request<ListBatchesRequest>) -> Result<Response<ListBatchesResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(list(&self.0, caller, request.get_ref()).await?))
    }

    async fn cancel(&self, request: Request<CancelBatchRequest>) -> Result<Response<Batch>, Status> {
        let call = Call::of(&request)?;
        let (caller, asked) = (call.caller()?, request.get_ref());
        let batch = find(&self.0, &asked.id).await?;
        let act = Act::of(call, &acts::CANCEL_BATCH, batch.id).owned_by(batch.owner_id).because(&asked.reason);
        let came_to = cancel(&self.0, caller, &batch, &asked.reason, act.clone()).await;
        self.0.witness(act, came_to).await?;
        Ok(Response::new(show(&self.0, caller, &asked.id).await?))
    }

    async fn retry(&self, request: Request<RetryBatchRequest>) -> Result<Response<Batch>, Status> {
        let call = Call::of(&request)?;
        let (caller, asked) = (call.caller()?, request.get_ref());
        let batch = find(&self.0, &asked.id).await?;
        let act = Act::of(call, &acts::RETRY_BATCH, batch.id).owned_by(batch.owner_id);
        let came_to = retry(&self.0, caller, &batch, asked, act.clone()).await;
        self.0.witness(act, came_to).await?;
        Ok(Response::new(show(&self.0, caller, &asked.id).await?))
    }

    type WatchStream = Stream;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Stream>, Status> {
        let caller = Call::of(&request)?.caller()?;
        let asked = request.get_ref();
        let batch = get(&self.0, caller, "batches:read", &asked.id).await?;
        let ground = &self.0.engine.ground;
        Ok(Response::new(engine::watch(ground, &self.0.tasks, Subject::Batch, batch.id, asked.after_offset)))
    }
}

/// A batch as its row has it.
#[derive(Debug)]
struct Row {
    id: Uuid,
    owner_id: Uuid,
    state: String,
    parent_job_id: Option<Uuid>,
    total: i32,
    succeeded: i32,
    failed: i32,
    cancelled: i32,
    expired: i32,
    finalize_job_id: Option<Uuid>,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    policy: String,
    at_least: Option<i32>,
    finalize_skipped: Option<String>,
    is_retrying: bool,
}

impl Row {
    /// Who fans a batch out fills and closes it alone.
    fn check_is_free(&self) -> Result<(), Fail> {
        match self.parent_job_id {
            None => Ok(()),
            Some(_) => Err(Fail::conflict("jobs.batch_of_a_job", "The job that made this batch fills and closes it.")),
        }
    }
}

impl Row {
    /// The batch as the contract shows it, with its newest finalizes.
    fn into_proto(self, finalizes: Vec<BatchFinalize>) -> Batch {
        let row = self;
        let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
        let state = match row.state.as_str() {
            "open" => BatchState::Open,
            "running" => BatchState::Running,
            "finalizing" => BatchState::Finalizing,
            "finished" => BatchState::Finished,
            "cancelled" => BatchState::Cancelled,
            _ => BatchState::Unspecified,
        };
        Batch {
            id: row.id.to_string(),
            state: state.into(),
            counts: Some(BatchCounts {
                total: row.total.unsigned_abs(),
                succeeded: row.succeeded.unsigned_abs(),
                failed: row.failed.unsigned_abs(),
                cancelled: row.cancelled.unsigned_abs(),
                expired: row.expired.unsigned_abs(),
            }),
            finalize_job_id: text(row.finalize_job_id),
            created_at: Some(to_timestamp(row.created_at)),
            finished_at: row.finished_at.map(to_timestamp),
            owner_id: row.owner_id.to_string(),
            replayed: false,
            parent_job_id: text(row.parent_job_id),
            policy: Some(BatchPolicy { kind: row.policy, at_least: row.at_least.map(i32::unsigned_abs) }),
            finalize_skipped: row.finalize_skipped.unwrap_or_default(),
            finalizes,
            retrying: row.is_retrying,
        }
    }
}

async fn create(core: &Core, call: &Call, asked: CreateBatchRequest) -> Result<Batch, Fail> {
    let caller = call.caller()?;
    let now = core.clock.now();
    let id = core.clock.new_id();
    let prepared = prepare(core, call, &asked, id).await;
    let are_some_waiting = prepared.as_ref().is_ok_and(|(jobs, _)| jobs.iter().any(|job| !job.after.is_empty()));
    let (finalize, is_open) = (asked.finalize, asked.open);
    let owner = caller.subject;
    let ground = Arc::clone(&core.engine.ground);
    let _told = span::transaction("jobs.create_batch");
    let transaction = core.pool.begin().await?;
    let key = call.idempotency.as_ref();
    let (created, is_replayed): (Batch, bool) = idempotency::once(transaction, SCHEMA, owner, key, now, |conn| {
        Box::pin(async move {
            let (jobs, policy) = prepared?;
            insert(conn, &NewBatch { id, owner, parent: None, finalize, policy }, now).await?;
            let mut telling = Telling::default();
            append(conn, &ground.clock, id, &jobs, now, &mut telling).await?;
            telling.append(conn, now).await?;
            if !is_open {
                engine::close_within(&ground, conn, id, now).await?;
            }
            Ok(Batch { id: id.to_string(), ..Batch::default() })
        })
    })
    .await?;
    core.engine.ground.took_in(vec![id], are_some_waiting);
    Ok(Batch { replayed: is_replayed, ..show(core, caller, &created.id).await? })
}

/// Checks everything about a new batch before anything is written.
async fn prepare(
    core: &Core,
    call: &Call,
    asked: &CreateBatchRequest,
    id: Uuid,
) -> Result<(Vec<NewJob>, Policy), Fail> {
    let caller = call.caller()?;
    // What is asked of more jobs than there will be could never be met.
    let jobs_max = if asked.open { BATCH_JOBS_MAX } else { i32::try_from(asked.jobs.len()).unwrap_or(i32::MAX) };
    let policy = policy_of(asked.policy.as_ref(), asked.finalize.is_some(), jobs_max)?;
    if let Some(finalize) = &asked.finalize {
        if !caller.may_run_task(&finalize.task) {
            return Err(Fail::forbidden("jobs.forbidden", "Your roles do not allow this finalize.").at(
                "/finalize/task",
                "forbidden",
                format!("your roles may not run the task `{}`", finalize.task),
            ));
        }
        let args = if finalize.args_json.is_empty() { "{}" } else { &finalize.args_json };
        if args.len() > submissions::ARGS_BYTES_MAX {
            return Err(Fail::invalid("jobs.invalid", "The finalize cannot be taken as it is.").at(
                "/finalize/args",
                "max_length",
                format!("must be at most {} bytes; put large input into a file", submissions::ARGS_BYTES_MAX),
            ));
        }
        let args = serde_json::from_str(args).map_err(|_| {
            Fail::invalid("jobs.invalid", "The finalize cannot be taken as it is.").at(
                "/finalize/args",
                "json",
                "must be JSON",
            )
        })?;
        if let Err(violations) = core.catalogue.check(&core.pool, &finalize.task, &args, "/finalize").await? {
            return Err(
                Fail::invalid("jobs.invalid", "The finalize cannot be taken as it is.").with_violations(violations)
            );
        }
    }
    let origin = Origin::of(call)?;
    let jobs = submissions::check(core, caller, &origin, asked.jobs.clone(), |n| Place::Child {
        batch: id,
        ordinal: i32::try_from(n).unwrap_or(i32::MAX),
    })
    .await?;
    Ok((jobs, policy))
}

/// The policy of a batch of at most `jobs_max` jobs.
///
/// # Errors
/// `jobs.invalid` at `/policy`; one that is given to a batch without a finalize would have nothing to decide.
pub(crate) fn policy_of(asked: Option<&BatchPolicy>, has_finalize: bool, jobs_max: i32) -> Result<Policy, Fail> {
    let refuse = || Fail::invalid("jobs.invalid", "The policy cannot be taken as it is.");
    let Some(asked) = asked else { return Ok(Policy::default()) };
    if !has_finalize {
        return Err(refuse().at("/policy", "forbidden", "decides on a finalize, and there is none"));
    }
    Policy::parse(asked, jobs_max, "/policy").map_err(|violation| refuse().with_violations(vec![violation]))
}

/// A batch about to be.
#[derive(Debug)]
pub(crate) struct NewBatch {
    pub(crate) id: Uuid,
    pub(crate) owner: Uuid,
    pub(crate) parent: Option<Uuid>,
    pub(crate) finalize: Option<proto::jobs::FinalizeSpec>,
    pub(crate) policy: Policy,
}

/// Inserts an open batch without jobs.
pub(crate) async fn insert(conn: &mut PgConnection, new: &NewBatch, now: DateTime<Utc>) -> Result<(), Fail> {
    let finalize_args = new
        .finalize
        .as_ref()
        .map(|finalize| if finalize.args_json.is_empty() { "{}".to_owned() } else { finalize.args_json.clone() });
    sqlx::query!(
        "insert into jobs.batch (id, owner_id, state, parent_job_id, finalize_task, finalize_args, created_at, policy, at_least)
         values ($1, $2, 'open', $3, $4, $5, $6, $7, $8)",
        new.id,
        new.owner,
        new.parent,
        new.finalize.as_ref().map(|finalize| finalize.task.clone()),
        finalize_args,
        now,
        new.policy.kind(),
        new.policy.at_least(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds jobs to an open batch whose row is locked, or was just made, by this transaction.
///
/// # Errors
/// `jobs.batch_full`.
pub(crate) async fn append(
    conn: &mut PgConnection,
    clock: &kit::Clock,
    batch: Uuid,
    jobs: &[NewJob],
    now: DateTime<Utc>,
    telling: &mut Telling,
) -> Result<(), Fail> {
    let count = i32::try_from(jobs.len()).unwrap_or(i32::MAX);
    let added = sqlx::query!(
        "update jobs.batch set total = total + $2 where id = $1 and total + $2 <= $3",
        batch,
        count,
        BATCH_JOBS_MAX,
    )
    .execute(&mut *conn)
    .await?;
    if added.rows_affected() == 0 {
        return Err(Fail::invalid("jobs.batch_full", format!("A batch holds at most {BATCH_JOBS_MAX} jobs.")));
    }
    engine::insert(conn, clock, jobs, now, telling).await
}

async fn add_jobs(core: &Core, call: &Call, asked: AddBatchJobsRequest) -> Result<SubmitJobsResponse, Fail> {
    let caller = call.caller()?;
    let row = get(core, caller, "batches:create", &asked.batch_id).await?;
    row.check_is_free()?;
    let (batch, now) = (row.id, core.clock.now());
    // A batch's jobs are its owner's, whoever adds them, or its finalize could not read what they made.
    let origin = Origin { owner: row.owner_id, ..Origin::of(call)? };
    // Ordinals are given under the batch's lock, below.
    let prepared = submissions::check(core, caller, &origin, asked.jobs, |n| Place::Child {
        batch,
        ordinal: i32::try_from(n).unwrap_or(i32::MAX),
    })
    .await;
    let are_some_waiting = prepared.as_ref().is_ok_and(|jobs| jobs.iter().any(|job| !job.after.is_empty()));
    let clock = core.clock.clone();
    let _told = span::transaction("jobs.add_to_batch");
    let transaction = core.pool.begin().await?;
    let (owner, key) = (caller.subject, call.idempotency.as_ref());
    let (answer, is_replayed): (SubmitJobsResponse, bool) =
        idempotency::once(transaction, SCHEMA, owner, key, now, |conn| {
            Box::pin(async move {
                let mut jobs = prepared?;
                let row = sqlx::query!("select state, total from jobs.batch where id = $1 for update", batch)
                    .fetch_one(&mut *conn)
                    .await?;
                if row.state != "open" {
                    return Err(closed());
                }
                for (job, ordinal) in jobs.iter_mut().zip(row.total..) {
                    job.place = Place::Child { batch, ordinal };
                }
                let mut telling = Telling::default();
                append(conn, &clock, batch, &jobs, now, &mut telling).await?;
                telling.append(conn, now).await?;
                let items = jobs.iter().map(|job| SubmittedJob { id: job.id.to_string(), existing: false }).collect();
                Ok(SubmitJobsResponse { items, replayed: false, job: None })
            })
        })
        .await?;
    core.engine.ground.took_in(vec![batch], are_some_waiting);
    Ok(SubmitJobsResponse { replayed: is_replayed, ..answer })
}

async fn cancel(core: &Core, caller: &Caller, batch: &Row, reason: &str, act: Act) -> Result<(), Fail> {
    if !caller.may_touch("batches:cancel", batch.owner_id) {
        return Err(not_found());
    }
    check_reason(reason)?;
    core.engine.cancel_batch(batch.id, caller.subject, reason, act).await
}

/// Queues what ended in the asked states again. The parent of a batch that was over, which has ended with it, stays as it
/// is.
async fn retry(core: &Core, caller: &Caller, batch: &Row, asked: &RetryBatchRequest, act: Act) -> Result<(), Fail> {
    if !caller.may_touch("batches:retry", batch.owner_id) {
        return Err(not_found());
    }
    let states: Vec<Option<State>> = asked.states().map(State::from_proto).collect();
    let is_retried = |state: &State| state.is_final() && state.may_become(State::Queued);
    let mut states: Vec<State> = match states.into_iter().map(|state| state.filter(is_retried)).collect() {
        Some(states) => states,
        None => {
            return Err(Fail::invalid("jobs.invalid", "The batch cannot be retried so.").at(
                "/states",
                "enum",
                "must be of `failed`, `expired` and `cancelled`",
            ));
        }
    };
    if states.is_empty() {
        states = vec![State::Failed, State::Expired];
    }
    core.engine.retry_batch(batch.id, &states, act).await
}

/// A batch as the contract shows it.
async fn show(core: &Core, caller: &Caller, id: &str) -> Result<Batch, Fail> {
    let row = get(core, caller, "batches:read", id).await?;
    let mut finalizes = engine::list_finalizes(&core.pool, &[row.id]).await?;
    let own = finalizes.remove(&row.id).unwrap_or_default();
    Ok(row.into_proto(own))
}

async fn get(core: &Core, caller: &Caller, permission: &str, id: &str) -> Result<Row, Fail> {
    let row = find(core, id).await?;
    if caller.may_touch(permission, row.owner_id) { Ok(row) } else { Err(not_found()) }
}

/// A batch, whosever it is.
async fn find(core: &Core, id: &str) -> Result<Row, Fail> {
    let id = Uuid::try_parse(id).map_err(|_| not_found())?;
    sqlx::query_as!(
        Row,
        r#"select id, owner_id, state, parent_job_id, total, succeeded, failed, cancelled, expired, finalize_job_id,
           created_at, finished_at, policy, at_least, finalize_skipped, retry_states is not null as "is_retrying!"
         from jobs.batch
         where id = $1"#,
        id,
    )
    .fetch_optional(&core.pool)
    .await?
    .ok_or_else(not_found)
}

async fn list(core: &Core, caller: &Caller, asked: &ListBatchesRequest) -> Result<ListBatchesResponse, Fail> {
    let rows = page_rows(asked.limit);
    let before: Option<Uuid> = core.cursors.place(CURSOR, &asked.cursor)?;
    let mut items = sqlx::query_as!(
        Row,
        r#"select id, owner_id, state, parent_job_id, total, succeeded, failed, cancelled, expired, finalize_job_id,
           created_at, finished_at, policy, at_least, finalize_skipped, retry_states is not null as "is_retrying!"
         from jobs.batch
         where ($1::uuid is null or owner_id = $1) and ($2::uuid is null or id < $2)
         order by id desc
         limit $3"#,
        caller.narrowed_to("batches:read"),
        before,
        rows + 1,
    )
    .fetch_all(&core.pool)
    .await?;
    let next_cursor = core.cursors.close_page(CURSOR, &mut items, rows, |row| row.id.to_string());
    let ids: Vec<Uuid> = items.iter().map(|row| row.id).collect();
    let mut finalizes = engine::list_finalizes(&core.pool, &ids).await?;
    let items = items.into_iter().map(|row| {
        let own = finalizes.remove(&row.id).unwrap_or_default();
        row.into_proto(own)
    });
    Ok(ListBatchesResponse { items: items.collect(), next_cursor })
}

fn not_found() -> Fail {
    Fail::not_found("jobs.batch_not_found", "There is no such batch.")
}

pub(crate) fn closed() -> Fail {
    Fail::conflict("jobs.batch_closed", "The batch is closed; no more jobs are added to it.")
}
