//! What a running attempt may ask for. Every call shows the attempt's fencing token, and is answered in a transaction
//! that holds the job's row: a fenced attempt is refused before it can do anything.

mod siblings;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use kit::{Fail, grpc::Call, telemetry::span};
use proto::worker::{
    AddSiblingsRequest, AddSiblingsResponse, AttemptFile, AttemptRef, Child, CreateAttemptFileRequest, FanOutJob,
    FanOutRequest, FanOutResponse, GetAttemptFileRequest, ListChildrenRequest, ListChildrenResponse, attempts_server,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Core,
    batches::{self, BATCH_JOBS_MAX, NewBatch},
    engine::{AFTER_MAX, After, NewJob, Place, RetryOn, Telling},
    files, submissions,
};

/// Children on one page, and children that one call fans out.
const CHILDREN_MAX: u32 = 1_000;

/// The gRPC service.
pub(crate) struct Attempts(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl attempts_server::Attempts for Attempts {
    async fn get_file(&self, request: Request<GetAttemptFileRequest>) -> Result<Response<AttemptFile>, Status> {
        Ok(Response::new(get_file(&self.0, request.get_ref()).await?))
    }

    async fn create_file(&self, request: Request<CreateAttemptFileRequest>) -> Result<Response<AttemptFile>, Status> {
        Ok(Response::new(create_file(&self.0, request.get_ref()).await?))
    }

    async fn fan_out(&self, request: Request<FanOutRequest>) -> Result<Response<FanOutResponse>, Status> {
        let (call, sending) = submissions::sending(Call::of(&request)?);
        Ok(Response::new(sending.within(fan_out(&self.0, &call, request.into_inner())).await?))
    }

    async fn add_siblings(
        &self,
        request: Request<AddSiblingsRequest>,
    ) -> Result<Response<AddSiblingsResponse>, Status> {
        let (call, sending) = submissions::sending(Call::of(&request)?);
        Ok(Response::new(sending.within(siblings::add(&self.0, &call, request.into_inner())).await?))
    }

    async fn list_children(
        &self,
        request: Request<ListChildrenRequest>,
    ) -> Result<Response<ListChildrenResponse>, Status> {
        Ok(Response::new(list_children(&self.0, request.get_ref()).await?))
    }
}

/// A job whose running attempt has shown its token.
#[derive(Debug)]
struct Held {
    id: Uuid,
    owner_id: Uuid,
    priority: i16,
    batch_id: Option<Uuid>,
    is_finalize: bool,
    child_batch_id: Option<Uuid>,
    request_id: String,
    traceparent: Option<String>,
}

/// Parses what names an attempt.
///
/// # Errors
/// `jobs.fenced` for anything that names none.
pub(crate) fn parse(attempt: Option<&AttemptRef>) -> Result<(Uuid, i64), Fail> {
    let attempt = attempt.ok_or_else(fenced)?;
    let job = Uuid::try_parse(&attempt.job_id).map_err(|_| fenced())?;
    Ok((job, i64::try_from(attempt.token).map_err(|_| fenced())?))
}

/// Holds the job of an attempt that still counts, for the rest of the transaction.
async fn hold(conn: &mut PgConnection, attempt: Option<&AttemptRef>) -> Result<(Held, i64), Fail> {
    let (job, token) = parse(attempt)?;
    let held = sqlx::query_as!(
        Held,
        "select id, owner_id, priority, batch_id, is_finalize, child_batch_id, request_id, traceparent
         from jobs.job
         where id = $1 and token = $2 and worker_id is not null
         for update",
        job,
        token,
    )
    .fetch_optional(conn)
    .await?
    .ok_or_else(fenced)?;
    Ok((held, token))
}

async fn get_file(core: &Core, asked: &GetAttemptFileRequest) -> Result<AttemptFile, Fail> {
    let not_found = || Fail::not_found("jobs.file_not_found", format!("There is no file `{}`.", asked.file_id));
    let _told = span::transaction("jobs.find_file");
    let mut transaction = core.pool.begin().await?;
    let (held, _) = hold(&mut transaction, asked.attempt.as_ref()).await?;
    let id = Uuid::try_parse(&asked.file_id).map_err(|_| not_found())?;
    let file = files::find_whole(&mut transaction, held.owner_id, id).await?.ok_or_else(not_found)?;
    transaction.commit().await?;
    Ok(AttemptFile {
        id: file.id,
        name: file.name,
        content_type: file.content_type,
        size_bytes: file.size_bytes,
        sha256: file.sha256,
        storage_key: file.storage_key,
    })
}

async fn create_file(core: &Core, asked: &CreateAttemptFileRequest) -> Result<AttemptFile, Fail> {
    let now = core.clock.now();
    let _told = span::transaction("jobs.create_file");
    let mut transaction = core.pool.begin().await?;
    let (held, token) = hold(&mut transaction, asked.attempt.as_ref()).await?;
    let (id, storage_key) =
        files::create_for_attempt(&mut transaction, held.owner_id, held.id, token, &asked.name, now, &core.clock)
            .await?;
    transaction.commit().await?;
    Ok(AttemptFile { id: id.to_string(), name: asked.name.clone(), storage_key, ..AttemptFile::default() })
}

async fn fan_out(core: &Core, call: &Call, asked: FanOutRequest) -> Result<FanOutResponse, Fail> {
    if asked.jobs.len() > CHILDREN_MAX as usize {
        return Err(Fail::invalid("jobs.too_many", format!("One call fans out at most {CHILDREN_MAX} jobs.")));
    }
    let distinct: HashSet<u32> = asked.jobs.iter().map(|job| job.ordinal).collect();
    let is_within = |ordinal: &u32| i32::try_from(*ordinal).is_ok_and(|ordinal| ordinal < BATCH_JOBS_MAX);
    if distinct.len() < asked.jobs.len() || !distinct.iter().all(is_within) {
        let message = format!("Each child has an ordinal of its own, below {BATCH_JOBS_MAX}.");
        return Err(Fail::invalid("jobs.invalid", message));
    }
    if let Some(job) = asked.jobs.iter().find(|job| job.after.len() > AFTER_MAX) {
        return Err(too_many_after(job.ordinal));
    }
    // Before the transaction: a look at the catalogue may need a connection of its own.
    let mut queues = Vec::with_capacity(asked.jobs.len());
    for job in &asked.jobs {
        queues.push(queue_of(core, job).await?);
    }
    let now = core.clock.now();
    let _told = span::transaction("jobs.fan_out");
    let mut transaction = core.pool.begin().await?;
    let (mut held, _) = hold(&mut transaction, asked.attempt.as_ref()).await?;
    // The children go on from the attempt that makes them, where it is told where that stands.
    held.traceparent = call.traceparent.clone().or(held.traceparent);
    let batch = match held.child_batch_id {
        Some(batch) => batch,
        None => create_child_batch(core, &mut transaction, &held, &asked, now).await?,
    };
    let row = sqlx::query!("select state from jobs.batch where id = $1 for update", batch)
        .fetch_one(&mut *transaction)
        .await?;
    if row.state != "open" {
        return Err(batches::closed());
    }
    // Those of the call, and those that they are to run after.
    let named: BTreeSet<u32> =
        asked.jobs.iter().flat_map(|job| job.after.iter().chain([&job.ordinal])).copied().collect();
    let named: Vec<i32> = named.into_iter().map(|ordinal| i32::try_from(ordinal).unwrap_or(i32::MAX)).collect();
    let there = sqlx::query!(
        r#"select ordinal as "ordinal!", id as "id!" from jobs.job where batch_id = $1 and ordinal = any($2)
           union all
           select ordinal, id from jobs.job_history where batch_id = $1 and ordinal = any($2)"#,
        batch,
        &named,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut ids: HashMap<u32, Uuid> = there.into_iter().map(|row| (row.ordinal.unsigned_abs(), row.id)).collect();
    let new: Vec<(FanOutJob, String)> =
        asked.jobs.into_iter().zip(queues).filter(|(job, _)| !ids.contains_key(&job.ordinal)).collect();
    ids.extend(new.iter().map(|(job, _)| (job.ordinal, core.clock.new_id())));
    let after = afters(new.iter().map(|(job, _)| job), &ids)?;
    let mut jobs = Vec::with_capacity(new.len());
    for ((job, queue), after) in new.into_iter().zip(after) {
        let place = (batch, i32::try_from(job.ordinal).unwrap_or(i32::MAX));
        jobs.push(child(core, &held, place, ids[&job.ordinal], job, queue, after));
    }
    let mut telling = Telling::default();
    batches::append(&mut transaction, &core.clock, batch, &jobs, now, &mut telling).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    core.engine.ground.took_in(streams, jobs.iter().any(|job| !job.after.is_empty()));
    Ok(FanOutResponse { batch_id: batch.to_string() })
}

/// The job's own batch, made with its first children.
async fn create_child_batch(
    core: &Core,
    conn: &mut PgConnection,
    held: &Held,
    asked: &FanOutRequest,
    now: DateTime<Utc>,
) -> Result<Uuid, Fail> {
    let id = core.clock.new_id();
    let finalize = (!asked.finalize_task.is_empty()).then(|| proto::jobs::FinalizeSpec {
        task: asked.finalize_task.clone(),
        args_json: asked.finalize_args_json.clone(),
    });
    let policy = (!asked.policy.is_empty())
        .then(|| proto::jobs::BatchPolicy { kind: asked.policy.clone(), at_least: asked.policy_at_least });
    let policy = batches::policy_of(policy.as_ref(), finalize.is_some(), BATCH_JOBS_MAX)?;
    let new = NewBatch { id, owner: held.owner_id, parent: Some(held.id), finalize, policy };
    batches::insert(conn, &new, now).await?;
    sqlx::query!("update jobs.job set child_batch_id = $2 where id = $1", held.id, id).execute(conn).await?;
    Ok(id)
}

/// The queue of a child as the task asks for it, which is held to its schema; what a task may start is not bound to its
/// owner's roles.
async fn queue_of(core: &Core, job: &FanOutJob) -> Result<String, Fail> {
    let args = serde_json::from_str(&job.args_json)
        .map_err(|_| Fail::invalid("jobs.invalid", "A child's arguments are not JSON."))?;
    let task = core.catalogue.check(&core.pool, &job.task, &args, &format!("/jobs/{}", job.ordinal)).await?.map_err(
        |violations| Fail::invalid("jobs.invalid", "A child cannot be taken as it is.").with_violations(violations),
    )?;
    Ok(task.queue)
}

/// What each of these runs after: others of the same numbering, before it, of which `ids` has the jobs.
///
/// # Errors
/// `jobs.invalid`.
fn afters<'a>(jobs: impl Iterator<Item = &'a FanOutJob>, ids: &HashMap<u32, Uuid>) -> Result<Vec<After>, Fail> {
    let after = |job: &FanOutJob| {
        let found = job.after.iter().map(|number| ids.get(number).filter(|_| *number < job.ordinal).copied());
        let found: Option<BTreeSet<Uuid>> = found.collect();
        found.map(After::success_of).ok_or_else(|| {
            let message = format!("Job {} runs after others that are there and stand before it.", job.ordinal);
            Fail::invalid("jobs.invalid", message)
        })
    };
    jobs.map(after).collect()
}

fn too_many_after(ordinal: u32) -> Fail {
    Fail::invalid("jobs.invalid", format!("Job {ordinal} runs after at most {AFTER_MAX} others."))
}

fn child(
    core: &Core,
    held: &Held,
    (batch, ordinal): (Uuid, i32),
    id: Uuid,
    job: FanOutJob,
    queue: String,
    after: After,
) -> NewJob {
    NewJob {
        id,
        owner_id: held.owner_id,
        task: job.task,
        queue,
        priority: u8::try_from(held.priority).unwrap_or(50),
        run_at: None,
        max_attempts: 3,
        attempt_timeout_s: core.settings.attempt_timeout_s,
        backoff: None,
        queue_timeout_s: None,
        deadline_s: None,
        retry_on: RetryOn::default(),
        concurrency_key: None,
        unique: None,
        after,
        tags: Vec::new(),
        args: job.args_json,
        place: Place::Child { batch, ordinal },
        request_id: held.request_id.clone(),
        traceparent: held.traceparent.clone(),
    }
}

async fn list_children(core: &Core, asked: &ListChildrenRequest) -> Result<ListChildrenResponse, Fail> {
    let limit = i64::from(asked.limit.clamp(1, CHILDREN_MAX));
    let after = asked.after_ordinal.map_or(-1, |ordinal| i32::try_from(ordinal).unwrap_or(i32::MAX));
    let _told = span::transaction("jobs.list_children");
    let mut transaction = core.pool.begin().await?;
    let (held, _) = hold(&mut transaction, asked.attempt.as_ref()).await?;
    let Some(batch) = held.batch_id else {
        return Err(Fail::invalid("jobs.not_in_a_batch", "This job belongs to no batch."));
    };
    let rows = sqlx::query!(
        r#"select ordinal as "ordinal!", id as "id!", state as "state!", args as "args!", result, error_kind, error_message
           from jobs.any_job
           where batch_id = $1 and ordinal > $2
           order by ordinal
           limit $3"#,
        batch,
        after,
        limit + 1,
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let is_more = rows.len() as u64 > limit.unsigned_abs();
    let items = rows.into_iter().take(limit.unsigned_abs() as usize).map(|row| Child {
        ordinal: row.ordinal.unsigned_abs(),
        job_id: row.id.to_string(),
        state: row.state,
        args_json: row.args,
        result_json: row.result.unwrap_or_default(),
        error_kind: row.error_kind.unwrap_or_default(),
        error_message: row.error_message.unwrap_or_default(),
    });
    Ok(ListChildrenResponse { items: items.collect(), more: is_more, batch_id: batch.to_string() })
}

fn fenced() -> Fail {
    Fail::conflict("jobs.fenced", "This attempt no longer counts.")
}
