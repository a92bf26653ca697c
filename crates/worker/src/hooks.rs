//! Lifecycle hooks: the place where metrics, tracing and one's own steps attach to a worker and to each of its tasks.
//! Hooks watch; they cannot change what happens, and they must not block, since attempts wait for them.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use metrics::Histogram;
use parking_lot::Mutex;

use crate::{Profile, failure::kind};

/// One attempt, as hooks see it.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub job_id: &'a str,
    /// From 1.
    pub attempt: u32,
    pub task: &'a str,
    pub queue: &'a str,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// `succeeded`, `failed`, `stopped`, `suspended`, `interrupted` or `fenced`.
    pub outcome: &'static str,
    /// The kind of its failure, where it failed.
    pub failure_kind: Option<&'a str>,
    pub took: Duration,
}

/// Called around a worker and its tasks. Every method does nothing unless it is written.
pub trait Hooks: Send + Sync + 'static {
    /// Before the worker connects for the first time.
    fn before_worker(&self, _profile: &Profile) {}
    /// Before an attempt's task runs.
    fn before_task(&self, _run: &Run<'_>) {}
    /// After an attempt has ended, whatever its end.
    fn after_task(&self, _run: &Run<'_>, _ended: &Ended<'_>) {}
    /// After the worker has ended all attempts and closed its stream.
    fn after_worker(&self, _profile: &Profile) {}
}

/// Several hooks, called in their order.
#[derive(Clone, Default)]
pub(crate) struct AllHooks(pub(crate) Arc<[Arc<dyn Hooks>]>);

impl AllHooks {
    /// A hook that panics is logged: an attempt must not hang for the sake of who watches it.
    pub(crate) fn each(&self, call: impl Fn(&dyn Hooks)) {
        for hooks in self.0.iter() {
            if catch_unwind(AssertUnwindSafe(|| call(hooks.as_ref()))).is_err() {
                tracing::error!("a lifecycle hook panicked");
            }
        }
    }
}

/// Records `guildhall_task_duration_seconds{queue,task,outcome}` and `guildhall_task_failures_total{queue,task,kind}`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Of each task the queues and outcomes that were seen: finding a histogram by its labels costs more than recording.
    durations: Arc<Mutex<HashMap<String, Vec<Seen>>>>,
}

#[derive(Debug)]
struct Seen {
    queue: String,
    outcome: &'static str,
    duration: Histogram,
}

impl Metrics {
    fn record(&self, run: &Run<'_>, ended: &Ended<'_>) {
        let took = ended.took.as_secs_f64();
        let mut durations = self.durations.lock();
        let seen = durations
            .get(run.task)
            .and_then(|seen| seen.iter().find(|seen| seen.outcome == ended.outcome && seen.queue == run.queue));
        if let Some(seen) = seen {
            return seen.duration.record(took);
        }
        let labels =
            [("queue", run.queue.to_owned()), ("task", run.task.to_owned()), ("outcome", ended.outcome.to_owned())];
        let duration = metrics::histogram!("guildhall_task_duration_seconds", &labels);
        duration.record(took);
        let seen = Seen { queue: run.queue.to_owned(), outcome: ended.outcome, duration };
        durations.entry(run.task.to_owned()).or_default().push(seen);
    }
}

impl Hooks for Metrics {
    fn after_task(&self, run: &Run<'_>, ended: &Ended<'_>) {
        self.record(run, ended);
        if let Some(failure_kind) = ended.failure_kind {
            // A task's own kind may come from its input, and must not become a label.
            let known = kind::SHARED.iter().find(|known| **known == failure_kind).map_or("own", |known| known);
            let with_kind =
                [("queue", run.queue.to_owned()), ("task", run.task.to_owned()), ("kind", (*known).to_owned())];
            metrics::counter!("guildhall_task_failures_total", &with_kind).increment(1);
        }
    }
}
