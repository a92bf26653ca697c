//! The client commands as a person runs them: the real binary against a server on a real socket that speaks the contract's
//! shapes and breaks what a test tells it to break.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod administration;
mod batches;
mod jobs;
mod run;
mod schedules;
mod server;
mod sessions;
mod terminal;
