//! Files, tasks, queues and the reading of jobs, as callers meet them over gRPC.

mod files;
mod queues;
mod reads;
#[path = "../support/mod.rs"]
mod support;
mod tasks;
