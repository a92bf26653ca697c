//! What runs by itself: claiming, finishing, fan-in, cancelling, telling, and the sweeps that take up what a crash left.
//! Nouns call in here; nothing in here knows a noun's handlers.

mod admission;
mod backoff;
mod batch_row;
mod cancel;
mod dependencies;
mod dispatch;
mod events;
mod expiry;
mod fan_in;
mod finalizes;
mod finish;
mod group;
mod growth;
mod history;
mod holdups;
mod leader;
mod live;
mod lone;
mod measure;
mod moves;
mod notebook;
mod policy;
mod progress;
mod reconcile;
mod repair;
mod retries;
mod standstill;
mod states;
mod steps;
pub(crate) mod straight;
mod submit;
mod sweeps;
mod unique;
mod wakes;

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use kit::{
    Clock, Fail,
    audit::{self, Act},
    tasks::Tasks,
};
use sqlx::PgPool;
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use admission::{Standing, alone as admit_alone, lane_running};
pub(crate) use backoff::Backoff;
pub(crate) use cancel::close_within;
pub(crate) use dependencies::{AFTER_MAX, After, Nameable, rings};
pub(crate) use dispatch::Seat;
pub(crate) use events::Telling;
pub(crate) use finalizes::list as list_finalizes;
pub(crate) use finish::{End, Fault, Outcome};
pub(crate) use leader::{Lead, Told, while_leading};
pub(crate) use live::{Stream, Subject, watch};
pub(crate) use policy::Policy;
pub(crate) use progress::{Line, Note, Progress, Said};
pub(crate) use retries::{ASKED_DELAY_MAX, RetryOn};
pub(crate) use states::{State, markdown as states_markdown};
pub(crate) use submit::{NewJob, Place, insert};
pub(crate) use sweeps::lease_end;
pub(crate) use unique::{Keys, OnConflict, Unique, held as key_held};

pub(crate) use group::Group;

use live::Live;
pub(crate) use steps::Aftermath;

use crate::{SCHEMA, Settings, acts};

/// Outcomes that one transaction takes at most. It holds their rows for some tens of milliseconds then.
const GROUP_MAX: usize = 500;
/// Attempts that one transaction writes about at most.
const PAGES_MAX: usize = 100;

/// What every part of the engine stands on.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) live: Live,
    pub(crate) audit: audit::Log,
    /// What claims know of limits.
    pub(crate) limits: admission::Known,
    seats: dispatch::Seats,
    leader: leader::Leader,
    /// None for the only replica.
    wakes: Option<wakes::Wakes>,
    /// Connections of submissions, claims and ends.
    pub(crate) kept: straight::Kept,
    /// Something may be claimed.
    work: Notify,
    /// Something is to be stopped.
    cancels: Notify,
    /// Limits have changed, and waiting jobs are to follow.
    lanes: Notify,
    /// Some batch is to be cancelled or retried, which the leader sees to.
    bites: Notify,
    /// Some job waits for others, or what it waits for has ended, which the leader sees to.
    dependents: Notify,
}

impl Ground {
    /// New jobs are durable; whether some of them wait for others.
    pub(crate) fn took_in(&self, streams: Vec<Uuid>, are_some_waiting: bool) {
        self.after(&Aftermath { streams, has_work: true, has_dependents: are_some_waiting, ..Aftermath::default() });
    }

    /// Wakes whoever waits for what a transaction has made durable, here and in the other replicas.
    fn after(&self, aftermath: &Aftermath) {
        self.wake_here(aftermath);
        if let Some(wakes) = &self.wakes {
            wakes.tell(aftermath);
        }
    }

    fn wake_here(&self, aftermath: &Aftermath) {
        self.live.touch(&aftermath.streams);
        if aftermath.has_work {
            self.work.notify_one();
        }
        if aftermath.has_cancels {
            self.cancels.notify_one();
            self.bites.notify_one();
        }
        if aftermath.has_dependents {
            self.dependents.notify_one();
        }
    }
}

