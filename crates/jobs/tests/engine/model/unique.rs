//! Unique keys as they should be: of the live jobs of a task that show the same key, one is there.

use super::{drawing::Drawn, job::Job, rules::Model};

/// Who stands for a job that is asked for and not made, since its key is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    There(String),
    /// The job at this place of the same call.
    Own(usize),
}

impl Model {
    fn holder_of(&self, asking: &Job) -> Option<&String> {
        let holds = |job: &Job| {
            !job.is_final()
                && job.unique_key.is_some()
                && (&job.task, job.unique_key) == (&asking.task, asking.unique_key)
        };
        self.jobs.iter().find(|(_, job)| holds(job)).map(|(id, _)| id)
    }

    /// Whether a job that is over cannot be live again, since another holds its key by now.
    pub(super) fn is_key_taken(&self, id: &str) -> bool {
        self.holder_of(&self.jobs[id]).is_some()
    }

    /// By each job of a call who stands for it.
    ///
    /// # Errors
    /// The code of the refusal.
    pub(super) fn holders(&self, drawn: &[Drawn]) -> Result<Vec<Option<Holder>>, &'static str> {
        let mut holders = Vec::with_capacity(drawn.len());
        for (place, asking) in drawn.iter().enumerate() {
            let key = (&asking.job.task, asking.job.unique_key);
            let is_first = |earlier: &Drawn| key.1.is_some() && (&earlier.job.task, earlier.job.unique_key) == key;
            let there = self.holder_of(&asking.job).cloned().map(Holder::There);
            let holder = there.or_else(|| drawn[..place].iter().position(is_first).map(Holder::Own));
            if holder.is_some() && asking.spec.unique.as_ref().is_some_and(|unique| unique.on_conflict == "refuse") {
                return Err("jobs.unique_key_held");
            }
            holders.push(holder);
        }
        Ok(holders)
    }
}
