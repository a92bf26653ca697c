//! Jobs that run after others, as they should: who may start, who never will, and what a retry waits for again.

use proto::jobs::JobState::{Cancelled, Queued, Scheduled, Succeeded, Waiting};

use super::rules::Model;

impl Model {
    /// Tells the ends of jobs to those that run after them, also where these have ended themselves, and lets those start that
    /// may. Whether anything came of it.
    pub(super) fn settle_dependencies(&mut self) -> bool {
        let now = self.now;
        let mut told = Vec::new();
        for (id, job) in &self.jobs {
            let untold = job.after.iter().filter(|(_, outcome)| outcome.is_none());
            let ended = untold.filter(|(after, _)| self.jobs[*after].is_final());
            told.extend(ended.map(|(after, _)| (id.clone(), after.clone(), self.jobs[after].state)));
        }
        for (id, after, state) in &told {
            self.job(id).after.insert(after.clone(), Some(*state));
        }
        let waiting = self.having(|job| job.state == Waiting);
        for id in &waiting {
            let job = self.job(id);
            let outcomes: Vec<_> = job.after.values().copied().collect();
            if outcomes.iter().flatten().any(|outcome| !job.is_met_by(*outcome)) {
                self.finish(id, Cancelled, Some("dependency"), None);
            } else if outcomes.iter().all(Option::is_some) {
                let run_at = job.run_at.max(now);
                job.put_back(if run_at > now { Scheduled } else { Queued }, run_at, now);
                job.deadline_at = job.deadline.map(|deadline| run_at + deadline);
            }
        }
        !told.is_empty() || self.having(|job| job.state == Waiting).len() < waiting.len()
    }

    /// Whether a job that is over would only be cancelled again: one that it has to run after yet has ended otherwise than it
    /// needs.
    pub(super) fn is_unmet(&self, id: &str) -> bool {
        let job = &self.jobs[id];
        job.after.iter().any(|(after, outcome)| {
            let other = &self.jobs[after];
            let is_asked_for = outcome.is_none_or(|outcome| !job.is_met_by(outcome));
            is_asked_for && other.is_final() && !job.is_met_by(other.state)
        })
    }

    /// Whether a job waits for what will not come, be it that it has not been told.
    pub(super) fn is_hopeless(&self, id: &str) -> bool {
        let job = &self.jobs[id];
        let will_not_come = |after: &String| {
            let other = &self.jobs[after];
            (other.is_final() && !job.is_met_by(other.state)) || (job.needs_success && self.is_hopeless(after))
        };
        job.state == Waiting && job.after.keys().any(will_not_come)
    }

    /// Forgets the ends that were no success, which may be made good by now, so that a job waits for these again. Whether there
    /// are any, or any that it has not been told.
    pub(super) fn ask_again(&mut self, id: &str) -> bool {
        let job = self.job(id);
        for outcome in job.after.values_mut() {
            outcome.take_if(|outcome| *outcome != Succeeded);
        }
        job.after.values().any(Option::is_none)
    }
}
