//! Unique jobs: of those that show the same key, one holds it. A key is a row of `jobs.unique_key`, of an owner and a task, or
//! of a task for all owners; it is taken in the transaction that submits its job, and let go in the one that starts or ends
//! it, so that no crash leaves a key without its job.
//!
//! Order of locks: jobs, then batches, then keys; keys by scope, task and key. Whoever starts or ends jobs lets go of their
//! keys as the last thing that may wait. Whoever submits holds keys first, and waits for nothing from then on: a job that
//! is to be replaced is locked only where nobody else holds it, and one that somebody holds is about to start or to end.

mod asked;
mod rows;

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use kit::{Fail, audit::Act, fail::Violation, grpc::Call};
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) use asked::{OnConflict, Unique};

pub(crate) use rows::{Holding, let_go, tidy};

use asked::Hold;
use rows::{Asked, Name};

use super::{
    Ground,
    events::Telling,
    states::State,
    steps::{self, Aftermath, Row, Step},
    submit::NewJob,
};
use crate::acts;

fn name(owner: Uuid, is_for_all: bool, task: &str, key: &str) -> Name {
    (if is_for_all { Uuid::nil() } else { owner }, task.to_owned(), key.to_owned())
}

impl Unique {
    /// What the job of this id asks for when it is submitted now.
    fn asked(&self, job: Uuid, now: DateTime<Utc>) -> Asked<'_> {
        Asked { job, hold: self.hold.as_str(), held_until: self.window.map_or(now, |window| now + window) }
    }
}

impl NewJob {
    /// The key that the job asks for, and how.
    pub(crate) fn key(&self) -> Option<(Name, &Unique)> {
        let unique = self.unique.as_ref()?;
        Some((name(self.owner_id, unique.is_for_all, &self.task, &unique.key), unique))
    }
}

/// Who holds the keys that jobs asked for, all of them locked for the rest of the transaction.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// By the job that asked and does not hold its key, the one that does.
    holders: HashMap<Uuid, Uuid>,
}

impl Keys {
    /// Takes what is free for the first job that asks for it.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn take<'a>(
        conn: &mut PgConnection,
        jobs: impl IntoIterator<Item = &'a NewJob>,
        now: DateTime<Utc>,
    ) -> Result<Self, Fail> {
        let mut first: BTreeMap<Name, Asked<'_>> = BTreeMap::new();
        let mut asking = Vec::new();
        for job in jobs {
            let Some((name, unique)) = job.key() else { continue };
            first.entry(name.clone()).or_insert_with(|| unique.asked(job.id, now));
            asking.push((name, job.id));
        }
        let held_by = rows::ask(conn, &first, now).await?;
        let holders = asking.into_iter().filter_map(|(name, job)| {
            let holder = held_by.get(&name).copied()?;
            (holder != job).then_some((job, holder))
        });
        Ok(Self { holders: holders.collect() })
    }

    /// The other job that holds the key that this one asked for.
    pub(crate) fn holder(&self, job: &NewJob) -> Option<Uuid> {
        self.holders.get(&job.id).copied()
    }

    /// The job that stands for one that was submitted: itself, or the one that holds its key.
    pub(crate) fn stand_in(&self, job: Uuid) -> Uuid {
        self.holders.get(&job).copied().unwrap_or(job)
    }

    /// Whether the job holds the key that it asked for.
    pub(crate) fn is_held_by(&self, job: &NewJob) -> bool {
        job.unique.is_some() && self.holder(job).is_none()
    }

    /// Why jobs that are submitted together cannot be, where one of them is to be refused when its key is held.
    pub(crate) fn refusal(&self, jobs: &[NewJob]) -> Option<Fail> {
        let refused = jobs.iter().enumerate().filter_map(|(n, job)| {
            let unique = job.unique.as_ref().filter(|unique| unique.on_conflict == OnConflict::Refuse)?;
            let (pointer, holder) = (format!("/jobs/{n}/unique_key"), self.holder(job)?);
            let message = format!("the job {holder} holds the key `{}`", unique.key);
            Some(Violation { pointer, code: "unique".to_owned(), message })
        });
        let violations: Vec<Violation> = refused.collect();
        (!violations.is_empty()).then(|| held().with_violations(violations))
    }

    /// Gives the keys of jobs back that are not submitted after all.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn give_back(&self, conn: &mut PgConnection, jobs: &[NewJob]) -> Result<(), Fail> {
        let held = jobs.iter().filter(|job| self.is_held_by(job));
        let holdings: Vec<Holding> = held.filter_map(|job| Some(Holding { name: job.key()?.0, job: job.id })).collect();
        rows::remove(conn, &holdings).await
    }

    /// Cancels the holders that jobs ask to replace and that may be: the same owner's, never claimed, and held by no other
    /// transaction. The key goes to whoever asked first. Beside each job stands the call that it came with, if it came with
    /// one. What is to be done once it is durable.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn replace<'a>(
        &mut self,
        ground: &Ground,
        conn: &mut PgConnection,
        jobs: impl IntoIterator<Item = (&'a NewJob, Option<&'a Call>)>,
        now: DateTime<Utc>,
    ) -> Result<Aftermath, Fail> {
        let mut by_holder: BTreeMap<Uuid, (&NewJob, Option<&Call>)> = BTreeMap::new();
        for (job, call) in jobs {
            let asks = job.unique.as_ref().is_some_and(|unique| unique.on_conflict == OnConflict::Replace);
            if let (true, Some(holder)) = (asks, self.holder(job)) {
                by_holder.entry(holder).or_insert((job, call));
            }
        }
        if by_holder.is_empty() {
            return Ok(Aftermath::default());
        }
        let ids: Vec<Uuid> = by_holder.keys().copied().collect();
        let mut replaced = Vec::new();
        for row in steps::lock_unstarted(conn, &ids).await? {
            match by_holder.get(&row.id) {
                Some((job, call)) if job.owner_id == row.owner_id => replaced.push((row, *job, *call)),
                _ => {}
            }
        }
        let keys =
            replaced.iter().filter_map(|(_, job, _)| job.key().map(|(name, unique)| (name, unique.asked(job.id, now))));
        rows::hand_over(conn, &keys.collect()).await?;
        for (row, job, _) in &replaced {
            self.holders.retain(|asked, _| *asked != job.id);
            self.holders.values_mut().filter(|holder| **holder == row.id).for_each(|holder| *holder = job.id);
        }
        cancel(ground, conn, replaced, now).await
    }
}

