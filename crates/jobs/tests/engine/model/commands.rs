//! What is asked, drawn at random: each is done to the service and to the model, whose verdicts must be the same.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use kit::Fail;
use proto::{
    jobs::{
        AddBatchJobsRequest, CancelBatchRequest, CancelJobRequest, CloseBatchRequest, JobSpec, JobState,
        PauseQueueRequest, ResumeQueueRequest, RetryJobRequest, queues_client::QueuesClient,
    },
    worker::{AttemptRef, FanOutJob, FanOutRequest},
};
use tonic::Status;

use super::{
    batches::Batch,
    drawing::JOBS_MAX,
    driver::Driver,
    job::{End, Job},
    rules::LEASE,
};

const QUEUE: &str = "default";
/// Whether it was done, or the code of its refusal.
fn verdict<T>(answer: Result<T, Status>) -> Result<(), String> {
    answer.map(drop).map_err(|status| Fail::from(status).code().to_owned())
}

fn told(drawn: &[(JobSpec, Job)]) -> String {
    drawn.iter().map(|(_, job)| format!("[{job}]")).collect()
}

impl Driver {
    /// Does one thing, and waits until service and model agree on what came of it.
    pub(super) async fn step(&mut self) {
        match self.random.below(100) {
            0..14 => self.submit().await,
            14..34 => self.give_out().await,
            34..54 => self.end_one().await,
            54..59 => self.tell_late().await,
            59..64 => self.cancel_one().await,
            64..71 => self.retry_one().await,
            71..75 => self.make_batch().await,
            75..80 => self.change_batch().await,
            80..82 => self.pause_or_resume().await,
            82..88 => self.wait_a_while().await,
            88..91 => self.forget_one().await,
            91..93 => self.lose_one_again_and_again().await,
            93..95 => self.lose_a_stream().await,
            95..96 => self.fall_silent(),
            96..97 => self.crash_while_submitting().await,
            97..98 => self.crash_with_an_outcome_on_its_way().await,
            _ => self.crash().await,
        }
        self.agree().await;
    }

    pub(super) fn say(&self, what: impl Into<String>) {
        self.trail.say(what.into());
    }

    async fn submit(&mut self) {
        let (spec, job) = self.draw_job();
        let id = self.user.submit(spec).await;
        self.say(format!("submitted {id}: {job}"));
        assert!(self.model.jobs.insert(id, job).is_none());
    }

    /// A worker has room; where nothing may be given, it is given nothing.
    async fn give_out(&mut self) {
        let worker = self.a_hand().await;
        let there = self.model.claimable().len();
        if there > 0 {
            let slots = 1 + self.random.below(there.min(JOBS_MAX));
            self.say(format!("{worker} takes {slots} of {there}"));
            return self.claim(&worker, slots).await;
        }
        self.say(format!("{worker} has room for nothing, and drains"));
        let mut hand = self.hands.remove(&worker).unwrap();
        if self.model.jobs.values().any(|job| job.holder.as_ref() == Some(&worker)) {
            // What it holds is not named as it drains: it is another one's turn.
            self.hands.insert(worker, hand);
            return;
        }
        hand.worker.credit(1).await;
        hand.worker.drain().await;
        self.model.workers.insert(worker, self.model.now + LEASE);
    }

    /// An attempt that holds its job ends; a parent's may fan out before.
    async fn end_one(&mut self) {
        let held = self.model.held();
        let Some(id) = self.random.pick(&held).cloned() else { return };
        let mut end = self.draw_end();
        if self.model.job(&id).task == "process" && self.random.percent(80) {
            let batch = self.fan_out(&id).await;
            if self.random.percent(70) {
                end = End::Suspended(batch);
            }
        }
        self.tell(&id, &end).await;
    }

    pub(super) async fn tell(&mut self, id: &str, end: &End) {
        let token = self.model.job(id).token;
        let is_it = |attempt: &AttemptRef| attempt.job_id == id && attempt.token == token;
        let place = self.assigned.iter().position(|assigned| assigned.attempt.as_ref().is_some_and(is_it));
        self.tell_of(place.unwrap(), end).await;
    }

    /// Tells an outcome of an attempt that was given out once, over any worker's stream.
    async fn tell_of(&mut self, place: usize, end: &End) {
        let worker = self.a_hand().await;
        let assigned = self.assigned[place].clone();
        let attempt = assigned.attempt.clone().unwrap();
        let counts = self.model.outcome(&attempt.job_id, attempt.token, end);
        self.say(format!("{} with the token {} ends: {end:?}, which counts: {counts}", attempt.job_id, attempt.token));
        let told = self.hand(&worker).worker.tell(vec![(&assigned, end.told())]).await;
        assert_eq!(told, [counts], "{assigned:?} ends as {end:?}");
    }