/// The engine's doors.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) ground: Arc<Ground>,
    /// For ends that may concern nobody but their own job: whether they do, and are written. For all others, the finisher.
    lone: Group<Outcome, bool>,
    finisher: Group<Outcome, bool>,
    notebook: notebook::Notebook,
}

impl Engine {
    /// Makes the partitions of the coming days and starts everything that runs by itself. `owns_all_workers` says that no
    /// worker can be alive that an earlier process knew, and that no other replica is: it leads at once, and what those
    /// workers held is given back first, before a sweep could take it for lost.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn start(
        pool: PgPool,
        clock: Clock,
        settings: Settings,
        tasks: &Tasks,
        owns_all_workers: bool,
    ) -> Result<Self, Fail> {
        let replica = clock.new_id();
        let lead = if owns_all_workers { Some(Lead::seize(&pool, replica).await?) } else { None };
        let ground = Arc::new(Ground {
            pool,
            settings,
            live: Live::default(),
            audit: audit::Log::new(SCHEMA, acts::RECORDED, clock.clone()),
            limits: admission::Known::default(),
            seats: dispatch::Seats::default(),
            // Whoever owns all workers is alone on the database.
            wakes: wakes::Wakes::new((!owns_all_workers).then_some(replica)),
            leader: leader::Leader::new(replica, lead),
            clock,
            kept: straight::Kept::default(),
            work: Notify::new(),
            cancels: Notify::new(),
            bites: Notify::new(),
            dependents: Notify::new(),
            lanes: Notify::new(),
        });
        history::make_partitions(&ground).await?;
        if let Some(lead) = lead {
            let released = sweeps::release_all(&ground, lead).await?;
            if released > 0 {
                tracing::info!(count = released, "attempts of the last process were given back");
            }
        }
        let on = Arc::clone(&ground);
        let finisher = Group::start(tasks, "jobs.finish", GROUP_MAX, move |outcomes| {
            let ground = Arc::clone(&on);
            Box::pin(async move { finish::finish(&ground, outcomes).await })
        });
        let on = Arc::clone(&ground);
        let lone = Group::start(tasks, "jobs.finish_lone", GROUP_MAX, move |outcomes| {
            let ground = Arc::clone(&on);
            Box::pin(async move { lone::finish(&ground, outcomes).await })
        });
        let on = Arc::clone(&ground);
        let writer = Group::start(tasks, "jobs.progress", PAGES_MAX, move |pages| {
            let ground = Arc::clone(&on);
            Box::pin(async move { progress::write(&ground, pages).await })
        });
        let notebook = notebook::Notebook::start(tasks, writer);
        dispatch::start(&ground, &finisher, tasks);
        leader::start(&ground, tasks);
        sweeps::start(&ground, tasks);
        measure::start(&ground, tasks);
        holdups::start(&ground, tasks);
        growth::start(&ground, tasks);
        wakes::start(&ground, tasks);
        Ok(Self { ground, lone, finisher, notebook })
    }

    /// Something may be claimed: new jobs, a resumed queue, a free slot.
    pub(crate) fn wake(&self) {
        self.ground.work.notify_one();
    }

    /// A limit was set: claims count from now on, and the waiting jobs are given their lanes.
    pub(crate) fn limits_changed(&self) {
        self.ground.limits.limited();
        self.ground.after(&Aftermath { has_work: true, ..Aftermath::default() });
        self.ground.lanes.notify_one();
    }

    /// Ends attempts, after what they have said; of each, whether its fencing token was still the one that counts, or why that
    /// is not known: as the database, or `jobs.busy`. Durable when answered. `is_entangled` of an outcome says that its end
    /// concerns others than its job, which spares a look.
    pub(crate) async fn finish(
        &self,
        outcomes: &[Outcome],
        is_entangled: impl Fn(&Outcome) -> bool,
    ) -> Vec<Result<bool, Fail>> {
        let hand_in = |place: usize| {
            let outcome = &outcomes[place];
            let is_lone = lone::may_be(outcome) && !is_entangled(outcome);
            (place, is_lone, if is_lone { &self.lone } else { &self.finisher }.hand_in(outcome.clone()))
        };
        // All are handed in before the first is answered: so they come into few groups.
        let (mut handed_in, mut unsettled) = (Vec::with_capacity(outcomes.len()), FuturesUnordered::new());
        for (place, outcome) in outcomes.iter().enumerate() {
            match self.notebook.settle((outcome.job, outcome.token)) {
                None => handed_in.push(hand_in(place)),
                Some(settled) => unsettled.push(settled.map(move |()| place)),
            }
        }
        while let Some(place) = unsettled.next().await {
            handed_in.push(hand_in(place));
        }
        let mut ended: Vec<Result<bool, Fail>> = outcomes.iter().map(|_| Ok(false)).collect();
        let mut left = Vec::new();
        for (place, is_lone, answer) in handed_in {
            ended[place] = answer.await;
            if is_lone && matches!(ended[place], Ok(false)) {
                left.push((place, self.finisher.hand_in(outcomes[place].clone())));
            }
        }
        for (place, answer) in left {
            ended[place] = answer.await;
        }
        ended
    }

    /// Takes progress or a log line of an attempt down, to be written within a moment, and before its outcome. A fenced
    /// attempt's changes nothing.
    pub(crate) fn note(&self, note: Note) {
        self.notebook.note(note);
    }

    /// Streams have news and jobs may start, after a transaction that was not the engine's own.
    pub(crate) fn after(&self, streams: Vec<Uuid>, has_work: bool) {
        self.ground.after(&Aftermath { streams, has_work, ..Aftermath::default() });
    }

    /// Asks a live job to stop. `act` is written down with it, unless it was asked before.
    ///
    /// # Errors
    /// `jobs.already_final`; as the database.
    pub(crate) async fn cancel_job(&self, id: Uuid, by: Uuid, reason: &str, act: Act) -> Result<(), Fail> {
        cancel::job(&self.ground, id, by, reason, act).await
    }

    /// Asks everything live in a batch to stop. `act` is written down with it, unless it was asked before.
    ///
    /// # Errors
    /// `jobs.already_final`; as the database.
    pub(crate) async fn cancel_batch(&self, id: Uuid, by: Uuid, reason: &str, act: Act) -> Result<(), Fail> {
        cancel::batch(&self.ground, id, by, reason, act).await
    }

    /// Queues a job that has ended again; it opens a batch that was over. `act` is written down with it.
    ///
    /// # Errors
    /// `jobs.not_final`; `jobs.already_succeeded`; `jobs.batch_finalizing` while the finalize of its batch is at work;
    /// `jobs.finalize_superseded` for a finalize that a new one follows; as the database.
    pub(crate) async fn retry_job(&self, id: Uuid, act: Act) -> Result<(), Fail> {
        repair::job(&self.ground, id, act).await
    }

    /// Queues everything in a batch again that ended in one of `states`; a batch that was over is opened. `act` is written
    /// down with it.
    ///
    /// # Errors
    /// `jobs.batch_finalizing`; `jobs.batch_cancelling`; `jobs.nothing_to_retry` in a batch that is over; as the database.
    pub(crate) async fn retry_batch(&self, id: Uuid, states: &[State], act: Act) -> Result<(), Fail> {
        repair::batch(&self.ground, id, states, act).await
    }

    /// Closes an open batch, which completes it when all its jobs have ended.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn close_batch(&self, id: Uuid) -> Result<(), Fail> {
        cancel::close(&self.ground, id).await
    }

    /// Takes a worker's seat: from now on it is given work.
    pub(crate) fn seat(&self, seat: &Arc<Seat>) {
        self.ground.seats.take(seat);
        self.wake();
        self.ground.cancels.notify_one();
    }

    /// Leaves a seat, unless another stream of the same worker has taken it since.
    pub(crate) fn unseat(&self, seat: &Arc<Seat>) {
        self.ground.seats.leave(seat);
    }
}
