//! Taking connections. The accept loop is our own, since a connection needs bounds that a ready-made one does not set:
//! on how many there are, on how long a head may take, and on a reader that stops reading.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use kit::{Fail, tasks::Tasks};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

use super::stall::Stall;
use crate::Settings;

/// After a failed accept (the process is out of file descriptors, most likely), this long before the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Room for the head of an HTTP/1 request, and for one read of its body.
const HTTP1_BUFFER_BYTES: usize = 128 * 1024;
const HTTP2_HEADER_BYTES_MAX: u32 = 64 * 1024;
const HTTP2_STREAMS_MAX: u32 = 128;
/// A silent HTTP/2 peer is asked this often whether it is still there, and has as long to answer.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// The other end of the connection, in a request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

/// A socket that listens and does not take connections yet.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    connections: Arc<Semaphore>,
    header_read: Duration,
    stall: Duration,
}

impl Listener {
    /// # Errors
    /// `config.http_listen` where the address cannot be had.
    pub(crate) async fn bind(settings: &Settings) -> Result<Self, Fail> {
        let socket = TcpListener::bind(settings.http_listen).await.map_err(|error| {
            Fail::conflict("config.http_listen", format!("Cannot listen on {}: {error}.", settings.http_listen))
        })?;
        Ok(Self {
            socket,
            connections: Arc::new(Semaphore::new(settings.http_connections_max as usize)),
            header_read: Duration::from_secs(u64::from(settings.header_read_s)),
            stall: Duration::from_secs(u64::from(settings.stall_s)),
        })
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, Fail> {
        self.socket.local_addr().map_err(Fail::internal)
    }

    /// Serves until the soft signal. Connections then finish the requests they have and close; how long they may take is
    /// the deadline of [`Tasks::join`].
    pub(crate) async fn serve(self, router: Router, tasks: Tasks) -> Result<(), Fail> {
        let stopping = tasks.stopping();
        loop {
            let next = async {
                // Waiting here leaves further connections in the system's queue.
                let permit = self.connections.clone().acquire_owned().await;
                (permit, self.socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = stopping.cancelled() => return Ok(()),
            };
            match accepted {
                Ok((stream, peer)) => {
                    let serving = connection(stream, peer, router.clone(), self.header_read, self.stall, tasks.clone());
                    tasks.detach("connection", async move {
                        serving.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    header_read: Duration,
    stall: Duration,
    tasks: Tasks,
) {
    // Answers are small and latency is what people notice. Failing only costs that.
    let _ = stream.set_nodelay(true);
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = has_asked.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(PeerAddress(peer.ip()));
        let router = router.clone();
        async move { router.oneshot(request).await.map_err(|never: Infallible| match never {}) }
    });

    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_read).max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
    let io = TokioIo::new(Stall::new(stream, stall));
    let mut serving = pin!(builder.serve_connection(io, service));
    // The timeouts above begin once it is known which HTTP is spoken; a client that does not even say that is cut off here.
    let mut first = pin!(tokio::time::sleep(header_read));
    let stopping = tasks.stopping();
    let (mut is_watching, mut is_stopping) = (true, false);
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    // Clients go away; that is theirs to do.
                    tracing::debug!(error = %error, "a connection ended early");
                }
                return;
            }
            () = first.as_mut(), if is_watching => {
                is_watching = false;
                if !has_asked.load(Ordering::Relaxed) {
                    return;
                }
            }
            () = stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