/// The refusal of a job whose key another holds.
pub(crate) fn held() -> Fail {
    Fail::conflict("jobs.unique_key_held", "Another job holds this unique key.")
}

/// Ends jobs that others replace, as a cancel by whoever submitted these.
async fn cancel(
    ground: &Ground,
    conn: &mut PgConnection,
    replaced: Vec<(Row, &NewJob, Option<&Call>)>,
    now: DateTime<Utc>,
) -> Result<Aftermath, Fail> {
    let mut ended = Vec::with_capacity(replaced.len());
    for (row, job, call) in replaced {
        let reason = format!("Replaced by the job {}, which shows the same unique key.", job.id);
        let act = match call {
            Some(call) => Act::of(call, &acts::CANCEL_JOB, row.id),
            None => Act::by_system(&acts::CANCEL_JOB, row.id),
        };
        let was: State = row.state.parse()?;
        let act = act.owned_by(row.owner_id).because(&reason);
        let act = act.before("state", was.as_str()).after("state", State::Cancelled.as_str());
        ground.audit.record(conn, act).await?;
        ended.push(Step::stopped(Row { cancel_reason: Some(reason), ..row }));
    }
    steps::carry_out(ground, conn, ended, BTreeMap::new(), Telling::default(), now).await
}

/// Whether a job that holds its key in this way lets go of it when it starts.
pub(super) fn ends_at_start(hold: Option<&str>) -> bool {
    hold == Some(Hold::Waiting.as_str())
}

impl Holding {
    /// The key of a job, as its row has it.
    pub(crate) fn new(job: Uuid, owner: Uuid, is_for_all: bool, task: &str, key: &str) -> Self {
        Self { name: name(owner, is_for_all, task, key), job }
    }

    /// What a step lets go of: a job's key when it is over, unless it is a dead letter that keeps it.
    pub(super) fn until(step: &Step) -> Option<Self> {
        let row = &step.row;
        let is_dead_letter = matches!(step.next, State::Failed | State::Expired);
        let keeps_it = is_dead_letter && row.unique_hold.as_deref() == Some(Hold::DeadLetter.as_str());
        let key = row.unique_key.as_ref().filter(|_| step.next.is_final() && !keeps_it)?;
        Some(Self::new(row.id, row.owner_id, row.is_unique_for_all, &row.task, key))
    }
}

/// Takes the key of a job that ended and is to be live again.
///
/// # Errors
/// `jobs.unique_key_held`; as the database.
pub(crate) async fn take_again(
    conn: &mut PgConnection,
    own: Holding,
    hold: &str,
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    let Holding { name, job } = own;
    let asked = BTreeMap::from([(name.clone(), Asked { job, hold, held_until: now })]);
    let holder = rows::ask(conn, &asked, now).await?.remove(&name);
    if holder == Some(job) { Ok(()) } else { Err(held()) }
}
