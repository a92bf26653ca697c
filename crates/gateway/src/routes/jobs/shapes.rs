//! Jobs as JSON shows them, and what is read from JSON to make one.

use std::collections::BTreeMap;

use kit::{Fail, clock::to_timestamp};
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::unique::Unique;
use crate::{
    route::Reply,
    wire::{Raw, Time, maybe, maybe_time, time},
};

/// A job to be done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct NewJob {
    /// One of `GET /api/v1/tasks`.
    task: String,
    /// As the task's JSON Schema asks; at most 256 KiB.
    args: serde_json::Value,
    /// The task's own queue unless said.
    #[serde(default)]
    queue: Option<String>,
    /// Higher goes first; 50 unless said. How high you may go depends on your role.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    priority: Option<u32>,
    /// Not before.
    #[serde(default)]
    run_at: Option<Time>,
    /// 3 unless said.
    #[serde(default)]
    #[schemars(range(min = 1))]
    max_attempts: Option<u32>,
    #[serde(default)]
    backoff: Option<Backoff>,
    /// Seconds one attempt may take; 900 unless said.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    attempt_timeout_s: Option<f64>,
    /// Seconds that a stay in the queue may take; after it the job is `expired`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    queue_timeout_s: Option<f64>,
    /// Seconds that all attempts may take with what lies between them, from `run_at` or from now; after it the job is
    /// stopped and `expired`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    deadline_s: Option<f64>,
    /// What to do about an error, by its kind: `false` to fail at once, `true` to retry even where the task says that this
    /// cannot help, or a backoff to retry with.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 20))]
    retry_on: BTreeMap<String, RetryOn>,
    /// One job of a key runs at a time, or as many as the queue's `key_concurrency` says. The key is your own.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200))]
    concurrency_key: Option<String>,
    /// The key is everyone's: for those who may read anyone's jobs.
    #[serde(default)]
    concurrency_key_for_all: bool,
    #[serde(default)]
    tags: Vec<String>,
    /// Of your jobs of this task that show the same key, one holds it. While another does, that one is answered, unless
    /// `unique` says otherwise. A job of a batch has none.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200))]
    unique_key: Option<String>,
    #[serde(default)]
    unique: Option<Unique>,
    /// Jobs that have to end before this one may start: ids, or `#0` for the first job of this call, `#1` for the second and
    /// so on, of those that stand before this one.
    #[serde(default)]
    #[schemars(length(max = 100))]
    after: Vec<String>,
    /// How they have to end: with success, unless said. Where one does not, this job is cancelled.
    #[serde(default)]
    after_needs: Option<Needs>,
}

/// How the jobs have to end that another runs after.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes) enum Needs {
    Succeeded,
    Ended,
}

/// What to do about one kind of error.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum RetryOn {
    Retry(bool),
    Backoff(Backoff),
}

