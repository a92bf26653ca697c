//! The engine's promises, kept on a real database through the real gRPC surface, with a scripted worker at the other end
//! of the stream. The clock stands still unless a test moves it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod batches;
mod clocks;
mod dependencies;
mod fencing;
mod growth;
mod house;
mod lifecycle;
mod limits;
mod model;
mod parents;
mod policies;
mod repair;
mod replicas;
mod retries;
mod stopping;
mod submitting;
mod unique;
mod watching;
