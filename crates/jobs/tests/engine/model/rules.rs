//! The engine as it should be, in plain Rust: what each command and each passing of time makes of jobs and their attempts.
//! It knows of no SQL, no sweep and no stream. What follows for batches and parents stands in `batches.rs`, for jobs that
//! run after others in `dependencies.rs`, for unique keys in `unique.rs`.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proto::jobs::JobState::{
    Cancelled, Cancelling, Expired, Failed, Queued, Running, Scheduled, Succeeded, Suspended, Waiting,
};

use super::{
    batches::Batch,
    job::{Backoff, End, Job, Time},
};

/// From a worker's last heartbeat, unless an operator says otherwise.
pub(super) const LEASE: TimeDelta = TimeDelta::seconds(30);
/// An attempt of a worker that lives and does not end it at its timeout is ended so much later: the grace of a stop, and
/// some slack.
const TIMEOUT_SLACK: TimeDelta = TimeDelta::seconds(25);
/// After this, what must be over is over for whoever compares strictly.
const INSTANT: TimeDelta = TimeDelta::milliseconds(1);
/// How often a job may be at work when its worker or its process dies.
const CRASHES_MAX: u32 = 3;

/// What there should be.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) now: Time,
    pub(super) jobs: BTreeMap<String, Job>,
    pub(super) batches: BTreeMap<String, Batch>,
    /// When each worker's lease ends.
    pub(super) workers: BTreeMap<String, Time>,
    pub(super) is_paused: bool,
    /// At most so many are at work at once.
    pub(super) limit: Option<usize>,
}

impl Model {
    pub(super) fn job(&mut self, id: &str) -> &mut Job {
        self.jobs.get_mut(id).unwrap_or_else(|| panic!("the model knows no job {id}"))
    }

    /// A job that was not there before.
    pub(super) fn add(&mut self, id: &str, job: Job) {
        if let Some(batch) = job.batch.clone().filter(|_| !job.is_finalize) {
            self.batch(&batch).total += 1;
        }
        assert!(self.jobs.insert(id.to_owned(), job).is_none(), "{id} is no new job");
    }

    /// What a worker with a free slot may be given, the first first.
    pub(super) fn claimable(&self) -> Vec<(Time, String)> {
        let queued = self.jobs.iter().filter(|(_, job)| job.state == Queued && !self.is_paused);
        let mut queued: Vec<(Time, String)> = queued.map(|(id, job)| (job.rank, id.clone())).collect();
        queued.sort();
        queued
    }

