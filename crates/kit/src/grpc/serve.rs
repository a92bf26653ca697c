//! A role's gRPC port: HTTP/2 over TCP, with TLS where there are certificates, every call through the guard. The accept
//! loop is our own, since connections need bounds, and their end an order.
//!
//! The end: on the soft signal the health service says so, connections are told to send no more, streams are ended with
//! `unavailable` so that their callers go elsewhere, and calls at work may end. Whoever connects meanwhile is answered by
//! the health service alone.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::METHODS;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::{Layer as _, ServiceExt as _};

use super::{
    Guard, KEEPALIVE_EVERY, KEEPALIVE_WITHIN, WINDOW_BYTES, deadline::Cut, guard::Guarded, health, health::PortHealth,
    reflection,
};
use crate::{Fail, tasks::Tasks, tls::Tls};

/// Connections at once. Other roles make one each; beyond this, one is closed as it comes.
const CONNECTIONS_MAX: usize = 1_024;
/// Calls at once on one connection, streams among them: more than a gateway opens by its default bounds.
const CALLS_MAX: u32 = 8_192;
/// Room for a call's token, and for what is wrong with each field in an answer.
pub(super) const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// How long a caller may take until TLS stands, and as long again until its first call.
const FIRST_CALL_WITHIN: Duration = Duration::from_secs(5);
/// After a failed accept (the process is out of file descriptors, most likely), this long before the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves `routes` behind `guard` on `listener` until `tasks` are asked to stop, and then until the calls at work have
/// ended; how long those may take is the deadline of [`Tasks::join`].
pub fn serve(listener: TcpListener, routes: Routes, guard: &Guard, tls: Option<Tls>, tasks: &Tasks) {
    let stopping = tasks.stopping();
    let port = Port {
        guarded: guard.layer(routes.prepare()),
        health: HealthServer::new(PortHealth { stopping: stopping.clone() }),
        stopping,
    };
    tasks.spawn("grpc port", accept(listener, port, tls, tasks.clone()));
}

async fn accept(listener: TcpListener, port: Port, tls: Option<Tls>, tasks: Tasks) -> Result<(), Fail> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Those that came before the soft signal are waited for; those that come after it end with this function.
    let early = TaskTracker::new();
    let closed = CancellationToken::new();
    let _closes = closed.clone().drop_guard();
    let mut drained = pin!(async {
        port.stopping.cancelled().await;
        early.close();
        early.wait().await;
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drained.as_mut() => return Ok(()),
        };
        let (socket, caller) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a gRPC connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%caller, "there are too many gRPC connections; one was closed");
            continue;
        };
        let is_late = port.stopping.is_cancelled();
        let token = (!is_late).then(|| early.token());
        let (port, tls, closed, tasks) = (port.clone(), tls.clone(), closed.clone(), tasks.clone());
        tasks.clone().detach("grpc connection", async move {
            let served = take(socket, port, tls, is_late, &tasks);
            let outcome = if is_late { closed.run_until_cancelled(served).await } else { Some(served.await) };
            if let Some(Err(reason)) = outcome {
                tracing::debug!(%caller, reason, "a gRPC connection ended early");
            }
            drop((place, token));
        });
    }
}

/// One connection, with TLS under it where that is demanded.
async fn take(socket: TcpStream, port: Port, tls: Option<Tls>, is_late: bool, tasks: &Tasks) -> Result<(), String> {
    // Answers are small and latency is what people notice. Failing only costs that.
    let _ = socket.set_nodelay(true);
    let Some(tls) = tls else { return connection(socket, port, is_late, tasks).await };
    let accepting = TlsAcceptor::from(tls.server()).accept(socket);
    match tokio::time::timeout(FIRST_CALL_WITHIN, accepting).await {
        Ok(Ok(stream)) => connection(stream, port, is_late, tasks).await,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("TLS did not stand in time".to_owned()),
    }
}

async fn connection<S>(stream: S, port: Port, is_late: bool, tasks: &Tasks) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let has_called = CancellationToken::new();
    let (called, stopping) = (has_called.clone(), port.stopping.clone());
    let service = service_fn(move |request: http::Request<Incoming>| {
        called.cancel();
        let port = port.clone();
        async move { Ok::<_, Infallible>(port.call(request.map(Body::new), is_late).await) }
    });
    let mut builder = http2::Builder::new(tasks.executor());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        // A crowd of callers that give up at once is no attack: between roles, losing the connection would be.
        .max_pending_accept_reset_streams(CALLS_MAX as usize)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES.0)
        .initial_connection_window_size(WINDOW_BYTES.1)
        .keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WITHIN);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut first = pin!(tokio::time::timeout(FIRST_CALL_WITHIN, has_called.cancelled()));
    let (mut is_watching, mut is_stopping) = (true, is_late);
    loop {
        tokio::select! {
            ended = serving.as_mut() => return ended.map_err(|error| error.to_string()),
            called = first.as_mut(), if is_watching => match called {
                Ok(()) => is_watching = false,
                Err(_) => return Err("there was no call in time".to_owned()),
            },
            () = stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What every connection of one port is served with.
#[derive(Clone)]
struct Port {
    guarded: Guarded<Routes>,
    health: HealthServer<PortHealth>,
    stopping: CancellationToken,
}

impl Port {
    async fn call(self, request: http::Request<Body>, is_late: bool) -> http::Response<Body> {
        let path = request.uri().path();
        if path.starts_with(health::PATH) {
            return never(self.health.oneshot(request).await);
        }
        if is_late {
            return leaving().into_http();
        }
        if path == reflection::PATH {
            // It goes on for as long as it is asked, so that its questions must end, too.
            let request = request.map(|body| Cut::off(body, left(self.stopping.clone())));
            let response = never(self.guarded.oneshot(request).await);
            return response.map(|body| Cut::off(body, left(self.stopping)));
        }
        let is_stream = METHODS.iter().any(|method| method.path == path && method.streams);
        let response = never(self.guarded.oneshot(request).await);
        if is_stream { response.map(|body| Cut::off(body, left(self.stopping))) } else { response }
    }
}

/// Comes to be when the port is left.
async fn left(stopping: CancellationToken) -> Status {
    stopping.cancelled().await;
    leaving()
}

fn leaving() -> Status {
    Fail::unavailable("unavailable", "A part of the system is away for the moment.").into()
}

fn never<T>(answer: Result<T, Infallible>) -> T {
    answer.unwrap_or_else(|never| match never {})
}
