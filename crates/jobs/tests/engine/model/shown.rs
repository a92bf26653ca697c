//! What the API shows of everything, and where that is not what the model says.

use std::collections::{BTreeMap, BTreeSet};

use kit::clock::from_timestamp;
use proto::jobs::{Batch, Job, JobState, ListBatchesRequest, ListJobsRequest};

use super::{driver::Driver, rules::Model};

const PAGE: u32 = 200;

/// All that the API shows.
pub(super) struct Shown {
    pub(super) jobs: BTreeMap<String, Job>,
    pub(super) batches: BTreeMap<String, Batch>,
}

impl Driver {
    pub(super) async fn look(&self) -> Shown {
        let mut shown = Shown { jobs: BTreeMap::new(), batches: BTreeMap::new() };
        let mut asked = ListJobsRequest { limit: PAGE, ..ListJobsRequest::default() };
        loop {
            let page = self.user.jobs().list(self.user.call.request(asked.clone())).await.unwrap().into_inner();
            shown.jobs.extend(page.items.into_iter().map(|job| (job.id.clone(), job)));
            if page.next_cursor.is_empty() {
                break;
            }
            asked.cursor = page.next_cursor;
        }
        let mut asked = ListBatchesRequest { limit: PAGE, cursor: String::new() };
        loop {
            let page = self.user.batches().list(self.user.call.request(asked.clone())).await.unwrap().into_inner();
            shown.batches.extend(page.items.into_iter().map(|batch| (batch.id.clone(), batch)));
            if page.next_cursor.is_empty() {
                return shown;
            }
            asked.cursor = page.next_cursor;
        }
    }
}

/// What is compared of a job. A message of the contract shows nothing of itself.
fn told(shown: &Job) -> String {
    let Job { attempt, task, worker_id, run_at, queue_until, deadline_at, result_json, after, .. } = shown;
    let (state, error) = (shown.state(), error_kind(shown));
    format!(
        "{task} {state:?} after {attempt} attempts, with {worker_id:?}, at {run_at:?}, in the queue until {queue_until:?}, \
         deadline {deadline_at:?}, after {after:?}, in {:?} and with {:?}, error {error:?}, result {result_json:?}",
        shown.batch_id, shown.child_batch_id
    )
}

fn error_kind(shown: &Job) -> Option<&str> {
    shown.error.as_ref().map(|error| error.kind.as_str())
}

impl Model {
    /// What only the service can know: the id of a finalize, and how much of a delay chance has left out.
    pub(super) fn take_in(&mut self, shown: &Shown) {
        for (id, batch) in &shown.batches {
            let is_due = self.batches.get(id).is_some_and(|known| known.is_finalize_due);
            if is_due && !batch.finalize_job_id.is_empty() && !self.jobs.contains_key(&batch.finalize_job_id) {
                self.finalize_seen(id, &batch.finalize_job_id);
            }
        }
        for (id, job) in &mut self.jobs {
            let Some(shown) = shown.jobs.get(id).filter(|shown| shown.state() == job.state) else { continue };
            let run_at = from_timestamp(shown.run_at.as_ref().unwrap()).unwrap();
            if job.state == JobState::Scheduled && (job.run_at_least..=job.run_at).contains(&run_at) {
                job.rank -= job.run_at - run_at;
                (job.run_at, job.run_at_least) = (run_at, run_at);
            }
        }
    }

    /// Where the service shows something else.
    pub(super) fn differs(&self, shown: &Shown) -> Option<String> {
        if let Some(id) = shown.jobs.keys().find(|id| !self.jobs.contains_key(*id)) {
            return Some(format!("there is a job that nobody asked for: {id}, {}", told(&shown.jobs[id])));
        }
        for (id, job) in &self.jobs {
            let Some(seen) = shown.jobs.get(id) else { return Some(format!("the job {id} is gone")) };
            let time = |at: &Option<prost_types::Timestamp>| at.as_ref().and_then(from_timestamp);
            let text = |id: &Option<String>| id.clone().unwrap_or_default();
            let is_alike = seen.state() == job.state
                && seen.attempt == job.attempt
                && seen.task == job.task
                && seen.batch_id == text(&job.batch)
                && seen.child_batch_id == text(&job.child_batch)
                && (job.holder.is_none() || seen.worker_id == text(&job.holder))
                && (job.state != JobState::Scheduled || time(&seen.run_at) == Some(job.run_at))
                && (job.state != JobState::Queued || time(&seen.queue_until) == job.queue_until)
                && (job.is_final() || time(&seen.deadline_at) == job.deadline_at)
                && (!job.is_final() || [job.error, job.or_error.or(job.error)].contains(&error_kind(seen)))
                && seen.after.iter().collect::<BTreeSet<_>>() == job.after.keys().collect()
                && (job.result.is_none() || Some(&seen.result_json) == job.result.as_ref());
            if !is_alike {
                return Some(format!("the job {id} should be\n{job:?}\nand is\n{}", told(seen)));
            }
        }
        if let Some(id) = shown.batches.keys().find(|id| !self.batches.contains_key(*id)) {
            return Some(format!("there is a batch that nobody asked for: {id}"));
        }
        for (id, batch) in &self.batches {
            let Some(seen) = shown.batches.get(id) else { return Some(format!("the batch {id} is gone")) };
            let counts = seen.counts.unwrap();
            let counted = [counts.total, counts.succeeded, counts.failed, counts.cancelled, counts.expired];
            let is_alike = seen.state() == batch.state
                && counted == [batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.expired]
                && seen.finalize_job_id == batch.finalize.clone().unwrap_or_default()
                && !batch.is_finalize_due
                && seen.finalize_skipped.is_empty() != batch.is_skipped;
            if !is_alike {
                let (state, finalize, skipped) = (seen.state(), &seen.finalize_job_id, &seen.finalize_skipped);
                let told = format!("{state:?}, {counts:?}, finalized by {finalize:?}, or not: {skipped:?}");
                return Some(format!("the batch {id} should be\n{batch:?}\nand is\n{told}"));
            }
        }
        None
    }
}
