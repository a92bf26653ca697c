//! Queues: which there are, how much stands in each, and whether they give out work. A queue is created when a worker
//! first offers a task for it, and is never removed.

mod limits;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use kit::{
    Fail,
    audit::{Act, Action},
    clock::to_timestamp,
    grpc::Call,
    identity::Caller,
    telemetry::span,
};
use proto::jobs::{
    ListQueuesRequest, ListQueuesResponse, PauseQueueRequest, Queue, ResumeQueueRequest, UpdateQueueRequest,
    queues_server,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Core, acts, engine::State, tasks::is_name};

/// Queues that are shown at most.
const QUEUES_MAX: i64 = 1_000;

/// The gRPC service.
pub(crate) struct Queues(Arc<Core>);

impl Queues {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }
}

#[tonic::async_trait]
impl queues_server::Queues for Queues {
    async fn list(&self, request: Request<ListQueuesRequest>) -> Result<Response<ListQueuesResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(ListQueuesResponse { items: list(&self.0, caller).await? }))
    }

    async fn pause(&self, request: Request<PauseQueueRequest>) -> Result<Response<Queue>, Status> {
        let (call, name) = (Call::of(&request)?, &request.get_ref().name);
        Ok(Response::new(set_paused(&self.0, call, name, true, &acts::PAUSE_QUEUE).await?))
    }

    async fn resume(&self, request: Request<ResumeQueueRequest>) -> Result<Response<Queue>, Status> {
        let (call, name) = (Call::of(&request)?, &request.get_ref().name);
        Ok(Response::new(set_paused(&self.0, call, name, false, &acts::RESUME_QUEUE).await?))
    }

    async fn update(&self, request: Request<UpdateQueueRequest>) -> Result<Response<Queue>, Status> {
        let call = Call::of(&request)?.clone();
        Ok(Response::new(limits::update(&self.0, &call, request.into_inner()).await?))
    }
}

async fn list(core: &Core, caller: &Caller) -> Result<Vec<Queue>, Fail> {
    let rows = sqlx::query_as!(
        Row,
        "select name, paused_at, concurrency, key_concurrency, rate_starts, rate_seconds, rate_burst, key_rate_starts,
           key_rate_seconds, key_rate_burst, share, weights
         from jobs.queue
         order by name
         limit $1",
        QUEUES_MAX,
    )
    .fetch_all(&core.pool)
    .await?;
    let owner = caller.narrowed_to("queues:read");
    let (mut depths, is_narrowed) = (depths(core, owner).await?, owner.is_some());
    Ok(rows
        .into_iter()
        .filter(|row| caller.may_use_queue(&row.name))
        .map(|row| {
            let depth = depths.remove(&row.name).unwrap_or_default();
            let mut queue = row.into_proto(&depth);
            if is_narrowed && let Some(limits) = &mut queue.limits {
                // They name others.
                limits.weights.clear();
            }
            queue
        })
        .collect())
}

/// Pausing a paused queue leaves the time at which it was paused, and no entry in the audit log.
async fn set_paused(
    core: &Core,
    call: &Call,
    name: &str,
    is_paused: bool,
    action: &'static Action,
) -> Result<Queue, Fail> {
    if !is_name(name) {
        return Err(not_found());
    }
    let _told = span::transaction("jobs.set_paused");
    let mut transaction = core.pool.begin().await?;
    let mut row = read(&mut transaction, name).await?.ok_or_else(not_found)?;
    let paused_at = is_paused.then(|| row.paused_at.unwrap_or_else(|| core.clock.now()));
    if paused_at != row.paused_at {
        row.paused_at = paused_at;
        sqlx::query!("update jobs.queue set paused_at = $2 where name = $1", name, paused_at)
            .execute(&mut *transaction)
            .await?;
        let act = Act::of(call, action, name).before("is_paused", !is_paused).after("is_paused", is_paused);
        core.engine.ground.audit.record(&mut transaction, act).await?;
        transaction.commit().await?;
    }
    core.engine.wake();
    let mut depths = depths(core, call.caller()?.narrowed_to("queues:read")).await?;
    let depth = depths.remove(name).unwrap_or_default();
    Ok(row.into_proto(&depth))
}

/// A queue's row, held for the rest of the transaction.
async fn read(conn: &mut PgConnection, name: &str) -> Result<Option<Row>, Fail> {
    let row = sqlx::query_as!(
        Row,
        "select name, paused_at, concurrency, key_concurrency, rate_starts, rate_seconds, rate_burst, key_rate_starts,
           key_rate_seconds, key_rate_burst, share, weights
         from jobs.queue
         where name = $1
         for update",
        name,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row)
}

fn not_found() -> Fail {
    Fail::not_found("jobs.queue_not_found", "There is no such queue.")
}

/// A queue: whether it is held, and what it allows.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    name: String,
    paused_at: Option<DateTime<Utc>>,
    concurrency: Option<i32>,
    key_concurrency: Option<i32>,
    rate_starts: Option<i32>,
    rate_seconds: Option<f64>,
    rate_burst: Option<i32>,
    key_rate_starts: Option<i32>,
    key_rate_seconds: Option<f64>,
    key_rate_burst: Option<i32>,
    share: String,
    weights: String,
}

type Depth = BTreeMap<String, u64>;

struct Count {
    queue: String,
    state: String,
    count: i64,
}

/// Live jobs by queue and state: the owner's, or everyone's.
async fn depths(core: &Core, owner: Option<Uuid>) -> Result<HashMap<String, Depth>, Fail> {
    // Two statements, since no one plan is good for both: an owner's rows stand in an index of their own.
    let counts = match owner {
        Some(owner) => {
            sqlx::query_as!(
                Count,
                r#"select queue, state, count(*) as "count!" from jobs.job where owner_id = $1 group by queue, state"#,
                owner,
            )
            .fetch_all(&core.pool)
            .await?
        }
        None => {
            sqlx::query_as!(Count, r#"select queue, state, count(*) as "count!" from jobs.job group by queue, state"#)
                .fetch_all(&core.pool)
                .await?
        }
    };
    let mut depths: HashMap<String, Depth> = HashMap::new();
    for row in counts {
        depths.entry(row.queue).or_default().insert(row.state, row.count.unsigned_abs());
    }
    Ok(depths)
}

impl Row {
    /// Every live state is told, those without a job as 0.
    fn into_proto(self, depth: &Depth) -> Queue {
        Queue {
            limits: Some(self.limits()),
            name: self.name,
            paused: self.paused_at.is_some(),
            paused_at: self.paused_at.map(to_timestamp),
            depth: State::ALL
                .into_iter()
                .filter(|state| !state.is_final())
                .map(|state| (state.as_str().to_owned(), depth.get(state.as_str()).copied().unwrap_or(0)))
                .collect(),
        }
    }
}
