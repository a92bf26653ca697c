//! Batches and parents as they should be: counters, the finalize that is started once, and whom its end sets free.

use std::collections::BTreeMap;

use proto::jobs::{
    BatchState,
    JobState::{self, Cancelled, Cancelling, Expired, Failed, Succeeded, Suspended},
};

use super::{job::Job, rules::Model};

/// When a batch that is complete is finalized.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    Always,
    /// If all its jobs succeeded.
    All,
    /// If so many did.
    AtLeast(u32),
}

impl Policy {
    fn is_met(self, succeeded: u32, total: u32) -> bool {
        match self {
            Self::Always => true,
            Self::All => succeeded == total,
            Self::AtLeast(number) => succeeded >= number,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) state: BatchState,
    pub(super) total: u32,
    pub(super) succeeded: u32,
    pub(super) failed: u32,
    pub(super) cancelled: u32,
    pub(super) expired: u32,
    /// When its finalize runs, if it has one.
    pub(super) finalizes: Option<Policy>,
    /// The finalize at work, or the one that ended it.
    pub(super) finalize: Option<String>,
    /// One is started, and nobody has seen yet which.
    pub(super) is_finalize_due: bool,
    /// It is over without one, since too few of its jobs succeeded.
    pub(super) is_skipped: bool,
    pub(super) is_stopping: bool,
    /// The job that fanned it out.
    pub(super) parent: Option<String>,
    /// What its jobs were added as: by the parent under their ordinals, by others of its jobs under these's ids and numbers.
    pub(super) numbered: BTreeMap<(String, u32), String>,
    /// How often it was over.
    pub(super) ends: u32,
}

impl Batch {
    pub(super) fn new(finalizes: Option<Policy>, parent: Option<String>) -> Self {
        Self {
            state: BatchState::Open,
            total: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            expired: 0,
            finalizes,
            finalize: None,
            is_finalize_due: false,
            is_skipped: false,
            is_stopping: false,
            parent,
            numbered: BTreeMap::new(),
            ends: 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, BatchState::Finished | BatchState::Cancelled)
    }

    fn is_complete(&self) -> bool {
        self.succeeded + self.failed + self.cancelled + self.expired == self.total
    }

    /// How many of its jobs this one has numbered.
    pub(super) fn known_of(&self, job: &str) -> u32 {
        u32::try_from(self.numbered.keys().filter(|(by, _)| by == job).count()).unwrap()
    }

    pub(super) fn ask_to_stop(&mut self) {
        self.is_stopping |= !self.is_over();
    }

