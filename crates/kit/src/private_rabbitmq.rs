//! The private RabbitMQ of `./dev apart`, of the benchmarks and of the tests: a real broker of one node, found on the
//! machine, run as a child.
//!
//! It owns the node's state in the data directory, its own port mapper (epmd) and the life of both: made, started,
//! restarted in place on the same ports when it dies, ended with us, even when we are killed. It never installs
//! anything (`./dev` does), listens on loopback alone, loads no plugins, and never touches the machine's own broker.
//!
//! | file | what it knows |
//! |---|---|
//! | `binaries` | where on this machine a usable RabbitMQ is |
//! | `node` | the node's state, secrets, ports and environment |
//! | `server` | its two processes, and what dead ones leave behind |
//!
//! What it has in common with other private servers stands in `private_server`.

mod binaries;
mod node;
mod server;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use self::node::Node;
use self::server::{Broker, Epmd};
pub use crate::private_server::PlaceError;
use crate::private_server::Product;
use crate::private_server::keeper::{Keeper, Restart};

const RABBITMQ: Product = Product { name: "RabbitMQ", slug: "rabbitmq", users: &["rabbitmq", "nobody"] };
const EPMD: &str = "epmd of RabbitMQ";

/// The one user of the broker, its administrator.
const USER: &str = "guildhall";

/// A start takes five to ten seconds of a core; recovery of long queues adds to it.
const READY_WITHIN: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(20);

/// A broker that is just starting, or is paused, takes a connection and leaves it unanswered.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// SIGTERM lets it close its queues and files.
const STOPS: [(Signal, Duration); 2] =
    [(Signal::SIGTERM, Duration::from_secs(20)), (Signal::SIGKILL, Duration::from_secs(5))];
const EPMD_STOPS: [(Signal, Duration); 1] = [(Signal::SIGKILL, Duration::from_secs(5))];

/// Where a private RabbitMQ lives.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory of this Guildhall; made when it is not there.
    pub data_dir: PathBuf,
}

/// A running private RabbitMQ. Dropping it asks the broker to stop without waiting; [`PrivateRabbitMq::stop`] waits.
#[derive(Debug)]
pub struct PrivateRabbitMq {
    broker: Keeper,
    epmd: Keeper,
    node: Arc<Node>,
}

/// Why no private RabbitMQ could be had. Each sentence says the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "no RabbitMQ was found: {what} are neither where packages put them nor in PATH. `./dev apart` and `./dev test` \
         get it where they may; so does the system's package manager (`apt-get install rabbitmq-server`)"
    )]
    NoBinaries { what: String },

    #[error("{reason}")]
    GaveUp { reason: String },

    #[error("RabbitMQ takes no connections after {} s; the last answer was: {last}", READY_WITHIN.as_secs())]
    NotReady { last: String },

    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// Why a `rabbitmqctl` did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("`rabbitmqctl` could not be run: {0}")]
    Io(#[from] std::io::Error),

    #[error("`rabbitmqctl {command}` failed: {said}")]
    Failed { command: String, said: String },
}

