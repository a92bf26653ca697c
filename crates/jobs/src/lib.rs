//! The durable job engine. Nouns stand at the top: [`jobs`] [`batches`] [`queues`] [`tasks`] [`workers`] [`attempts`]
//! [`files`]; what runs by itself is [`engine`]. Nouns call the engine, and the engine names no noun's handlers.
//!
//! The way of a job: `jobs.rs` checks and hands over, `engine/submit.rs` inserts, `engine/dispatch.rs` claims,
//! `workers.rs` assigns over the stream and hears outcomes, `engine/finish.rs` ends the attempt in one transaction with
//! batch counters and outbox, `engine/live.rs` tells watchers.

mod attempts;
mod batches;
mod engine;
mod files;
mod jobs;
mod queues;
mod settings;
mod submissions;
mod tasks;
mod workers;

use std::sync::Arc;

use kit::{Clock, Fail, cursor::CursorKey, db::Schema, storage::Storage, tasks::Tasks};
use sqlx::PgPool;
use tonic::service::Routes;

pub use settings::Settings;

/// The service's schema in the database.
pub const SCHEMA: Schema = Schema::new("jobs");

/// The schema's migrations, applied with [`kit::db::migrate`].
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What every noun needs: the database, the time, the settings, and the engine's doors.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) storage: Storage,
    /// Signs the cursors of lists.
    pub(crate) cursors: CursorKey,
    pub(crate) engine: engine::Engine,
    pub(crate) tasks: Tasks,
}