/// How long to wait before each retry.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Backoff {
    kind: BackoffKind,
    /// The first delay, or for `list` one delay a retry, the last of them repeated.
    seconds: Seconds,
    /// Upper bound of one delay.
    #[serde(default)]
    #[schemars(range(min = 0))]
    seconds_max: Option<f64>,
    /// Share of a delay that is random.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    jitter: Option<f64>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum BackoffKind {
    Exponential,
    Linear,
    Fixed,
    List,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Seconds {
    One(#[schemars(range(min = 0))] f64),
    Several(#[schemars(length(min = 1, max = 100), inner(range(min = 0)))] Vec<f64>),
}

/// Jobs to be done, all or none of them accepted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct NewJobs {
    #[schemars(length(min = 1, max = 1000))]
    pub(in crate::routes) jobs: Vec<NewJob>,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobState {
    /// For other jobs to end.
    Waiting,
    Scheduled,
    Queued,
    Running,
    Suspended,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

/// Which jobs are asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobFilter {
    /// Most items in the answer; 50 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 200), extend("default" = 50))]
    pub(super) limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub(super) cursor: Option<String>,
    /// May be given several times: any of them.
    #[serde(default)]
    pub(super) state: Vec<JobState>,
    #[serde(default)]
    pub(super) task: Option<String>,
    #[serde(default)]
    pub(super) queue: Option<String>,
    #[serde(default)]
    pub(super) tag: Option<String>,
    /// For those who may read anyone's.
    #[serde(default)]
    pub(super) owner_id: Option<Uuid>,
    #[serde(default)]
    pub(super) batch_id: Option<Uuid>,
    #[serde(default)]
    pub(super) created_after: Option<Time>,
    #[serde(default)]
    pub(super) created_before: Option<Time>,
}

/// A job.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Job {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    task: String,
    queue: String,
    state: JobState,
    /// The present attempt, or the last one; 0 before the first.
    attempt: u32,
    max_attempts: u32,
    #[schemars(extend("format" = "uuid"))]
    owner_id: String,
    args: Raw,
    priority: u32,
    tags: Vec<String>,
    progress: Option<Progress>,
    waiting_reason: Option<WaitingReason>,
    /// Seconds that it has waited, by reason: those of `waiting_reason`. Of a job that is asked for by its id; empty in lists.
    waited: BTreeMap<String, f64>,
    /// How its stop was asked for, once it was.
    cancel_asked: Option<CancelAsked>,
    /// What the task made, once it has succeeded.
    result: Option<Raw>,
    error: Option<JobError>,
    worker_id: Option<String>,
    batch_id: Option<String>,
    /// The batch it fanned out.
    child_batch_id: Option<String>,
    created_at: Time,
    run_at: Option<Time>,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    /// When its stay in the queue is over.
    queue_until: Option<Time>,
    deadline_at: Option<Time>,
    /// The key by which it is kept from running beside others.
    concurrency_key: Option<String>,
    unique_key: Option<String>,
    /// The jobs that it runs after.
    after: Vec<String>,
    /// How those have to end: `succeeded` or `ended`.
    after_needs: Option<String>,
}

/// How far a job is.
#[derive(Debug, Serialize, JsonSchema)]
struct Progress {
    percent: f64,
    stage: String,
    message: String,
}

/// Why a job waits.
#[derive(Debug, Serialize, JsonSchema)]
struct WaitingReason {
    reason: String,
    since: Option<Time>,
    detail: String,
}

/// How a job was asked to stop.
#[derive(Debug, Serialize, JsonSchema)]
struct CancelAsked {
    at: Time,
    /// Nobody where it is the job's own deadline, or the end of what it belongs to.
    by: Option<String>,
    reason: Option<String>,
    /// What has not answered yet: `worker <id>` or `batch <id>`.
    awaits: Option<String>,
}

/// Why an attempt or a job failed.
#[derive(Debug, Serialize, JsonSchema)]
struct JobError {
    kind: String,
    message: String,
    /// Whether trying again can help.
    retryable: bool,
}

/// A job that was accepted.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::routes) struct Accepted {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    /// Whether it was there before.
    existing: bool,
}

/// Jobs that were accepted, in the order they were sent in.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::routes) struct AcceptedJobs {
    items: Vec<Accepted>,
}

/// Why something is to stop.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct Reason {
    /// Shown with the job.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub(in crate::routes) reason: Option<String>,
}

/// One try at a job.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Attempt {
    number: u32,
    /// `running`, `succeeded`, `failed`, `cancelled`, `suspended`, `interrupted` or `snoozed`.
    outcome: String,
    worker_id: Option<String>,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    error: Option<JobError>,
}

/// One line of a job's log.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LogLine {
    /// Grows with every line of the job.
    offset: u64,
    level: String,
    message: String,
    at: Time,
}

impl NewJob {
    pub(in crate::routes) fn write(self) -> rpc::JobSpec {
        rpc::JobSpec {
            task: self.task,
            args_json: self.args.to_string(),
            queue: self.queue,
            priority: self.priority,
            run_at: self.run_at.map(to_timestamp),
            max_attempts: self.max_attempts,
            backoff: self.backoff.map(Backoff::write),
            attempt_timeout_s: self.attempt_timeout_s,
            tags: self.tags,
            queue_timeout_s: self.queue_timeout_s,
            deadline_s: self.deadline_s,
            concurrency_key: self.concurrency_key,
            concurrency_key_for_all: self.concurrency_key_for_all,
            retry_on: self.retry_on.into_iter().map(|(kind, rule)| rule.write(kind)).collect(),
            unique_key: self.unique_key,
            unique: self.unique.map(Unique::write),
            after: self.after,
            after_needs: self.after_needs.map(Needs::as_str).unwrap_or_default().to_owned(),
        }
    }
}

impl Needs {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Ended => "ended",
        }
    }
}

impl NewJobs {
    pub(in crate::routes) fn write(self) -> Vec<rpc::JobSpec> {
        self.jobs.into_iter().map(NewJob::write).collect()
    }
}

impl RetryOn {
    fn write(self, error_kind: String) -> rpc::RetryOn {
        match self {
            Self::Retry(retry) => rpc::RetryOn { error_kind, retry, backoff: None },
            Self::Backoff(backoff) => rpc::RetryOn { error_kind, retry: true, backoff: Some(backoff.write()) },
        }
    }
}

