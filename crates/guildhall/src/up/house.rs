//! The house: every role in this process, wired onto the others, and the order in which they open and close. From below
//! to above: database, `auth`, `jobs`, the worker, the gateway. It closes from above, so that nothing loses what it
//! stands on.

use std::{path::PathBuf, sync::Arc};

use auth::Auth;
use gateway::Gateway;
use jobs::Jobs;
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Credential, Guard, Peer},
    identity::{FetchKeys, Verifier},
    storage::Storage,
    tasks::Tasks,
};
use proto::auth::{ListSigningKeysRequest, signing_keys_client::SigningKeysClient};
use tokio::time::Instant;
use worker::{SlotCommand, Worker};

use super::{
    data_dir::DataDir,
    door::{Door, url_of},
    first_start::{self, Administrator},
    ops,
};
use crate::{database::Database, settings::Settings};

/// What runs so far.
#[derive(Debug, Default)]
pub(super) struct House {
    gateway: Tasks,
    worker: Tasks,
    services: Tasks,
    database: Option<Database>,
}

/// A house that is open.
#[derive(Debug)]
pub(super) struct Opened {
    /// The gateway as this machine reaches it.
    pub(super) http: String,
    /// The gateway as people reach it.
    pub(super) public_url: String,
    pub(super) ops: String,
    pub(super) administrator: Administrator,
}

impl House {
    /// Opens from below to above. What had begun to run when this fails or is dropped is closed by [`close`](Self::close).
    ///
    /// # Errors
    /// What could not be opened, with the way out.
    pub(super) async fn open(&mut self, settings: &Settings, data_dir: &DataDir) -> Result<Opened, Fail> {
        // Ports first: one that is taken should be told before anything is made. Neither answers yet.
        let door = Door::reserve(settings)?;
        let ops_listener = ops::listen("ops_listen", settings.process.ops_listen).await?;
        let ops_url = url_of(ops_listener.local_addr().map_err(Fail::internal)?);
        let metrics = kit::telemetry::init_metrics()?;
        let clock = Clock::system();

        let database = self.database.insert(Database::open(settings).await?);
        database.migrate().await?;
        let storage = open_storage(settings, data_dir)?;
        storage.check().await?;

        let issuer = &door.public_url;
        let auth = Auth::start(settings.auth.clone(), database.url(), issuer, clock.clone(), &self.services).await?;
        let administrator = first_start::administrator(&auth, settings, data_dir).await?;
        let worker_key = first_start::service_key(&auth, "worker", "workers:connect", data_dir).await?;
        let gateway_key = first_start::service_key(&auth, "gateway", "revocations:watch", data_dir).await?;
        let verifier = Verifier::new(issuer, keys_of(&auth, issuer));
        let guard = Guard::new(verifier.clone());
        let auth_peer = Peer::local(auth.routes(), &guard);

        let jobs = Jobs::start(
            settings.jobs.clone(),
            database.url(),
            storage.clone(),
            clock.clone(),
            &self.services,
            // In a database of our own, whatever worker an earlier life knew has ended with it.
            settings.process.database_url.is_none(),
        )
        .await?;
        let jobs_peer = Peer::local(jobs.routes(), &guard);

        let mut worker = Worker::start(
            worker::Setup {
                settings: settings.worker.clone(),
                registry: tasks::registry(settings.process.demo_tasks),
                jobs: jobs_peer.clone(),
                credential: Credential::new(auth_peer.clone(), worker_key),
                storage: storage.clone(),
                scratch_dir: data_dir.folder("scratch")?,
                slot_command: slot_command(),
                clock: clock.clone(),
                hooks: vec![Arc::new(worker::Metrics)],
            },
            &self.worker,
        )?;
        // Its tasks are what a submission is checked against: with the door open earlier, the first would be refused.
        worker.connected().await;

        let inside = ops::Inside {
            metrics,
            database_url: Secret::new(database.url().to_owned()),
            storage: storage.clone(),
            auth: auth_peer.clone(),
            worker,
            pools: ops::Pools { auth, jobs },
        };
        ops::serve(ops_listener, inside, &self.services);

        let public_url = door.public_url.clone();
        let gateway = Gateway::start(gateway::Parts {
            settings: gateway::Settings { http_listen: door.address, ..settings.gateway.clone() },
            public_url: public_url.clone(),
            auth: auth_peer.clone(),
            jobs: jobs_peer,
            verifier,
            storage,
            clock,
            tasks: self.gateway.clone(),
            credential: Credential::new(auth_peer.clone(), gateway_key),
        })
        .await?;
        Ok(Opened { http: gateway.url(), public_url, ops: ops_url, administrator })
    }

    /// Resolves when something that the house stands on has failed.
    pub(super) async fn failed(&self) -> Fail {
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
            reason = self.services.failed() => reason,
        };
        Fail::new(kit::Kind::Internal, "up.failed", format!("{reason}."))
    }

    /// Closes from above to below: the gateway takes no more requests, the worker ends or hands back what it holds, the
    /// services write what they still have, Postgres stops. Whether all of it ended by itself before `deadline`.
    pub(super) async fn close(self, deadline: Instant) -> bool {
        let left = || deadline.saturating_duration_since(Instant::now());
        // The worker is asked at once: an upload that takes long must not keep it at work.
        self.worker.stop();
        let gateway = self.gateway.join(left()).await;
        let worker = self.worker.join(left()).await;
        let services = self.services.join(left()).await;
        if let Some(database) = self.database {
            database.close().await;
        }
        gateway && worker && services
    }
}

/// How the signing keys are asked for. The method is public, so its guard never needs a key itself.
fn keys_of(auth: &Auth, issuer: &str) -> FetchKeys {
    let no_keys: FetchKeys = Arc::new(|| Box::pin(async { Err(Fail::internal("public methods verify no token")) }));
    let peer = Peer::local(auth.routes(), &Guard::new(Verifier::new(issuer, no_keys)));
    Arc::new(move || {
        let mut client = SigningKeysClient::new(peer.clone());
        Box::pin(async move {
            let keys = client.list(Call::anonymous("keys").request(ListSigningKeysRequest {})).await?;
            Ok(keys.into_inner().jwks_json)
        })
    })
}

fn open_storage(settings: &Settings, data_dir: &DataDir) -> Result<Storage, Fail> {
    let url = match &settings.process.storage_url {
        Some(url) => url.clone(),
        None => {
            let folder = data_dir.folder("files")?;
            url::Url::from_directory_path(&folder)
                .map_err(|()| Fail::internal(format!("{} is not absolute", folder.display())))?
                .to_string()
        }
    };
    let (access, secret) = (&settings.process.storage_access_key, &settings.process.storage_secret_key);
    Storage::open(&url, access.as_ref(), secret.as_ref())
}

/// Not by the binary's name: it may have been replaced since by a newer build.
fn slot_command() -> SlotCommand {
    SlotCommand { program: PathBuf::from("/proc/self/exe"), args: vec!["run-slot".into()] }
}
