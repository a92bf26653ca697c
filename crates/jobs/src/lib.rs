//! The durable job engine. Nouns stand at the top: [`jobs`] [`batches`] [`queues`] [`tasks`] [`workers`] [`attempts`]
//! [`files`] [`schedules`]; what runs by itself is [`engine`]. Nouns call the engine, and the engine names no noun's handlers.
//!
//! The way of a job: `jobs.rs` checks and hands over, `engine/submit.rs` inserts, `engine/dispatch.rs` claims,
//! `workers.rs` assigns over the stream and hears outcomes, `engine/lone.rs` ends the attempt where that concerns its job
//! alone and `engine/finish.rs` all others, in one transaction with batch counters and outbox, `engine/live.rs` tells watchers.

mod acts;
mod attempts;
mod batches;
mod engine;
mod files;
mod jobs;
mod queues;
mod reads;
mod schedules;
mod settings;
mod submissions;
mod tasks;
mod workers;

use std::{sync::Arc, time::Duration};

use kit::{Clock, Fail, audit::Act, cursor::CursorKey, db::Schema, outbox, storage::Storage, tasks::Tasks};
use proto::{
    events::outbox_server::OutboxServer,
    jobs::{
        batches_server::BatchesServer, files_server::FilesServer, jobs_server::JobsServer, queues_server::QueuesServer,
        schedules_server::SchedulesServer, tasks_server::TasksServer,
        workers_server::WorkersServer as WorkerListServer,
    },
    worker::{attempts_server::AttemptsServer, workers_server::WorkersServer},
};
use sqlx::PgPool;
use tokio::sync::Notify;
use tonic::service::Routes;

pub use acts::ACTS;
pub use settings::Settings;
pub use workers::SLOTS_MAX as WORKER_SLOTS_MAX;

/// The service's schema in the database.
pub const SCHEMA: Schema = Schema::new("jobs");

/// The schema's migrations, applied with [`kit::db::migrate`].
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// Submissions that one transaction takes in at most.
const SUBMISSIONS_MAX: usize = 100;

/// What every noun needs: the database, the time, the settings, and the engine's doors.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) storage: Storage,
    /// Signs the cursors of lists.
    pub(crate) cursors: CursorKey,
    /// Known tasks, with their compiled schemas.
    pub(crate) catalogue: tasks::Catalogue,
    pub(crate) engine: engine::Engine,
    pub(crate) submitter: engine::Group<submissions::Submission, submissions::Taken>,
    /// A schedule may come due sooner than was known.
    pub(crate) schedules: Notify,
    pub(crate) tasks: Tasks,
}

impl Core {
    /// Passes on what an act came to, after a refusal has been written into the audit log.
    pub(crate) async fn witness<T>(&self, act: Act, came_to: Result<T, Fail>) -> Result<T, Fail> {
        self.engine.ground.audit.witness(&self.pool, act, came_to).await
    }
}

/// The states of a job and every move between them, as a table in Markdown.
pub fn states_markdown() -> String {
    engine::states_markdown()
}

/// The running service.
#[derive(Debug, Clone)]
pub struct Jobs {
    core: Arc<Core>,
}

impl Jobs {
    /// Connects to a migrated database and starts the engine. `owns_all_workers` says that no worker can be alive that
    /// an earlier process knew: what those held is given back at once, instead of after their lease.
    ///
    /// # Errors
    /// As the database.
    pub async fn start(
        settings: Settings,
        database_url: &str,
        storage: Storage,
        clock: Clock,
        tasks: &Tasks,
        owns_all_workers: bool,
    ) -> Result<Self, Fail> {
        let pool = kit::db::connect(database_url, SCHEMA, settings.jobs_connections_max).await?;
        let cursors = CursorKey::new(&cursor_secret(&pool).await?);
        let engine =
            engine::Engine::start(pool.clone(), clock.clone(), settings.clone(), tasks, owns_all_workers).await?;
        let ground = Arc::clone(&engine.ground);
        let submitter = engine::Group::start(tasks, "jobs.submit", SUBMISSIONS_MAX, move |group| {
            let ground = Arc::clone(&ground);
            Box::pin(async move { submissions::write(&ground, group).await })
        });
        let core = Arc::new(Core {
            pool,
            clock,
            settings,
            storage,
            cursors,
            catalogue: tasks::Catalogue::default(),
            engine,
            submitter,
            schedules: Notify::new(),
            tasks: tasks.clone(),
        });
        start_file_sweeps(&core);
        schedules::start(&core);
        Ok(Self { core })
    }

