//! What a schedule is asked to be, checked: the message as it came becomes types, its defaults are filled in, and every
//! fault is told at its place in the request.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use kit::{
    clock::{from_timestamp, to_timestamp},
    fail::Violation,
};
use proto::jobs::{JobSpec, ScheduleSpec, ScheduleTiming};

use super::{cron::Cron, occurrences::Timing, zones::Zone};

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 100;
/// Longest interval: a year.
const EVERY_S_MAX: u32 = 366 * 24 * 60 * 60;
/// How far ahead an anchor or a one-off may lie.
const AHEAD_MAX: TimeDelta = TimeDelta::days(10 * 366);
/// Occurrences made up for, and waiting for each other, unless said, and at most.
const COUNT_DEFAULT: u32 = 100;
const COUNT_MAX: u32 = 1_000;
/// A day.
const JITTER_S_MAX: u32 = 24 * 60 * 60;
const FAILURES_MAX: u32 = 1_000;

/// A checked schedule.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) timing: Timing,
    pub(super) missed: Missed,
    pub(super) overlap: Overlap,
    pub(super) jitter_s: u32,
    pub(super) pause_after_failures: Option<u32>,
    /// Without a `run_at`; whether it can be submitted is not checked here.
    pub(super) job: JobSpec,
}

/// What becomes of occurrences that came due while nobody looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missed {
    Skip,
    /// One run makes up for all.
    Once,
    /// Each is made up for, but of more than `at_most` the newest.
    All {
        at_most: usize,
    },
}

/// What becomes of an occurrence while an earlier run is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlap {
    Skip,
    /// It waits for its turn; of more than `at_most` the later are skipped.
    Queue {
        at_most: usize,
    },
    /// The run at work is cancelled, and what waits for it gives way.
    CancelRunning,
    Allow,
}

/// Checks a spec. `now` is the anchor of an interval that names none. The answer's first part is the spec as it is kept.
///
/// # Errors
/// Every fault, below `/`.
pub(super) fn check(asked: ScheduleSpec, now: DateTime<Utc>) -> Result<(ScheduleSpec, Spec), Vec<Violation>> {
    let mut faults = Faults::default();
    let mut kept = asked;
    if kept.name.len() > NAME_BYTES_MAX || kept.name.chars().any(char::is_control) {
        faults.add("/name", "max_length", format!("must be at most {NAME_BYTES_MAX} bytes of text in one line"));
    }
    let timing = match check_timing(kept.timing.take().unwrap_or_default(), now) {
        Ok((timing_kept, timing)) => {
            kept.timing = Some(timing_kept);
            Some(timing)
        }
        Err(found) => {
            faults.0.extend(found);
            None
        }
    };
    if kept.job.is_none() {
        faults.add("/job", "required", "is required");
    }
    if kept.job.as_ref().is_some_and(|job| !job.after.is_empty()) {
        faults.add("/job/after", "not_allowed", "must not be there: the schedule says when the job runs");
    }
    if kept.job.as_ref().is_some_and(|job| job.run_at.is_some()) {
        faults.add("/job/run_at", "not_allowed", "must not be there: the schedule says when the job runs");
    }
    let missed_max = faults.count("/missed_max", *kept.missed_max.get_or_insert(COUNT_DEFAULT), COUNT_MAX);
    let missed = match kept.missed.as_str() {
        "skip" => Missed::Skip,
        "" | "once" => Missed::Once,
        "all" => Missed::All { at_most: missed_max },
        _ => faults.word("/missed", Missed::Once, "must be `skip`, `once` or `all`"),
    };
    let queue_max = faults.count("/queue_max", *kept.queue_max.get_or_insert(COUNT_DEFAULT), COUNT_MAX);
    let overlap = match kept.overlap.as_str() {
        "" | "skip" => Overlap::Skip,
        "queue_one" => Overlap::Queue { at_most: 1 },
        "queue_all" => Overlap::Queue { at_most: queue_max },
        "cancel_running" => Overlap::CancelRunning,
        "allow" => Overlap::Allow,
        _ => faults.word(
            "/overlap",
            Overlap::Skip,
            "must be `skip`, `queue_one`, `queue_all`, `cancel_running` or `allow`",
        ),
    };
    if kept.missed.is_empty() {
        "once".clone_into(&mut kept.missed);
    }
    if kept.overlap.is_empty() {
        "skip".clone_into(&mut kept.overlap);
    }
    if kept.jitter_s > JITTER_S_MAX {
        faults.add("/jitter_s", "maximum", format!("must be at most {JITTER_S_MAX}"));
    }
    if let Some(count) = kept.pause_after_failures {
        faults.count("/pause_after_failures", count, FAILURES_MAX);
    }
    match (timing, kept.job.clone()) {
        (Some(timing), Some(job)) if faults.0.is_empty() => {
            let (jitter_s, pause_after_failures) = (kept.jitter_s, kept.pause_after_failures);
            Ok((kept, Spec { timing, missed, overlap, jitter_s, pause_after_failures, job }))
        }
        _ => Err(faults.0),
    }
}

