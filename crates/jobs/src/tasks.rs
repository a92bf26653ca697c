//! Tasks: what workers have offered to run, and whether arguments fit. A task stays known when its last worker has gone,
//! so that its jobs may be submitted and wait. This file never runs one.

mod catalogue;
mod shelf;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use kit::{Fail, audit::Act, cursor::page_rows, grpc::Call, identity::Caller, telemetry::span};
use proto::{
    jobs::{ListTasksRequest, ListTasksResponse, Task, UpdateTaskRequest, tasks_server},
    worker::OfferedTask,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

pub(crate) use catalogue::Catalogue;

use crate::{Core, acts, engine};

/// Most tasks of one worker.
const OFFERED_MAX: usize = 1_000;
/// Longest schema, in bytes.
const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1_000;
/// Attempts of one task at once that can be asked for.
const CONCURRENCY_MAX: i32 = 1_000_000;
/// Longest name of a task or queue, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// The gRPC service.
pub(crate) struct Tasks(Arc<Core>);

impl Tasks {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }
}

#[tonic::async_trait]
impl tasks_server::Tasks for Tasks {
    async fn list(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(list(&self.0, caller, request.get_ref()).await?))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<Task>, Status> {
        let call = Call::of(&request)?;
        Ok(Response::new(limit(&self.0, call, request.get_ref()).await?))
    }
}

/// By name, from memory: those that the caller may run, which is written as patterns in the role table.
async fn list(core: &Core, caller: &Caller, asked: &ListTasksRequest) -> Result<ListTasksResponse, Fail> {
    const LIST: &str = "tasks";
    let rows_max = page_rows(asked.limit);
    let after: String = core.cursors.place(LIST, &asked.cursor)?.unwrap_or_default();
    let now = core.clock.now();
    let tasks = core.catalogue.listed(&core.pool).await?;
    let mut items: Vec<Task> = tasks[tasks.partition_point(|task| task.name <= after)..]
        .iter()
        .filter(|task| caller.may_run_task(&task.name))
        .take(usize::try_from(rows_max + 1).unwrap_or_default())
        .map(|task| task.to_proto(now))
        .collect();
    let next_cursor = core.cursors.close_page(LIST, &mut items, rows_max, |task| task.name.clone());
    Ok(ListTasksResponse { items, next_cursor })
}

/// Sets how many attempts of a task may run at once. It holds from the answer on, as a queue's limits do.
async fn limit(core: &Core, call: &Call, asked: &UpdateTaskRequest) -> Result<Task, Fail> {
    if !is_name(&asked.name) {
        return Err(not_found());
    }
    let concurrency = match asked.concurrency.map(i32::try_from) {
        None => None,
        Some(Ok(count)) if (1..=CONCURRENCY_MAX).contains(&count) => Some(count),
        Some(_) => {
            let message = format!("must be between 1 and {CONCURRENCY_MAX}, or null for no limit");
            let fail = Fail::invalid("jobs.invalid", "The limit cannot be set as it is.");
            return Err(fail.at("/concurrency", "minimum", message));
        }
    };
    let _told = span::transaction("jobs.limit_task");
    let mut transaction = core.pool.begin().await?;
    engine::admit_alone(&mut transaction).await?;
    let was = sqlx::query_scalar!("select concurrency from jobs.task where name = $1 for update", asked.name)
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or_else(not_found)?;
    if was == concurrency {
        // Before anything else asks for a connection: others wait for this one's lock with theirs.
        transaction.rollback().await?;
        return shown(core, &asked.name).await;
    }
    sqlx::query!(
        "update jobs.task set concurrency = $2, limits_changed_at = $3 where name = $1",
        asked.name,
        concurrency,
        core.clock.now(),
    )
    .execute(&mut *transaction)
    .await?;
    engine::lane_running(&mut transaction, None).await?;
    let told = |count: Option<i32>| count.map_or(0, |count| u64::from(count.unsigned_abs()));
    let act = Act::of(call, &acts::LIMIT_TASK, &asked.name)
        .before("concurrency", told(was))
        .after("concurrency", told(concurrency));
    core.engine.ground.audit.record(&mut transaction, act).await?;
    transaction.commit().await?;
    core.engine.limits_changed();
    core.catalogue.workers_changed();
    shown(core, &asked.name).await
}

async fn shown(core: &Core, name: &str) -> Result<Task, Fail> {
    let tasks = core.catalogue.listed(&core.pool).await?;
    let task = tasks.iter().find(|task| task.name == name).ok_or_else(not_found)?;
    Ok(task.to_proto(core.clock.now()))
}

fn not_found() -> Fail {
    Fail::not_found("jobs.task_not_found", "There is no such task.")
}

/// Makes the tasks of a worker known, and their queues. What another worker offered under the same name is replaced.
///
/// # Errors
/// `workers.invalid_task` for one whose name, queue, schema or description cannot be taken; nothing is changed then.
pub(crate) async fn offer(conn: &mut PgConnection, tasks: &[OfferedTask], now: DateTime<Utc>) -> Result<(), Fail> {
    if tasks.len() > OFFERED_MAX {
        return Err(invalid_task(format!("A worker offers at most {OFFERED_MAX} tasks.")));
    }
    // In the order of their names, so that two workers that say hello at once lock rows alike; the last of a name stays.
    let tasks: std::collections::BTreeMap<&str, &OfferedTask> =
        tasks.iter().map(|task| (task.name.as_str(), task)).collect();
    for task in tasks.values() {
        check_offer(task)?;
    }
    let column =
        |value: fn(&OfferedTask) -> &String| tasks.values().map(|task| value(task).clone()).collect::<Vec<_>>();
    let queues = column(|task| &task.queue);
    sqlx::query!(
        "insert into jobs.queue (name)
         select distinct name
         from unnest($1::text[]) as offered (name)
         order by name
         on conflict (name) do nothing",
        &queues,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "insert into jobs.task (name, queue, schema_json, description, offered_at)
         select name, queue, schema_json, description, $5
         from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as offered (name, queue, schema_json, description)
         on conflict (name) do update
         set queue = excluded.queue, schema_json = excluded.schema_json, description = excluded.description,
           offered_at = excluded.offered_at",
        &column(|task| &task.name),
        &queues,
        &column(|task| &task.schema_json),
        &column(|task| &task.description),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

fn check_offer(task: &OfferedTask) -> Result<(), Fail> {
    for name in [&task.name, &task.queue] {
        if !is_name(name) {
            return Err(invalid_task(format!(
                "The name `{}` of a task or queue is not lower-case letters, digits and underscores.",
                name.chars().take(NAME_BYTES_MAX).collect::<String>().escape_debug()
            )));
        }
    }
    if task.schema_json.len() > SCHEMA_BYTES_MAX {
        return Err(invalid_task(format!("The schema of `{}` is longer than {SCHEMA_BYTES_MAX} bytes.", task.name)));
    }
    if task.description.len() > DESCRIPTION_BYTES_MAX || task.description.contains('\0') {
        let message = format!("The description of `{}` is not text of up to {DESCRIPTION_BYTES_MAX} bytes.", task.name);
        return Err(invalid_task(message));
    }
    catalogue::compile(&task.schema_json)
        .map(drop)
        .map_err(|why| invalid_task(format!("The schema of `{}` cannot be used: {why}.", task.name)))
}

/// Whether `name` may name a task or a queue: a lower-case letter, then letters, digits and underscores, 63 at most.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn invalid_task(message: impl Into<String>) -> Fail {
    Fail::invalid("workers.invalid_task", message)
}
