//! Audit entries, parked events and processes as JSON shows them, and what their lists are narrowed by.

use kit::Fail;
use proto::admin as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::wire::{Raw, Time, maybe, maybe_time, time};

/// One act, as the service that was asked has recorded it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AuditEntry {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    at: Time,
    /// Which service recorded it: `auth`, `jobs`, `admin`.
    service: String,
    /// `user`, `service` (a service account), `system` (Guildhall itself) or `anonymous`.
    actor_kind: String,
    actor_id: Option<String>,
    /// Whose things were touched, when they are not the actor's own.
    on_behalf_of: Option<String>,
    /// What the actor showed, as `session:<id>`, `service_key`, `password`, `refresh_token`, `upload_ticket` or `none`.
    credential: Option<String>,
    remote_address: Option<String>,
    user_agent: Option<String>,
    /// `<noun>.<verb>`, as `user.disable`.
    action: String,
    target_kind: String,
    target_id: Option<String>,
    /// `done` or `refused`.
    outcome: String,
    /// What the actor said, or the code of a refusal.
    reason: Option<String>,
    /// What has changed, as it was: an object, without personal data and secrets.
    before: Option<Raw>,
    /// What has changed, as it is since.
    after: Option<Raw>,
    request_id: Option<String>,
}

/// Which entries are asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditFilter {
    /// Most items in the answer; 50 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 200), extend("default" = 50))]
    pub(super) limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub(super) cursor: Option<String>,
    /// `auth`, `jobs` or `admin`.
    #[serde(default)]
    pub(super) service: Option<String>,
    #[serde(default)]
    pub(super) actor_id: Option<Uuid>,
    /// As `user.disable`.
    #[serde(default)]
    pub(super) action: Option<String>,
    #[serde(default)]
    pub(super) target_kind: Option<String>,
    #[serde(default)]
    pub(super) target_id: Option<String>,
    #[serde(default)]
    pub(super) outcome: Option<ActOutcome>,
    #[serde(default)]
    pub(super) request_id: Option<String>,
    #[serde(default)]
    pub(super) after: Option<Time>,
    #[serde(default)]
    pub(super) before: Option<Time>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ActOutcome {
    Done,
    Refused,
}

impl ActOutcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// An event that a consumer could not handle.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ParkedEvent {
    /// Of the parking: two consumers may park the same event.
    #[schemars(extend("format" = "uuid"))]
    id: String,
    event_id: String,
    /// As `auth.act.recorded`.
    r#type: String,
    source: String,
    subject: Option<String>,
    consumer: String,
    /// What the consumer said, or that it died too often.
    reason: String,
    parked_at: Time,
    replayed_at: Option<Time>,
}

/// Which parked events are asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ParkedFilter {
    /// Most items in the answer; 50 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 200), extend("default" = 50))]
    pub(super) limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub(super) cursor: Option<String>,
    #[serde(default)]
    pub(super) consumer: Option<String>,
    /// As `auth.act.recorded`.
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    /// Those that were replayed, too.
    #[serde(default)]
    pub(super) with_replayed: Option<bool>,
}

/// How every process fares.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Health {
    /// Whether every role has a live process, and the dependencies of all live ones answer.
    ok: bool,
    /// Roles without a live process.
    missing_roles: Vec<String>,
    /// Events parked and not replayed.
    parked_events: u64,
    /// Every process that was heard of within some minutes.
    replicas: Vec<Replica>,
}

/// One process, as it last said of itself.
#[derive(Debug, Serialize, JsonSchema)]
struct Replica {
    /// Of this life of the process.
    id: String,
    /// All that run in it: `auth`, `jobs`, `admin`, `gateway`, `worker`.
    roles: Vec<String>,
    version: String,
    host: String,
    pid: u32,
    started_at: Option<Time>,
    reported_at: Time,
    /// Whether it was heard of within the last ten seconds.
    live: bool,
    dependencies: Vec<Dependency>,
    lags: Vec<Lag>,
}

/// Something that a process stands on.
#[derive(Debug, Serialize, JsonSchema)]
struct Dependency {
    name: String,
    ok: bool,
    duration_ms: f64,
    error: Option<String>,
}

/// How far behind a service tells what happened in it.
#[derive(Debug, Serialize, JsonSchema)]
struct Lag {
    service: String,
    /// Events that are not published yet.
    unpublished: u64,
    /// Age of the oldest of them.
    seconds: f64,
}

impl AuditEntry {
    pub(super) fn read(entry: rpc::AuditEntry) -> Result<Self, Fail> {
        Ok(Self {
            id: entry.id,
            at: time(entry.at)?,
            service: entry.service,
            actor_kind: entry.actor_kind,
            actor_id: maybe(entry.actor_id),
            on_behalf_of: maybe(entry.on_behalf_of),
            credential: maybe(entry.credential),
            remote_address: maybe(entry.remote_address),
            user_agent: maybe(entry.user_agent),
            action: entry.action,
            target_kind: entry.target_kind,
            target_id: maybe(entry.target_id),
            outcome: entry.outcome,
            reason: maybe(entry.reason),
            before: Raw::maybe(entry.before_json)?,
            after: Raw::maybe(entry.after_json)?,
            request_id: maybe(entry.request_id),
        })
    }
}

impl ParkedEvent {
    pub(super) fn read(event: rpc::ParkedEvent) -> Result<Self, Fail> {
        Ok(Self {
            id: event.id,
            event_id: event.event_id,
            r#type: event.r#type,
            source: event.source,
            subject: maybe(event.subject),
            consumer: event.consumer,
            reason: event.reason,
            parked_at: time(event.parked_at)?,
            replayed_at: maybe_time(event.replayed_at),
        })
    }
}

impl Health {
    pub(super) fn read(health: rpc::GetHealthResponse) -> Result<Self, Fail> {
        Ok(Self {
            ok: health.ok,
            missing_roles: health.missing_roles,
            parked_events: health.parked,
            replicas: health.replicas.into_iter().map(Replica::read).collect::<Result<_, _>>()?,
        })
    }
}

impl Replica {
    fn read(replica: rpc::Replica) -> Result<Self, Fail> {
        let dependency = |on: rpc::Dependency| Dependency {
            name: on.name,
            ok: on.ok,
            duration_ms: on.duration_ms,
            error: maybe(on.error),
        };
        let lag = |lag: rpc::Lag| Lag { service: lag.service, unpublished: lag.unpublished, seconds: lag.seconds };
        Ok(Self {
            id: replica.id,
            roles: replica.roles,
            version: replica.version,
            host: replica.host,
            pid: replica.pid,
            started_at: maybe_time(replica.started_at),
            reported_at: time(replica.reported_at)?,
            live: replica.live,
            dependencies: replica.dependencies.into_iter().map(dependency).collect(),
            lags: replica.lags.into_iter().map(lag).collect(),
        })
    }
}
