//! What is asked, drawn at random: each is done to the service and to the model, whose verdicts must be the same.

use chrono::TimeDelta;
use kit::Fail;
use proto::{
    jobs::{
        CancelJobRequest, JobState, PauseQueueRequest, QueueLimits, ResumeQueueRequest, RetryJobRequest,
        UpdateQueueRequest, queues_client::QueuesClient,
    },
    worker::{AddSiblingsRequest, AttemptRef, FanOutRequest},
};
use tonic::Status;

use super::{
    drawing::{Drawn, JOBS_MAX},
    driver::Driver,
    job::{End, Job},
    rules::LEASE,
    unique::Holder,
};

const QUEUE: &str = "default";

/// Whether it was done, or the code of its refusal.
pub(super) fn verdict<T>(answer: Result<T, Status>) -> Result<(), String> {
    answer.map(drop).map_err(|status| Fail::from(status).code().to_owned())
}

impl Driver {
    /// Does one thing, and waits until service and model agree on what came of it.
    pub(super) async fn step(&mut self) {
        match self.random.below(100) {
            0..14 => self.submit().await,
            14..34 => self.give_out().await,
            34..51 => self.end_one().await,
            51..54 => self.grow().await,
            54..59 => self.tell_late().await,
            59..64 => self.cancel_one().await,
            64..71 => self.retry_one().await,
            71..75 => self.make_batch().await,
            75..81 => self.change_batch().await,
            81..83 => self.pause_or_resume().await,
            83..85 => self.limit_or_free().await,
            85..88 => self.wait_a_while().await,
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
        let count = if self.random.percent(70) { 1 } else { 1 + self.random.below(JOBS_MAX) };
        let mut drawn = self.draw_jobs(count);
        self.draw_keys(&mut drawn);
        let expected = self.model.holders(&drawn);
        let specs = drawn.iter().map(|drawn| drawn.spec.clone()).collect();
        let answer = self.user.submit_all(specs, None).await;
        let made = answer.as_ref().map(|answer| answer.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>());
        self.say(format!("submitted {made:?}, held: {expected:?}: {}", Drawn::told(&drawn)));
        let holders = match (expected, answer.as_ref()) {
            (Ok(holders), Ok(_)) => holders,
            (expected, answer) => {
                let refused = answer.map(|_| Vec::new()).map_err(Fail::code);
                return assert_eq!(refused, expected, "submitting");
            }
        };
        let items = answer.unwrap().items;
        let ids: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
        for (place, (holder, drawn)) in holders.into_iter().zip(drawn).enumerate() {
            assert_eq!(items[place].existing, holder.is_some(), "whether another holds the key of {}", ids[place]);
            match holder {
                None => self.take_in_one(None, &ids, place, drawn),
                Some(Holder::There(holder)) => assert_eq!(ids[place], holder),
                Some(Holder::Own(holder)) => assert_eq!(ids[place], ids[holder]),
            }
        }
    }

    /// Jobs are there, alone or in a batch.
    pub(super) fn take_in(&mut self, batch: Option<&str>, ids: &[String], drawn: Vec<Drawn>) {
        for (place, drawn) in drawn.into_iter().enumerate() {
            self.take_in_one(batch, ids, place, drawn);
        }
    }

    fn take_in_one(&mut self, batch: Option<&str>, ids: &[String], place: usize, drawn: Drawn) {
        let job = drawn.job.waiting(drawn.own.into_iter().map(|place| ids[place].clone()));
        self.model.add(&ids[place], Job { batch: batch.map(str::to_owned), ..job });
    }

    /// A worker has room; where nothing may be given, or no more at once, it is given nothing.
    async fn give_out(&mut self) {
        let worker = self.a_hand().await;
        let there = self.model.room();
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
        // Meanwhile the service has looked whether there is something for it.
        hand.beat().await;
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
            let worker = &self.hand(&worker).worker;
            let asked = FanOutRequest { attempt: Some(attempt.clone()), ..FanOutRequest::default() };
            let refused = verdict(worker.attempts().fan_out(worker.request(asked)).await);
            assert_eq!(refused, Err("jobs.fenced".to_owned()));
            let asked = AddSiblingsRequest { attempt: Some(attempt), ..AddSiblingsRequest::default() };
            let refused = verdict(worker.attempts().add_siblings(worker.request(asked)).await);
            assert_eq!(refused, Err("jobs.fenced".to_owned()));
        }
        let end = self.draw_end();
        self.tell_of(place, &end).await;
        self.tell_of(place, &end).await;
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

    /// One job of the queue at a time, or as many as there are slots. What is at work already goes on.
    async fn limit_or_free(&mut self) {
        self.model.limit = if self.model.limit.is_none() { Some(1) } else { None };
        self.say(format!("at most {:?} at once", self.model.limit));
        let concurrency = self.model.limit.map(|limit| u32::try_from(limit).unwrap());
        let asked = UpdateQueueRequest {
            name: QUEUE.to_owned(),
            limits: Some(QueueLimits { concurrency, ..QueueLimits::default() }),
            fields: vec!["concurrency".to_owned()],
        };
        QueuesClient::new(self.user.peer.clone()).update(self.user.call.request(asked)).await.unwrap();
    }

    async fn wait_a_while(&mut self) {
        let most = if self.random.percent(10) { 400 } else { 60 };
        let seconds = 1 + self.random.below(most);
        self.say(format!("{seconds} s pass"));
        self.advance(TimeDelta::seconds(i64::try_from(seconds).unwrap())).await;
    }
}
