//! What is drawn at random: jobs with their clocks and rules, and ends of attempts; each as it is asked for or told, and as
//! the model has it.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use kit::clock::to_timestamp;
use proto::{
    jobs::{Backoff as AskedBackoff, JobSpec, RetryOn, Unique},
    worker::outcome,
};

use super::{
    batches::Policy,
    driver::Driver,
    job::{Backoff, End, Job},
};
use crate::house;

/// Most jobs that one command makes.
pub(super) const JOBS_MAX: usize = 3;

impl End {
    pub(super) fn told(&self) -> outcome::End {
        match self {
            Self::Succeeded(result) => house::succeeded(result),
            Self::Failed { kind, is_retryable, after } => match house::failed(kind, *is_retryable) {
                outcome::End::Failed(failed) => outcome::End::Failed(proto::worker::Failed {
                    retry_after_s: after.map(|after| after.as_seconds_f64()),
                    ..failed
                }),
                other => other,
            },
            Self::Snoozed(after) => house::snoozed(after.as_seconds_f64()),
            Self::Cancelled => house::cancelled("There is nothing to be done."),
            Self::Stopped => house::stopped(),
            Self::Interrupted => house::interrupted(),
            Self::Suspended(batch) => house::suspended(batch),
        }
    }
}

/// A job to be asked for, and as the model has it, told apart from all others by its arguments.
pub(super) struct Drawn {
    pub(super) spec: JobSpec,
    pub(super) job: Job,
    /// Others of the same call that it runs after, by their places.
    pub(super) own: Vec<usize>,
}

impl Drawn {
    pub(super) fn told(drawn: &[Self]) -> String {
        drawn.iter().map(|Self { job, own, .. }| format!("[{job}, after those at {own:?}]")).collect()
    }
}

/// A job that another adds.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) number: u32,
    pub(super) task: &'static str,
    pub(super) args: String,
    /// The numbers of those that it runs after.
    pub(super) after: Vec<u32>,
}