/// Checks when something comes due. The answer's first part is the timing as it is kept.
///
/// # Errors
/// Every fault, below `/`.
pub(super) fn check_timing(
    asked: ScheduleTiming,
    now: DateTime<Utc>,
) -> Result<(ScheduleTiming, Timing), Vec<Violation>> {
    let mut faults = Faults::default();
    let mut kept = asked;
    if kept.time_zone.is_empty() {
        "UTC".clone_into(&mut kept.time_zone);
    }
    let zone = Zone::find(&kept.time_zone);
    if zone.is_none() {
        faults.add("/time_zone", "unknown_time_zone", "is no time zone of the IANA database, as `Europe/Berlin` is");
    }
    if kept.anchor_at.is_some() && kept.every_s.is_none() {
        faults.add("/anchor_at", "not_allowed", "is the anchor of an interval, and there is none");
    }
    let timing = match (kept.cron.as_str(), kept.every_s, kept.at.as_ref()) {
        ("", Some(seconds), None) => {
            let anchor = kept.anchor_at.as_ref().map_or(now, |at| faults.time("/anchor_at", at, now)).trunc_subsecs(0);
            kept.anchor_at = Some(to_timestamp(anchor));
            faults.count("/every_s", seconds, EVERY_S_MAX);
            Some(Timing::Every { seconds, anchor })
        }
        ("", None, Some(at)) => Some(Timing::Once(faults.time("/at", at, now))),
        (text, None, None) if !text.is_empty() => match (Cron::parse(text), zone) {
            (Ok(cron), zone) => zone.map(|zone| Timing::Cron(Box::new(cron), zone)),
            (Err(why), _) => faults.word("/cron", None, &format!("is not a cron expression: it {why}")),
        },
        _ => faults.word("/", None, "must have one of `cron`, `every_s` and `at`"),
    };
    match timing {
        Some(timing) if faults.0.is_empty() => Ok((kept, timing)),
        _ => Err(faults.0),
    }
}

#[derive(Debug, Default)]
struct Faults(Vec<Violation>);

impl Faults {
    fn add(&mut self, pointer: &str, code: &str, message: impl Into<String>) {
        let pointer = if pointer == "/" { String::new() } else { pointer.to_owned() };
        self.0.push(Violation { pointer, code: code.to_owned(), message: message.into() });
    }

    /// Tells that a value is not of those there are, and goes on with `instead`.
    fn word<T>(&mut self, pointer: &str, instead: T, message: &str) -> T {
        self.add(pointer, "enum", message);
        instead
    }

    fn time(&mut self, pointer: &str, at: &prost_types::Timestamp, now: DateTime<Utc>) -> DateTime<Utc> {
        let at = from_timestamp(at).filter(|at| *at >= DateTime::UNIX_EPOCH && *at <= now + AHEAD_MAX);
        at.unwrap_or_else(|| self.word(pointer, now, "must be a time since 1970 and within the next ten years"))
    }

