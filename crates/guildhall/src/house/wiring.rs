//! What the house is wired with: the ways to other processes, storage, the keys that verify tokens, a worker's parts.

use std::{path::PathBuf, sync::Arc};

use kit::{
    Fail,
    bus::{Bus, Consumer},
    grpc::{Call, Credential, Guard, Peer},
    identity::{FetchKeys, Verifier},
    storage::Storage,
    tasks::Tasks,
    tls::Tls,
};
use proto::auth::{ListSigningKeysRequest, signing_keys_client::SigningKeysClient};
use tonic::service::Routes;
use worker::SlotCommand;

use super::{
    DataDir,
    services::{Ground, Services},
};
use crate::{roles::Role, settings::Settings};

/// Who hears events, in all of an installation: every process has to know what someone must get.
const CONSUMERS: [Consumer; 1] = [admin::CONSUMER];

/// The ways to other processes.
#[derive(Debug)]
pub(super) struct Ways {
    tls: Option<Tls>,
    /// RabbitMQ where it is named, else within this process.
    pub(super) bus: Bus,
    tasks: Tasks,
}

impl Ways {
    /// # Errors
    /// `config.tls`, `config.amqp_url`.
    pub(super) fn open(settings: &Settings, tasks: &Tasks) -> Result<Self, Fail> {
        let tls = settings.process.tls_files().map(|files| Tls::open(files, tasks)).transpose()?;
        let bus = Bus::open(settings.process.amqp_url.as_ref(), &CONSUMERS, tasks)?;
        Ok(Self { tls, bus, tasks: tasks.clone() })
    }

    /// A role in other processes.
    ///
    /// # Errors
    /// `config.peer_url`.
    pub(super) fn to(&self, role: Role, settings: &Settings) -> Result<Peer, Fail> {
        Peer::remote(role.name(), settings.urls_of(role), self.tls(), &self.tasks)
    }

    pub(super) fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// How URLs of our gRPC ports begin.
    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// How the signing keys are asked for.
pub(super) fn keys_from(auth: Peer) -> FetchKeys {
    Arc::new(move || {
        let mut client = SigningKeysClient::new(auth.clone());
        Box::pin(async move {
            let keys = client.list(Call::anonymous("keys").request(ListSigningKeysRequest {})).await?;
            Ok(keys.into_inner().jwks_json)
        })
    })
}

/// A way to the public methods of a role in this process, for a guard that does not exist yet: they verify no token.
pub(super) fn unguarded(routes: Routes) -> Peer {
    let no_keys: FetchKeys = Arc::new(|| Box::pin(async { Err(Fail::internal("public methods verify no token")) }));
    Peer::local(routes, &Guard::new(Verifier::new("", no_keys)))
}

/// # Errors
/// As [`Storage::open`].
pub(super) fn open_storage(settings: &Settings, data_dir: &DataDir) -> Result<Storage, Fail> {
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

/// # Errors
/// As [`DataDir::folder`].
pub(super) fn worker(ground: &Ground<'_>, services: &Services) -> Result<worker::Setup, Fail> {
    let settings = ground.settings;
    Ok(worker::Setup {
        settings: settings.worker.clone(),
        registry: tasks::registry(settings.process.demo_tasks.unwrap_or(ground.roles.is_up)),
        jobs: services.peer(Role::Jobs)?,
        credential: Credential::new(services.peer(Role::Auth)?, services.keys.worker()?, "worker_key"),
        storage: ground.storage()?,
        scratch_dir: ground.data_dir.folder("scratch")?,
        slot_command: slot_command(),
        clock: ground.clock.clone(),
        hooks: vec![Arc::new(worker::Metrics::default())],
    })
}

/// Not by the binary's name: it may have been replaced since by a newer build.
fn slot_command() -> SlotCommand {
    SlotCommand { program: PathBuf::from("/proc/self/exe"), args: vec!["run-slot".into()] }
}