    /// How many of these may be given out now.
    pub(super) fn room(&self) -> usize {
        let room = self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.held().len()));
        self.claimable().len().min(room)
    }

    pub(super) fn claimed(&mut self, id: &str, token: u64, worker: &str) {
        let now = self.now;
        let job = self.job(id);
        (job.state, job.token, job.holder, job.started_at) = (Running, token, Some(worker.to_owned()), now);
        (job.attempt, job.queue_until) = (job.attempt + 1, None);
    }

    /// An attempt tells its outcome; whether that counts.
    pub(super) fn outcome(&mut self, id: &str, token: u64, end: &End) -> bool {
        let is_held = self.jobs.get(id).is_some_and(|job| job.token == token && job.holder.is_some());
        if is_held {
            self.end_attempt(id, end);
        }
        is_held
    }

    pub(super) fn end_attempt(&mut self, id: &str, end: &End) {
        let now = self.now;
        let job = self.job(id);
        let is_cancelling = job.state == Cancelling;
        match end {
            End::Succeeded(result) => {
                job.attempts.push("succeeded");
                self.finish(id, Succeeded, None, Some(result.clone()));
            }
            End::Failed { .. } if is_cancelling => {
                job.attempts.push("failed");
                self.stopped(id, None);
            }
            End::Stopped | End::Interrupted | End::Snoozed(_) | End::Cancelled if is_cancelling => {
                job.attempts.push("cancelled");
                self.stopped(id, None);
            }
            End::Failed { kind, is_retryable, after } => self.after_failure(id, kind, *is_retryable, *after),
            End::Snoozed(after) => {
                job.attempts.push("snoozed");
                job.attempts_until += 1;
                self.again(id, now + *after, now + *after, false);
            }
            End::Cancelled => {
                job.attempts.push("cancelled");
                self.finish(id, Cancelled, Some("cancelled"), None);
            }
            End::Stopped | End::Interrupted => {
                job.attempts.push("interrupted");
                job.attempts_until += 1;
                job.put_back(Queued, now, now);
            }
            End::Suspended(batch) if job.child_batch.as_ref() == Some(batch) => {
                job.attempts.push("suspended");
                (job.holder, job.state) = (None, if is_cancelling { Cancelling } else { Suspended });
                self.close(batch, is_cancelling);
            }
            End::Suspended(_) if is_cancelling => {
                job.attempts.push("failed");
                self.stopped(id, None);
            }
            End::Suspended(_) => {
                job.attempts.push("failed");
                self.finish(id, Failed, Some("internal"), None);
            }
        }
    }

    fn after_failure(&mut self, id: &str, kind: &'static str, is_retryable: bool, after: Option<TimeDelta>) {
        let now = self.now;
        let job = self.job(id);
        job.attempts.push("failed");
        let is_crash = ["worker_crashed", "heartbeat_lost"].contains(&kind);
        if is_crash && job.crashes + 1 >= CRASHES_MAX {
            return self.finish(id, Failed, Some("worker_crashed"), None);
        }
        let rule = job.rules.get(kind).copied();
        if !(rule.map_or(is_retryable, |(is_retried, _)| is_retried) && job.attempt < job.attempts_until) {
            return self.finish(id, Failed, Some(kind), None);
        }
        let (most, least) = match (after.or(rule.and_then(|(_, delay)| delay)), job.backoff) {
            (Some(delay), _) | (None, Backoff::Fixed(delay)) => (delay, delay),
            (None, Backoff::Usual) => {
                let retry = job.attempt - (job.attempts_until - job.max_attempts);
                let most = TimeDelta::milliseconds((1_000 << (retry - 1).min(20)).min(300_000));
                (most, most * 4 / 5)
            }
        };
        self.again(id, now + most, now + least, is_crash);
    }

    /// Another attempt, unless the deadline comes first.
    fn again(&mut self, id: &str, run_at: Time, run_at_least: Time, is_crash: bool) {
        let now = self.now;
        let job = self.job(id);
        if job.deadline_at.is_some_and(|deadline| deadline <= run_at) {
            return self.finish(id, Expired, Some("expired"), None);
        }
        job.put_back(Scheduled, run_at, now);
        job.run_at_least = run_at_least;
        job.crashes += u32::from(is_crash);
    }

    /// # Errors
    /// The code of the refusal.
    pub(super) fn cancel(&mut self, id: &str) -> Result<(), &'static str> {
        if self.job(id).is_final() {
            return Err("jobs.already_final");
        }
        self.stop(id, false);
        Ok(())
    }

    /// Ends what waits; what is at work is asked, and so are its children.
    pub(super) fn stop(&mut self, id: &str, is_deadline: bool) {
        let job = self.job(id);
        match job.state {
            Cancelling => {}
            Running | Suspended => {
                let (child_batch, is_running) = (job.child_batch.clone(), job.state == Running);
                (job.state, job.is_expiring) = (Cancelling, is_deadline);
                // One that runs may still be adding to its batch.
                match child_batch {
                    Some(batch) if is_running => self.batch(&batch).ask_to_stop(),
                    Some(batch) => self.close(&batch, true),
                    None => {}
                }
            }
            _ => {
                job.is_expiring = is_deadline;
                self.stopped(id, None);
            }
        }
    }

    /// To where a stop leads.
    pub(super) fn stopped(&mut self, id: &str, result: Option<String>) {
        let (state, error) = if self.job(id).is_expiring { (Expired, "expired") } else { (Cancelled, "cancelled") };
        self.finish(id, state, Some(error), result);
    }

    /// # Errors
    /// The code of the refusal.
    pub(super) fn retry(&mut self, id: &str) -> Result<(), &'static str> {
        match self.job(id).state {
            Succeeded => return Err("jobs.already_succeeded"),
            Failed | Cancelled | Expired => {}
            _ => return Err("jobs.not_final"),
        }
        if self.is_unmet(id) {
            return Err("jobs.dependency_unmet");
        }
        self.reopen(id)?;
        if self.is_key_taken(id) {
            return Err("jobs.unique_key_held");
        }
        self.queue_again(id);
        Ok(())
    }

    /// With all its attempts and all its time, after what it still has to run after.
    pub(super) fn queue_again(&mut self, id: &str) {
        let now = self.now;
        let waits = self.ask_again(id);
        let job = self.job(id);
        job.put_back(if waits { Waiting } else { Queued }, now, now);
        job.deadline_at = job.deadline.filter(|_| !waits).map(|deadline| now + deadline);
        (job.attempts_until, job.crashes, job.token) = (job.attempt + job.max_attempts, 0, 0);
        (job.child_batch, job.is_expiring, job.result) = (None, false, None);
    }

    /// The process dies, and the next one knows that nobody can be at work.
    pub(super) fn crash(&mut self) {
        for id in self.held() {
            self.end_attempt(&id, &End::Interrupted);
        }
        self.workers.clear();
    }

    /// Jobs that an attempt holds.
    pub(super) fn held(&self) -> Vec<String> {
        self.jobs.iter().filter(|(_, job)| job.holder.is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// What time alone has brought about at `now`, and what follows from it, until nothing does.
    pub(super) fn settle(&mut self) {
        while self.settle_once() {}
    }

    fn settle_once(&mut self) -> bool {
        let now = self.now;
        let is_lost = |job: &Job| {
            job.holder.as_ref().is_some_and(|worker| self.workers.get(worker).is_none_or(|expires| *expires < now))
        };
        let lost: Vec<String> = self.having(is_lost);
        for id in &lost {
            self.end_attempt(id, &End::LOST);
        }
        self.workers.retain(|_, expires| *expires >= now);
        let overdue = self.having(|job| job.holder.is_some() && job.started_at + job.timeout + TIMEOUT_SLACK < now);
        for id in &overdue {
            self.end_attempt(id, &End::Failed { kind: "timeout", is_retryable: true, after: None });
        }
        let over =
            self.having(|job| job.state != Cancelling && job.deadline_at.is_some_and(|deadline| deadline <= now));
        for id in &over {
            self.stop(id, true);
        }
        let waited = self.having(|job| job.state == Queued && job.queue_until.is_some_and(|until| until <= now));
        for id in &waited {
            self.finish(id, Expired, Some("expired"), None);
        }
        let doomed = self.doomed();
        // What one of these waits for may have ended at the same instant: then either is told as the cause.
        let hopeless: Vec<&String> = doomed.iter().filter(|id| self.is_hopeless(id)).collect();
        for id in &doomed {
            self.stop(id, false);
            self.job(id).or_error = hopeless.contains(&id).then_some("dependency");
        }
        let due = self.having(|job| job.state == Scheduled && job.run_at <= now);
        for id in &due {
            let job = self.job(id);
            (job.state, job.queue_until) = (Queued, job.queue_timeout.map(|timeout| now + timeout));
        }
        let is_more_told = self.settle_dependencies();
        is_more_told || ![lost, overdue, over, waited, doomed, due].iter().all(Vec::is_empty)
    }

    pub(super) fn having(&self, is_so: impl Fn(&Job) -> bool) -> Vec<String> {
        self.jobs.iter().filter(|(_, job)| !job.is_final() && is_so(job)).map(|(id, _)| id.clone()).collect()
    }

    /// When time next brings something about by itself.
    pub(super) fn next_due(&self) -> Option<Time> {
        let of_jobs = self.jobs.values().filter(|job| !job.is_final()).flat_map(|job| {
            [
                Some(job.run_at).filter(|_| job.state == Scheduled),
                job.queue_until.filter(|_| job.state == Queued),
                job.deadline_at.filter(|_| job.state != Cancelling),
                job.holder.as_ref().map(|_| job.started_at + job.timeout + TIMEOUT_SLACK + INSTANT),
            ]
        });
        let of_workers = self.workers.values().map(|expires| *expires + INSTANT);
        of_jobs.flatten().chain(of_workers).filter(|at| *at > self.now).min()
    }
}
