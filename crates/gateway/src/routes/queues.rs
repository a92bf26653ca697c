//! Queues: how full they are, and holding them.

use std::collections::BTreeMap;

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::Serialize;

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Idempotency, Named, Nothing, Reply, Route},
    wire::{List, Time, maybe_time},
};

const TAG: &str = "queues";
const WRITE: Access = Access::Permission("queues:write");
const NOT_FOUND: Fails = Fails(&[(404, "jobs.queue_not_found")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/queues", TAG, "List the queues you may use")
            .access(Access::Permission("queues:read"), &["/guildhall.jobs.v1.Queues/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
        Route::post("/api/v1/queues/{name}/pause", TAG, "Hold a queue: what runs goes on, nothing starts")
            .access(WRITE, &["/guildhall.jobs.v1.Queues/Pause"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(pause),
        Route::post("/api/v1/queues/{name}/resume", TAG, "Let a queue go on")
            .access(WRITE, &["/guildhall.jobs.v1.Queues/Resume"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(resume),
    ]
}

/// A queue.
#[derive(Debug, Serialize, JsonSchema)]
struct Queue {
    name: String,
    paused: bool,
    paused_at: Option<Time>,
    /// Jobs by state: your own, or everyone's for those who may read them.
    depth: BTreeMap<String, u64>,
}

async fn list(ask: Ask) -> Result<Reply<200, List<Queue>>, Fail> {
    let page = ask.door.queues().list(ask.call.request(rpc::ListQueuesRequest {})).await?.into_inner();
    // There are few queues: they are one page.
    Ok(Reply::new(List::of(page.items, String::new(), |queue| Ok(Queue::read(queue)))?))
}

async fn pause(ask: Ask<Named, Nothing>) -> Result<Reply<200, Queue>, Fail> {
    let message = rpc::PauseQueueRequest { name: ask.path.0 };
    Ok(Reply::new(Queue::read(ask.door.queues().pause(ask.call.request(message)).await?.into_inner())))
}

async fn resume(ask: Ask<Named, Nothing>) -> Result<Reply<200, Queue>, Fail> {
    let message = rpc::ResumeQueueRequest { name: ask.path.0 };
    Ok(Reply::new(Queue::read(ask.door.queues().resume(ask.call.request(message)).await?.into_inner())))
}

impl Queue {
    fn read(queue: rpc::Queue) -> Self {
        Self {
            name: queue.name,
            paused: queue.paused,
            paused_at: maybe_time(queue.paused_at),
            depth: queue.depth.into_iter().collect(),
        }
    }
}
