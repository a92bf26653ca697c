//! One attempt from its assignment to its outcome: a clean scratch folder, the task where it belongs, supervision, and
//! the one outcome that follows from what the task said and what it was ordered.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use kit::{
    Clock,
    grpc::{Credential, Peer},
    storage::Storage,
    telemetry::{Ids, Span, span},
};
use parking_lot::Mutex;
use proto::worker::{
    Assignment, AttemptRef, Cancelled, Failed, Interrupted, Snoozed, Stopped, Succeeded, Suspended, WrittenFile,
    outcome::End,
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    Context, Ended, Ending, Failure, Place, Registry, Run,
    calls::Calls,
    context::Facts,
    desk::Desk,
    failure::kind,
    hooks::AllHooks,
    ledger::{Ledger, Orders, Why},
    scratch,
    slot::{RunFrame, Slot},
    supervise::{Verdict, supervise},
};

/// For an assignment that states no timeout: the default of the job's own contract.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Longest result: payloads stay small, and bytes belong into files.
const RESULT_BYTES_MAX: usize = 256 * 1024;

/// What attempts need of their worker.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) registry: Registry,
    pub(crate) jobs: Peer,
    pub(crate) credential: Credential,
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    pub(crate) hooks: AllHooks,
    /// Between asking and ending, where nobody else has said.
    pub(crate) grace: Duration,
}

impl Bench {
    /// Runs an attempt in `slot` and leaves its outcome in the ledger; the slot, fit for the next. All that it does goes on
    /// from where its job was submitted, and is logged under the job's ids.
    pub(crate) async fn attempt(&self, assignment: Assignment, orders: Orders, mut slot: Slot) -> Slot {
        let attempt = assignment.attempt.clone().unwrap_or_default();
        let came_from = Some(assignment.traceparent.as_str()).filter(|traceparent| !traceparent.is_empty());
        let span = span::attempt(&assignment.task, &assignment.queue, &attempt.job_id, assignment.number, came_from);
        let ids = Ids {
            request: Some(&assignment.request_id).filter(|id| !id.is_empty()).map(String::as_str),
            trace: span.trace_id().as_deref(),
            user: Some(&assignment.owner_id),
            job: Some(&attempt.job_id),
            attempt: Some(assignment.number),
        }
        .span();
        // Boxed where it is made: each wrapper around it would move it once more.
        let work = Box::pin(self.carried_out(&assignment, &attempt, orders, &mut slot, &span));
        span.within(work.instrument(ids)).await;
        slot
    }

    async fn carried_out(
        &self,
        assignment: &Assignment,
        attempt: &AttemptRef,
        orders: Orders,
        slot: &mut Slot,
        span: &Span,
    ) {
        let run = Run {
            job_id: &attempt.job_id,
            attempt: assignment.number,
            task: &assignment.task,
            queue: &assignment.queue,
        };
        let started = Instant::now();
        self.hooks.each(|hooks| hooks.before_task(&run));
        let written = Arc::default();
        let prepared = if slot.is_clean { Ok(()) } else { scratch::empty(&slot.scratch).await };
        slot.is_clean = false;
        let verdict = match prepared {
            Ok(()) => self.supervised(assignment, attempt, orders, slot, &written).await,
            Err(error) => Verdict { said: Some(Err(error.into())), why: None },
        };
        slot.reset().await;
        if !slot.is_clean {
            match scratch::empty(&slot.scratch).await {
                Ok(()) => slot.is_clean = true,
                Err(error) => tracing::warn!(%error, "a scratch folder could not be emptied"),
            }
        }

        if let Some(Err(Failure::Failed { cause: Some(cause), .. })) = &verdict.said {
            tracing::warn!(job.task = assignment.task, error = cause, "an attempt failed on our side");
        }
        let end = conclude(verdict, std::mem::take(&mut *written.lock()));
        let (mut outcome, mut failure_kind) = described(&end);
        if !self.ledger.end(attempt, end) {
            (outcome, failure_kind) = ("fenced", None);
        }
        span.set("guildhall.outcome", outcome);
        if outcome == "failed" {
            span.fail(failure_kind.clone().unwrap_or_default());
        }
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A line for each that went well would cost more than a small task does.
        if outcome == "succeeded" {
            tracing::debug!(job.task = assignment.task, outcome, duration_ms, "an attempt has ended");
        } else {
            tracing::info!(job.task = assignment.task, outcome, failure_kind, duration_ms, "an attempt has ended");
        }
        let ended = Ended { outcome, failure_kind: failure_kind.as_deref(), took: started.elapsed() };
        self.hooks.each(|hooks| hooks.after_task(&run, &ended));
    }

