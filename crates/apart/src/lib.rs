//! The production shape on one machine, without containers: nginx, two gateways, two of each service, three workers,
//! Postgres and RabbitMQ, each a process of its own, wired by addresses, keys and certificates as they would be on many
//! machines. It restarts what dies, as an orchestrator would, and everything ends with it.
//!
//! For development and tests: it is no part of what is shipped, and has no logic of the product. The roles learn from
//! their settings alone (`GUILDHALL_*`) where they are. Two things are of one machine: the files lie in one directory
//! that all share (`file:`; apart from each other, roles want an object storage), and nginx speaks plain HTTP on loopback.
//!
//! | file | what it knows |
//! |---|---|
//! | `shape` | which processes there are, on which ports |
//! | `keys` | the secrets and certificates, made at the first start |
//! | `role` | how a role is run, and what it is told |
//! | `nginx` | how nginx is found, told and run |
//! | `opening` | the steps in which it is opened |
//! | `told` | `apart.json` |
//!
//! What dies is started again by `kit`'s keepers of private servers, on its own ports.

mod keys;
mod nginx;
mod opening;
mod role;
mod shape;
mod told;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kit::ports::{self, Held};
use kit::private_postgres::{self, PrivatePostgres};
use kit::private_rabbitmq::{self, PrivateRabbitMq};
use kit::private_server::PlaceError;
use kit::private_server::home::{lock_file, make_dir};
use kit::private_server::keeper::Keeper;
use kit::tasks::Tasks;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use parking_lot::Mutex;

use keys::Keys;
use opening::Opening;
use role::Surroundings;
use shape::Role;
use told::Told;

pub use keys::ADMIN_EMAIL;

/// A role drains for as long as its own setting `drain_s` says, 45 s.
const ROLE_STOPS: [(Signal, Duration); 2] =
    [(Signal::SIGTERM, Duration::from_secs(50)), (Signal::SIGKILL, Duration::from_secs(5))];

