//! How long a failed attempt waits for the next one.

use chrono::TimeDelta;
use kit::fail::Violation;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest wait that may be asked for: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// Numbers that a list may have.
const LIST_MAX: usize = 100;

/// A checked backoff, kept with its job as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    kind: Kind,
    /// One number, but for a list.
    seconds: Vec<f64>,
    seconds_max: f64,
    /// Share of a delay that is left to chance, 0 to 1.
    jitter: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Exponential,
    Linear,
    Fixed,
    List,
}

impl Default for Backoff {
    /// Exponential from 1 s to 5 min, a fifth of it left to chance.
    fn default() -> Self {
        Self { kind: Kind::Exponential, seconds: vec![1.0], seconds_max: 300.0, jitter: 0.2 }
    }
}

impl Backoff {
    /// Checks what a caller asks for; faults are told at pointers below `at`.
    pub(crate) fn parse(asked: &proto::jobs::Backoff, at: &str) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut fault = |pointer: &str, code: &str, message: &str| {
            violations.push(Violation {
                pointer: format!("{at}{pointer}"),
                code: code.to_owned(),
                message: message.to_owned(),
            });
        };
        let kind = match asked.kind.as_str() {
            "exponential" => Kind::Exponential,
            "linear" => Kind::Linear,
            "fixed" => Kind::Fixed,
            "list" => Kind::List,
            _ => {
                fault("/kind", "enum", "must be `exponential`, `linear`, `fixed` or `list`");
                Kind::Fixed
            }
        };
        let count_fits = match kind {
            Kind::List => (1..=LIST_MAX).contains(&asked.seconds.len()),
            _ => asked.seconds.len() == 1,
        };
        if !count_fits {
            fault("/seconds", "type", "must be one number, or for `list` 1 to 100 of them");
        }
        if !asked.seconds.iter().all(|seconds| (0.0..=SECONDS_MAX).contains(seconds)) {
            fault("/seconds", "maximum", "must be between 0 and 86400");
        }
        let seconds_max = asked.seconds_max.unwrap_or(SECONDS_MAX);
        if !(0.0..=SECONDS_MAX).contains(&seconds_max) {
            fault("/seconds_max", "maximum", "must be between 0 and 86400");
        }
        let jitter = asked.jitter.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&jitter) {
            fault("/jitter", "maximum", "must be between 0 and 1");
        }
        if violations.is_empty() {
            Ok(Self { kind, seconds: asked.seconds.clone(), seconds_max, jitter })
        } else {
            Err(violations)
        }
    }

    /// The wait after the `retry`-th failure, counted from 1. Chance comes from the job's id, so that the same job waits
    /// the same, and a thousand jobs that failed together come back apart.
    pub(crate) fn delay(&self, retry: u32, job: Uuid) -> TimeDelta {
        let first = self.seconds.first().copied().unwrap_or(0.0);
        let seconds = match self.kind {
            Kind::Fixed => first,
            Kind::Linear => first * f64::from(retry),
            Kind::Exponential => first * 2f64.powi(i32::try_from(retry.saturating_sub(1).min(60)).unwrap_or(60)),
            Kind::List => {
                let at = usize::try_from(retry.saturating_sub(1)).unwrap_or(usize::MAX);
                self.seconds.get(at).or(self.seconds.last()).copied().unwrap_or(0.0)
            }
        };
        let seconds = seconds.min(self.seconds_max);
        let chance = chance(job, retry);
        let seconds = seconds * (1.0 - self.jitter * chance);
        #[expect(clippy::cast_possible_truncation, reason = "at most a day, in microseconds")]
        TimeDelta::microseconds((seconds * 1e6) as i64)
    }

    pub(crate) fn to_json(&self) -> String {
        // Numbers and words only, none of them a NaN: parse has seen to it.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn from_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// A number in [0, 1) that differs between jobs and between their retries (FNV-1a over both).
fn chance(job: Uuid, retry: u32) -> f64 {
    let bytes = job.as_bytes().iter().chain(&retry.to_le_bytes()).copied().collect::<Vec<_>>();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept, which is what a double has")]
    let share = (hash >> 11) as f64 / (1u64 << 53) as f64;
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(backoff: &Backoff, retry: u32) -> f64 {
        backoff.delay(retry, Uuid::nil()).as_seconds_f64()
    }

    fn asked(kind: &str, seconds: &[f64]) -> proto::jobs::Backoff {
        proto::jobs::Backoff { kind: kind.to_owned(), seconds: seconds.to_vec(), seconds_max: Some(60.0), jitter: None }
    }

    #[test]
    fn each_kind_grows_as_its_name_says_and_stops_at_the_bound() {
        let exponential = Backoff::parse(&asked("exponential", &[2.0]), "").expect("good");
        assert_eq!([1, 2, 3, 9].map(|retry| seconds(&exponential, retry)), [2.0, 4.0, 8.0, 60.0]);
        let linear = Backoff::parse(&asked("linear", &[2.0]), "").expect("good");
        assert_eq!([1, 2, 3].map(|retry| seconds(&linear, retry)), [2.0, 4.0, 6.0]);
        let list = Backoff::parse(&asked("list", &[5.0, 1.0]), "").expect("good");
        assert_eq!([1, 2, 7].map(|retry| seconds(&list, retry)), [5.0, 1.0, 1.0]);
    }

    #[test]
    fn jitter_only_shortens_and_sets_jobs_apart() {
        let backoff = Backoff { jitter: 0.5, ..Backoff::default() };
        let waits: Vec<f64> = (0..100u128).map(|job| backoff.delay(3, Uuid::from_u128(job)).as_seconds_f64()).collect();
        assert!(waits.iter().all(|wait| (2.0..=4.0).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < 2.5) && waits.iter().any(|wait| *wait > 3.5));
    }

    #[test]
    fn every_fault_is_told_at_its_pointer() {
        let bad =
            proto::jobs::Backoff { kind: "slow".into(), seconds: vec![-1.0], seconds_max: None, jitter: Some(2.0) };
        let pointers: Vec<_> =
            Backoff::parse(&bad, "/backoff").expect_err("bad").into_iter().map(|v| v.pointer).collect();
        assert_eq!(pointers, ["/backoff/kind", "/backoff/seconds", "/backoff/jitter"]);
    }
}
