//! One run: the service, its user and its workers on one side, the model on the other, and the time of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use proto::worker::{Assignment, AttemptRef};

use super::{
    Random, Trail,
    job::{End, Time},
    rules::{LEASE, Model},
};
use crate::house::{House, User, Worker};

/// Between two looks at a service that has not come to agree yet: looking all the time would take the time of the sweeps
/// that are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Service and model must agree within this; it only ends a run that has failed already, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker that is kept alive sends a heartbeat so often.
const PULSE: TimeDelta = TimeDelta::seconds(20);
/// A stream lasts an hour; a worker opens another before.
const STREAM: TimeDelta = TimeDelta::minutes(50);
/// Workers that are kept alive at most.
const HANDS_MAX: usize = 3;

pub(super) struct Driver {
    pub(super) house: House,
    pub(super) user: User,
    pub(super) model: Model,
    pub(super) random: Random,
    pub(super) hands: BTreeMap<String, Hand>,
    /// Every attempt that was ever handed out.
    pub(super) assigned: Vec<Assignment>,
    /// Makes arguments, results, keys and clocks each their own.
    pub(super) count: u32,
    pub(super) trail: Trail,
}

/// A connected worker.
pub(super) struct Hand {
    pub(super) worker: Worker,
    sequence: u64,
    /// Assignments read on its present stream, and which.
    read: u64,
    sent: BTreeSet<(String, u64)>,
    opened_at: Time,
    /// Whether it sends heartbeats.
    pub(super) is_kept: bool,
}

impl Hand {
    /// A heartbeat of one that holds nothing.
    pub(super) async fn beat(&mut self) {
        self.sequence += 1;
        self.worker.heartbeat(Vec::new(), self.sequence, self.read).await;
    }
}

impl Driver {
    pub(super) async fn new(seed: u64, trail: Trail) -> Self {
        let house = House::new().await;
        let user = house.user(&["operator"]);
        let model = Model {
            now: house.clock.now(),
            jobs: BTreeMap::new(),
            batches: BTreeMap::new(),
            workers: BTreeMap::new(),
            is_paused: false,
            limit: None,
        };
        let (hands, assigned) = (BTreeMap::new(), Vec::new());
        let mut driver = Self { house, user, model, random: Random(seed), hands, assigned, count: 0, trail };
        // Its tasks are what submissions are checked against.
        driver.greet().await;
        driver
    }

    pub(super) fn next(&mut self) -> u32 {
        self.count += 1;
        self.count
    }

    /// Another worker comes.
    pub(super) async fn greet(&mut self) -> String {
        let worker = self.house.stranger_worker("").await;
        let (id, opened_at) = (worker.id.clone(), self.model.now);
        self.model.workers.insert(id.clone(), opened_at + LEASE);
        let hand = Hand { worker, sequence: 0, read: 0, sent: BTreeSet::new(), opened_at, is_kept: true };
        self.hands.insert(id.clone(), hand);
        id
    }

    /// Workers that are kept alive.
    pub(super) fn kept(&self) -> Vec<String> {
        self.hands.iter().filter(|(_, hand)| hand.is_kept).map(|(id, _)| id.clone()).collect()
    }

    /// One of the workers that are kept alive, or a new one.
    pub(super) async fn a_hand(&mut self) -> String {
        let kept = self.kept();
        let another = kept.len() < HANDS_MAX && self.random.percent(25);
        match self.random.pick(&kept).filter(|_| !another) {
            Some(id) => id.clone(),
            None => self.greet().await,
        }
    }

    pub(super) fn hand(&mut self, id: &str) -> &mut Hand {
        self.hands.get_mut(id).unwrap()
    }

    fn holding(&self, worker: &str) -> Vec<AttemptRef> {
        let held = self.model.jobs.iter().filter(|(_, job)| job.holder.as_deref() == Some(worker));
        held.map(|(id, job)| AttemptRef { job_id: id.clone(), token: job.token }).collect()
    }

    /// Gives a worker slots, and takes what it is given for them: each a job that the model may give now.
    pub(super) async fn claim(&mut self, worker: &str, slots: usize) {
        let mut candidates = self.model.claimable();
        let hand = self.hand(worker);
        hand.worker.credit(u32::try_from(slots).unwrap()).await;
        let given = hand.worker.assigned(slots).await;
        hand.read += given.len() as u64;
        for assignment in given {
            let attempt = assignment.attempt.clone().unwrap();
            let id = attempt.job_id.as_str();
            let place = candidates.iter().position(|(_, candidate)| candidate == id);
            let place = place.unwrap_or_else(|| panic!("{id} was given out, and is not there to be claimed"));
            let (rank, _) = candidates.remove(place);
            assert!(candidates.iter().all(|(other, _)| *other >= rank), "{id} was given out before its turn");
            let job = self.model.job(id);
            assert_eq!((assignment.number, assignment.finalize), (job.attempt + 1, job.is_finalize), "{id}");
            assert_eq!((&assignment.task, &assignment.batch_id), (&job.task, &job.batch.clone().unwrap_or_default()));
            let earlier = self.assigned.iter().filter_map(|earlier| earlier.attempt.as_ref());
            let is_newest = earlier.filter(|earlier| earlier.job_id == id).all(|earlier| earlier.token < attempt.token);
            assert!(is_newest, "the token of {id} does not grow");
            self.model.claimed(id, attempt.token, worker);
            self.hand(worker).sent.insert((id.to_owned(), attempt.token));
            self.assigned.push(assignment);
        }
    }