    /// Holds a count to 1 and `most`.
    fn count(&mut self, pointer: &str, count: u32, most: u32) -> usize {
        if !(1..=most).contains(&count) {
            self.add(pointer, "maximum", format!("must be between 1 and {most}"));
        }
        count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut ScheduleSpec)) -> ScheduleSpec {
        let timing = ScheduleTiming { cron: "@daily".to_owned(), ..ScheduleTiming::default() };
        let mut spec = ScheduleSpec { timing: Some(timing), job: Some(JobSpec::default()), ..ScheduleSpec::default() };
        change(&mut spec);
        spec
    }

    fn faults(change: impl FnOnce(&mut ScheduleSpec)) -> Vec<String> {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        match check(spec(change), now) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.into_iter().map(|fault| format!("{} {}", fault.pointer, fault.code)).collect(),
        }
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let (kept, checked) = check(spec(|_| {}), DateTime::UNIX_EPOCH).expect("it is good");
        assert_eq!((kept.missed.as_str(), kept.overlap.as_str()), ("once", "skip"));
        assert_eq!((kept.missed_max, kept.queue_max), (Some(100), Some(100)));
        assert_eq!(kept.timing.clone().expect("a timing").time_zone, "UTC");
        assert_eq!((checked.missed, checked.overlap), (Missed::Once, Overlap::Skip));
        // What was kept reads the same at any later time.
        let every = spec(|spec| {
            spec.timing = Some(ScheduleTiming { every_s: Some(60), ..ScheduleTiming::default() });
        });
        let (kept, first) = check(every, DateTime::UNIX_EPOCH + TimeDelta::milliseconds(7_700)).expect("it is good");
        let (again, second) = check(kept.clone(), DateTime::UNIX_EPOCH + TimeDelta::days(9)).expect("it is good");
        assert_eq!((kept, first.timing.clone()), (again, second.timing));
        assert_eq!(first.timing.from(DateTime::UNIX_EPOCH).map(|at| at.timestamp_millis()), Some(7_000));
    }

    #[test]
    fn each_fault_is_told_at_its_place() {
        let timing = |change: fn(&mut ScheduleTiming)| faults(|spec| change(spec.timing.as_mut().expect("a timing")));
        assert_eq!(faults(|_| {}), [""; 0]);
        assert_eq!(faults(|spec| spec.job = None), ["/job required"]);
        assert_eq!(faults(|spec| spec.name = "a\nb".to_owned()), ["/name max_length"]);
        assert_eq!(
            faults(|spec| {
                spec.job.as_mut().expect("a job").run_at = Some(to_timestamp(DateTime::UNIX_EPOCH));
                spec.missed = "never".to_owned();
                spec.missed_max = Some(1_001);
                spec.overlap = "queue".to_owned();
                spec.queue_max = Some(0);
                spec.jitter_s = 86_401;
                spec.pause_after_failures = Some(0);
            }),
            [
                "/job/run_at not_allowed",
                "/missed_max maximum",
                "/missed enum",
                "/queue_max maximum",
                "/overlap enum",
                "/jitter_s maximum",
                "/pause_after_failures maximum"
            ]
        );
        assert_eq!(timing(|timing| timing.cron.clear()), [" enum"]);
        assert_eq!(timing(|timing| timing.every_s = Some(5)), [" enum"]);
        assert_eq!(timing(|timing| timing.cron = "0 0 30 2 *".to_owned()), ["/cron enum"]);
        assert_eq!(timing(|timing| timing.time_zone = "Mars/Olympus".to_owned()), ["/time_zone unknown_time_zone"]);
        assert_eq!(
            timing(|timing| timing.anchor_at = Some(prost_types::Timestamp::default())),
            ["/anchor_at not_allowed"]
        );
        for (every_s, expected) in
            [(0, vec!["/every_s maximum"]), (366 * 86_400, vec![]), (366 * 86_400 + 1, vec!["/every_s maximum"])]
        {
            let found = faults(|spec| {
                spec.timing = Some(ScheduleTiming { every_s: Some(every_s), ..ScheduleTiming::default() });
            });
            assert_eq!(found, expected);
        }
        let far = faults(|spec| {
            let at = prost_types::Timestamp { seconds: 9_999_999_999, nanos: 0 };
            spec.timing = Some(ScheduleTiming { at: Some(at), ..ScheduleTiming::default() });
        });
        assert_eq!(far, ["/at enum"]);
    }
}
