//! What goes wrong: workers forget, lose their streams and fall silent, and the process dies, also in the middle of a call.

use chrono::TimeDelta;
use proto::{jobs::JobState, worker::AttemptRef};

use super::{drawing::Drawn, driver::Driver};

impl Driver {
    /// A job at work whose worker is kept alive.
    fn pick_held(&mut self) -> Option<String> {
        let kept = self.kept();
        let mut held = self.model.held();
        held.retain(|id| self.model.jobs[id].holder.as_ref().is_some_and(|holder| kept.contains(holder)));
        self.random.pick(&held).cloned()
    }

    /// A worker does not know of an attempt any more.
    pub(super) async fn forget_one(&mut self) {
        if let Some(id) = self.pick_held() {
            self.forget(&id).await;
        }
    }

    async fn forget(&mut self, id: &str) {
        self.say(format!("the worker of {id} forgets it"));
        let worker = self.model.jobs[id].holder.clone().unwrap();
        self.pulse(&worker, Some(id)).await;
    }

    /// A job loses its worker whenever it is at work, until it is left alone.
    pub(super) async fn lose_one_again_and_again(&mut self) {
        let Some(id) = self.pick_held() else { return };
        loop {
            self.forget(&id).await;
            self.agree().await;
            if self.model.jobs[&id].state == JobState::Scheduled {
                let wait = self.model.jobs[&id].run_at - self.model.now;
                self.advance(wait).await;
            }
            let (claimable, room) = (self.model.claimable(), self.model.room());
            if room == 0 || !claimable.iter().any(|(_, claimable)| *claimable == id) {
                return;
            }
            let worker = self.a_hand().await;
            self.say(format!("{worker} takes all that it may have"));
            self.claim(&worker, room).await;
            // Where only some may be at work it may have been another's turn.
            if self.model.jobs[&id].holder.is_none() {
                return;
            }
        }
    }

    pub(super) async fn lose_a_stream(&mut self) {
        let kept = self.kept();
        let Some(worker) = self.random.pick(&kept).cloned() else { return };
        let held = self.model.jobs.iter().filter(|(_, job)| job.holder.as_ref() == Some(&worker));
        let held: Vec<String> = held.map(|(id, _)| id.clone()).collect();
        let lost = self.random.pick(&held).filter(|_| self.count.is_multiple_of(2)).cloned();
        self.say(format!("{worker} opens another stream, on which it knows nothing of {lost:?}"));
        self.reconnect(&worker).await;
        self.pulse(&worker, lost.as_deref()).await;
    }

    /// A worker is not heard of any more: its lease will end.
    pub(super) fn fall_silent(&mut self) {
        let kept = self.kept();
        let Some(worker) = self.random.pick(&kept).cloned() else { return };
        self.say(format!("{worker} falls silent"));
        self.hand(&worker).is_kept = false;
    }

    /// The process dies; it may be down for a while.
    pub(super) async fn crash(&mut self) {
        let down = if self.random.percent(30) { self.random.below(90) } else { 0 };
        self.say(format!("the process dies, and is down for {down} s"));
        self.house.crash().await;
        let down = TimeDelta::seconds(i64::try_from(down).unwrap());
        self.house.clock.advance(down.to_std().unwrap());
        self.model.now += down;
        self.restart().await;
        self.model.crash();
    }

    /// The process dies while it is told how an attempt ended: either that is written down, or it is as if it had not been
    /// told.
    pub(super) async fn crash_with_an_outcome_on_its_way(&mut self) {
        let held = self.model.held();
        let Some(id) = self.random.pick(&held).cloned() else { return };
        let (end, worker) = (self.draw_end(), self.a_hand().await);
        self.say(format!("the process dies as it is told that {id} ended: {end:?}"));
        let (mut heard, mut unheard) = (self.model.clone(), self.model.clone());
        let token = self.model.job(&id).token;
        let is_it = |attempt: &AttemptRef| attempt.job_id == id && attempt.token == token;
        let assigned = self.assigned.iter().find(|assigned| assigned.attempt.as_ref().is_some_and(is_it)).unwrap();
        self.hands[&worker].worker.say(assigned, end.told()).await;
        self.restart().await;
        heard.outcome(&id, token, &end);
        heard.crash();
        unheard.crash();
        self.agree_with_one_of(vec![heard, unheard]).await;
    }

    /// The process dies while a job is handed in. Asked again with the same key, it is there once; and what was answered
    /// before stands.
    pub(super) async fn crash_while_submitting(&mut self) {
        let drawn = self.draw_jobs(1);
        let spec = drawn[0].spec.clone();
        let key = format!("key-{}", self.next());
        let submit = self.user.submit_all(vec![spec.clone()], Some((&key, 1)));
        let (answer, ()) = tokio::join!(submit, self.house.crash());
        self.say(format!(
            "the process dies while a job is handed in: {}, answered: {}",
            Drawn::told(&drawn),
            answer.is_ok()
        ));
        self.restart().await;
        self.model.crash();
        // Its tasks are known, as a worker has offered them before.
        let again = self.user.submit_all(vec![spec], Some((&key, 1))).await.unwrap();
        let id = again.items[0].id.clone();
        if let Ok(answer) = answer {
            assert_eq!((answer.items[0].id.as_str(), again.replayed), (id.as_str(), true));
        }
        self.take_in(None, &[id], drawn);
    }
}
