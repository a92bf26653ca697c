//! Everything that runs in the background has a name, a policy for its failure, and a way to be stopped.
//!
//! The first signal is soft: [`Tasks::stopping`] is cancelled, and each task ends when its work in hand is done. What
//! does not end within the deadline of [`Tasks::join`] is aborted.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

use crate::Fail;

const RESTART_DELAY_FIRST: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);
const RAN_FOR_A_WHILE: Duration = Duration::from_secs(1);

/// The background work of one process. Cheap to clone; clones are the same set.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    soft: CancellationToken,
    hard: CancellationToken,
    /// The first failure of a task that the process cannot go on without.
    failed: watch::Sender<Option<String>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            failed: watch::Sender::new(None),
        }
    }

    /// Runs `future` as a task that the process needs: its failure or panic stops the process with an error.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = Result<(), Fail>> + Send + 'static,
    {
        let failed = self.failed.clone();
        self.track(async move {
            let reason = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(fail)) => fail.to_string(),
                Err(panic) => panic_text(panic.as_ref()),
            };
            error!(task.name = name, error = reason, "a task the process needs has failed");
            failed.send_if_modified(|slot| {
                let is_first = slot.is_none();
                if is_first {
                    *slot = Some(format!("{name}: {reason}"));
                }
                is_first
            });
        });
    }

    /// Runs what `make` makes, and makes it again after a failure or panic, with growing delays up to 10 s. After a run of a
    /// second or more they begin anew: what worked for a while is not kept waiting for it. An `Ok` ends it.
    pub fn spawn_restarting<M, F>(&self, name: &'static str, mut make: M)
    where
        M: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<(), Fail>> + Send + 'static,
    {
        let soft = self.soft.clone();
        self.track(async move {
            let mut delay = RESTART_DELAY_FIRST;
            loop {
                let started = tokio::time::Instant::now();
                let reason = match AssertUnwindSafe(make()).catch_unwind().await {
                    Ok(Ok(())) => return,
                    Ok(Err(fail)) => fail.to_string(),
                    Err(panic) => panic_text(panic.as_ref()),
                };
                if started.elapsed() >= RAN_FOR_A_WHILE {
                    delay = RESTART_DELAY_FIRST;
                }
                warn!(task.name = name, error = reason, "a task failed and is started again");
                tokio::select! {
                    () = soft.cancelled() => return,
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(RESTART_DELAY_MAX),
                }
            }
        });
    }

    /// Runs work whose end matters to nobody but itself, such as one connection. A panic is logged.
    pub fn detach<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.track(async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                error!(task.name = name, error = panic_text(panic.as_ref()), "a task panicked");
            }
        });
    }

    /// For a protocol's implementation that spawns parts of itself, as HTTP/2 does one a call. They count among the tasks
    /// and end with them, and have no names.
    pub fn executor(&self) -> Executor {
        Executor(self.clone())
    }

    /// The one place that spawns: tracked, stoppable.
    fn track<F>(&self, future: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let hard = self.hard.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                _ = future => {}
                () = hard.cancelled() => {}
            }
        });
    }

    /// Cancelled once the process was asked to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Asks every task to end.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Waits for the failure of a task that the process needs; for ever where there is none.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks every task to end and waits up to `deadline` for it; what is left then is aborted. Whether all ended by
    /// themselves.
    pub async fn join(&self, deadline: Duration) -> bool {
        self.stop();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok() {
            return true;
        }
        self.abort().await;
        false
    }

    /// Drops every task where it stands.
    pub async fn abort(&self) {
        self.stop();
        self.hard.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs futures among [`Tasks`], for `hyper`.
#[derive(Debug, Clone)]
pub struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.track(future);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_needed_task_that_panics_is_reported_by_name() {
        let tasks = Tasks::new();
        tasks.spawn("engine", async { panic!("out of coal") });
        assert_eq!(tasks.failed().await, "engine: out of coal");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_soft_signal_is_aborted_at_the_deadline() {
        let tasks = Tasks::new();
        tasks.detach("deaf", std::future::pending());
        assert!(!tasks.join(Duration::from_secs(3)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarting_task_is_made_again_until_it_is_done() {
        let tasks = Tasks::new();
        let (tries, mut seen) = watch::channel(0);
        tasks.spawn_restarting("loop", move || {
            let tries = tries.clone();
            async move {
                tries.send_modify(|count| *count += 1);
                if *tries.borrow() < 3 { Err(Fail::internal("not yet")) } else { Ok(()) }
            }
        });
        seen.wait_for(|count| *count == 3).await.expect("the task runs");
        assert!(tasks.join(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarting_task_that_ran_for_a_while_is_made_again_soon_and_one_that_did_not_later_and_later() {
        let ran = RAN_FOR_A_WHILE;
        assert_eq!(time_of_runs(ran, 10).await, 10 * ran + 9 * RESTART_DELAY_FIRST);
        let ran = RAN_FOR_A_WHILE / 2;
        assert_eq!(time_of_runs(ran, 4).await, 4 * ran + (1 + 2 + 4) * RESTART_DELAY_FIRST);
    }

    /// How long it takes until a task that fails after `run` has done so `count` times.
    async fn time_of_runs(run: Duration, count: u32) -> Duration {
        let tasks = Tasks::new();
        let (runs, mut seen) = watch::channel(0);
        let started = tokio::time::Instant::now();
        tasks.spawn_restarting("falters", move || {
            let runs = runs.clone();
            async move {
                tokio::time::sleep(run).await;
                runs.send_modify(|count| *count += 1);
                Err(Fail::internal("it falters"))
            }
        });
        seen.wait_for(|runs| *runs == count).await.expect("the task runs");
        started.elapsed()
    }
}
