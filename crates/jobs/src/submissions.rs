//! Taking jobs in: what a caller asks for is checked against the rules, every fault is told at its pointer, and what is
//! good becomes rows. Nothing is taken in part.

mod writing;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kit::{
    Fail, clock,
    fail::Violation,
    grpc::Call,
    idempotency,
    identity::Caller,
    telemetry::{Span, span},
};
use proto::jobs::{JobSpec, SubmitJobsResponse};
use uuid::Uuid;

pub(crate) use writing::{Submission, Taken, write};

use crate::{
    Core, SCHEMA,
    engine::{self, After, Backoff, Nameable, NewJob, Place, RetryOn, Unique},
};

/// Jobs that one call may bring.
pub(crate) const JOBS_MAX: usize = 1_000;
/// Bytes of one job's arguments. Payloads stay small and bytes go into files; the largest that has to fit is a
/// `process_batch` that names its 10,000 files.
pub(crate) const ARGS_BYTES_MAX: usize = 512 * 1024;
const TAGS_MAX: usize = 20;
const TAG_BYTES_MAX: usize = 100;
const KEY_BYTES_MAX: usize = 200;
/// Faults after which the rest of a call is not looked at: as many as are told (`kit::fail`).
const VIOLATIONS_ENOUGH: usize = 50;
const MAX_ATTEMPTS_DEFAULT: u32 = 3;
const MAX_ATTEMPTS_MAX: u32 = 100;
const PRIORITY_DEFAULT: u32 = 50;
/// An attempt may run for a week.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A job may wait in its queue, and be at it with all its attempts, for a year.
const CLOCK_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// A job may be scheduled a year ahead.
const AHEAD_MAX: TimeDelta = TimeDelta::days(366);

/// Whose jobs these are, and the request they belong to.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) owner: Uuid,
    pub(crate) request_id: String,
    pub(crate) traceparent: Option<String>,
}

impl Origin {
    /// The caller's own.
    ///
    /// # Errors
    /// `auth.required`.
    pub(crate) fn of(call: &Call) -> Result<Self, Fail> {
        Ok(Self {
            owner: call.caller()?.subject,
            request_id: call.request_id.clone(),
            traceparent: call.traceparent.clone(),
        })
    }
}

/// Begins the step in which jobs are handed in. Their rows name it as what they go on from, so the call does.
pub(crate) fn sending(call: &Call) -> (Call, Span) {
    let sending = span::submit();
    let traceparent = sending.traceparent().or_else(|| call.traceparent.clone());
    (call.clone().with_traceparent(traceparent), sending)
}

/// Checks specs one by one; `place` tells where the n-th will stand.
///
/// # Errors
/// `jobs.invalid` with every fault at `/jobs/<n>/...`; `jobs.forbidden` for a task, queue or priority that the caller's
/// roles do not allow.
pub(crate) async fn check(
    core: &Core,
    caller: &Caller,
    origin: &Origin,
    specs: Vec<JobSpec>,
    place: impl Fn(usize) -> Place,
) -> Result<Vec<NewJob>, Fail> {
    if specs.len() > JOBS_MAX {
        return Err(Fail::invalid("jobs.too_many", format!("One call brings at most {JOBS_MAX} jobs.")).at(
            "/jobs",
            "max_items",
            format!("must have at most {JOBS_MAX} items"),
        ));
    }
    let now = core.clock.now();
    let ids = specs.iter().map(|_| core.clock.new_id()).collect();
    let nameable = Nameable::of(&core.pool, caller, origin.owner, &specs, ids).await?;
    let mut jobs = Vec::with_capacity(specs.len());
    let mut violations = Vec::new();
    let mut forbidden = Vec::new();
    for (n, spec) in specs.into_iter().enumerate() {
        let at = format!("/jobs/{n}");
        match check_one(core, caller, origin, spec, (n, &nameable), place(n), &at, now, &mut forbidden).await? {
            Ok(job) => jobs.push(job),
            Err(faults) => violations.extend(faults),
        }
        if violations.len() >= VIOLATIONS_ENOUGH {
            break;
        }
    }
    if violations.is_empty() {
        violations = engine::rings(&jobs);
    }
    if !violations.is_empty() {
        return Err(Fail::invalid("jobs.invalid", "A job cannot be taken as it is.").with_violations(violations));
    }
    if !forbidden.is_empty() {
        return Err(Fail::forbidden("jobs.forbidden", "Your roles do not allow this job.").with_violations(forbidden));
    }
    Ok(jobs)
}

