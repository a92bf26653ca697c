//! What follows from a failed attempt: another one and when, or the end of the job and in which state.
//!
//! In this order: a job that was at work three times when its process died is left alone. A rule for the kind of the error
//! goes before what the task says of it. A delay that the task asks for goes before the job's backoff. And what would
//! start after the job's deadline does not start.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use kit::fail::Violation;
use serde::{Deserialize, Serialize};

use super::{
    backoff::Backoff,
    finish::Fault,
    states::State,
    steps::{Ended, Row, Step},
};

/// Attempts of one job that may be at work when their process dies. It may be the job that kills them.
const CRASHES_MAX: i16 = 3;
/// Kinds of error that say so.
const CRASHES: [&str; 2] = ["worker_crashed", "heartbeat_lost"];
/// Kinds that one job may have rules for.
const RULES_MAX: usize = 20;
const KIND_BYTES_MAX: usize = 64;
/// Longest wait that a task may ask for: a week.
pub(crate) const ASKED_DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Rules by kind of error, kept with their job as JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RetryOn(BTreeMap<String, Rule>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rule {
    retry: bool,
    backoff: Option<Backoff>,
}

impl RetryOn {
    /// Checks what a caller asks for; faults are told at pointers below `at`.
    ///
    /// # Errors
    /// Every fault.
    pub(crate) fn parse(asked: &[proto::jobs::RetryOn], at: &str) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut rules = BTreeMap::new();
        let fault =
            |pointer: String, code: &str, message: String| Violation { pointer, code: code.to_owned(), message };
        if asked.len() > RULES_MAX {
            violations.push(fault(at.to_owned(), "max_properties", format!("must have at most {RULES_MAX} kinds")));
        }
        for rule in asked.iter().take(RULES_MAX) {
            let kind = &rule.error_kind;
            let here = format!("{at}/{kind}");
            let is_kind = (1..=KIND_BYTES_MAX).contains(&kind.len())
                && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if !is_kind {
                let message = format!("an error kind has 1 to {KIND_BYTES_MAX} of a-z, 0-9 and _");
                violations.push(fault(at.to_owned(), "property_names", message));
                continue;
            }
            let backoff = match rule.backoff.as_ref().map(|asked| Backoff::parse(asked, &here)).transpose() {
                Ok(backoff) => backoff,
                Err(faults) => {
                    violations.extend(faults);
                    continue;
                }
            };
            rules.insert(kind.clone(), Rule { retry: rule.retry, backoff });
        }
        if violations.is_empty() { Ok(Self(rules)) } else { Err(violations) }
    }

    /// `None` without rules.
    pub(crate) fn to_json(&self) -> Option<String> {
        // Words, numbers and flags only, none of them a NaN: parse has seen to it.
        if self.0.is_empty() { None } else { serde_json::to_string(self).ok() }
    }

    fn from_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// What becomes of a job whose attempt failed. `asked` is the delay that the task asks for.
pub(super) fn after_failure(row: Row, fault: Fault, asked: Option<Duration>, now: DateTime<Utc>) -> Step {
    let is_crash = CRASHES.contains(&fault.kind.as_str());
    let attempt = Ended::failed(&fault);
    if is_crash && row.crashes + 1 >= CRASHES_MAX {
        let message =
            format!("{CRASHES_MAX} times its process or worker was lost while it was at work. {}", fault.message);
        let error = Some(Fault::new("worker_crashed", message, false));
        return Step { attempt, error, ..Step::to(row, State::Failed) };
    }
    let rules = row.retry_on.as_deref().map(RetryOn::from_json).unwrap_or_default();
    let rule = rules.0.get(&fault.kind);
    let is_retried = rule.map_or(fault.is_retryable, |rule| rule.retry) && row.attempt < row.attempts_until;
    if !is_retried {
        return Step { attempt, error: Some(fault), ..Step::to(row, State::Failed) };
    }
    let delay = asked.and_then(|delay| TimeDelta::from_std(delay.min(ASKED_DELAY_MAX)).ok()).unwrap_or_else(|| {
        let own = || row.backoff.as_deref().map(Backoff::from_json).unwrap_or_default();
        let backoff = rule.and_then(|rule| rule.backoff.clone()).unwrap_or_else(own);
        let retry = row.attempt - (row.attempts_until - row.max_attempts);
        backoff.delay(u32::try_from(retry).unwrap_or(1), row.id)
    });
    let message = fault.message.clone();
    let mut step = again(row, now + delay, attempt, &format!("The last attempt failed: {message}"));
    step.is_crash = is_crash && step.next == State::Scheduled;
    if step.next == State::Scheduled {
        step.error = Some(fault);
    }
    step
}

/// What becomes of a job whose task asks for another attempt later, which does not count.
pub(super) fn after_snooze(row: Row, asked: Duration, now: DateTime<Utc>) -> Step {
    let delay = TimeDelta::from_std(asked.min(ASKED_DELAY_MAX)).unwrap_or_default();
    let step = again(row, now + delay, Ended::with("snoozed"), "The task asked for a later attempt.");
    Step { is_attempt_free: true, ..step }
}

/// Another attempt at `run_at`, unless the job's deadline comes first: then its end, now, with the reason beside it.
fn again(row: Row, run_at: DateTime<Utc>, attempt: Option<Ended>, reason: &str) -> Step {
    if row.deadline_at.is_some_and(|deadline| deadline <= run_at) {
        let message = format!("Its deadline comes before its next attempt. {reason}");
        return Step { attempt, ..Step::expired(row, message) };
    }
    Step { attempt, run_at: Some(run_at), ..Step::to(row, State::Scheduled) }
}
