//! Keeping connections: names are looked up again and again, each address has one connection, a broken one is made again,
//! and a replica is called only once its health service has said that it serves.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::BoxError;

use super::{
    Origin, Remote,
    line::{Line, Unsent},
};
use crate::{
    grpc::{KEEPALIVE_EVERY, KEEPALIVE_WITHIN, WINDOW_BYTES, serve::HEADER_BYTES_MAX},
    tasks::Tasks,
};

/// How often a name is looked up.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// How long a connection may take to stand, TLS and the first word of its health with it.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const DELAY_FIRST: Duration = Duration::from_millis(50);
/// Short, so that a replica that is back is found at once.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// What a connection to one address is made of.
#[derive(Clone)]
struct Reach {
    remote: Arc<Remote>,
    origin: Arc<Origin>,
    tasks: Tasks,
}

/// Keeps a connection to every address of `origin` until `tasks` are asked to stop.
pub(super) fn follow(remote: Arc<Remote>, origin: Arc<Origin>, tasks: &Tasks) {
    let reach = Reach { remote, origin, tasks: tasks.clone() };
    match reach.origin.host.parse::<IpAddr>() {
        Ok(ip) => {
            let gone = tasks.stopping();
            let address = SocketAddr::new(ip, reach.origin.port);
            tasks.detach("grpc peer", async move { reach.keep(address, gone).await });
        }
        Err(_) => tasks.detach("grpc peer", async move { reach.look_up().await }),
    }
}

impl Reach {
    /// Looks the name up, and keeps a connection to each address that it stands for at the time.
    async fn look_up(self) {
        let stopping = self.tasks.stopping();
        let mut kept: HashMap<SocketAddr, CancellationToken> = HashMap::new();
        let mut tick = tokio::time::interval(LOOK_UP_EVERY);
        while stopping.run_until_cancelled(tick.tick()).await.is_some() {
            let (host, port) = (self.origin.host.as_str(), self.origin.port);
            let looked = stopping.run_until_cancelled(tokio::net::lookup_host((host, port))).await;
            let found: Vec<SocketAddr> = match looked {
                Some(Ok(found)) => found.collect(),
                Some(Err(error)) => {
                    // Those that are known may well be there still.
                    tracing::warn!(peer.role = self.remote.name, peer.host = host, %error, "a role's name cannot be looked up");
                    continue;
                }
                None => return,
            };
            kept.retain(|address, gone| {
                let is_there = found.contains(address);
                if !is_there {
                    gone.cancel();
                }
                is_there
            });
            for address in found {
                kept.entry(address).or_insert_with(|| {
                    let (reach, gone) = (self.clone(), stopping.child_token());
                    let until = gone.clone();
                    self.tasks.detach("grpc peer", async move { reach.keep(address, until).await });
                    gone
                });
            }
        }
    }

    /// Keeps one connection to `address` until it is `gone`.
    async fn keep(self, address: SocketAddr, gone: CancellationToken) {
        let mut delay = DELAY_FIRST;
        let mut is_told = false;
        while !gone.is_cancelled() {
            let connecting = tokio::time::timeout(CONNECT_WITHIN, self.connect(address));
            let Some(connected) = gone.run_until_cancelled(connecting).await else { return };
            match connected.unwrap_or_else(|_| Err("there was no answer in time".into())) {
                Ok(line) => {
                    tracing::info!(peer.role = self.remote.name, peer.address = %address, "connected");
                    (delay, is_told) = (DELAY_FIRST, false);
                    self.remote.add(line.clone());
                    gone.run_until_cancelled(line.closing.cancelled()).await;
                    self.remote.remove(&line);
                    if gone.is_cancelled() {
                        return;
                    }
                    tracing::warn!(peer.role = self.remote.name, peer.address = %address, "the connection is lost and made again");
                }
                Err(error) if is_told => {
                    tracing::debug!(peer.role = self.remote.name, peer.address = %address, %error, "still not connected");
                }
                Err(error) => {
                    tracing::warn!(peer.role = self.remote.name, peer.address = %address, %error, "not connected; it is tried again");
                    is_told = true;
                }
            }
            gone.run_until_cancelled(tokio::time::sleep(delay)).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }

    /// A connection to a replica that serves.
    async fn connect(&self, address: SocketAddr) -> Result<Arc<Line>, BoxError> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let line = match (&self.remote.tls, &self.origin.server_name) {
            (Some(tls), Some(name)) => {
                let connector = TlsConnector::from(tls.client());
                self.speak(connector.connect(name.clone(), socket).await?).await?
            }
            _ => self.speak(socket).await?,
        };
        let line = Arc::new(line);
        let asked = line.clone();
        let mut health = HealthClient::new(tower::service_fn(move |request: http::Request<Body>| {
            let flight = asked.take_off();
            async move {
                flight.send(request).await.map_err(|unsent| match unsent {
                    Unsent::Whole(_) => Status::unavailable("the replica is leaving"),
                    Unsent::Lost(status) => status,
                })
            }
        }));
        let status = health.check(HealthCheckRequest::default()).await?.into_inner().status();
        if status != ServingStatus::Serving {
            return Err("the replica is there and does not serve".into());
        }
        Ok(line)
    }

    /// HTTP/2 over a stream, driven among the tasks until it breaks, is let go of, or they are asked to stop.
    async fn speak<S>(&self, stream: S) -> Result<Line, BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(self.tasks.executor())
            .timer(TokioTimer::new())
            .max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(WINDOW_BYTES.0)
            .initial_connection_window_size(WINDOW_BYTES.1)
            .keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_WITHIN)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let line = Line::new(sender, self.origin.clone());
        let (closing, stopping) = (line.closing.clone(), self.tasks.stopping());
        self.tasks.detach("grpc connection", async move {
            stopping.run_until_cancelled(connection).await;
            closing.cancel();
        });
        Ok(line)
    }
}