#[expect(clippy::too_many_arguments, reason = "one call site, and each is a different thing")]
async fn check_one(
    core: &Core,
    caller: &Caller,
    origin: &Origin,
    spec: JobSpec,
    (n, nameable): (usize, &Nameable),
    place: Place,
    at: &str,
    now: DateTime<Utc>,
    forbidden: &mut Vec<Violation>,
) -> Result<Result<NewJob, Vec<Violation>>, Fail> {
    let mut violations = Vec::new();
    let mut fault = |pointer: &str, code: &str, message: String| {
        violations.push(Violation { pointer: format!("{at}{pointer}"), code: code.to_owned(), message });
    };
    let mut forbid = |pointer: &str, message: String| {
        forbidden.push(Violation { pointer: format!("{at}{pointer}"), code: "forbidden".to_owned(), message });
    };

    if !caller.may_run_task(&spec.task) {
        forbid("/task", format!("your roles may not run the task `{}`", spec.task));
    }
    let priority = spec.priority.unwrap_or(PRIORITY_DEFAULT);
    if priority > 100 {
        fault("/priority", "maximum", "must be between 0 and 100".to_owned());
    } else if priority > caller.priority_max().max(PRIORITY_DEFAULT) {
        forbid("/priority", format!("your roles allow a priority of up to {}", caller.priority_max()));
    }
    let max_attempts = spec.max_attempts.unwrap_or(MAX_ATTEMPTS_DEFAULT);
    if !(1..=MAX_ATTEMPTS_MAX).contains(&max_attempts) {
        fault("/max_attempts", "maximum", format!("must be between 1 and {MAX_ATTEMPTS_MAX}"));
    }
    let timeout_s = spec.attempt_timeout_s.unwrap_or(core.settings.attempt_timeout_s);
    if !(0.001..=TIMEOUT_MAX.as_secs_f64()).contains(&timeout_s) {
        fault("/attempt_timeout_s", "maximum", format!("must be between 0.001 and {}", TIMEOUT_MAX.as_secs()));
    }
    for (pointer, asked) in [("/queue_timeout_s", spec.queue_timeout_s), ("/deadline_s", spec.deadline_s)] {
        if asked.is_some_and(|seconds| !(0.001..=CLOCK_MAX.as_secs_f64()).contains(&seconds)) {
            fault(pointer, "maximum", format!("must be between 0.001 and {}", CLOCK_MAX.as_secs()));
        }
    }
    let run_at = match spec.run_at.as_ref().map(clock::from_timestamp) {
        None => None,
        Some(Some(run_at)) if run_at <= now + AHEAD_MAX => Some(run_at),
        Some(_) => {
            fault("/run_at", "maximum", "must be a time within the next 366 days".to_owned());
            None
        }
    };
    let is_tag = |tag: &String| (1..=TAG_BYTES_MAX).contains(&tag.len()) && !tag.contains('\0');
    if spec.tags.len() > TAGS_MAX || !spec.tags.iter().all(is_tag) {
        fault("/tags", "max_items", format!("must be at most {TAGS_MAX} tags of 1 to {TAG_BYTES_MAX} bytes of text"));
    }
    let is_key = |key: &str| (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.contains('\0');
    if spec.concurrency_key.as_deref().is_some_and(|key| !is_key(key)) {
        fault("/concurrency_key", "max_length", format!("must be 1 to {KEY_BYTES_MAX} bytes of text"));
    }
    if spec.concurrency_key_for_all && caller.narrowed_to("jobs:read").is_some() {
        forbid("/concurrency_key_for_all", "your roles give you keys of your own alone".to_owned());
    }
    let backoff = match spec.backoff.as_ref().map(|asked| Backoff::parse(asked, &format!("{at}/backoff"))) {
        None => None,
        Some(Ok(backoff)) => Some(backoff),
        Some(Err(faults)) => {
            violations.extend(faults);
            None
        }
    };
    let retry_on = RetryOn::parse(&spec.retry_on, &format!("{at}/retry_on")).unwrap_or_else(|faults| {
        violations.extend(faults);
        RetryOn::default()
    });
    // A key's job is sure to be there for as long as history is.
    let window_max = Duration::from_secs(u64::from(core.settings.history_days) * 24 * 60 * 60);
    let unique = Unique::parse(spec.unique_key.as_deref(), spec.unique.as_ref(), at, window_max);
    let unique = unique.unwrap_or_else(|faults| {
        violations.extend(faults);
        None
    });
    if let Some(unique) = &unique {
        if place != Place::Alone {
            violations.push(Violation {
                pointer: format!("{at}/unique_key"),
                code: "not_in_a_batch".to_owned(),
                message: "a job of a batch cannot be unique".to_owned(),
            });
        } else if unique.is_for_all && caller.narrowed_to("jobs:read").is_some() {
            forbidden.push(Violation {
                pointer: format!("{at}/unique/for_all"),
                code: "forbidden".to_owned(),
                message: "your roles may make a job unique among your own only".to_owned(),
            });
        }
    }
    let after = After::parse(&spec, nameable, n, at).unwrap_or_else(|faults| {
        violations.extend(faults);
        After::default()
    });
    let mut task_queue = String::new();
    let args = if spec.args_json.is_empty() { "{}" } else { &spec.args_json };
    if args.len() > ARGS_BYTES_MAX {
        violations.push(Violation {
            pointer: format!("{at}/args"),
            code: "max_length".to_owned(),
            message: format!("must be at most {ARGS_BYTES_MAX} bytes; put large input into a file"),
        });
    } else {
        match serde_json::from_str::<serde_json::Value>(args) {
            Err(_) => violations.push(Violation {
                pointer: format!("{at}/args"),
                code: "json".to_owned(),
                message: "must be JSON".to_owned(),
            }),
            Ok(value) => match core.catalogue.check(&core.pool, &spec.task, &value, at).await? {
                Ok(task) => task_queue = task.queue,
                Err(faults) => violations.extend(faults),
            },
        }
    }
    let queue = spec.queue.unwrap_or(task_queue);
    if violations.is_empty() {
        if !core.catalogue.has_queue(&core.pool, &queue).await? {
            violations.push(Violation {
                pointer: format!("{at}/queue"),
                code: "jobs.unknown_queue".to_owned(),
                message: format!("there is no queue `{queue}`"),
            });
        } else if !caller.may_use_queue(&queue) {
            forbidden.push(Violation {
                pointer: format!("{at}/queue"),
                code: "forbidden".to_owned(),
                message: format!("your roles may not use the queue `{queue}`"),
            });
        }
    }
    if !violations.is_empty() {
        return Ok(Err(violations));
    }
    Ok(Ok(NewJob {
        id: nameable.own[n],
        owner_id: origin.owner,
        task: spec.task,
        queue,
        priority: u8::try_from(priority).unwrap_or(100),
        run_at,
        max_attempts: u8::try_from(max_attempts).unwrap_or(u8::MAX),
        attempt_timeout_s: timeout_s,
        backoff,
        queue_timeout_s: spec.queue_timeout_s,
        deadline_s: spec.deadline_s,
        retry_on,
        concurrency_key: spec.concurrency_key.map(|key| match spec.concurrency_key_for_all {
            true => format!("a:{key}"),
            false => format!("k:{}:{key}", origin.owner),
        }),
        tags: spec.tags,
        args: args.to_owned(),
        place,
        unique,
        after,
        request_id: origin.request_id.clone(),
        traceparent: origin.traceparent.clone(),
    }))
}

/// Answers a submission that cannot be taken. A refusal is kept under the caller's idempotency key as an answer is, and
/// a key that was answered before gets that answer again.
///
/// # Errors
/// `fail`, as a rule.
pub(crate) async fn refuse(core: &Core, call: &Call, fail: Fail) -> Result<SubmitJobsResponse, Fail> {
    let (Some(key), false) = (&call.idempotency, fail.is_transient()) else { return Err(fail) };
    let _told = span::transaction("jobs.refuse");
    let transaction = core.pool.begin().await?;
    let owner = call.caller()?.subject;
    let (mut answer, is_replayed): (SubmitJobsResponse, bool) =
        idempotency::once(transaction, SCHEMA, owner, Some(key), core.clock.now(), |_| Box::pin(async { Err(fail) }))
            .await?;
    answer.replayed = is_replayed;
    Ok(answer)
}
