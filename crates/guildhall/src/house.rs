//! The house: the roles of this process, wired onto each other and onto those elsewhere, and the order in which they open
//! and close. From below to above: database and bus, the services, their gRPC ports, the worker, the gateway. It closes
//! from above, so that nothing loses what it stands on. `up` and `serve` open the same house; what differs is in `Roles`.

mod banner;
mod data_dir;
mod door;
mod first_start;
mod ops;
mod ports;
mod services;
mod wiring;

use std::collections::BTreeMap;

use gateway::Gateway;
use kit::{Clock, Fail, Secret, health::Reporter, tasks::Tasks};
use tokio::time::Instant;
use worker::Worker;

use crate::{
    database::Database,
    roles::{Role, Roles},
    settings::Settings,
};
pub(crate) use banner::Banner;
pub(crate) use data_dir::{DataDir, Ready};
use door::{Door, url_of};
pub(crate) use first_start::Administrator;
pub(crate) use ops::port_fail;
pub(crate) use ports::address as grpc_address;
use services::{Ground, Services};
use wiring::Ways;

/// What runs so far.
#[derive(Debug, Default)]
pub(crate) struct House {
    gateway: Tasks,
    worker: Tasks,
    ports: Tasks,
    services: Tasks,
    /// The ways to other processes, which all of the above use until they end.
    ways: Tasks,
    database: Option<Database>,
}

/// A house that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The gateway as this machine reaches it.
    pub(crate) http: Option<String>,
    /// The gateway as people reach it.
    pub(crate) public_url: Option<String>,
    pub(crate) ops: String,
    /// The services with a port of their own.
    pub(crate) grpc: BTreeMap<&'static str, String>,
    /// Where `auth` is in this process.
    pub(crate) administrator: Option<Administrator>,
}

impl House {
    /// Opens from below to above. What had begun to run when this fails or is dropped is closed by [`close`](Self::close).
    ///
    /// # Errors
    /// What could not be opened, with the way out.
    pub(crate) async fn open(
        &mut self,
        settings: &Settings,
        roles: &Roles,
        data_dir: &DataDir,
    ) -> Result<Opened, Fail> {
        // Ports first: one that is taken should be told before anything is made.
        let door = if roles.has(Role::Gateway) { Some(Door::reserve(settings)?) } else { None };
        let ops_listener = ops::listen("ops_listen", settings.process.ops_listen).await?;
        let ops = url_of("http", ops_listener.local_addr().map_err(Fail::internal)?);
        let ports = ports::listen(settings, roles).await?;
        let mut inside = ops::Inside::new(kit::telemetry::init_metrics()?);

        let public_url = settings.process.public_url.clone().or(door.as_ref().map(|door| door.public_url.clone()));
        let issuer = public_url.clone().unwrap_or_default();
        let ground = self.ground(settings, roles, data_dir, issuer).await?;
        if let Some(database) = &self.database {
            inside.stands_on_database(database.url());
        }
        if let Some(storage) = &ground.storage {
            inside.stands_on_storage(storage);
        }
        let services = Services::open(&ground).await?;
        inside.pools = services.pools();
        let credential = services.reporter(roles)?;
        inside.stands_on_auth(&services.peer(Role::Auth)?);
        inside.stands_on_key(&credential);
        if roles.elsewhere().contains(&Role::Jobs) {
            inside.stands_on_peer("jobs", &services.peer(Role::Jobs)?);
        }
        let grpc = ports::serve(ports, roles.is_up, &services, &ground.ways, &self.ports)?;

        if roles.has(Role::Worker) {
            let mut worker = Worker::start(wiring::worker(&ground, &services)?, &self.worker)?;
            if roles.is_up {
                // Its tasks are what a submission is checked against: with the door open earlier, the first would be refused.
                worker.connected().await;
            }
            inside.stands_on_worker(&worker);
        }
        let reporter = Reporter {
            admin: services.peer(Role::Admin)?,
            credential,
            roles: roles.names(),
            version: env!("CARGO_PKG_VERSION"),
            checks: ground.with_bus(inside.checks.clone()),
            outboxes: services.pools(),
            clock: ground.clock.clone(),
        };
        ops::serve(ops_listener, inside, &self.services);

        let http = match door {
            Some(door) => Some(self.gateway(&ground, &services, &door).await?),
            None => None,
        };
        // Last, so that what it tells first is how an open house fares.
        reporter.start(&self.services);
        Ok(Opened { http, public_url, ops, grpc, administrator: services.administrator })
    }

    /// What all services stand on, so far as any of these roles does.
    async fn ground<'a>(
        &mut self,
        settings: &'a Settings,
        roles: &'a Roles,
        data_dir: &'a DataDir,
        issuer: String,
    ) -> Result<Ground<'a>, Fail> {
        let ways = Ways::open(settings, &self.ways)?;
        let mut database_url = Secret::default();
        if roles.services().next().is_some() {
            let database = self.database.insert(Database::open(settings).await?);
            if roles.is_up {
                database.migrate().await?;
            } else {
                database.check(roles).await?;
            }
            database_url = Secret::new(database.url().to_owned());
        }
        let storage = match roles.any(Role::needs_storage) {
            true => Some(wiring::open_storage(settings, data_dir)?),
            false => None,
        };
        if let Some(storage) = &storage {
            storage.check().await?;
        }
        let (clock, tasks) = (Clock::system(), self.services.clone());
        Ok(Ground { settings, roles, data_dir, database_url, issuer, storage, clock, ways, tasks })
    }

    async fn gateway(&self, ground: &Ground<'_>, services: &Services, door: &Door) -> Result<String, Fail> {
        let gateway = Gateway::start(gateway::Parts {
            settings: gateway::Settings { http_listen: door.address, ..ground.settings.gateway.clone() },
            public_url: ground.issuer.clone(),
            auth: services.peer(Role::Auth)?,
            jobs: services.peer(Role::Jobs)?,
            admin: services.peer(Role::Admin)?,
            verifier: services.verifier.clone(),
            storage: ground.storage()?,
            clock: ground.clock.clone(),
            tasks: self.gateway.clone(),
            credential: services.credential()?,
        })
        .await?;
        Ok(gateway.url())
    }

    /// Resolves when something that the house stands on has failed.
    pub(crate) async fn failed(&self) -> Fail {
        let died = async {
            match &self.database {
                Some(database) => database.died().await,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            reason = died => reason,
            reason = self.gateway.failed() => reason,
            reason = self.worker.failed() => reason,
            reason = self.ports.failed() => reason,
            reason = self.services.failed() => reason,
            reason = self.ways.failed() => reason,
        };
        Fail::new(kit::Kind::Internal, "up.failed", format!("{reason}."))
    }

    /// Closes from above to below: the gateway takes no more requests, the worker ends or hands back what it holds, the
    /// ports take no more calls, the services write what they still have, Postgres stops. Whether all of it ended by itself
    /// before `deadline`.
    pub(crate) async fn close(self, deadline: Instant) -> bool {
        let left = || deadline.saturating_duration_since(Instant::now());
        // Asked at once: an upload that takes long must not keep the worker at work, nor other processes from going to
        // another replica.
        self.worker.stop();
        self.ports.stop();
        let gateway = self.gateway.join(left()).await;
        let worker = self.worker.join(left()).await;
        let ports = self.ports.join(left()).await;
        let services = self.services.join(left()).await;
        let ways = self.ways.join(left()).await;
        if let Some(database) = self.database {
            database.close().await;
        }
        gateway && worker && ports && services && ways
    }
}