    /// The gRPC services, to be put behind a [`kit::grpc::Guard`].
    pub fn routes(&self) -> Routes {
        let core = &self.core;
        let bytes_max = kit::grpc::MESSAGE_BYTES_MAX;
        let mut routes = Routes::builder();
        routes
            .add_service(JobsServer::new(jobs::Jobs(Arc::clone(core))).max_decoding_message_size(bytes_max))
            .add_service(BatchesServer::new(batches::Batches(Arc::clone(core))).max_decoding_message_size(bytes_max))
            .add_service(TasksServer::new(tasks::Tasks::new(Arc::clone(core))))
            .add_service(QueuesServer::new(queues::Queues::new(Arc::clone(core))))
            .add_service(FilesServer::new(files::Files::new(Arc::clone(core))))
            .add_service(
                SchedulesServer::new(schedules::Schedules::new(Arc::clone(core))).max_decoding_message_size(bytes_max),
            )
            .add_service(WorkerListServer::new(workers::Workers(Arc::clone(core))))
            .add_service(WorkersServer::new(workers::Workers(Arc::clone(core))).max_decoding_message_size(bytes_max))
            .add_service(AttemptsServer::new(attempts::Attempts(Arc::clone(core))).max_decoding_message_size(bytes_max))
            .add_service(OutboxServer::new(outbox::Service::new(core.pool.clone(), SCHEMA)));
        routes.routes()
    }

    /// The pool, for the metrics of its connections.
    pub fn pool(&self) -> &PgPool {
        &self.core.pool
    }
}

/// Files that nobody wants any more leave, and what lies in storage is held against the rows.
fn start_file_sweeps(core: &Arc<Core>) {
    const FILES_EVERY: Duration = Duration::from_secs(10);
    const STORAGE_EVERY: Duration = Duration::from_secs(600);
    let on = Arc::clone(core);
    engine::while_leading(&core.engine.ground, &core.tasks, "jobs.files", move |_ground, lead| {
        let core = Arc::clone(&on);
        async move {
            let stopping = core.tasks.stopping();
            let drift = engine::Told::by(metrics::gauge!("guildhall_file_usage_drifted_owners"));
            let mut storage_at = tokio::time::Instant::now();
            // Looked at first: a service that is asked to stop at once begins no sweep.
            while !stopping.is_cancelled() {
                files::sweep_files(&core, lead).await?;
                if storage_at <= tokio::time::Instant::now() {
                    files::sweep_storage(&core).await?;
                    files::check_usage(&core, &drift).await?;
                    storage_at = tokio::time::Instant::now() + STORAGE_EVERY;
                }
                tokio::select! {
                    () = tokio::time::sleep(FILES_EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
}

/// The key that signs cursors: made by the first process, the same for all.
async fn cursor_secret(pool: &PgPool) -> Result<[u8; 32], Fail> {
    let mut fresh = [0u8; 32];
    getrandom::fill(&mut fresh).map_err(|error| Fail::internal(error.to_string()))?;
    sqlx::query!(
        "insert into jobs.secret (name, value) values ('cursors', $1) on conflict (name) do nothing",
        &fresh[..]
    )
    .execute(pool)
    .await?;
    let value = sqlx::query_scalar!("select value from jobs.secret where name = 'cursors'").fetch_one(pool).await?;
    value.try_into().map_err(|_| Fail::internal("the cursor key has another length than it was made with"))
}