    /// An attempt of long ago, or one that ended a moment ago, speaks up.
    async fn tell_late(&mut self) {
        if self.assigned.is_empty() {
            return;
        }
        let place = self.random.below(self.assigned.len());
        let attempt = self.assigned[place].attempt.clone().unwrap();
        let job = self.model.job(&attempt.job_id);
        if job.holder.is_none() || job.token != attempt.token {
            let worker = self.a_hand().await;
            let asked = FanOutRequest { attempt: Some(attempt), ..FanOutRequest::default() };
            let worker = &self.hand(&worker).worker;
            let refused = verdict(worker.attempts().fan_out(worker.request(asked)).await);
            assert_eq!(refused, Err("jobs.fenced".to_owned()));
        }
        let end = self.draw_end();
        self.tell_of(place, &end).await;
        self.tell_of(place, &end).await;
    }

    /// Children for a job at work: those that it has not fanned out before.
    async fn fan_out(&mut self, id: &str) -> String {
        let job = self.model.job(id).clone();
        let attempt = Some(AttemptRef { job_id: id.to_owned(), token: job.token });
        let known = job.child_batch.as_ref().map_or(0, |batch| self.model.batch(batch).total);
        let finalizes = self.random.percent(70);
        let ordinals = known.saturating_sub(1)..known + u32::try_from(self.random.below(JOBS_MAX)).unwrap();
        let jobs: Vec<FanOutJob> = ordinals
            .map(|ordinal| {
                let task = if self.random.percent(15) { "process" } else { "work" };
                FanOutJob {
                    ordinal,
                    task: task.to_owned(),
                    args_json: format!(r#"{{"n": {}}}"#, self.next()),
                    after: Vec::new(),
                }
            })
            .collect();
        let finalize_task = if finalizes { "finish" } else { "" }.to_owned();
        let asked = FanOutRequest {
            attempt,
            jobs: jobs.clone(),
            finalize_task,
            finalize_args_json: "{}".to_owned(),
            ..FanOutRequest::default()
        };
        let worker = self.a_hand().await;
        let worker = &self.hand(&worker).worker;
        let batch = worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id;
        assert!(job.child_batch.is_none_or(|known| known == batch), "{id} has two batches");
        self.model.job(id).child_batch = Some(batch.clone());
        self.model.batches.entry(batch.clone()).or_insert_with(|| Batch::new(finalizes, Some(id.to_owned())));
        let now = self.model.now;
        let children = jobs.into_iter().filter(|child| child.ordinal >= known).map(|child| {
            let job = Job { priority: job.priority, ..Job::new(&child.task, now, now) };
            (child.args_json, job.settled())
        });
        let children: BTreeMap<String, Job> = children.collect();
        self.say(format!("{id} fans out {:?} into {batch}", children.keys()));
        self.take_children(&batch, children).await;
        batch
    }

    /// Finds the jobs that were made in a batch, by their arguments.
    async fn take_children(&mut self, batch: &str, children: BTreeMap<String, Job>) {
        self.model.batch(batch).total += u32::try_from(children.len()).unwrap();
        let shown = self.look().await.jobs;
        for (args, job) in children {
            let mut found = shown.values().filter(|shown| shown.args_json == args && shown.batch_id == batch);
            let id = found.next().unwrap_or_else(|| panic!("{batch} has no job for {args}")).id.clone();
            assert!(found.next().is_none(), "{batch} has two jobs for {args}");
            assert!(self.model.jobs.insert(id, Job { batch: Some(batch.to_owned()), ..job }).is_none());
        }
    }

    async fn cancel_one(&mut self) {
        let ids: Vec<String> = self.model.jobs.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids).cloned() else { return };
        let expected = self.model.cancel(&id);
        self.say(format!("{id} is cancelled: {expected:?}"));
        let asked = CancelJobRequest { id: id.clone(), reason: "enough".to_owned() };
        let done = verdict(self.user.jobs().cancel(self.user.call.request(asked)).await);
        assert_eq!(done, expected.map_err(str::to_owned), "cancelling {id}");
    }

