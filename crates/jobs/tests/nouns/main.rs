//! Files, tasks, queues, schedules, the reading of jobs and what is written down of acts, as callers meet them over gRPC.

mod audit;
mod files;
mod queues;
mod reads;
mod schedules;
#[path = "../support/mod.rs"]
mod support;
mod tasks;
