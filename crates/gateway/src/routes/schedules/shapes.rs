//! Schedules as JSON shows them, and what is read from JSON to make one.

use std::collections::BTreeMap;

use kit::{Fail, clock::to_timestamp};
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    routes::jobs::NewJob,
    wire::{Raw, Time, maybe, maybe_time, time},
};

/// A schedule to be made. It has one of `cron`, `every_s` and `at`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSchedule {
    #[serde(default)]
    #[schemars(length(max = 100))]
    name: Option<String>,
    /// Five fields, or six with the seconds first: `0 9 * * MON-FRI`.
    #[serde(default)]
    cron: Option<String>,
    /// Seconds from one run to the next.
    #[serde(default)]
    #[schemars(range(min = 1))]
    every_s: Option<u32>,
    /// Where the seconds of `every_s` are counted from; now, unless said.
    #[serde(default)]
    anchor_at: Option<Time>,
    /// Once, then.
    #[serde(default)]
    at: Option<Time>,
    /// Of the IANA database, as `Europe/Berlin`; `UTC` unless said.
    #[serde(default)]
    time_zone: Option<String>,
    /// What is submitted; without `run_at`.
    job: NewJob,
    /// What becomes of occurrences that were missed; `once` unless said.
    #[serde(default)]
    missed: Option<Missed>,
    /// Most that `all` makes up for, the newest; 100 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    missed_max: Option<u32>,
    /// What becomes of an occurrence while a run is at work; `skip` unless said.
    #[serde(default)]
    overlap: Option<Overlap>,
    /// Most that wait under `queue_all`; 100 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    queue_max: Option<u32>,
    /// Each run is held back by up to so many seconds, always the same for the same occurrence; 0 unless said.
    #[serde(default)]
    #[schemars(range(max = 86400))]
    jitter_s: Option<u32>,
    /// Pauses itself once so many runs in a row have failed; never unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    pause_after_failures: Option<u32>,
}

/// `skip`: none is made up for; `once`: one run for all; `all`: one for each, up to `missed_max`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Missed {
    Skip,
    Once,
    All,
}

/// `skip`: it does not run; `queue_one` and `queue_all`: one or several wait; `cancel_running`: the run at work is cancelled
/// first; `allow`: they run side by side.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Overlap {
    Skip,
    QueueOne,
    QueueAll,
    CancelRunning,
    Allow,
}

/// A timing to be shown. It has one of `cron`, `every_s` and `at`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Preview {
    #[serde(default)]
    cron: Option<String>,
    #[serde(default)]
    #[schemars(range(min = 1))]
    every_s: Option<u32>,
    #[serde(default)]
    anchor_at: Option<Time>,
    #[serde(default)]
    at: Option<Time>,
    #[serde(default)]
    time_zone: Option<String>,
    /// How many; 10 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    count: Option<u32>,
    /// Those after this time; now, unless said.
    #[serde(default)]
    after: Option<Time>,
}

/// A past span, both ends part of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Backfill {
    pub(super) from: Time,
    pub(super) until: Time,
}

/// A schedule.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Schedule {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    #[schemars(extend("format" = "uuid"))]
    owner_id: String,
    name: Option<String>,
    cron: Option<String>,
    every_s: Option<u32>,
    anchor_at: Option<Time>,
    at: Option<Time>,
    time_zone: String,
    job: ScheduledJob,
    missed: String,
    missed_max: u32,
    overlap: String,
    queue_max: u32,
    jitter_s: u32,
    pause_after_failures: Option<u32>,
    /// `active`, `paused`, or `finished` when nothing comes any more.
    state: String,
    next_at: Option<Time>,
    paused_at: Option<Time>,
    /// `null` when it paused itself.
    paused_by: Option<String>,
    pause_reason: Option<String>,
    /// Runs that failed since the last that succeeded.
    failures: u32,
    /// Why its job could not be submitted the last time it came due.
    last_error: Option<String>,
    last_error_at: Option<Time>,
    /// Occurrences that were missed and not made up for.
    missed_count: u64,
    /// Occurrences that did not run since another was at work.
    skipped_count: u64,
    /// The newest ten.
    runs: Vec<Run>,
    created_at: Time,
    updated_at: Time,
}

