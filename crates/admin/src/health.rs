//! How every process fares: each reports of itself every few seconds, and the last report of each is kept where every
//! replica of `admin` sees it. It judges by what it hears; it asks nobody.

use std::time::Duration;

use kit::{
    Fail,
    clock::to_timestamp,
    grpc::Call,
    identity::{Caller, Reach},
};
use prost::Message as _;
use proto::admin::{
    GetHealthRequest, GetHealthResponse, Replica, ReportRequest, ReportResponse, health_server::Health,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Admin, parked};

/// Every role there is: without a live replica of each, not all is well.
const ROLES: [&str; 5] = ["auth", "jobs", "admin", "gateway", "worker"];
/// A process that was not heard of for so long is not live. Five reports may be lost.
const LIVE: Duration = Duration::from_secs(10);
/// A process that was not heard of for so long is forgotten: until then it is shown as one that has gone.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// Of whom a reporter tells whose permission reaches no further than its own kind: such keys are told to workers.
const OWN_ROLE: &str = "worker";
/// Largest report, in bytes: many times what a process has to say, and so small that as many as are shown fit into a
/// message between roles (`kit::grpc::MESSAGE_BYTES_MAX`).
const REPORT_BYTES_MAX: usize = 8 * 1024;
/// Processes that are shown at most.
const REPLICAS_MAX: i64 = 1000;

#[tonic::async_trait]
impl Health for Admin {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let caller = Call::of(&request)?.caller()?.clone();
        let replica = request.into_inner().replica.unwrap_or_default();
        self.hear(&caller, &replica).await?;
        Ok(Response::new(ReportResponse {}))
    }

    async fn get(&self, request: Request<GetHealthRequest>) -> Result<Response<GetHealthResponse>, Status> {
        Call::of(&request)?.caller()?;
        Ok(Response::new(self.health().await?))
    }
}

impl Admin {
    async fn hear(&self, caller: &Caller, replica: &Replica) -> Result<(), Fail> {
        let refuse = |message| Fail::invalid("admin.invalid_report", message);
        let id: Uuid = replica.id.parse().map_err(|_| refuse("A report needs the id of its process."))?;
        if replica.roles.is_empty() {
            return Err(refuse("A report needs the roles of its process."));
        }
        let is_of_own_role = replica.roles.iter().all(|role| role == OWN_ROLE);
        if caller.require("health:report")? == Reach::Own && !is_of_own_role {
            return Err(Fail::forbidden("forbidden", "Your permission lets you tell of workers alone."));
        }
        let report = replica.encode_to_vec();
        if report.len() > REPORT_BYTES_MAX {
            return Err(refuse("A report may have at most 8192 bytes."));
        }
        sqlx::query!(
            "insert into admin.replica (id, report, reported_at)
             values ($1, $2, $3)
             on conflict (id) do update
             set report = excluded.report, reported_at = excluded.reported_at",
            id,
            report,
            self.0.clock.now(),
        )
        .execute(&self.0.pool)
        .await?;
        Ok(())
    }

    async fn health(&self) -> Result<GetHealthResponse, Fail> {
        let now = self.0.clock.now();
        let rows = sqlx::query!(
            "select report, reported_at
             from admin.replica
             where reported_at > $1
             order by reported_at desc
             limit $2",
            now - REMEMBERED,
            REPLICAS_MAX,
        )
        .fetch_all(&self.0.pool)
        .await?;
        let mut replicas = Vec::with_capacity(rows.len());
        for row in rows {
            let mut replica = Replica::decode(row.report.as_slice()).map_err(Fail::internal)?;
            replica.reported_at = Some(to_timestamp(row.reported_at));
            replica.live = row.reported_at > now - LIVE;
            replicas.push(replica);
        }
        replicas.sort_by(|a, b| (&a.roles, &a.host, a.pid).cmp(&(&b.roles, &b.host, b.pid)));
        let missing_roles = missing_roles(&replicas);
        let ok = missing_roles.is_empty() && live(&replicas).all(|replica| replica.dependencies.iter().all(|on| on.ok));
        let parked = parked::count(&self.0.pool).await?;
        Ok(GetHealthResponse { ok, replicas, parked, missing_roles })
    }
}

fn live(replicas: &[Replica]) -> impl Iterator<Item = &Replica> {
    replicas.iter().filter(|replica| replica.live)
}

fn missing_roles(replicas: &[Replica]) -> Vec<String> {
    let is_missing = |role: &&str| !live(replicas).any(|replica| replica.roles.iter().any(|has| has == role));
    ROLES.into_iter().filter(is_missing).map(str::to_owned).collect()
}

/// Forgets the processes that were not heard of for long.
///
/// # Errors
/// As the database.
pub(crate) async fn forget(pool: &PgPool, now: chrono::DateTime<chrono::Utc>) -> Result<(), Fail> {
    sqlx::query!("delete from admin.replica where reported_at <= $1", now - REMEMBERED).execute(pool).await?;
    Ok(())
}