    /// A worker says what it holds, but for one attempt that it has forgotten.
    pub(super) async fn pulse(&mut self, worker: &str, forgotten: Option<&str>) {
        let now = self.model.now;
        if now - self.hand(worker).opened_at >= STREAM {
            self.reconnect(worker).await;
        }
        let mut holding = self.holding(worker);
        holding.retain(|attempt| Some(attempt.job_id.as_str()) != forgotten);
        let hand = self.hand(worker);
        hand.sequence += 1;
        let (sequence, read) = (hand.sequence, hand.read);
        hand.worker.heartbeat(holding, sequence, read).await;
        self.model.workers.insert(worker.to_owned(), now + LEASE);
        if let Some(id) = forgotten {
            let token = self.model.job(id).token;
            // What was sent over an earlier stream may never have been read.
            let was_read = self.hand(worker).sent.contains(&(id.to_owned(), token));
            self.model.end_attempt(id, if was_read { &End::LOST } else { &End::Interrupted });
        }
    }

    /// A worker loses its stream and opens another under its id. What it holds is named by its next heartbeat.
    pub(super) async fn reconnect(&mut self, worker: &str) {
        let (again, now) = (self.house.stranger_worker(worker).await, self.model.now);
        let hand = self.hand(worker);
        (hand.worker, hand.read, hand.opened_at) = (again, 0, now);
        hand.sent.clear();
        self.model.workers.insert(worker.to_owned(), now + LEASE);
    }

    /// Time goes on, from one instant at which something is due to the next.
    pub(super) async fn advance(&mut self, by: TimeDelta) {
        let until = self.model.now + by;
        while self.model.now < until {
            let step = until.min(self.model.now + PULSE);
            let next = self.model.next_due().map_or(step, |due| due.min(step));
            self.house.clock.advance((next - self.model.now).to_std().unwrap());
            self.model.now = next;
            self.model.settle();
            // Before the heartbeats: one that names what is being fenced would only be told so.
            self.agree().await;
            for worker in self.kept() {
                self.pulse(&worker, None).await;
            }
        }
    }

    /// The process dies, and another is started that finds what it left.
    pub(super) async fn restart(&mut self) {
        self.house.crash_and_restart().await;
        self.user = self.house.again(&self.user);
        self.hands.clear();
    }

    /// Waits until the service shows what the model says.
    pub(super) async fn agree(&mut self) {
        let model = self.model.clone();
        self.agree_with_one_of(vec![model]).await;
    }

    /// Waits until the service shows what one of these models says, which is the model from then on.
    pub(super) async fn agree_with_one_of(&mut self, mut models: Vec<Model>) {
        for model in &mut models {
            model.settle();
        }
        let begun = Instant::now();
        loop {
            let shown = self.look().await;
            let mut differences = Vec::new();
            for mut model in models.clone() {
                model.take_in(&shown);
                match model.differs(&shown) {
                    None if self.attempts_tell_apart(&model, &models).await => {
                        differences.push("its attempts have ended otherwise".to_owned());
                    }
                    None if self.is_more_to_tell().await => {
                        differences.push("some ends are not told to those that wait for them".to_owned());
                    }
                    None => {
                        self.model = model;
                        return;
                    }
                    Some(difference) => differences.push(difference),
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{}", differences.join("\nor "));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether an end is still to be told to a job that waits for it: a retry that came before that would be waited for, too.
    async fn is_more_to_tell(&self) -> bool {
        let asked = "select exists (select from jobs.dependency where state in ('asked', 'ended'))";
        sqlx::query_scalar(asked).fetch_one(self.house.database.pool()).await.unwrap()
    }

    /// Whether this is not the one of several models by how some attempt has ended, where that is all in which they differ.
    async fn attempts_tell_apart(&self, model: &Model, models: &[Model]) -> bool {
        for (id, job) in &model.jobs {
            let is_told =
                models.iter().any(|other| other.jobs.get(id).is_some_and(|other| other.attempts != job.attempts));
            if is_told && self.user.attempts(id).await != job.attempts {
                return true;
            }
        }
        false
    }
}