/// SIGQUIT: takes no more, and ends when what it has taken is answered.
const NGINX_STOPS: [(Signal, Duration); 3] = [
    (Signal::SIGQUIT, Duration::from_secs(50)),
    (Signal::SIGTERM, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Where and how to open.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of all that is kept; made when it is not there. One process at a time may use it.
    pub data_dir: PathBuf,
    /// The binary of the roles.
    pub guildhall: PathBuf,
    /// Where nginx listens; port 0 picks a free one. All other ports are free ones of 127.0.0.1.
    pub http_listen: SocketAddr,
    /// Attempts at once in each of the three workers; none: as the worker's own setting says.
    pub worker_slots: Option<u32>,
    /// The one directory to take Postgres from; none: it is looked for.
    pub pg_bin: Option<PathBuf>,
    /// Variables that every role gets beside its own, over them.
    pub env: Vec<(String, String)>,
}

/// Why it could not be opened, or go on. Each sentence says where to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} is taken: name another with --http")]
    Taken { address: SocketAddr },

    #[error("{program} is not there: build it first (`cargo build -p guildhall`)")]
    NoBinary { program: PathBuf },

    #[error("no nginx was found: `./dev apart` gets it where it may; so does the system's package manager")]
    NoNginx,

    #[error("nginx refuses its configuration: {said}")]
    NginxConfiguration { said: String },

    #[error("the database could not be migrated: {said}")]
    Migration { said: String },

    #[error("{name} does not start; its log, {}, ends with:\n{last}", log.display())]
    NotReady { name: String, log: PathBuf, last: String },

    #[error("could not make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),

    #[error(transparent)]
    Postgres(#[from] private_postgres::StartError),

    #[error(transparent)]
    RabbitMq(#[from] private_rabbitmq::StartError),

    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// The whole, open. Dropping it asks every process to stop without waiting; [`Apart::close`] waits.
#[derive(Debug)]
pub struct Apart {
    nginx: Kept,
    roles: Vec<(Role, Kept)>,
    rabbitmq: PrivateRabbitMq,
    postgres: PrivatePostgres,
    told: Arc<Told>,
    tasks: Tasks,
    data_dir: PathBuf,
    /// Held, not read: nginx's and those of the roles.
    _ports: Vec<Held>,
    /// Held, not read.
    _lock: fs::File,
}

/// A process of ours, asked to stop when it is dropped.
#[derive(Debug)]
struct Kept(Keeper);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.ask_to_stop(Signal::SIGTERM);
    }
}

/// What there is to tell while it is open: a sentence for people.
pub trait Tell: Fn(&dyn fmt::Display) + Send + Sync + 'static {}
impl<T: Fn(&dyn fmt::Display) + Send + Sync + 'static> Tell for T {}

impl Apart {
    /// Opens from below to above: the engines, the schemas, `auth`, the other services, the gateways and workers, nginx.
    /// Returns when every process is ready. `tell` hears of what dies and is started again, for as long as it is open.
    ///
    /// # Errors
    /// [`Error`], each with a sentence that says what to do or where to look.
    pub async fn open(options: Options, tell: impl Tell) -> Result<Self, Error> {
        let guildhall =
            options.guildhall.canonicalize().map_err(|_| Error::NoBinary { program: options.guildhall.clone() })?;
        // A root's servers are ordinary users, who have to pass through.
        make_dir(&options.data_dir, if geteuid().is_root() { 0o711 } else { 0o700 })?;
        let data_dir =
            options.data_dir.canonicalize().map_err(PlaceError::io(format!("find {}", options.data_dir.display())))?;
        // The name under which `guildhall up` locks the same directory.
        let lock = lock_file(&data_dir.join("guildhall.lock"), &data_dir)?;
        let (http, http_held) = settle_http(options.http_listen)?;
        let (instances, held) = shape::instances().map_err(PlaceError::io("find free ports"))?;
        let keys = Keys::settle(&data_dir, &instances)?;
        let told = Arc::new(Told::begin(&data_dir, format!("http://{http}"))?);
        let opening = Opening {
            data_dir: &data_dir,
            told: &told,
            tasks: Tasks::new(),
            tell: Arc::new(tell),
            followed: Mutex::default(),
        };

        let (postgres, rabbitmq) = opening.engines(options.pg_bin).await?;
        keys.keep_amqp_url(&rabbitmq.amqp_url())?;
        let surroundings = Arc::new(Surroundings {
            guildhall,
            data_dir: data_dir.clone(),
            keys,
            http,
            database_url: postgres.url(),
            instances: instances.clone(),
            worker_slots: options.worker_slots,
            env: options.env,
        });
        role::migrate(Arc::clone(&surroundings)).await?;

        let mut roles = Vec::new();
        // Each stands on those before it; all would find each other in any order, with complaints in their logs.
        for level in [&[Role::Auth][..], &[Role::Jobs, Role::Admin], &[Role::Gateway, Role::Worker]] {
            let mut starting = Vec::new();
            for instance in instances.iter().filter(|instance| level.contains(&instance.role)) {
                starting.push((instance, opening.role(&surroundings, instance).await?));
            }
            for (instance, (kept, log)) in starting {
                opening.role_ready(&surroundings, instance, &kept, &log).await?;
                roles.push((instance.role, kept));
            }
        }
        let nginx = opening.nginx(http, &instances).await?;
        opening.tell_all()?;
        let tasks = opening.tasks;
        let ports = held.into_iter().chain([http_held]).collect();
        Ok(Self { nginx, roles, rabbitmq, postgres, told, tasks, data_dir, _ports: ports, _lock: lock })
    }

    /// The public door.
    #[must_use]
    pub fn http(&self) -> &str {
        self.told.http()
    }

    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where `apart.json` is.
    #[must_use]
    pub fn told(&self) -> &Path {
        self.told.path()
    }

    /// Leads to the database as its superuser.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.url()
    }

    /// Leads to RabbitMQ as its administrator.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        self.rabbitmq.amqp_url()
    }

    /// The password of the first administrator, [`ADMIN_EMAIL`], by the file that it is kept in.
    #[must_use]
    pub fn administrator_file(&self) -> PathBuf {
        Keys::administrator_file(&self.data_dir)
    }

    /// The broker, to be asked, frozen or killed by a test.
    #[must_use]
    pub fn rabbitmq(&self) -> &PrivateRabbitMq {
        &self.rabbitmq
    }

    /// Closes from above to below: nginx takes no more, gateways and workers end what they have, the services write what
    /// they still hold, the engines stop. Whether every process ended in time, by being asked.
    pub async fn close(self) -> bool {
        self.told.end();
        // They are about to end, and nobody shall be told that they died.
        self.tasks.abort().await;
        let is_above = |role: &Role| matches!(role, Role::Gateway | Role::Worker);
        let (above, below): (Vec<_>, Vec<_>) = self.roles.into_iter().partition(|(role, _)| is_above(role));
        let (nginx, above) = tokio::join!(self.nginx.0.stop(&NGINX_STOPS), stop_all(&above));
        let below = stop_all(&below).await;
        self.rabbitmq.stop().await;
        self.postgres.stop().await;
        nginx && above && below
    }
}

/// All at a time, and each asked once: a second SIGTERM would insist.
async fn stop_all(roles: &[(Role, Kept)]) -> bool {
    let stops = roles.iter().map(|(_, kept)| kept.0.stop(&ROLE_STOPS));
    futures::future::join_all(stops).await.into_iter().all(|has_drained| has_drained)
}

/// The address for nginx, where nobody else listens.
fn settle_http(wanted: SocketAddr) -> Result<(SocketAddr, Held), Error> {
    if wanted.port() == 0 {
        let [held] = ports::free().map_err(PlaceError::io("find a free port for nginx"))?;
        return Ok((SocketAddr::new(wanted.ip(), held.port()), held));
    }
    let held = ports::take(wanted).map_err(|_| Error::Taken { address: wanted })?;
    Ok((wanted, held))
}

/// Writes a file for our eyes alone, whole or not at all.
fn write_secret(path: &Path, text: &str) -> Result<(), PlaceError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&unfinished)?
            .write_all(text.as_bytes())?;
        fs::rename(&unfinished, path)
    };
    write().map_err(PlaceError::io(format!("write {}", path.display())))
}