    async fn retry_one(&mut self) {
        let (is_final_wanted, is_child_wanted) = (self.random.percent(85), self.random.percent(50));
        let jobs = self.model.jobs.iter().filter(|(_, job)| job.is_final() == is_final_wanted);
        let jobs =
            jobs.filter(|(_, job)| !is_child_wanted || (job.batch.is_some() && job.state != JobState::Succeeded));
        let ids: Vec<String> = jobs.map(|(id, _)| id.clone()).collect();
        let Some(id) = self.random.pick(&ids).cloned() else { return };
        let expected = self.model.retry(&id);
        self.say(format!("{id} is retried: {expected:?}"));
        let done = verdict(self.user.jobs().retry(self.user.call.request(RetryJobRequest { id: id.clone() })).await);
        assert_eq!(done, expected.map_err(str::to_owned), "retrying {id}");
    }

    async fn make_batch(&mut self) {
        let drawn = self.draw_jobs();
        let (finalizes, is_open) = (self.random.percent(70), self.random.percent(40));
        let specs = drawn.iter().map(|(spec, _)| spec.clone()).collect();
        let batch = self.user.batch(specs, finalizes.then_some("finish"), is_open).await.id;
        self.say(format!("a batch {batch} (finalizes: {finalizes}, open: {is_open}) of {}", told(&drawn)));
        assert!(self.model.batches.insert(batch.clone(), Batch::new(finalizes, None)).is_none());
        let children = drawn.into_iter().map(|(spec, job)| (spec.args_json, job)).collect();
        self.take_children(&batch, children).await;
        if !is_open {
            self.model.close(&batch, false);
        }
    }

    /// Adds to a batch, closes or cancels it.
    async fn change_batch(&mut self) {
        let ids: Vec<String> = self.model.batches.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids).cloned() else { return };
        let row = self.model.batch(&id).clone();
        let may_fill = if row.parent.is_some() { Err("jobs.batch_of_a_job") } else { Ok(()) };
        match self.random.below(3) {
            0 => {
                let drawn = vec![self.draw_job(), self.draw_job()];
                let is_open = row.state == proto::jobs::BatchState::Open;
                let expected = may_fill.and(if is_open { Ok(()) } else { Err("jobs.batch_closed") });
                self.say(format!("added to {id}: {expected:?}: {}", told(&drawn)));
                let jobs = drawn.iter().map(|(spec, _)| spec.clone()).collect();
                let asked = AddBatchJobsRequest { batch_id: id.clone(), jobs };
                let done = verdict(self.user.batches().add_jobs(self.user.call.request(asked)).await);
                assert_eq!(done, expected.map_err(str::to_owned), "adding to {id}");
                if expected.is_ok() {
                    let children = drawn.into_iter().map(|(spec, job)| (spec.args_json, job)).collect();
                    self.take_children(&id, children).await;
                }
            }
            1 => {
                self.say(format!("{id} is closed: {may_fill:?}"));
                let asked = CloseBatchRequest { id: id.clone() };
                let done = verdict(self.user.batches().close(self.user.call.request(asked)).await);
                assert_eq!(done, may_fill.map_err(str::to_owned), "closing {id}");
                if may_fill.is_ok() {
                    self.model.close(&id, false);
                }
            }
            _ => {
                let expected = self.model.cancel_batch(&id);
                self.say(format!("{id} is cancelled: {expected:?}"));
                let asked = CancelBatchRequest { id: id.clone(), reason: "enough".to_owned() };
                let done = verdict(self.user.batches().cancel(self.user.call.request(asked)).await);
                assert_eq!(done, expected.map_err(str::to_owned), "cancelling {id}");
            }
        }
    }

    pub(super) async fn pause_or_resume(&mut self) {
        let mut queues = QueuesClient::new(self.user.peer.clone());
        let name = QUEUE.to_owned();
        self.model.is_paused = !self.model.is_paused;
        self.say(format!("the queue is paused: {}", self.model.is_paused));
        let queue = match self.model.is_paused {
            true => queues.pause(self.user.call.request(PauseQueueRequest { name })).await,
            false => queues.resume(self.user.call.request(ResumeQueueRequest { name })).await,
        };
        assert_eq!(queue.unwrap().into_inner().paused, self.model.is_paused);
    }

    async fn wait_a_while(&mut self) {
        let most = if self.random.percent(10) { 400 } else { 60 };
        let seconds = 1 + self.random.below(most);
        self.say(format!("{seconds} s pass"));
        self.advance(TimeDelta::seconds(i64::try_from(seconds).unwrap())).await;
    }
}
