//! The steps of an opening: start a process, follow it in `apart.json` and to the terminal, wait until it is ready.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kit::private_postgres::{self, PrivatePostgres};
use kit::private_rabbitmq::{self, PrivateRabbitMq};
use kit::private_server::PlaceError;
use kit::private_server::keeper::Keeper;
use kit::tasks::Tasks;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::nginx::{self, Nginx};
use crate::role::{self, RoleServer, Surroundings};
use crate::shape::Instance;
use crate::told::{self, Told};
use crate::{Error, Kept, Tell};

/// A start of all takes some 20 s on two cores; a busy machine takes longer.
const READY_WITHIN: Duration = Duration::from_secs(180);
const READY_POLL: Duration = Duration::from_millis(20);

/// A process that has died so often while it was started for the first time will not come.
const DEATHS_AT_START_MAX: u32 = 3;

/// What is at hand while it opens.
pub(crate) struct Opening<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) told: &'a Arc<Told>,
    pub(crate) tasks: Tasks,
    pub(crate) tell: Arc<dyn Tell>,
    /// What `apart.json` tells of.
    pub(crate) followed: Mutex<Vec<(told::Process, watch::Receiver<Option<u32>>)>>,
}

impl Opening<'_> {
    pub(crate) async fn engines(&self, pg_bin: Option<PathBuf>) -> Result<(PrivatePostgres, PrivateRabbitMq), Error> {
        let data_dir = self.data_dir.to_owned();
        let postgres = PrivatePostgres::start_lasting(private_postgres::Options {
            data_dir: data_dir.clone(),
            bin_dir: pg_bin,
            durable: true,
        });
        let rabbitmq = PrivateRabbitMq::start_lasting(private_rabbitmq::Options { data_dir });
        let (postgres, rabbitmq) = tokio::join!(postgres, rabbitmq);
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        self.follow(told::Process::engine("postgres"), postgres.pid(), postgres.death());
        self.follow(told::Process::engine("rabbitmq"), rabbitmq.pid(), rabbitmq.death());
        Ok((postgres, rabbitmq))
    }

    pub(crate) async fn role(
        &self,
        around: &Arc<Surroundings>,
        instance: &Instance,
    ) -> Result<(Kept, role::Log), Error> {
        let server = RoleServer::new(Arc::clone(around), instance.clone())?;
        let log = server.log_file();
        let (keeper, ()) = Keeper::start(&instance.name(), move || Ok::<_, PlaceError>((server, ()))).await?;
        self.follow(told::Process::role(instance), keeper.pid(), keeper.death());
        Ok((Kept(keeper), log))
    }

    /// Waits until the process says in its `ready.json` that it is ready.
    pub(crate) async fn role_ready(
        &self,
        around: &Surroundings,
        instance: &Instance,
        kept: &Kept,
        log: &role::Log,
    ) -> Result<(), Error> {
        let pid = kept.0.pid();
        let ready = async {
            while !around.is_ready(instance, *pid.borrow()) {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        let mut death = kept.0.death();
        let gone = async {
            for _ in 0..DEATHS_AT_START_MAX {
                if death.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = ready => Ok(()),
            () = gone => Err(self.not_ready(instance, log)),
            () = tokio::time::sleep(READY_WITHIN) => Err(self.not_ready(instance, log)),
        }
    }

    fn not_ready(&self, instance: &Instance, log: &role::Log) -> Error {
        Error::NotReady { name: instance.name(), log: log.path(), last: log.last_lines() }
    }

    pub(crate) async fn nginx(&self, http: SocketAddr, instances: &[Instance]) -> Result<Kept, Error> {
        let data_dir = self.data_dir.to_owned();
        let gateways: Vec<u16> = instances.iter().filter_map(|instance| instance.http).collect();
        let (keeper, ()) = Keeper::start(nginx::NGINX.name, move || {
            let server = Nginx::prepare(&data_dir, http, &gateways)?;
            Ok::<_, Error>((server, ()))
        })
        .await?;
        self.follow(told::Process::engine("nginx"), keeper.pid(), keeper.death());
        let open = async {
            while tokio::net::TcpStream::connect(http).await.is_err() {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        let log = nginx::log(self.data_dir);
        let in_time = tokio::time::timeout(READY_WITHIN, open).await;
        in_time.map_err(|_| Error::NotReady { name: "nginx".to_owned(), log, last: String::new() })?;
        Ok(Kept(keeper))
    }

    /// Makes sure that `apart.json` is whole before anybody hears that all is open: its followers may be slower.
    pub(crate) fn tell_all(&self) -> Result<(), PlaceError> {
        for (process, pid) in self.followed.lock().iter() {
            let set = self.told.set(process, *pid.borrow());
            set.map_err(PlaceError::io(format!("write {}", self.told.path().display())))?;
        }
        Ok(())
    }

    /// Keeps `apart.json` at what the process is now, and tells of each new life.
    fn follow(&self, process: told::Process, mut pid: watch::Receiver<Option<u32>>, death: watch::Receiver<String>) {
        let (told, tell) = (Arc::clone(self.told), Arc::clone(&self.tell));
        self.followed.lock().push((process.clone(), pid.clone()));
        self.tasks.detach("follow", async move {
            let mut last = None;
            loop {
                let now = *pid.borrow_and_update();
                if let Err(error) = told.set(&process, now) {
                    tell(&format_args!("apart.json could not be written: {error}"));
                }
                if let (Some(now), Some(last)) = (now, last)
                    && now != last
                {
                    let death = death.borrow().clone();
                    tell(&format_args!("{} (process {last}) {death} and runs again as {now}", process.name));
                }
                last = now.or(last);
                if pid.changed().await.is_err() {
                    return;
                }
            }
        });
    }
}
