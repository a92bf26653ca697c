//! The private Postgres of `guildhall up` and of the tests: a real server, found on the machine, run as a child.
//!
//! It owns one cluster in the data directory, the socket that leads to it and the life of the server: made, started,
//! restarted in place when it dies, ended with us, even when we are killed. It never installs anything (`./dev` does),
//! never listens on TCP, and never touches a server that is not of its own cluster.
//!
//! | file | what it knows |
//! |---|---|
//! | `account` | the user Postgres runs as: ourselves, or an ordinary one when we are root |
//! | `binaries` | where on this machine a usable Postgres is |
//! | `home` | which directory holds the cluster, the log and the socket, and who may use it now |
//! | `cluster` | how a cluster is made |
//! | `leftovers` | processes of the cluster whose postmaster is gone |
//! | `server` | the thread that runs the server and starts it again |
//! | `log` | what the server says, within a bound |

mod account;
mod binaries;
mod cluster;
mod home;
mod leftovers;
mod log;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use tokio::sync::{oneshot, watch};

use server::{Control, Phase};

/// The oldest major version whose SQL the services are written in.
pub const MAJOR_MIN: u32 = 15;

/// The superuser of the cluster, and the database it makes.
const NAME: &str = "guildhall";

/// Postgres names its socket after a port even where it listens on none.
const PORT: u16 = 5432;

/// Recovery after a crash replays at most `max_wal_size` (1 GB): seconds on a usual disk, a minute on a slow one.
const READY_WITHIN: Duration = Duration::from_secs(300);
const READY_POLL: Duration = Duration::from_millis(20);

/// How long each way of stopping is given: SIGINT (fast: sessions end, a checkpoint is written), SIGQUIT (recovery at
/// the next start), SIGKILL.
const STOPS: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(30)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Where a private Postgres lives and how it is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory of this Guildhall; made when it is not there.
    pub data_dir: PathBuf,
    /// The one directory to take `postgres` and `initdb` from (`GUILDHALL_PG_BIN`); by default they are looked for.
    pub bin_dir: Option<PathBuf>,
    /// False turns fsync off, so that a power cut may cost the cluster. For tests alone.
    pub durable: bool,
}

/// A running private Postgres. Dropping it asks the server to stop without waiting; [`PrivatePostgres::stop`] waits.
#[derive(Debug)]
pub struct PrivatePostgres {
    control: Control,
    phase: watch::Receiver<Phase>,
    places: Places,
}

/// Every directory that a private Postgres uses.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Holds the cluster and the log: the data directory, or its stand-in under `/var/lib/guildhall`.
    pub(crate) home: PathBuf,
    pub(crate) socket_dir: PathBuf,
}

/// Why no private Postgres could be had. Each sentence says the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "no Postgres {MAJOR_MIN} or newer was found ({looked}). `./dev up` gets one; so does the system's package \
         manager (`apt-get install postgresql`); a server elsewhere is named in GUILDHALL_DATABASE_URL, binaries in an \
         unusual place in GUILDHALL_PG_BIN"
    )]
    NoBinaries { looked: String },

    #[error(
        "GUILDHALL_PG_BIN names {dir}, which cannot be used: {reason}. Name the directory that holds `postgres` and `initdb`, or unset it"
    )]
    UnusableBinaries { dir: PathBuf, reason: String },

    #[error(
        "{data_dir} is in use by the process {pid}. Stop that one first, or choose another directory with GUILDHALL_DATA_DIR"
    )]
    InUse { data_dir: PathBuf, pid: String },

    #[error(
        "the cluster in {cluster} was made by Postgres {cluster_major}, and of that version nothing was found ({found}). \
         Install Postgres {cluster_major} or name its bin directory in GUILDHALL_PG_BIN; to move to another version, run \
         `pg_upgrade` with both installed (https://www.postgresql.org/docs/current/pgupgrade.html)"
    )]
    OtherMajor { cluster: PathBuf, cluster_major: u32, found: String },

    #[error(
        "the cluster in {cluster} belongs to the user {owner}, not to {us}: start Guildhall as {owner}, or give it another GUILDHALL_DATA_DIR"
    )]
    OtherOwner { cluster: PathBuf, owner: String, us: String },

    #[error(
        "Postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`: add one, or start Guildhall as an ordinary user"
    )]
    NoOrdinaryUser,

    #[error(
        "Postgres runs as the user {user}, who cannot reach {dir}: let others search the directories above it (`chmod o+x`), or give another GUILDHALL_DATA_DIR"
    )]
    Unreachable { dir: PathBuf, user: String },

    #[error("{dir} should be the private socket directory of Postgres, but {reason}: remove it and start again")]
    SocketDir { dir: PathBuf, reason: String },

    #[error("processes of an earlier Postgres in {cluster} do not end ({pids}): end them by hand and start again")]
    Leftovers { cluster: PathBuf, pids: String },

    #[error("Postgres could not make a cluster in {cluster}: {output}")]
    Initdb { cluster: PathBuf, output: String },

    #[error("{reason}")]
    GaveUp { reason: String },

    #[error("Postgres has not answered within {} s; the last answer was: {last}", READY_WITHIN.as_secs())]
    NotReady { last: String },

    #[error("could not {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
}

