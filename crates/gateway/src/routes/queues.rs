//! Queues: how full they are, holding them, and what they allow.

use std::collections::BTreeMap;

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Idempotency, Json, Named, Nothing, Reply, Route},
    wire::{List, Time, maybe_time, present},
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
        Route::patch("/api/v1/queues/{name}", TAG, "Set what a queue allows; what is left out stays")
            .access(WRITE, &["/guildhall.jobs.v1.Queues/Update"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "jobs.queue_not_found"), (422, "jobs.invalid")]))
            .by(update),
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
    limits: Limits,
}

/// What a queue allows; `null` for no limit.
#[derive(Debug, Serialize, JsonSchema)]
struct Limits {
    concurrency: Option<u32>,
    key_concurrency: Option<u32>,
    rate: Option<Rate>,
    key_rate: Option<Rate>,
    share: Share,
    weights: BTreeMap<String, f64>,
}

/// Starts in a span of time, as a token bucket.
#[derive(Debug, Serialize, JsonSchema)]
struct Rate {
    starts: u32,
    seconds: f64,
    /// Starts that may come at once after a pause.
    burst: Option<u32>,
}

/// Starts in a span of time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewRate {
    #[schemars(range(min = 1, max = 1_000_000))]
    starts: u32,
    #[schemars(range(min = 0.001, max = 2_678_400))]
    seconds: f64,
    /// Starts that may come at once after a pause; as many as `starts` unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    burst: Option<u32>,
}

/// Between whom a queue shares its places.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Share {
    None,
    Owner,
    Key,
}

/// What is to be set; `null` takes a limit away.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LimitChanges {
    /// Jobs that run at once.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<u32>", range(min = 1, max = 1_000_000))]
    concurrency: Option<Option<u32>>,
    /// Jobs of one key that run at once. A job's key is its `concurrency_key`, or else its owner. While this is `null`, a
    /// named key runs one at a time, and an owner as many as there is room for.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<u32>", range(min = 1, max = 1_000_000))]
    key_concurrency: Option<Option<u32>>,
    /// How often jobs start.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<NewRate>")]
    rate: Option<Option<NewRate>>,
    /// How often jobs of one key start.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<NewRate>")]
    key_rate: Option<Option<NewRate>>,
    /// Between whom places are shared: `owner` gives each owner as many starts as any other, `key` each key.
    #[serde(default)]
    share: Option<Share>,
    /// How many times as much an owner gets, by its id, or a key, by `<owner id>:<name>` or, where it is everyone's, by its
    /// name; 1 where it is not named.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 1000))]
    weights: Option<BTreeMap<String, f64>>,
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

async fn update(ask: Ask<Named, Nothing, Json<LimitChanges>>) -> Result<Reply<200, Queue>, Fail> {
    let message = ask.body.0.write(ask.path.0);
    Ok(Reply::new(Queue::read(ask.door.queues().update(ask.call.request(message)).await?.into_inner())))
}

impl LimitChanges {
    fn write(self, name: String) -> rpc::UpdateQueueRequest {
        let set = [
            ("concurrency", self.concurrency.is_some()),
            ("key_concurrency", self.key_concurrency.is_some()),
            ("rate", self.rate.is_some()),
            ("key_rate", self.key_rate.is_some()),
            ("share", self.share.is_some()),
            ("weights", self.weights.is_some()),
        ];
        let limits = rpc::QueueLimits {
            concurrency: self.concurrency.flatten(),
            key_concurrency: self.key_concurrency.flatten(),
            rate: self.rate.flatten().map(NewRate::write),
            key_rate: self.key_rate.flatten().map(NewRate::write),
            share: self.share.map_or_else(String::new, |share| share.as_str().to_owned()),
            weights: self.weights.unwrap_or_default().into_iter().collect(),
        };
        let fields = set.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field.to_owned()).collect();
        rpc::UpdateQueueRequest { name, limits: Some(limits), fields }
    }
}

impl NewRate {
    fn write(self) -> rpc::Rate {
        rpc::Rate { starts: self.starts, seconds: self.seconds, burst: self.burst }
    }
}

impl Rate {
    fn read(rate: rpc::Rate) -> Self {
        Self { starts: rate.starts, seconds: rate.seconds, burst: rate.burst }
    }
}

impl Share {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Owner => "owner",
            Self::Key => "key",
        }
    }
}

impl Limits {
    fn read(limits: rpc::QueueLimits) -> Self {
        Self {
            concurrency: limits.concurrency,
            key_concurrency: limits.key_concurrency,
            rate: limits.rate.map(Rate::read),
            key_rate: limits.key_rate.map(Rate::read),
            share: match limits.share.as_str() {
                "owner" => Share::Owner,
                "key" => Share::Key,
                _ => Share::None,
            },
            weights: limits.weights.into_iter().collect(),
        }
    }
}

impl Queue {
    fn read(queue: rpc::Queue) -> Self {
        Self {
            name: queue.name,
            paused: queue.paused,
            paused_at: maybe_time(queue.paused_at),
            depth: queue.depth.into_iter().collect(),
            limits: Limits::read(queue.limits.unwrap_or_default()),
        }
    }
}
