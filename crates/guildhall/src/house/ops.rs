//! The operations port: metrics, and what stands behind "ready". It tells of the inside, so it listens apart from the
//! public door and is not for the network.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use kit::{
    Fail, Secret,
    db::Schema,
    grpc::{Call, Credential, Peer},
    health::{Checked, Checks},
    storage::Storage,
    tasks::Tasks,
};
use metrics_exporter_prometheus::PrometheusHandle;
use proto::auth::{ListSigningKeysRequest, signing_keys_client::SigningKeysClient};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use worker::Worker;

/// How often histograms are folded, so that they stay small where nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What the port looks at: what the roles of this process stand on, and no more.
#[derive(Debug)]
pub(super) struct Inside {
    metrics: PrometheusHandle,
    pub(super) checks: Checks,
    /// The services that hold connections to the database.
    pub(super) pools: Vec<(Schema, PgPool)>,
}

impl Inside {
    pub(super) fn new(metrics: PrometheusHandle) -> Self {
        Self { metrics, checks: Checks::default(), pools: Vec::new() }
    }

    pub(super) fn stands_on_database(&mut self, url: &str) {
        let url = Secret::new(url.to_owned());
        self.check("database", move || {
            let url = url.clone();
            async move { kit::db::inspect(url.expose()).await.map(drop) }
        });
    }

    pub(super) fn stands_on_storage(&mut self, storage: &Storage) {
        let storage = storage.clone();
        self.check("storage", move || {
            let storage = storage.clone();
            async move { storage.check().await }
        });
    }

    /// Asked for the keys that verify tokens: what every other role needs of it.
    pub(super) fn stands_on_auth(&mut self, auth: &Peer) {
        let auth = auth.clone();
        self.check("auth", move || {
            let mut keys = SigningKeysClient::new(auth.clone());
            async move { Ok(keys.list(Call::anonymous("readyz").request(ListSigningKeysRequest {})).await.map(drop)?) }
        });
    }

    /// That `auth` knows this process: without it nothing that it asks for itself is answered, and nobody sees how it fares.
    pub(super) fn stands_on_key(&mut self, credential: &Credential) {
        let credential = credential.clone();
        self.check("service_key", move || {
            let credential = credential.clone();
            async move { credential.call("readyz").await.map(drop) }
        });
    }

    /// A role elsewhere, of which a replica must serve.
    pub(super) fn stands_on_peer(&mut self, name: &'static str, peer: &Peer) {
        let peer = peer.clone();
        self.check(name, move || {
            let is_connected = peer.is_connected();
            async move { is_there(is_connected, "No replica is connected.") }
        });
    }

    pub(super) fn stands_on_worker(&mut self, worker: &Worker) {
        let worker = worker.clone();
        self.check("worker", move || {
            let is_connected = worker.is_connected();
            async move { is_there(is_connected, "The worker is not connected.") }
        });
    }

    fn check<F>(&mut self, name: &'static str, probe: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), Fail>> + Send + 'static,
    {
        self.checks = std::mem::take(&mut self.checks).with(name, probe);
    }
}

fn is_there(is_connected: bool, otherwise: &str) -> Result<(), Fail> {
    if is_connected { Ok(()) } else { Err(Fail::unavailable("up.not_connected", otherwise)) }
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
    for (schema, pool) in &inside.pools {
        kit::db::measure(*schema, pool);
    }
    inside.metrics.render()
}

async fn readyz(State(inside): State<Arc<Inside>>) -> (StatusCode, Json<Value>) {
    let checked = inside.checks.run().await;
    let is_ready = checked.iter().all(|check| check.outcome.is_ok());
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let checks: serde_json::Map<_, _> =
        checked.into_iter().map(|check| (check.name.to_owned(), shown(&check))).collect();
    (status, Json(json!({ "ready": is_ready, "checks": checks })))
}

fn shown(check: &Checked) -> Value {
    let error = check.outcome.as_ref().err().map(ToString::to_string);
    json!({ "ok": error.is_none(), "duration_ms": check.took.as_secs_f64() * 1000.0, "error": error })
}
