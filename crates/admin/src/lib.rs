//! What administrators see: the audit log, events that could not be handled, and how every process fares. It is fed by
//! events and reports alone.
//!
//! | file | owns |
//! |---|---|
//! | `audit.rs` | the entries of the audit log: written down once an act, listed; `months.rs` keeps and drops its partitions |
//! | `parked.rs` | events that a consumer could not handle: kept, listed, replayed |
//! | `health.rs` | the last report of every process, and whether all is well |
//! | `sweeps.rs` | what runs by itself |
//!
//! Users are managed by `auth`, whose they are. It reads no other service's tables, and asks others for nothing but to send
//! again what was lost on its way here.

mod audit;
mod health;
mod months;
mod parked;
mod settings;
mod sweeps;

use std::sync::Arc;

use futures::future::BoxFuture;
use kit::{
    Clock, Fail,
    audit::{Action, Log},
    bus::{Bus, Consumer},
    clock::from_timestamp,
    cursor::CursorKey,
    db::Schema,
    inbox::{self, Inbox, Producer},
    outbox,
    tasks::Tasks,
};
use proto::{
    admin::{audit_server::AuditServer, health_server::HealthServer, parked_events_server::ParkedEventsServer},
    events::outbox_server::OutboxServer,
};
use sqlx::{PgPool, migrate::Migrator};
use tonic::service::Routes;

pub use settings::Settings;

/// The service's place in the database.
pub const SCHEMA: Schema = Schema::new("admin");

/// The migrations of [`SCHEMA`], for `kit::db::migrate`.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// What it hears: the acts of every service, its own among them.
pub const CONSUMER: Consumer = Consumer { name: "admin", types: &["*.act.recorded"] };

/// The acts that it records, for the reference.
pub static ACTS: [&Action; 1] = [&parked::REPLAY];

/// The service. Cheap to clone; clones are the same service.
#[derive(Debug, Clone)]
pub struct Admin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    pool: PgPool,
    clock: Clock,
    tasks: Tasks,
    bus: Bus,
    cursors: CursorKey,
    acts: Log,
}

impl Admin {
    /// Connects to the database, which [`MIGRATOR`] has been applied to, and starts what runs in the background: from now
    /// on it hears `bus`. `producers` are the other services whose acts it writes down.
    ///
    /// # Errors
    /// `config.admin` for settings out of range, and as the database.
    pub async fn start(
        settings: Settings,
        database_url: &str,
        bus: &Bus,
        producers: Vec<Producer>,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, Fail> {
        let faults = settings.faults();
        if !faults.is_empty() {
            return Err(Fail::invalid("config.admin", format!("{}.", faults.join("; "))));
        }
        let pool = kit::db::connect(database_url, SCHEMA, settings.admin_connections_max).await?;
        let admin = Self(Arc::new(Inner {
            cursors: CursorKey::ensure(&pool, SCHEMA).await?,
            acts: Log::new(SCHEMA, "admin.act.recorded", clock.clone()),
            tasks: tasks.clone(),
            bus: bus.clone(),
            settings,
            pool,
            clock,
        }));
        // Before the first entry: one that found no month would go to the default partition.
        months::make(&admin).await?;
        admin.start_tasks(producers);
        Ok(admin)
    }

    /// The gRPC services, to be mounted behind `kit::grpc::Guard`.
    pub fn routes(&self) -> Routes {
        Routes::new(AuditServer::new(self.clone()))
            .add_service(ParkedEventsServer::new(self.clone()))
            .add_service(HealthServer::new(self.clone()))
            .add_service(OutboxServer::new(self.outbox()))
    }

    /// The connections of its calls, to be measured.
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    fn outbox(&self) -> outbox::Service {
        outbox::Service::new(self.0.pool.clone(), SCHEMA)
    }

    fn start_tasks(&self, mut producers: Vec<Producer>) {
        let Inner { pool, clock, tasks, bus, .. } = &*self.0;
        outbox::start_relay(pool, SCHEMA, bus, clock, tasks);
        let own = self.outbox();
        producers.push(Producer::new(SCHEMA.name(), move |request| {
            let own = own.clone();
            Box::pin(async move { own.replay(&request.types, request.since.as_ref().and_then(from_timestamp)).await })
        }));
        let setup =
            inbox::Setup { consumer: CONSUMER, schema: SCHEMA, pool: pool.clone(), clock: clock.clone(), producers };
        Inbox::start(setup, bus, tasks, |event, transaction| Box::pin(audit::record(event, transaction)));
        // Not the service itself: the bus would hold it, as it holds the bus, and neither would ever end.
        let (pool, clock) = (pool.clone(), clock.clone());
        let keep = move |parked| -> BoxFuture<'static, Result<(), Fail>> {
            let (pool, clock) = (pool.clone(), clock.clone());
            Box::pin(async move { parked::keep(&pool, &clock, parked).await })
        };
        bus.on_parked(keep, tasks);
        let on = self.clone();
        tasks.spawn_restarting("admin.sweeps", move || sweeps::run(on.clone()));
    }
}
