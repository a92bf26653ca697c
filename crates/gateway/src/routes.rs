//! Every route there is, a file a noun.

mod admin;
mod auth;
mod batches;
mod files;
mod jobs;
mod meta;
mod queues;
mod schedules;
mod tasks;
mod users;
mod workers;

use std::time::Duration;

use crate::route::{Limits, Route};

/// All of them, in the order of the documentation.
pub fn all() -> Vec<Route> {
    [
        auth::routes(),
        files::routes(),
        jobs::routes(),
        batches::routes(),
        tasks::routes(),
        queues::routes(),
        schedules::routes(),
        workers::routes(),
        users::routes(),
        admin::routes(),
        meta::routes(),
    ]
    .concat()
}

/// Reads, and acts that need few words: no body of note, and what takes longer than this is better asked again.
const SMALL: Limits = Limits { body_bytes_max: 64 * 1024, within: Duration::from_secs(30) };