impl Driver {
    fn draw_job(&mut self) -> (JobSpec, Job) {
        let (now, count) = (self.model.now, self.next());
        let task = if self.random.percent(25) { "process" } else { "work" };
        // No two clocks of one run are over at the same instant.
        let own = TimeDelta::milliseconds(i64::from(count) * 3);
        let random = &mut self.random;
        let mut seconds = |chance, least: i64, span| {
            random.percent(chance).then(|| TimeDelta::seconds(least + i64::try_from(random.below(span)).unwrap()))
        };
        let run_at = seconds(25, 1, 60).map_or(now, |later| now + later);
        let queue_timeout = seconds(20, 15, 45).map(|timeout| timeout + own);
        let deadline = seconds(20, 20, 130).map(|deadline| deadline + own);
        let timeout = seconds(15, 20, 40).map(|timeout| timeout + own);
        let delay = seconds(66, 1, 10).unwrap_or_default();
        let mut job = Job::new(task, now, run_at);
        job.priority = 30 + u32::try_from(self.random.below(21)).unwrap();
        job.max_attempts = 1 + u32::try_from(self.random.below(6)).unwrap();
        job.backoff = Backoff::Fixed(delay);
        (job.queue_timeout, job.deadline) = (queue_timeout, deadline);
        job.timeout = timeout.unwrap_or(job.timeout);
        if self.random.percent(15) {
            let again = (true, Some(TimeDelta::seconds(2)));
            job.rules = BTreeMap::from([("provider", (false, None)), ("invalid_input", again)]);
        }
        let asked_backoff = |delay: TimeDelta| AskedBackoff {
            kind: "fixed".to_owned(),
            seconds: vec![delay.as_seconds_f64()],
            ..AskedBackoff::default()
        };
        let rules = job.rules.iter().map(|(kind, (retry, delay))| RetryOn {
            error_kind: (*kind).to_owned(),
            retry: *retry,
            backoff: delay.map(asked_backoff),
        });
        let spec = JobSpec {
            run_at: (run_at > now).then(|| to_timestamp(run_at)),
            priority: Some(job.priority),
            max_attempts: Some(job.max_attempts),
            backoff: Some(asked_backoff(delay)),
            queue_timeout_s: queue_timeout.map(|timeout| timeout.as_seconds_f64()),
            deadline_s: deadline.map(|deadline| deadline.as_seconds_f64()),
            attempt_timeout_s: timeout.map(|timeout| timeout.as_seconds_f64()),
            retry_on: rules.collect(),
            ..house::spec(task, &format!(r#"{{"n": {count}}}"#))
        };
        (spec, job.settled())
    }

    /// Jobs of one call.
    pub(super) fn draw_jobs(&mut self, count: usize) -> Vec<Drawn> {
        (0..count).map(|place| self.draw_one_of_a_call(place)).collect()
    }

    /// It may run after others: of its call, and of those that are there, live or not.
    fn draw_one_of_a_call(&mut self, place: usize) -> Drawn {
        let (mut spec, mut job) = self.draw_job();
        let (mut own, mut there) = (Vec::new(), Vec::new());
        if place > 0 && self.random.percent(40) {
            own.push(self.random.below(place));
        }
        if self.random.percent(25) {
            let is_live_wanted = self.random.percent(70);
            let ids = self.model.jobs.iter().filter(|(_, job)| !(is_live_wanted && job.is_final()));
            let ids: Vec<String> = ids.map(|(id, _)| id.clone()).collect();
            there.extend((0..=self.random.below(2)).filter_map(|_| self.random.pick(&ids).cloned()));
        }
        if !(own.is_empty() && there.is_empty()) {
            job.needs_success = self.random.percent(70);
            spec.after_needs = if job.needs_success { "succeeded" } else { "ended" }.to_owned();
            spec.after = own.iter().map(|place| format!("#{place}")).chain(there.iter().cloned()).collect();
            job = job.waiting(there);
        }
        Drawn { spec, job, own }
    }

    /// Gives some of the jobs of a call unique keys, of which there are few.
    pub(super) fn draw_keys(&mut self, drawn: &mut [Drawn]) {
        for Drawn { spec, job, .. } in drawn {
            if self.random.percent(30) {
                job.unique_key = self.random.pick(&["one", "two"]).copied();
                let on_conflict = if self.random.percent(60) { "return" } else { "refuse" }.to_owned();
                spec.unique_key = job.unique_key.map(str::to_owned);
                spec.unique = Some(Unique { on_conflict, ..Unique::default() });
            }
        }
    }

    /// When a batch of so many jobs is finalized, if it is; of an open one nobody knows yet how many it will have.
    pub(super) fn draw_policy(&mut self, jobs: Option<usize>) -> Option<Policy> {
        match self.random.below(20) {
            0..5 => None,
            5..9 => Some(Policy::Always),
            _ if jobs == Some(0) => Some(Policy::All),
            9..13 => Some(Policy::All),
            _ => Some(Policy::AtLeast(1 + u32::try_from(self.random.below(jobs.unwrap_or(JOBS_MAX))).unwrap())),
        }
    }

    /// Jobs that a job numbers, of which so many are there already: the last of these once more, and some after it.
    pub(super) fn draw_children(&mut self, known: u32) -> Vec<Child> {
        let numbers = known.saturating_sub(1)..known + u32::try_from(self.random.below(JOBS_MAX)).unwrap();
        let children = numbers.map(|number| {
            let task = if self.random.percent(15) { "process" } else { "work" };
            let is_after = number > 0 && self.random.percent(30);
            let after = is_after.then(|| u32::try_from(self.random.below(number as usize)).unwrap());
            Child { number, task, args: format!(r#"{{"n": {}}}"#, self.next()), after: after.into_iter().collect() }
        });
        children.collect()
    }

    pub(super) fn draw_end(&mut self) -> End {
        let kinds = ["provider", "invalid_input", "timeout", "worker_crashed"];
        match self.random.below(20) {
            0..8 => End::Succeeded(format!("{{\"n\":{}}}", self.next())),
            8..14 => {
                let kind = *self.random.pick(&kinds).unwrap();
                let after = self.random.percent(20).then_some(TimeDelta::seconds(7));
                End::Failed { kind, is_retryable: self.random.percent(75), after }
            }
            14..16 => End::Snoozed(TimeDelta::seconds(5)),
            16 => End::Cancelled,
            17 => End::Stopped,
            18 => End::Interrupted,
            _ => End::Suspended(self.house.clock.new_id().to_string()),
        }
    }
}
