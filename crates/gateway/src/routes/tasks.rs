//! Tasks: what can be asked for, and with which arguments.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Idempotency, Json, Named, Nothing, Query, Reply, Route},
    wire::{LIMIT, List, Paging, Raw},
};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/tasks", "tasks", "List the tasks you may run")
            .access(Access::Permission("tasks:read"), &["/guildhall.jobs.v1.Tasks/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
        Route::patch("/api/v1/tasks/{name}", "tasks", "Set how much of a task may run at once")
            .access(Access::Permission("queues:write"), &["/guildhall.jobs.v1.Tasks/Update"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "jobs.task_not_found"), (422, "jobs.invalid")]))
            .by(update),
    ]
}

/// Something that workers can do.
#[derive(Debug, Serialize, JsonSchema)]
struct Task {
    name: String,
    /// Where its jobs go unless said.
    queue: String,
    /// JSON Schema (2020-12) of its arguments.
    schema: Raw,
    description: String,
    /// Connected workers that offer it now.
    workers: u32,
    /// Jobs of it that may run at once, in whichever queue.
    concurrency: Option<u32>,
}

/// What is to be set.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TaskChanges {
    /// Jobs of it that may run at once, in whichever queue; `null` for no limit.
    #[schemars(range(min = 1, max = 1_000_000))]
    #[serde(deserialize_with = "Option::deserialize")]
    concurrency: Option<u32>,
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Task>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListTasksRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.task_client().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Task::read)?))
}

async fn update(ask: Ask<Named, Nothing, Json<TaskChanges>>) -> Result<Reply<200, Task>, Fail> {
    let message = rpc::UpdateTaskRequest { name: ask.path.0, concurrency: ask.body.0.concurrency };
    Ok(Reply::new(Task::read(ask.door.task_client().update(ask.call.request(message)).await?.into_inner())?))
}

impl Task {
    fn read(task: rpc::Task) -> Result<Self, Fail> {
        Ok(Self {
            name: task.name,
            queue: task.queue,
            schema: Raw::parse(task.schema_json)?,
            description: task.description,
            workers: task.workers,
            concurrency: task.concurrency,
        })
    }
}