impl StartError {
    /// For `map_err`: names what was being done, in words that follow "could not".
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

impl PrivatePostgres {
    /// Finds Postgres, makes the cluster at the first start, runs the server and waits until it answers `select 1` and
    /// holds the database `guildhall`.
    ///
    /// # Errors
    /// [`StartError`], each with a sentence that says the way out.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        // One thread does it all: the kernel ends the server when the *thread* that forked it ends, so it must not be
        // one of a pool's. See `server`.
        let (started_tx, started_rx) = oneshot::channel();
        std::thread::Builder::new()
            .name("private-postgres".to_owned())
            .spawn(move || match prepare(&options) {
                Ok((server, places)) => {
                    let phase = server.subscribe();
                    let started = Self { control: server.control(), phase, places };
                    // When nobody waits any more, dropping the value asks the server that now starts to stop.
                    drop(started_tx.send(Ok(started)));
                    server.run();
                }
                Err(error) => drop(started_tx.send(Err(error))),
            })
            .map_err(StartError::io("start a thread for Postgres"))?;

        let started = started_rx.await.map_err(|_| StartError::GaveUp {
            reason: "the thread that starts Postgres panicked; its message stands above".to_owned(),
        })??;
        started.wait_until_ready().await?;
        Ok(started)
    }

    /// Leads to the database `guildhall` as its superuser, over the private socket, for `sqlx` and `psql` alike.
    #[must_use]
    pub fn url(&self) -> String {
        url(&self.places.socket_dir, NAME)
    }

    /// Resolves only when the server died three times within a minute and is not started again, with the reason.
    pub async fn died(&self) -> String {
        let mut phase = self.phase.clone();
        let reason = match phase.wait_for(|phase| matches!(phase, Phase::GaveUp(_))).await {
            Ok(phase) => match &*phase {
                Phase::GaveUp(reason) => Some(reason.clone()),
                Phase::Running | Phase::Ended => None,
            },
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            // It was stopped on purpose, which is no death.
            None => std::future::pending().await,
        }
    }

    /// Stops the server and waits for it: fast, then hard; at most 40 s in all.
    pub async fn stop(self) {
        for (signal, patience) in STOPS {
            self.control.stop(signal);
            let mut phase = self.phase.clone();
            let ended = phase.wait_for(|phase| !matches!(phase, Phase::Running));
            if tokio::time::timeout(patience, ended).await.is_ok() {
                return;
            }
            tracing::warn!(signal = signal.as_str(), "the private Postgres has not stopped yet");
        }
        tracing::error!("the private Postgres did not end; its log says why");
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    async fn wait_until_ready(&self) -> Result<(), StartError> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            let refused = tokio::select! {
                reason = self.died() => return Err(StartError::GaveUp { reason }),
                outcome = ensure_database(&self.places.socket_dir) => match outcome {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(StartError::NotReady { last: refused.to_string() });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.control.stop(Signal::SIGINT);
    }
}

/// The binaries that [`PrivatePostgres::start`] would run with these options, as their directory and major version; it
/// starts, makes and locks nothing. Blocking.
///
/// # Errors
/// [`StartError`], as from `start`.
pub fn find_binaries(options: &Options) -> Result<(PathBuf, u32), StartError> {
    let cluster = home::cluster_of(&options.data_dir)?;
    let account =
        if cluster.exists() { account::Account::of_cluster(&cluster)? } else { account::Account::for_new_cluster()? };
    let major = cluster::major(&cluster)?;
    let binaries = binaries::find(options.bin_dir.as_deref(), major, &cluster, &account)?;
    Ok((binaries.dir().to_owned(), binaries.major()))
}

/// Everything before the server runs; blocking.
fn prepare(options: &Options) -> Result<(server::Server, Places), StartError> {
    let home = home::Home::claim(&options.data_dir)?;
    let account = home.account()?;
    leftovers::clear(&home.cluster())?;

    let major = cluster::major(&home.cluster())?;
    let binaries = binaries::find(options.bin_dir.as_deref(), major, &home.cluster(), &account)?;
    if major.is_none() {
        cluster::create(&binaries, &home, &account, options.durable)?;
    }
    let socket_dir = home.make_socket_dir(&account)?;

    let places = Places { home: home.dir().to_owned(), socket_dir };
    let server = server::Server::new(home, places.socket_dir.clone(), binaries, account, options.durable);
    Ok((server, places))
}

/// Succeeds once the server is open for sessions, which is later than its socket being there: a server in recovery
/// takes connections and refuses them.
async fn ensure_database(socket_dir: &Path) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(&connect_options(socket_dir, "postgres")).await?;
    let exists: bool = sqlx::query("select exists (select 1 from pg_catalog.pg_database where datname = $1)")
        .bind(NAME)
        .fetch_one(&mut connection)
        .await?
        .try_get(0)?;
    if !exists {
        sqlx::raw_sql("create database guildhall").execute(&mut connection).await?;
    }
    connection.close().await
}

fn connect_options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().socket(socket_dir).port(PORT).username(NAME).database(database)
}

/// Port and `sslmode` are spelt out since `sqlx` and `psql` would otherwise take them from `PGPORT` and `PGSSLMODE`.
pub(crate) fn url(socket_dir: &Path, database: &str) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;

    let mut host = String::new();
    for byte in socket_dir.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => host.push(char::from(*byte)),
            _ => write!(host, "%{byte:02X}").expect("a String takes every write"),
        }
    }
    format!("postgresql://{NAME}@localhost:{PORT}/{database}?host={host}&sslmode=disable")
}