impl PrivateRabbitMq {
    /// Finds RabbitMQ, makes the node at the first start, runs it and waits until it takes connections.
    ///
    /// # Errors
    /// [`StartError`], each with a sentence that says the way out.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        Self::start_with(options, Restart::FewTimes).await
    }

    /// As [`PrivateRabbitMq::start`], and however often it dies, it is started again.
    ///
    /// # Errors
    /// As [`PrivateRabbitMq::start`].
    pub async fn start_lasting(options: Options) -> Result<Self, StartError> {
        Self::start_with(options, Restart::Always).await
    }

    async fn start_with(options: Options, restart: Restart) -> Result<Self, StartError> {
        let (epmd, node) = Keeper::start(EPMD, move || {
            let node = Arc::new(Node::prepare(&options.data_dir)?);
            Ok::<_, StartError>((Epmd(Arc::clone(&node), restart), node))
        })
        .await?;
        wait_for_port(node.ports().epmd, &epmd).await?;

        let broker_node = Arc::clone(&node);
        let started =
            Keeper::start(RABBITMQ.name, move || Ok::<_, StartError>((Broker(broker_node, restart), ()))).await;
        let (broker, ()) = match started {
            Ok(started) => started,
            Err(error) => {
                epmd.stop(&EPMD_STOPS).await;
                return Err(error);
            }
        };
        let started = Self { broker, epmd, node };
        started.ready().await?;
        Ok(started)
    }

    /// Leads to the virtual host `/` as the broker's administrator.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        self.amqp_url_of("%2f")
    }

    /// Leads to a virtual host, given in the URL's own spelling.
    #[must_use]
    pub fn amqp_url_of(&self, vhost: &str) -> String {
        format!("amqp://{USER}:{}@127.0.0.1:{}/{vhost}", self.node.password(), self.node.ports().amqp)
    }

    /// Where its log is.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.node.log().path()
    }

    /// The directory that holds its state and log: the data directory, or its stand-in.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.node.dir()
    }

    /// The number of the broker's main process; none while there is no such process.
    #[must_use]
    pub fn pid(&self) -> watch::Receiver<Option<u32>> {
        self.broker.pid()
    }

    /// How the broker died last, in words that follow its name; empty when it has not.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<String> {
        self.broker.death()
    }

    /// Kills the broker with SIGKILL and waits until it is gone; it starts again by itself, see [`Self::ready`].
    pub async fn kill(&self) {
        self.broker.kill().await;
    }

    /// Freezes the broker: its connections stand, and nothing answers any more.
    pub fn pause(&self) {
        self.broker.signal(Signal::SIGSTOP);
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.broker.signal(Signal::SIGCONT);
    }

    /// Waits until the broker takes a connection of its user.
    ///
    /// # Errors
    /// It died too often, or takes none within two minutes.
    pub async fn ready(&self) -> Result<(), StartError> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            let refused = tokio::select! {
                reason = self.died() => return Err(StartError::GaveUp { reason }),
                outcome = self.greet() => match outcome {
                    Ok(()) => return Ok(()),
                    Err(refused) => refused,
                },
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(StartError::NotReady { last: refused });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Runs `rabbitmqctl` against the broker, and gives what it printed. It takes about a second of a core.
    ///
    /// # Errors
    /// It could not be run, or did not succeed.
    pub async fn ctl(&self, args: &[&str]) -> Result<String, CtlError> {
        let mut command = self.node.ctl();
        command.arg("--quiet").args(args).stdin(Stdio::null());
        // The kernel kills it with its thread, which lives until it has ended.
        let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(std::io::Error::other)??;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            return Err(CtlError::Failed { command: args.join(" "), said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Resolves only when the broker or its port mapper died three times within a minute and is not started again, with
    /// the reason.
    pub async fn died(&self) -> String {
        tokio::select! {
            reason = self.broker.died() => reason,
            reason = self.epmd.died() => reason,
        }
    }

    /// Stops the broker and waits for it; at most 30 s in all.
    pub async fn stop(self) {
        // A paused one would not hear of it.
        self.resume();
        self.broker.stop(&STOPS).await;
        self.epmd.stop(&EPMD_STOPS).await;
    }

    /// One connection, opened and closed again.
    async fn greet(&self) -> Result<(), String> {
        let url = self.amqp_url();
        let greeting = async {
            // Quick where nobody listens yet.
            tokio::net::TcpStream::connect(("127.0.0.1", self.node.ports().amqp)).await.map_err(|e| e.to_string())?;
            let connection =
                Connection::connect(&url, ConnectionProperties::default()).await.map_err(|e| e.to_string())?;
            connection.close(200, "ready".into()).await.map_err(|e| e.to_string())
        };
        tokio::time::timeout(HANDSHAKE_WITHIN, greeting).await.map_err(|_| "no answer".to_owned())?
    }
}

impl Drop for PrivateRabbitMq {
    fn drop(&mut self) {
        self.broker.ask_to_stop(Signal::SIGTERM);
        self.epmd.ask_to_stop(Signal::SIGKILL);
    }
}

async fn wait_for_port(port: u16, keeper: &Keeper) -> Result<(), StartError> {
    let open = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        () = open => Ok(()),
        reason = keeper.died() => Err(StartError::GaveUp { reason }),
        () = tokio::time::sleep(READY_WITHIN) => Err(StartError::NotReady { last: "epmd does not listen".to_owned() }),
    }
}
