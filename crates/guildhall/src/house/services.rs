//! The services of this process, and the ways to those elsewhere.

use admin::Admin;
use auth::Auth;
use jobs::Jobs;
use kit::{
    Clock, Fail, Secret,
    bus::State,
    db::Schema,
    grpc::{Credential, Guard, Peer},
    health::Checks,
    identity::Verifier,
    inbox::Producer,
    outbox,
    storage::Storage,
    tasks::Tasks,
};
use sqlx::PgPool;
use tonic::service::Routes;

use super::{
    DataDir,
    first_start::{self, Administrator, Keys},
    wiring::{self, Ways},
};
use crate::{
    roles::{Role, Roles},
    settings::Settings,
};

/// What services are opened with.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) settings: &'a Settings,
    pub(super) roles: &'a Roles,
    pub(super) data_dir: &'a DataDir,
    /// Empty where no role needs it.
    pub(super) database_url: Secret,
    /// The public URL.
    pub(super) issuer: String,
    /// Where a role of this process needs it.
    pub(super) storage: Option<Storage>,
    pub(super) clock: Clock,
    pub(super) ways: Ways,
    pub(super) tasks: Tasks,
}

/// The services, each here, elsewhere, or not needed by any role of this process.
#[derive(Debug)]
pub(super) struct Services {
    auth: Option<Auth>,
    jobs: Option<Jobs>,
    admin: Option<Admin>,
    pub(super) keys: Keys,
    /// Where `auth` is here.
    pub(super) administrator: Option<Administrator>,
    pub(super) guard: Guard,
    pub(super) verifier: Verifier,
    auth_peer: Option<Peer>,
    jobs_peer: Option<Peer>,
    admin_peer: Option<Peer>,
}

impl Services {
    /// Opens those of this process: first `auth`, whose keys every guard verifies by, last `admin`, which hears the others.
    ///
    /// # Errors
    /// What could not be opened.
    pub(super) async fn open(ground: &Ground<'_>) -> Result<Self, Fail> {
        let (auth, administrator, keys) = match ground.roles.has(Role::Auth) {
            true => {
                let (auth, administrator, keys) = ground.auth().await?;
                (Some(auth), Some(administrator), keys)
            }
            false => (None, None, Keys::of(ground.settings)),
        };
        let remote_auth = ground.elsewhere(Role::Auth)?;
        let keys_from = match (&auth, &remote_auth) {
            (Some(auth), _) => wiring::keys_from(wiring::unguarded(auth.routes())),
            (None, Some(peer)) => wiring::keys_from(peer.clone()),
            (None, None) => return Err(Fail::internal("there is no role that does not need auth")),
        };
        let verifier = Verifier::new(&ground.issuer, keys_from);
        let guard = Guard::new(verifier.clone());
        let auth_peer = auth.as_ref().map(|auth| Peer::local(auth.routes(), &guard)).or(remote_auth);

        let jobs = if ground.roles.has(Role::Jobs) { Some(ground.jobs().await?) } else { None };
        let jobs_peer = match &jobs {
            Some(jobs) => Some(Peer::local(jobs.routes(), &guard)),
            None => ground.elsewhere(Role::Jobs)?,
        };
        let mut services = Self {
            auth,
            jobs,
            admin: None,
            keys,
            administrator,
            guard,
            verifier,
            auth_peer,
            jobs_peer,
            admin_peer: ground.elsewhere(Role::Admin)?,
        };
        if ground.roles.has(Role::Admin) {
            let admin = ground.admin(&services).await?;
            services.admin_peer = Some(Peer::local(admin.routes(), &services.guard));
            services.admin = Some(admin);
        }
        Ok(services)
    }

    /// The gRPC services of a role that is here.
    pub(super) fn routes(&self, role: Role) -> Option<Routes> {
        match role {
            Role::Auth => self.auth.as_ref().map(Auth::routes),
            Role::Jobs => self.jobs.as_ref().map(Jobs::routes),
            Role::Admin => self.admin.as_ref().map(Admin::routes),
            Role::Gateway | Role::Worker => None,
        }
    }

    /// The connections of those that are here.
    pub(super) fn pools(&self) -> Vec<(Schema, PgPool)> {
        let auth = self.auth.as_ref().map(|auth| (auth::SCHEMA, auth.pool().clone()));
        let jobs = self.jobs.as_ref().map(|jobs| (jobs::SCHEMA, jobs.pool().clone()));
        let admin = self.admin.as_ref().map(|admin| (admin::SCHEMA, admin.pool().clone()));
        [auth, jobs, admin].into_iter().flatten().collect()
    }

