//! Who is asking: users, their credentials and sessions, service accounts, and the keys that sign access tokens. The only
//! holder of private keys; everyone else verifies tokens by the published halves.
//!
//! | file | owns |
//! |---|---|
//! | `users.rs` | registering, one's own user; `users/list.rs` how administrators find them, `users/standing.rs` what they do |
//! | `login.rs` | a password for a session; `throttle.rs` stands before it, `passwords.rs` does the hashing |
//! | `sessions.rs` | the gRPC service of sessions, their list, ending them |
//! | `refresh.rs` | refresh families: exchange, repeat, reuse |
//! | `revocations.rs` | telling everyone which sessions have ended |
//! | `access_tokens.rs` | what an access token says; `signing_keys.rs` signs it and publishes the keys |
//! | `service_keys.rs` | service accounts |
//! | `first_admin.rs` | the first administrator of an installation |
//! | `acts.rs` | what of all this goes into the audit log |
//! | `server_keys.rs` | the service's own symmetric keys |
//! | `sweeps.rs` | what runs by itself |
//!
//! It never decides what a role may do (`kit::identity::roles`), and knows nothing of HTTP.

mod access_tokens;
mod acts;
mod email;
mod first_admin;
mod login;
mod passwords;
mod random;
mod refresh;
mod revocations;
mod server_keys;
mod service_keys;
mod sessions;
mod settings;
mod signing_keys;
mod sweeps;
mod throttle;
mod users;

use std::sync::Arc;

use kit::{Clock, Fail, audit, db::Schema, outbox, tasks::Tasks};
use proto::{
    auth::{
        service_keys_server::ServiceKeysServer, sessions_server::SessionsServer,
        signing_keys_server::SigningKeysServer, users_server::UsersServer,
    },
    events::outbox_server::OutboxServer,
};
use sqlx::{PgPool, migrate::Migrator};
use tonic::service::Routes;

pub use acts::ACTS;
pub use first_admin::{FirstAdmin, new_password};
pub use service_keys::{is_service_key, new_service_key};
pub use settings::Settings;

/// The service's place in the database.
pub const SCHEMA: Schema = Schema::new("auth");

/// The migrations of [`SCHEMA`], for `kit::db::migrate`.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Reading what has ended takes one connection, waiting for word of it another. They are apart from the others, so that a
/// flood of sign-ins does not hold up a sign-out.
const FEED_CONNECTIONS: u32 = 2;

/// The service. Cheap to clone; clones are the same service.
#[derive(Debug, Clone)]
pub struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// The `iss` of access tokens.
    issuer: String,
    pool: PgPool,
    clock: Clock,
    tasks: Tasks,
    hasher: passwords::Hasher,
    keys: server_keys::ServerKeys,
    signer: signing_keys::Signer,
    feed: revocations::Feed,
    audit: audit::Log,
}

impl Auth {
    /// Connects to the database, which [`MIGRATOR`] has been applied to, makes the keys where they are missing, and starts
    /// what runs in the background. `issuer` is the public URL, and what verifiers expect as `iss`.
    ///
    /// # Errors
    /// `config.auth` for settings out of range, and as the database.
    pub async fn start(
        settings: Settings,
        database_url: &str,
        issuer: &str,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, Fail> {
        let faults = settings.faults();
        if !faults.is_empty() {
            return Err(Fail::invalid("config.auth", format!("{}.", faults.join("; "))));
        }
        let pool = kit::db::connect(database_url, SCHEMA, settings.auth_connections_max).await?;
        let feed_pool = kit::db::connect(database_url, SCHEMA, FEED_CONNECTIONS).await?;
        let auth = Self(Arc::new(Inner {
            issuer: issuer.to_owned(),
            hasher: passwords::Hasher::new(&settings)?,
            keys: server_keys::ServerKeys::ensure(&pool, &clock).await?,
            signer: signing_keys::Signer::ensure(&pool, &clock).await?,
            feed: revocations::Feed::new(),
            audit: audit::Log::new(SCHEMA, acts::RECORDED, clock.clone()),
            tasks: tasks.clone(),
            settings,
            pool,
            clock,
        }));
        auth.start_tasks(feed_pool);
        Ok(auth)
    }

    /// The gRPC services, to be mounted behind `kit::grpc::Guard`.
    pub fn routes(&self) -> Routes {
        Routes::new(UsersServer::new(self.clone()))
            .add_service(SessionsServer::new(self.clone()))
            .add_service(ServiceKeysServer::new(self.clone()))
            .add_service(SigningKeysServer::new(self.clone()))
            .add_service(OutboxServer::new(outbox::Service::new(self.0.pool.clone(), SCHEMA)))
    }

    /// The connections of its calls, to be measured.
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    fn start_tasks(&self, feed_pool: PgPool) {
        let (auth, pool) = (self.clone(), feed_pool.clone());
        self.0
            .tasks
            .spawn_restarting("auth.revocations.listen", move || revocations::listen(auth.clone(), pool.clone()));
        let auth = self.clone();
        self.0.tasks.spawn_restarting("auth.revocations", move || revocations::follow(auth.clone(), feed_pool.clone()));
        let auth = self.clone();
        self.0.tasks.spawn_restarting("auth.sweeps", move || sweeps::run(auth.clone()));
    }
}
