//! The operations port: metrics, and what stands behind "ready". It tells of the inside, so it listens apart from the
//! public door and is not for the network.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use kit::{
    Fail, Secret,
    grpc::{Call, Peer},
    storage::Storage,
    tasks::Tasks,
};
use metrics_exporter_prometheus::PrometheusHandle;
use proto::auth::{ListSigningKeysRequest, signing_keys_client::SigningKeysClient};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::Instant};
use worker::Worker;

/// A check that takes longer has failed.
const CHECK_WITHIN: Duration = Duration::from_secs(3);

/// How often histograms are folded, so that they stay small where nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What the port looks at.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) metrics: PrometheusHandle,
    pub(super) database_url: Secret,
    pub(super) storage: Storage,
    pub(super) auth: Peer,
    pub(super) worker: Worker,
    pub(super) pools: Pools,
}

/// The roles that hold connections to the database.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) auth: auth::Auth,
    pub(super) jobs: jobs::Jobs,
}

/// Serves on `listener` until `tasks` stop.
pub(super) fn serve(listener: TcpListener, inside: Inside, tasks: &Tasks) {
    let inside = Arc::new(inside);
    let upkeep = inside.metrics.clone();
    let stopping = tasks.stopping();
    tasks.spawn_restarting("metrics upkeep", move || {
        let (upkeep, stopping) = (upkeep.clone(), stopping.clone());
        async move {
            let mut tick = tokio::time::interval(UPKEEP_EVERY);
            while stopping.run_until_cancelled(tick.tick()).await.is_some() {
                upkeep.run_upkeep();
            }
            Ok(())
        }
    });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(inside);
    let stopping = tasks.stopping();
    tasks.spawn("operations port", async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { stopping.cancelled().await })
            .await
            .map_err(Fail::internal)
    });
}

/// Takes the port `address`, which the setting `name` names.
///
/// # Errors
/// `up.port` with the way out.
pub(super) async fn listen(name: &str, address: SocketAddr) -> Result<TcpListener, Fail> {
    TcpListener::bind(address).await.map_err(|error| port_fail(name, address, &error))
}

/// Why a port could not be taken, and what to do.
pub(crate) fn port_fail(name: &str, address: SocketAddr, error: &std::io::Error) -> Fail {
    Fail::unavailable(
        "up.port",
        format!(
            "Could not listen on {address}: {error}. Stop what listens there, or choose another address with GUILDHALL_{}.",
            name.to_ascii_uppercase()
        ),
    )
}

async fn metrics(State(inside): State<Arc<Inside>>) -> String {
    kit::db::measure(auth::SCHEMA, inside.pools.auth.pool());
    kit::db::measure(jobs::SCHEMA, inside.pools.jobs.pool());
    inside.metrics.render()
}

async fn readyz(State(inside): State<Arc<Inside>>) -> (StatusCode, Json<Value>) {
    let mut keys = SigningKeysClient::new(inside.auth.clone());
    let worker = async {
        if inside.worker.is_connected() {
            Ok(())
        } else {
            Err(Fail::unavailable("up.worker", "The worker is not connected."))
        }
    };
    let (database, storage, worker, auth) = tokio::join!(
        check(async { kit::db::inspect(inside.database_url.expose()).await.map(drop) }),
        check(inside.storage.check()),
        check(worker),
        check(async { Ok(keys.list(Call::anonymous("readyz").request(ListSigningKeysRequest {})).await.map(drop)?) }),
    );
    let checks = [("database", database), ("storage", storage), ("auth", auth), ("worker", worker)];
    let is_ready = checks.iter().all(|(_, check)| check["ok"] == true);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let checks: serde_json::Map<_, _> = checks.into_iter().map(|(name, check)| (name.to_owned(), check)).collect();
    (status, Json(json!({ "ready": is_ready, "checks": checks })))
}

async fn check(probe: impl Future<Output = Result<(), Fail>>) -> Value {
    let started = Instant::now();
    let error = match tokio::time::timeout(CHECK_WITHIN, probe).await {
        Ok(Ok(())) => None,
        Ok(Err(fail)) => Some(fail.to_string()),
        Err(_) => Some(format!("no answer within {} s", CHECK_WITHIN.as_secs())),
    };
    json!({ "ok": error.is_none(), "duration_ms": started.elapsed().as_secs_f64() * 1000.0, "error": error })
}