    /// The way to a service, here or elsewhere.
    ///
    /// # Errors
    /// `internal` for one that no role of this process calls.
    pub(super) fn peer(&self, role: Role) -> Result<Peer, Fail> {
        let peer = match role {
            Role::Auth => &self.auth_peer,
            Role::Jobs => &self.jobs_peer,
            Role::Admin => &self.admin_peer,
            Role::Gateway | Role::Worker => &None,
        };
        peer.clone().ok_or_else(|| Fail::internal(format!("nothing here calls {}", role.name())))
    }

    /// What a role shows that asks for nobody but itself.
    ///
    /// # Errors
    /// `internal` where the settings were not held to it.
    pub(super) fn credential(&self) -> Result<Credential, Fail> {
        Ok(Credential::new(self.peer(Role::Auth)?, self.keys.service()?, "service_key"))
    }

    /// What a process shows that tells how it fares.
    ///
    /// # Errors
    /// As [`credential`](Self::credential).
    pub(super) fn reporter(&self, roles: &Roles) -> Result<Credential, Fail> {
        match roles.any(Role::shows_service_key) {
            true => self.credential(),
            false => Ok(Credential::new(self.peer(Role::Auth)?, self.keys.worker()?, "worker_key")),
        }
    }
}

impl Ground<'_> {
    /// # Errors
    /// `internal` for a role that does not say that it needs one.
    pub(super) fn storage(&self) -> Result<Storage, Fail> {
        self.storage.clone().ok_or_else(|| Fail::internal("this role was opened without storage"))
    }

    /// The checks, and for services that tell each other over RabbitMQ its own. That one makes nobody unready: while the
    /// broker is away work goes on, and word of it waits.
    pub(super) fn with_bus(&self, checks: Checks) -> Checks {
        if self.settings.process.amqp_url.is_none() || self.roles.services().next().is_none() {
            return checks;
        }
        let state = self.ways.bus.state();
        checks.with("bus", move || {
            let state = state.borrow().clone();
            async move {
                match state {
                    State::Connected => Ok(()),
                    State::Blocked(_) => Err(Fail::unavailable("bus.blocked", "The broker takes nothing for now.")),
                    State::Away(_) => Err(Fail::unavailable("bus.away", "The broker is not connected.")),
                }
            }
        })
    }

    /// The way to a role that this process calls and does not have.
    fn elsewhere(&self, role: Role) -> Result<Option<Peer>, Fail> {
        if self.roles.elsewhere().contains(&role) { self.ways.to(role, self.settings).map(Some) } else { Ok(None) }
    }

    /// The role `auth`, with whoever must be known to it before anybody can be let in.
    async fn auth(&self) -> Result<(Auth, Administrator, Keys), Fail> {
        let (settings, clock) = (self.settings, &self.clock);
        let url = self.database_url.expose();
        let auth = Auth::start(settings.auth.clone(), url, &self.issuer, clock.clone(), &self.tasks).await?;
        outbox::start_relay(auth.pool(), auth::SCHEMA, &self.ways.bus, clock, &self.tasks);
        let (administrator, keys) = if self.roles.is_up {
            let administrator = first_start::administrator(&auth, settings, self.data_dir).await?;
            (administrator, Keys::kept(settings, self.data_dir)?)
        } else {
            (first_start::administrator_of_settings(&auth, settings).await?, Keys::of(settings))
        };
        keys.make_good(&auth).await?;
        Ok((auth, administrator, keys))
    }

    async fn jobs(&self) -> Result<Jobs, Fail> {
        // In a database of our own, whatever worker an earlier life knew has ended with it.
        let owns_all_workers = self.settings.process.database_url.is_none();
        let (settings, url) = (self.settings.jobs.clone(), self.database_url.expose());
        let (storage, clock) = (self.storage()?, &self.clock);
        let jobs = Jobs::start(settings, url, storage, clock.clone(), &self.tasks, owns_all_workers).await?;
        outbox::start_relay(jobs.pool(), jobs::SCHEMA, &self.ways.bus, clock, &self.tasks);
        Ok(jobs)
    }

    async fn admin(&self, services: &Services) -> Result<Admin, Fail> {
        let mut producers = Vec::new();
        for role in [Role::Auth, Role::Jobs] {
            producers.push(Producer::over(role.name(), services.peer(role)?, services.credential()?));
        }
        let (settings, clock) = (self.settings.admin.clone(), self.clock.clone());
        Admin::start(settings, self.database_url.expose(), &self.ways.bus, producers, clock, &self.tasks).await
    }
}