    async fn supervised(
        &self,
        assignment: &Assignment,
        attempt: &AttemptRef,
        orders: Orders,
        slot: &mut Slot,
        written: &Arc<Mutex<Vec<WrittenFile>>>,
    ) -> Verdict {
        let refused = |failure| Verdict { said: Some(Err(failure)), why: None };
        let Some(task) = self.registry.find(&assignment.task) else {
            return refused(Failure::internal(format!("this worker has no task `{}`", assignment.task)));
        };
        let args: Value = match serde_json::from_str(&assignment.args_json) {
            Ok(args) => args,
            Err(error) => return refused(Failure::invalid_input(format!("The arguments are not JSON: {error}."))),
        };
        let facts = Facts {
            job_id: attempt.job_id.clone(),
            number: assignment.number,
            owner_id: assignment.owner_id.clone(),
            is_finalize: assignment.finalize,
        };
        let desk = Arc::new(Desk {
            calls: Calls {
                jobs: self.jobs.clone(),
                credential: self.credential.clone(),
                attempt: attempt.clone(),
                request_id: assignment.request_id.clone(),
            },
            ledger: self.ledger.clone(),
            storage: self.storage.clone(),
            clock: self.clock.clone(),
            scratch: slot.scratch.clone(),
            written: written.clone(),
        });
        let timeout = match Duration::try_from_secs_f64(assignment.timeout_s) {
            Ok(timeout) if !timeout.is_zero() => timeout,
            _ => TIMEOUT_DEFAULT,
        };
        let stop = CancellationToken::new();
        match task.place() {
            Place::Worker => {
                let context = Context::new(facts, slot.scratch.clone(), desk, stop.clone());
                let body = AssertUnwindSafe(task.run(&context, args)).catch_unwind();
                let body = body.map(|said| match said {
                    Ok(said) => said,
                    Err(_) => Err(Failure::passing(kind::INTERNAL, "The task panicked.")),
                });
                let verdict = supervise(body, &stop, orders, timeout, self.grace).await;
                // Most tasks in the worker's own process have no use for it, and need not wait for a look into it.
                slot.is_clean = !context.has_shown_scratch();
                verdict
            }
            Place::Child => {
                let scratch = slot.scratch.clone();
                let run = RunFrame { task: assignment.task.clone(), args, facts, scratch };
                // Boxed for the sake of attempts without a child, which would carry the room for it along.
                let body = Box::pin(slot.run(run, desk.as_ref(), &stop));
                supervise(body, &stop, orders, timeout, self.grace).await
            }
        }
    }
}

/// The one outcome. A result that was reached counts, but for an attempt whose time was over.
fn conclude(verdict: Verdict, files: Vec<WrittenFile>) -> End {
    match (verdict.why, verdict.said) {
        (Some(Why::Timeout), _) => failed(Failure::passing(kind::TIMEOUT, "The attempt took longer than it may.")),
        (_, Some(Ok(Ending::Done(result)))) => succeeded(&result, files),
        (Some(Why::Cancel | Why::Fenced), _) => End::Stopped(Stopped {}),
        (_, Some(Ok(Ending::AwaitBatch(batch_id)))) => End::Suspended(Suspended { batch_id }),
        (Some(Why::Drain), _) => End::Interrupted(Interrupted {}),
        (None, Some(Err(failure))) => failed(failure),
        // Supervision lets nothing go without an order.
        (None, None) => failed(Failure::passing(kind::INTERNAL, "The attempt was ended for no known reason.")),
    }
}

fn succeeded(result: &Value, files: Vec<WrittenFile>) -> End {
    let result_json = result.to_string();
    if result_json.len() > RESULT_BYTES_MAX {
        return failed(Failure::permanent(kind::INTERNAL, "The task's result is larger than a result may be."));
    }
    End::Succeeded(Succeeded { result_json, files })
}

fn failed(failure: Failure) -> End {
    match failure {
        Failure::Failed { kind, message, retryable, retry_after, .. } => End::Failed(Failed {
            kind,
            message,
            retryable,
            retry_after_s: retry_after.map(|after| after.as_secs_f64()),
        }),
        Failure::Snoozed(after) => End::Snoozed(Snoozed { seconds: after.as_secs_f64() }),
        Failure::Cancelled(reason) => End::Cancelled(Cancelled { reason }),
        Failure::Stopped => {
            failed(Failure::passing(kind::INTERNAL, "The task stopped although nobody had asked it to."))
        }
    }
}

fn described(end: &End) -> (&'static str, Option<String>) {
    match end {
        End::Succeeded(_) => ("succeeded", None),
        End::Failed(failed) => ("failed", Some(failed.kind.clone())),
        End::Stopped(_) => ("stopped", None),
        End::Suspended(_) => ("suspended", None),
        End::Interrupted(_) => ("interrupted", None),
        End::Snoozed(_) => ("snoozed", None),
        End::Cancelled(_) => ("cancelled", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(why: Option<Why>, said: Option<Result<Ending, Failure>>) -> &'static str {
        described(&conclude(Verdict { said, why }, Vec::new())).0
    }

    fn done() -> Option<Result<Ending, Failure>> {
        Some(Ok(Ending::Done(Value::Null)))
    }

    #[test]
    fn a_drained_attempt_is_given_back_unless_it_reached_its_end() {
        assert_eq!(concluded(Some(Why::Drain), None), "interrupted");
        assert_eq!(concluded(Some(Why::Drain), Some(Err(Failure::Stopped))), "interrupted");
        assert_eq!(concluded(Some(Why::Drain), done()), "succeeded");
    }

    #[test]
    fn a_cancelled_attempt_is_stopped_whether_it_obeyed_or_was_killed() {
        assert_eq!(concluded(Some(Why::Cancel), None), "stopped");
        assert_eq!(concluded(Some(Why::Cancel), Some(Err(Failure::Stopped))), "stopped");
        assert_eq!(concluded(Some(Why::Cancel), Some(Ok(Ending::AwaitBatch("batch".to_owned())))), "stopped");
    }

    #[test]
    fn a_timeout_fails_the_attempt_even_with_a_late_result() {
        assert_eq!(concluded(Some(Why::Timeout), done()), "failed");
    }

    #[test]
    fn a_result_over_the_bound_fails_and_is_not_tried_again() {
        let result = Value::String("x".repeat(RESULT_BYTES_MAX));
        let End::Failed(failed) = succeeded(&result, Vec::new()) else { panic!("it is too large") };
        assert!(!failed.retryable);
    }
}
