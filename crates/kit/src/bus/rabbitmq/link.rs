//! One connection to RabbitMQ, kept up: made, watched and made again with growing waits. The client library's own recovery
//! is off: it replays what it remembers of the topology onto a broker that may have lost it, and says nothing of that.
//!
//! Noticed are: a connection that the broker closes, one that breaks, one that is silent for two heartbeats, a broker that
//! does not answer while we connect, and one that blocks publishers. A connection that is given up has its socket shut
//! down, since a polite close does not pass through one that is blocked or half open.

use std::{
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, Event,
    tcp::OwnedTLSConfig,
    uri::{AMQPAuthority, AMQPScheme, AMQPUri},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Fail,
    bus::{State, unavailable},
    tasks::Tasks,
};

/// For the whole way: name, TCP, TLS, and RabbitMQ's greeting.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// Beside the library's own word, which a fault in it could withhold.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Link {
    name: &'static str,
    live: watch::Sender<Option<Arc<Live>>>,
    state: watch::Sender<State>,
}

/// A connection that stands, or has just stood.
#[derive(Debug)]
pub(super) struct Live {
    connection: Connection,
    socket: Socket,
}

/// The socket under a connection, to end it whatever state that is in.
#[derive(Debug, Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Link {
    pub(super) fn start(name: &'static str, uri: AMQPUri, tasks: &Tasks) -> Arc<Self> {
        let away = State::Away("not connected yet".to_owned());
        let link = Arc::new(Self { name, live: watch::Sender::new(None), state: watch::Sender::new(away) });
        let (kept, stopping) = (Arc::clone(&link), tasks.stopping());
        tasks.spawn_restarting("bus.connection", move || keep(Arc::clone(&kept), uri.clone(), stopping.clone()));
        link
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// A new channel, once there is a connection.
    ///
    /// # Errors
    /// `bus.unavailable` when there is none within `within`.
    pub(super) async fn channel(&self, within: Duration) -> Result<(Arc<Live>, Channel), Fail> {
        let opened = async {
            let live = self.live.subscribe().wait_for(Option::is_some).await.ok().and_then(|live| live.clone());
            let live = live.ok_or_else(|| unavailable("The connection to RabbitMQ has ended."))?;
            let channel = live.connection.create_channel().await.map_err(lost)?;
            Ok((live, channel))
        };
        tokio::time::timeout(within, opened).await.unwrap_or_else(|_| Err(self.away()))
    }

    /// Waits for a connection; false when the process stops first.
    pub(super) async fn connected(&self, stopping: &CancellationToken) -> bool {
        tokio::select! {
            () = stopping.cancelled() => false,
            live = async { self.live.subscribe().wait_for(Option::is_some).await.is_ok() } => live,
        }
    }

    /// Why nothing can be sent now.
    pub(super) fn away(&self) -> Fail {
        match &*self.state.borrow() {
            State::Connected => unavailable("RabbitMQ does not answer."),
            State::Blocked(reason) => unavailable("RabbitMQ takes no messages for now.").caused_by(reason.clone()),
            State::Away(reason) => unavailable("RabbitMQ is away for the moment.").caused_by(reason.clone()),
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(&*self.state.borrow(), State::Blocked(_))
    }

    fn set(&self, state: State) {
        for (name, is_now) in [
            ("connected", matches!(state, State::Connected)),
            ("blocked", matches!(state, State::Blocked(_))),
            ("away", matches!(state, State::Away(_))),
        ] {
            metrics::gauge!("guildhall_bus_state", "connection" => self.name, "state" => name).set(u8::from(is_now));
        }
        self.state.send_replace(state);
    }
}

impl Live {
    /// Ends the connection at once: everything on it fails, and another is made.
    pub(super) fn give_up(&self) {
        self.socket.shut();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.socket.shut();
    }
}

impl Socket {
    fn shut(&self) {
        if let Some(socket) = self.0.lock().take() {
            // One that is shut down already needs no more.
            let _is_gone = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Makes the connection again and again until the process stops. The last one is left to those who still use it.
async fn keep(link: Arc<Link>, uri: AMQPUri, stopping: CancellationToken) -> Result<(), Fail> {
    let mut wait = AGAIN_FIRST;
    loop {
        let connected = tokio::select! {
            connected = connect(&link, &uri) => connected,
            () = stopping.cancelled() => return Ok(()),
        };
        let reason = match connected {
            Ok(live) => {
                info!(connection = link.name, "connected to RabbitMQ");
                wait = AGAIN_FIRST;
                link.set(State::Connected);
                let live = Arc::new(live);
                link.live.send_replace(Some(Arc::clone(&live)));
                let reason = tokio::select! {
                    reason = watch(&link, &live) => reason,
                    () = stopping.cancelled() => return Ok(()),
                };
                link.live.send_replace(None);
                live.give_up();
                reason
            }
            Err(reason) => reason,
        };
        warn!(connection = link.name, error = reason, "no connection to RabbitMQ");
        link.set(State::Away(reason));
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN_MAX),
        }
    }
}

async fn connect(link: &Link, uri: &AMQPUri) -> Result<Live, String> {
    let socket = Socket::default();
    let kept = socket.clone();
    let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
    let properties = ConnectionProperties::default().with_connection_name(format!("guildhall {}", link.name).into());
    let connecting = Connection::connector(
        uri.clone(),
        runtime,
        async move |uri, runtime| {
            let AMQPAuthority { host, port, .. } = uri.authority;
            let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                let plain = plain.get_ref();
                plain.set_nodelay(true)?;
                *kept.0.lock() = Some(TcpStream::from(plain.as_fd().try_clone_to_owned()?));
            }
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                AMQPScheme::AMQPS => Ok(stream.into_tls(&host, OwnedTLSConfig::default().as_ref()).await?),
            }
        },
        properties,
    );
    let failed = match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
        Ok(Ok(connection)) => return Ok(Live { connection, socket }),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    socket.shut();
    Err(failed)
}

/// Waits until the connection has ended, and says why. A blocking broker is told in the state meanwhile.
async fn watch(link: &Link, live: &Live) -> String {
    let mut events = live.connection.events_listener();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(connection = link.name, reason, "RabbitMQ takes no messages for now");
                    link.set(State::Blocked(reason));
                }
                Some(Event::ConnectionUnblocked) => {
                    info!(connection = link.name, "RabbitMQ takes messages again");
                    link.set(State::Connected);
                }
                // Of a channel that was closed, too; whoever uses that one hears of it.
                Some(Event::Error(error)) if !live.connection.status().connected() => return error.to_string(),
                Some(_) => {}
                None => return "the connection has ended".to_owned(),
            },
            () = tokio::time::sleep(LOOK_EVERY) => {
                if !live.connection.status().connected() {
                    return "the connection has ended".to_owned();
                }
            }
        }
    }
}

/// What a failure of the client library means to whoever uses the connection: it is gone, and comes again.
pub(super) fn lost(error: lapin::Error) -> Fail {
    unavailable("RabbitMQ is away for the moment.").caused_by(error)
}