/// The job that a schedule submits, as it was asked for.
#[derive(Debug, Serialize, JsonSchema)]
struct ScheduledJob {
    task: String,
    args: Raw,
    queue: Option<String>,
    priority: Option<u32>,
    max_attempts: Option<u32>,
    backoff: Option<ScheduledBackoff>,
    attempt_timeout_s: Option<f64>,
    queue_timeout_s: Option<f64>,
    deadline_s: Option<f64>,
    retry_on: BTreeMap<String, ScheduledRetryOn>,
    concurrency_key: Option<String>,
    concurrency_key_for_all: bool,
    tags: Vec<String>,
    unique_key: Option<String>,
    unique: Option<ScheduledUnique>,
}

/// How its jobs are unique.
#[derive(Debug, Serialize, JsonSchema)]
struct ScheduledUnique {
    hold: Option<String>,
    window_s: Option<f64>,
    on_conflict: Option<String>,
    for_all: bool,
}

/// What is done about one kind of error.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum ScheduledRetryOn {
    Retry(bool),
    Backoff(ScheduledBackoff),
}

/// How long its retries wait.
#[derive(Debug, Serialize, JsonSchema)]
struct ScheduledBackoff {
    kind: String,
    seconds: Vec<f64>,
    seconds_max: Option<f64>,
    jitter: Option<f64>,
}

/// One run of a schedule.
#[derive(Debug, Serialize, JsonSchema)]
struct Run {
    occurrence_at: Time,
    /// `due`, `run` (by hand) or `backfill`.
    kind: String,
    /// Known also before the job is there.
    #[schemars(extend("format" = "uuid"))]
    job_id: String,
    /// The job's state; `waiting` before it is there, `gone` when it is not kept any more.
    state: String,
}

/// A job that was submitted.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Started {
    #[schemars(extend("format" = "uuid"))]
    pub(super) job_id: String,
}

/// What is run of a past span.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Backfilled {
    /// Of what runs now or waits, oldest first.
    pub(super) job_ids: Vec<String>,
    /// Occurrences of the span that had run, or were to, before.
    pub(super) existing: u32,
}

/// When a timing comes due.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Occurrences {
    items: Vec<Occurrence>,
    /// The edition of the time zones that it was computed with.
    time_zone_data: String,
}

/// One time at which a timing comes due.
#[derive(Debug, Serialize, JsonSchema)]
struct Occurrence {
    at: Time,
    /// What the zone's clock shows, with its offset from UTC.
    local: String,
    utc_offset: String,
    /// `clock goes forward` or `clock goes back` within an odd hour.
    note: Option<String>,
}

impl NewSchedule {
    pub(super) fn write(self) -> rpc::ScheduleSpec {
        rpc::ScheduleSpec {
            name: self.name.unwrap_or_default(),
            timing: Some(timing(self.cron, self.every_s, self.anchor_at, self.at, self.time_zone)),
            job: Some(self.job.write()),
            missed: self.missed.map(Missed::as_str).unwrap_or_default().to_owned(),
            missed_max: self.missed_max,
            overlap: self.overlap.map(Overlap::as_str).unwrap_or_default().to_owned(),
            queue_max: self.queue_max,
            jitter_s: self.jitter_s.unwrap_or_default(),
            pause_after_failures: self.pause_after_failures,
        }
    }
}

impl Preview {
    pub(super) fn write(self) -> rpc::PreviewScheduleRequest {
        rpc::PreviewScheduleRequest {
            timing: Some(timing(self.cron, self.every_s, self.anchor_at, self.at, self.time_zone)),
            count: self.count.unwrap_or_default(),
            after: self.after.map(to_timestamp),
        }
    }
}

fn timing(
    cron: Option<String>,
    every_s: Option<u32>,
    anchor_at: Option<Time>,
    at: Option<Time>,
    time_zone: Option<String>,
) -> rpc::ScheduleTiming {
    rpc::ScheduleTiming {
        cron: cron.unwrap_or_default(),
        every_s,
        anchor_at: anchor_at.map(to_timestamp),
        at: at.map(to_timestamp),
        time_zone: time_zone.unwrap_or_default(),
    }
}

impl Missed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

impl Overlap {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::QueueOne => "queue_one",
            Self::QueueAll => "queue_all",
            Self::CancelRunning => "cancel_running",
            Self::Allow => "allow",
        }
    }
}

