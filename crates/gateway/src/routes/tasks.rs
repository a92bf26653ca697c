//! Tasks: what can be asked for, and with which arguments.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::Serialize;

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Idempotency, Nothing, Query, Reply, Route},
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
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Task>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListTasksRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.task_client().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Task::read)?))
}

impl Task {
    fn read(task: rpc::Task) -> Result<Self, Fail> {
        Ok(Self {
            name: task.name,
            queue: task.queue,
            schema: Raw::parse(task.schema_json)?,
            description: task.description,
            workers: task.workers,
        })
    }
}
