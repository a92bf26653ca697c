//! The private Postgres of `guildhall up` and of the tests: a real server, found on the machine, run as a child.
//!
//! It owns one cluster in the data directory, the socket that leads to it and the life of the server: made, started,
//! restarted in place when it dies, ended with us, even when we are killed. It never installs anything (`./dev` does),
//! never listens on TCP, and never touches a server that is not of its own cluster.
//!
//! | file | what it knows |
//! |---|---|
//! | `binaries` | where on this machine a usable Postgres is |
//! | `cluster` | how a cluster is made |
//! | `socket` | the directory of the socket, which only the user of Postgres can enter |
//! | `server` | how the server is run, and what a dead one leaves behind |
//!
//! What it has in common with other private servers stands in `private_server`: the user, the place, the thread that
//! runs it, the log.

mod binaries;
mod cluster;
mod server;
mod socket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use tokio::sync::watch;

pub use crate::private_server::PlaceError;
use crate::private_server::Product;
use crate::private_server::account::Account;
use crate::private_server::home::{self, Home};
use crate::private_server::keeper::{Keeper, Restart};

/// The oldest major version whose SQL the services are written in.
pub const MAJOR_MIN: u32 = 15;

const POSTGRES: Product = Product { name: "Postgres", slug: "postgres", users: &["postgres", "nobody"] };

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
    keeper: Keeper,
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
        "the cluster in {cluster} was made by Postgres {cluster_major}, and of that version nothing was found ({found}). \
         Install Postgres {cluster_major} or name its bin directory in GUILDHALL_PG_BIN; to move to another version, run \
         `pg_upgrade` with both installed (https://www.postgresql.org/docs/current/pgupgrade.html)"
    )]
    OtherMajor { cluster: PathBuf, cluster_major: u32, found: String },

    #[error("{dir} should be the private socket directory of Postgres, but {reason}: remove it and start again")]
    SocketDir { dir: PathBuf, reason: String },

    #[error("Postgres could not make a cluster in {cluster}: {output}")]
    Initdb { cluster: PathBuf, output: String },

    #[error("{reason}")]
    GaveUp { reason: String },

    #[error("Postgres has not answered within {} s; the last answer was: {last}", READY_WITHIN.as_secs())]
    NotReady { last: String },

    #[error(transparent)]
    Place(#[from] PlaceError),
}

impl StartError {
    /// For `map_err`: names what was being done, in words that follow "could not".
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let place = PlaceError::io(doing);
        move |source| Self::Place(place(source))
    }
}

impl PrivatePostgres {
    /// Finds Postgres, makes the cluster at the first start, runs the server and waits until it answers `select 1` and
    /// holds the database `guildhall`.
    ///
    /// # Errors
    /// [`StartError`], each with a sentence that says the way out.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        Self::start_with(options, Restart::FewTimes).await
    }

    /// As [`PrivatePostgres::start`], and however often it dies, it is started again.
    ///
    /// # Errors
    /// As [`PrivatePostgres::start`].
    pub async fn start_lasting(options: Options) -> Result<Self, StartError> {
        Self::start_with(options, Restart::Always).await
    }

    async fn start_with(options: Options, restart: Restart) -> Result<Self, StartError> {
        let (keeper, places) = Keeper::start(POSTGRES.name, move || prepare(&options, restart)).await?;
        let started = Self { keeper, places };
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
        self.keeper.died().await
    }

    /// The number of the server's main process; none while there is no such process.
    #[must_use]
    pub fn pid(&self) -> watch::Receiver<Option<u32>> {
        self.keeper.pid()
    }

    /// How the server died last, in words that follow its name; empty when it has not.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<String> {
        self.keeper.death()
    }

    /// Stops the server and waits for it: fast, then hard; at most 40 s in all.
    pub async fn stop(self) {
        self.keeper.stop(&STOPS).await;
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
        self.keeper.ask_to_stop(Signal::SIGINT);
    }
}

/// The binaries that [`PrivatePostgres::start`] would run with these options, as their directory and major version; it
/// starts, makes and locks nothing. Blocking.
///
/// # Errors
/// [`StartError`], as from `start`.
pub fn find_binaries(options: &Options) -> Result<(PathBuf, u32), StartError> {
    let cluster = home::state_of(&options.data_dir, &POSTGRES)?;
    let account = if cluster.exists() { Account::of(&cluster, &POSTGRES)? } else { Account::for_new(&POSTGRES)? };
    let major = cluster::major(&cluster)?;
    let binaries = binaries::find(options.bin_dir.as_deref(), major, &cluster, &account)?;
    Ok((binaries.dir().to_owned(), binaries.major()))
}

/// Everything before the server runs; blocking.
fn prepare(options: &Options, restart: Restart) -> Result<(server::Server, Places), StartError> {
    let home = Home::claim(&options.data_dir, &POSTGRES)?;
    let account = home.account()?;
    server::clear(&home.state())?;

    let major = cluster::major(&home.state())?;
    let binaries = binaries::find(options.bin_dir.as_deref(), major, &home.state(), &account)?;
    if major.is_none() {
        cluster::create(&binaries, &home, &account, options.durable)?;
    }
    let socket_dir = socket::make_dir(&home, &account)?;

    let places = Places { home: home.dir().to_owned(), socket_dir: socket_dir.clone() };
    Ok((server::Server::new(home, socket_dir, binaries, account, options.durable, restart), places))
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