impl Schedule {
    pub(super) fn read(schedule: rpc::Schedule) -> Result<Self, Fail> {
        let whole = || Fail::internal("jobs showed a schedule without its spec");
        let spec = schedule.spec.ok_or_else(whole)?;
        let timing = spec.timing.ok_or_else(whole)?;
        Ok(Self {
            id: schedule.id,
            owner_id: schedule.owner_id,
            name: maybe(spec.name),
            cron: maybe(timing.cron),
            every_s: timing.every_s,
            anchor_at: maybe_time(timing.anchor_at),
            at: maybe_time(timing.at),
            time_zone: timing.time_zone,
            job: ScheduledJob::read(spec.job.ok_or_else(whole)?)?,
            missed: spec.missed,
            missed_max: spec.missed_max.unwrap_or_default(),
            overlap: spec.overlap,
            queue_max: spec.queue_max.unwrap_or_default(),
            jitter_s: spec.jitter_s,
            pause_after_failures: spec.pause_after_failures,
            state: schedule.state,
            next_at: maybe_time(schedule.next_at),
            paused_at: maybe_time(schedule.paused_at),
            paused_by: maybe(schedule.paused_by),
            pause_reason: maybe(schedule.pause_reason),
            failures: schedule.failures,
            last_error: maybe(schedule.last_error),
            last_error_at: maybe_time(schedule.last_error_at),
            missed_count: schedule.missed,
            skipped_count: schedule.skipped,
            runs: schedule.runs.into_iter().map(Run::read).collect::<Result<_, _>>()?,
            created_at: time(schedule.created_at)?,
            updated_at: time(schedule.updated_at)?,
        })
    }
}

impl ScheduledJob {
    /// Field by field, so that what a job may be asked for and this does not show does not compile: a schedule is changed by
    /// what was read of it.
    fn read(job: rpc::JobSpec) -> Result<Self, Fail> {
        let rpc::JobSpec {
            task,
            args_json,
            queue,
            priority,
            run_at: _,
            max_attempts,
            backoff,
            attempt_timeout_s,
            tags,
            queue_timeout_s,
            deadline_s,
            retry_on,
            concurrency_key,
            concurrency_key_for_all,
            unique_key,
            unique,
            after: _,
            after_needs: _,
        } = job;
        let args = if args_json.is_empty() { "{}".to_owned() } else { args_json };
        let rule = |rule: rpc::RetryOn| match rule.backoff {
            Some(backoff) if rule.retry => ScheduledRetryOn::Backoff(ScheduledBackoff::read(backoff)),
            _ => ScheduledRetryOn::Retry(rule.retry),
        };
        Ok(Self {
            task,
            args: Raw::parse(args)?,
            queue,
            priority,
            max_attempts,
            backoff: backoff.map(ScheduledBackoff::read),
            attempt_timeout_s,
            queue_timeout_s,
            deadline_s,
            retry_on: retry_on.into_iter().map(|asked| (asked.error_kind.clone(), rule(asked))).collect(),
            concurrency_key,
            concurrency_key_for_all,
            tags,
            unique_key,
            unique: unique.map(ScheduledUnique::read),
        })
    }
}

impl ScheduledUnique {
    fn read(unique: rpc::Unique) -> Self {
        Self {
            hold: maybe(unique.hold),
            window_s: unique.window_s,
            on_conflict: maybe(unique.on_conflict),
            for_all: unique.for_all,
        }
    }
}

impl ScheduledBackoff {
    fn read(backoff: rpc::Backoff) -> Self {
        Self { kind: backoff.kind, seconds: backoff.seconds, seconds_max: backoff.seconds_max, jitter: backoff.jitter }
    }
}

impl Run {
    fn read(run: rpc::ScheduleRun) -> Result<Self, Fail> {
        Ok(Self { occurrence_at: time(run.occurrence_at)?, kind: run.kind, job_id: run.job_id, state: run.state })
    }
}

impl Occurrences {
    pub(super) fn read(answer: rpc::PreviewScheduleResponse) -> Result<Self, Fail> {
        let items = answer.items.into_iter().map(|occurrence| {
            Ok(Occurrence {
                at: time(occurrence.at)?,
                local: occurrence.local,
                utc_offset: occurrence.utc_offset,
                note: maybe(occurrence.note),
            })
        });
        Ok(Self { items: items.collect::<Result<_, Fail>>()?, time_zone_data: answer.time_zone_data })
    }
}