    /// The counter of a final state.
    fn counter(&mut self, state: JobState) -> &mut u32 {
        match state {
            Succeeded => &mut self.succeeded,
            Failed => &mut self.failed,
            Expired => &mut self.expired,
            _ => &mut self.cancelled,
        }
    }
}

/// How a finalize has ended.
type Finalized = (JobState, Option<&'static str>, Option<String>);

impl Model {
    pub(super) fn batch(&mut self, id: &str) -> &mut Batch {
        self.batches.get_mut(id).unwrap_or_else(|| panic!("the model knows no batch {id}"))
    }

    /// A job becomes final; what follows for the batch it is in, and the one that it has fanned out.
    pub(super) fn finish(&mut self, id: &str, state: JobState, error: Option<&'static str>, result: Option<String>) {
        let job = self.job(id);
        job.result.clone_from(&result);
        (job.state, job.error, job.holder) = (state, error, None);
        job.ends += 1;
        let (batch, is_finalize, child_batch) = (job.batch.clone(), job.is_finalize, job.child_batch.clone());
        if let Some(batch) = batch {
            let row = self.batch(&batch);
            if !is_finalize {
                *row.counter(state) += 1;
                self.take_on(&batch);
            } else if row.state == BatchState::Finalizing && row.finalize.as_deref() == Some(id) {
                self.end_batch(&batch, Some(&(state, error, result)));
            }
        }
        // A parent that ends before its children takes them along; a batch that has ended it is over.
        if let Some(batch) = child_batch {
            self.close(&batch, true);
        }
    }

    /// No more jobs are added to it; it may be that it is to stop, too.
    pub(super) fn close(&mut self, id: &str, is_stopping: bool) {
        let batch = self.batch(id);
        if is_stopping {
            batch.ask_to_stop();
        }
        if batch.state == BatchState::Open {
            batch.state = BatchState::Running;
        }
        self.take_on(id);
    }

    /// Finalizes or ends it when all its jobs have ended.
    fn take_on(&mut self, id: &str) {
        let batch = self.batch(id);
        if !(batch.state == BatchState::Running && batch.is_complete()) {
            return;
        }
        match batch.finalizes {
            Some(policy) if policy.is_met(batch.succeeded, batch.total) => {
                (batch.state, batch.is_finalize_due) = (BatchState::Finalizing, true);
            }
            policy => {
                batch.is_skipped = policy.is_some();
                self.end_batch(id, None);
            }
        }
    }

    fn end_batch(&mut self, id: &str, finalized: Option<&Finalized>) {
        let batch = self.batch(id);
        batch.state = if batch.is_stopping { BatchState::Cancelled } else { BatchState::Finished };
        batch.ends += 1;
        let (parent, is_cancelled, is_skipped) = (batch.parent.clone(), batch.is_stopping, batch.is_skipped);
        let is_waiting = |job: &Job| {
            job.child_batch.as_deref() == Some(id)
                && job.holder.is_none()
                && matches!(job.state, Suspended | Cancelling)
        };
        let Some(parent) = parent.filter(|parent| self.jobs.get(parent).is_some_and(is_waiting)) else { return };
        let is_cancelling = self.job(&parent).state == Cancelling;
        let result = finalized.and_then(|(.., result)| result.clone());
        match finalized {
            _ if is_cancelled || is_cancelling => self.stopped(&parent, result),
            Some((Failed | Cancelled | Expired, error, _)) => self.finish(&parent, Failed, *error, None),
            None if is_skipped => self.finish(&parent, Failed, Some("batch_policy"), None),
            _ => self.finish(&parent, Succeeded, None, result),
        }
    }

    /// # Errors
    /// The code of the refusal.
    pub(super) fn cancel_batch(&mut self, id: &str) -> Result<(), &'static str> {
        let live_parent = self.batch(id).parent.clone().filter(|parent| {
            self.jobs.get(parent).is_some_and(|job| !job.is_final() && job.child_batch.as_deref() == Some(id))
        });
        match live_parent {
            Some(parent) => self.stop(&parent, false),
            None if self.batch(id).is_over() => return Err("jobs.already_final"),
            None => self.close(id, true),
        }
        Ok(())
    }

    /// Counts an ended job as live again, if its batch lets it.
    ///
    /// # Errors
    /// The code of the refusal.
    pub(super) fn reopen(&mut self, id: &str) -> Result<(), &'static str> {
        let job = self.job(id);
        let (state, is_finalize) = (job.state, job.is_finalize);
        let Some(batch) = job.batch.clone() else { return Ok(()) };
        let batch = self.batch(&batch);
        if batch.state == BatchState::Finalizing {
            return Err("jobs.batch_finalizing");
        }
        let was_over = batch.is_over();
        if is_finalize {
            if !was_over || batch.finalize.as_deref() != Some(id) {
                return Err("jobs.finalize_superseded");
            }
            batch.state = BatchState::Finalizing;
        } else {
            *batch.counter(state) -= 1;
            if was_over {
                (batch.state, batch.finalize, batch.is_skipped) = (BatchState::Running, None, false);
            }
        }
        batch.is_stopping &= !was_over;
        Ok(())
    }

    /// Queues all jobs of a batch again that ended in one of these states.
    ///
    /// # Errors
    /// The code of the refusal.
    pub(super) fn retry_batch(&mut self, id: &str, states: &[JobState]) -> Result<(), &'static str> {
        let batch = self.batch(id);
        let was_over = batch.is_over();
        if batch.state == BatchState::Finalizing {
            return Err("jobs.batch_finalizing");
        }
        if batch.is_stopping && !was_over {
            return Err("jobs.batch_cancelling");
        }
        let is_retried =
            |job: &&Job| job.batch.as_deref() == Some(id) && !job.is_finalize && states.contains(&job.state);
        let retried = self.jobs.iter().filter(|(_, job)| is_retried(job));
        let retried: Vec<String> = retried.map(|(id, _)| id.clone()).collect();
        if retried.is_empty() {
            return if was_over { Err("jobs.nothing_to_retry") } else { Ok(()) };
        }
        for id in &retried {
            self.reopen(id)?;
        }
        for id in &retried {
            self.queue_again(id);
        }
        Ok(())
    }

    /// Live children of batches that are to stop, which nobody has asked yet.
    pub(super) fn doomed(&self) -> Vec<String> {
        let is_doomed = |job: &Job| {
            let batch = job.batch.as_ref().filter(|_| !job.is_finalize).and_then(|batch| self.batches.get(batch));
            !job.is_final()
                && job.state != Cancelling
                && batch.is_some_and(|batch| batch.is_stopping && !batch.is_over())
        };
        self.jobs.iter().filter(|(_, job)| is_doomed(job)).map(|(id, _)| id.clone()).collect()
    }

    /// The finalize that was started has shown itself.
    pub(super) fn finalize_seen(&mut self, batch: &str, id: &str) {
        let now = self.now;
        let row = self.batch(batch);
        (row.is_finalize_due, row.finalize) = (false, Some(id.to_owned()));
        let job = Job { batch: Some(batch.to_owned()), is_finalize: true, ..Job::new("finish", now, now) };
        self.add(id, job.settled());
    }

    /// Nothing happens any more unless somebody asks for it.
    pub(super) fn is_over(&self) -> bool {
        self.jobs.values().all(Job::is_final) && self.batches.values().all(Batch::is_over)
    }
}
