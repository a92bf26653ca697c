//! A job as the model knows it, and how attempts may end.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, TimeDelta, Utc};
use proto::jobs::JobState::{self, Cancelled, Expired, Failed, Queued, Scheduled, Succeeded, Waiting};

pub(super) type Time = DateTime<Utc>;

/// How a failed attempt waits for the next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Backoff {
    Fixed(TimeDelta),
    /// What a job has that names none: 1, 2, 4 .. 300 s, up to a fifth less by chance.
    Usual,
}

#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) task: String,
    pub(super) priority: u32,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    /// By kind of error: whether it is retried, and after what delay in place of the backoff.
    pub(super) rules: BTreeMap<&'static str, (bool, Option<TimeDelta>)>,
    pub(super) queue_timeout: Option<TimeDelta>,
    pub(super) deadline: Option<TimeDelta>,
    pub(super) timeout: TimeDelta,
    pub(super) batch: Option<String>,
    pub(super) is_finalize: bool,
    /// The jobs that it runs after, and how each that has ended did.
    pub(super) after: BTreeMap<String, Option<JobState>>,
    /// Whether these have to succeed, or only to end.
    pub(super) needs_success: bool,
    /// Held from its submission to its end.
    pub(super) unique_key: Option<&'static str>,

    pub(super) state: JobState,
    pub(super) run_at: Time,
    /// Chance may have let it come so much earlier.
    pub(super) run_at_least: Time,
    pub(super) rank: Time,
    pub(super) queue_until: Option<Time>,
    pub(super) deadline_at: Option<Time>,
    pub(super) attempt: u32,
    pub(super) attempts_until: u32,
    pub(super) crashes: u32,
    pub(super) token: u64,
    /// The worker whose attempt holds it.
    pub(super) holder: Option<String>,
    pub(super) started_at: Time,
    pub(super) child_batch: Option<String>,
    pub(super) is_expiring: bool,
    pub(super) error: Option<&'static str>,
    /// Two things ended it at the same instant, and either may be told.
    pub(super) or_error: Option<&'static str>,
    /// What the accepted attempt has told; nothing where the engine makes it up.
    pub(super) result: Option<String>,
    /// How its attempts have ended, the oldest first.
    pub(super) attempts: Vec<&'static str>,
    /// How often it became final.
    pub(super) ends: u32,
}

impl Job {
    /// One that is submitted now, to run then.
    pub(super) fn new(task: &str, now: Time, run_at: Time) -> Self {
        Self {
            task: task.to_owned(),
            priority: 50,
            max_attempts: 3,
            backoff: Backoff::Usual,
            rules: BTreeMap::new(),
            queue_timeout: None,
            deadline: None,
            timeout: TimeDelta::seconds(900),
            batch: None,
            is_finalize: false,
            after: BTreeMap::new(),
            needs_success: true,
            unique_key: None,
            state: if run_at > now { Scheduled } else { Queued },
            run_at,
            run_at_least: run_at,
            rank: run_at,
            queue_until: None,
            deadline_at: None,
            attempt: 0,
            attempts_until: 3,
            crashes: 0,
            token: 0,
            holder: None,
            started_at: now,
            child_batch: None,
            is_expiring: false,
            error: None,
            or_error: None,
            result: None,
            attempts: Vec::new(),
            ends: 0,
        }
    }

    /// Fills in what follows from what was asked for.
    pub(super) fn settled(mut self) -> Self {
        self.attempts_until = self.max_attempts;
        self.deadline_at = self.deadline.map(|deadline| self.run_at + deadline);
        self.queue_until = self.queue_timeout.filter(|_| self.state == Queued).map(|timeout| self.run_at + timeout);
        self.rank = rank(self.run_at, self.priority);
        self
    }

    pub(super) fn is_final(&self) -> bool {
        matches!(self.state, Succeeded | Failed | Cancelled | Expired)
    }

    /// Waits until these have ended, which is when its clocks begin.
    pub(super) fn waiting(mut self, jobs: impl IntoIterator<Item = String>) -> Self {
        self.after.extend(jobs.into_iter().map(|job| (job, None)));
        if !self.after.is_empty() {
            (self.state, self.queue_until, self.deadline_at) = (Waiting, None, None);
        }
        self
    }

    /// Whether a job that it runs after may have ended so.
    pub(super) fn is_met_by(&self, state: JobState) -> bool {
        state == Succeeded || !self.needs_success
    }

    /// Waits for an attempt from `run_at` on.
    pub(super) fn put_back(&mut self, state: JobState, run_at: Time, now: Time) {
        (self.state, self.holder, self.error, self.or_error) = (state, None, None, None);
        (self.run_at, self.run_at_least, self.rank) = (run_at, run_at, rank(run_at, self.priority));
        self.queue_until = self.queue_timeout.filter(|_| state == Queued).map(|timeout| now + timeout);
    }
}

/// What was asked for, in a line.
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, priority, max_attempts, run_at, backoff, rules, queue_timeout, deadline, timeout, .. } = self;
        write!(
            f,
            "{task} at {run_at}, priority {priority}, {max_attempts} attempts of {timeout}, {backoff:?}, {rules:?}"
        )?;
        write!(f, ", in the queue for {queue_timeout:?}, deadline {deadline:?}")?;
        let needs = if self.needs_success { "success" } else { "end" };
        if self.after.is_empty() { Ok(()) } else { write!(f, ", after the {needs} of {:?}", self.after.keys()) }
    }
}

/// Where a job stands in its queue: a point of priority is worth ten seconds.
fn rank(run_at: Time, priority: u32) -> Time {
    run_at - TimeDelta::seconds(i64::from(priority) * 10)
}

/// How an attempt ends.
#[derive(Debug, Clone)]
pub(super) enum End {
    Succeeded(String),
    Failed { kind: &'static str, is_retryable: bool, after: Option<TimeDelta> },
    Snoozed(TimeDelta),
    Cancelled,
    Stopped,
    Interrupted,
    Suspended(String),
}

impl End {
    /// Its worker is gone, or knows of the attempt no more.
    pub(super) const LOST: Self = Self::Failed { kind: "heartbeat_lost", is_retryable: true, after: None };
}