impl Backoff {
    fn write(self) -> rpc::Backoff {
        let kind = match self.kind {
            BackoffKind::Exponential => "exponential",
            BackoffKind::Linear => "linear",
            BackoffKind::Fixed => "fixed",
            BackoffKind::List => "list",
        };
        let seconds = match self.seconds {
            Seconds::One(one) => vec![one],
            Seconds::Several(several) => several,
        };
        rpc::Backoff { kind: kind.into(), seconds, seconds_max: self.seconds_max, jitter: self.jitter }
    }
}

impl AcceptedJobs {
    pub(in crate::routes) fn reply(answer: rpc::SubmitJobsResponse) -> Reply<202, Self> {
        let items = answer.items.into_iter().map(|item| Accepted { id: item.id, existing: item.existing }).collect();
        Reply::new(Self { items }).replayed(answer.replayed)
    }
}

impl From<JobState> for rpc::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Waiting => Self::Waiting,
            JobState::Scheduled => Self::Scheduled,
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Suspended => Self::Suspended,
            JobState::Cancelling => Self::Cancelling,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
            JobState::Expired => Self::Expired,
        }
    }
}

impl JobState {
    fn read(state: rpc::JobState) -> Result<Self, Fail> {
        Ok(match state {
            rpc::JobState::Unspecified => return Err(Fail::internal("jobs showed a job without a state")),
            rpc::JobState::Waiting => Self::Waiting,
            rpc::JobState::Scheduled => Self::Scheduled,
            rpc::JobState::Queued => Self::Queued,
            rpc::JobState::Running => Self::Running,
            rpc::JobState::Suspended => Self::Suspended,
            rpc::JobState::Cancelling => Self::Cancelling,
            rpc::JobState::Succeeded => Self::Succeeded,
            rpc::JobState::Failed => Self::Failed,
            rpc::JobState::Cancelled => Self::Cancelled,
            rpc::JobState::Expired => Self::Expired,
        })
    }
}

impl Job {
    pub(super) fn read(job: rpc::Job) -> Result<Self, Fail> {
        Ok(Self {
            state: JobState::read(job.state())?,
            id: job.id,
            task: job.task,
            queue: job.queue,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            owner_id: job.owner_id,
            args: Raw::parse(job.args_json)?,
            priority: job.priority,
            tags: job.tags,
            progress: job.progress.map(|at| Progress { percent: at.percent, stage: at.stage, message: at.message }),
            waiting_reason: job.waiting_reason.map(|why| WaitingReason {
                reason: why.reason,
                since: maybe_time(why.since),
                detail: why.detail,
            }),
            cancel_asked: job.cancel_asked.map(CancelAsked::read).transpose()?,
            result: Raw::maybe(job.result_json)?,
            error: job.error.map(JobError::read),
            worker_id: maybe(job.worker_id),
            batch_id: maybe(job.batch_id),
            child_batch_id: maybe(job.child_batch_id),
            created_at: time(job.created_at)?,
            run_at: maybe_time(job.run_at),
            started_at: maybe_time(job.started_at),
            finished_at: maybe_time(job.finished_at),
            queue_until: maybe_time(job.queue_until),
            deadline_at: maybe_time(job.deadline_at),
            waited: job.waited.into_iter().collect(),
            concurrency_key: maybe(job.concurrency_key),
            unique_key: maybe(job.unique_key),
            after: job.after,
            after_needs: maybe(job.after_needs),
        })
    }
}

impl CancelAsked {
    fn read(asked: rpc::CancelAsked) -> Result<Self, Fail> {
        Ok(Self { at: time(asked.at)?, by: maybe(asked.by), reason: maybe(asked.reason), awaits: maybe(asked.awaits) })
    }
}

impl JobError {
    fn read(error: rpc::JobError) -> Self {
        Self { kind: error.kind, message: error.message, retryable: error.retryable }
    }
}

impl Attempt {
    pub(super) fn read(attempt: rpc::Attempt) -> Self {
        Self {
            number: attempt.number,
            outcome: attempt.outcome,
            worker_id: maybe(attempt.worker_id),
            started_at: maybe_time(attempt.started_at),
            finished_at: maybe_time(attempt.finished_at),
            error: attempt.error.map(JobError::read),
        }
    }
}

impl LogLine {
    pub(super) fn read(line: rpc::LogLine) -> Result<Self, Fail> {
        Ok(Self { offset: line.offset, level: line.level, message: line.message, at: time(line.at)? })
    }
}
