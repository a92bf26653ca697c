//! Workers: who is connected, and what they do.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::Serialize;

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Idempotency, Nothing, Query, Reply, Route},
    wire::{LIMIT, List, Paging, Time, maybe_time},
};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/workers", "workers", "List the connected workers")
            .access(Access::Permission("workers:read"), &["/guildhall.jobs.v1.Workers/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
    ]
}

/// A connected worker.
#[derive(Debug, Serialize, JsonSchema)]
struct Worker {
    id: String,
    profile: String,
    host: String,
    version: String,
    /// Empty for one that takes from every queue.
    queues: Vec<String>,
    tasks: Vec<String>,
    /// Most attempts at once.
    slots: u32,
    running: u32,
    connected_at: Option<Time>,
    last_seen_at: Option<Time>,
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Worker>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListWorkersRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.workers().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, |worker| Ok(Worker::read(worker)))?))
}

impl Worker {
    fn read(worker: rpc::Worker) -> Self {
        Self {
            id: worker.id,
            profile: worker.profile,
            host: worker.host,
            version: worker.version,
            queues: worker.queues,
            tasks: worker.tasks,
            slots: worker.slots,
            running: worker.running,
            connected_at: maybe_time(worker.connected_at),
            last_seen_at: maybe_time(worker.last_seen_at),
        }
    }
}
