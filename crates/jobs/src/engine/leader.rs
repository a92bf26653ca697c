//! Who of several replicas does the common work: promoting what is due, taking up what was lost, counting, tidying. One
//! row of the database names an epoch. The leader beats in it, and whoever sees no beat for a while takes the lead with
//! the next epoch. No two clocks are compared: a replica measures by its own how long the row has stood still.
//!
//! That a replica believes it leads is never enough. Every transaction of common work begins with [`Lead::begin`], which
//! locks the row of its epoch until the end: it is refused when another has taken the lead, and another can take it only
//! once the transaction is over. So a leader that was cut off, or frozen and thawed, changes nothing (ADR 20).

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use kit::{Clock, Fail, tasks::Tasks};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Ground, standstill::Standstill};

/// Between two beats of the leader, and between two looks of the others.
const BEAT_EVERY: Duration = Duration::from_millis(300);
/// A leader whose beats have not been answered for so long stops by itself. Shorter than what the others wait.
const DOUBT_AFTER: Duration = Duration::from_millis(1200);
/// A row that has stood still for so long is taken.
const TAKE_AFTER: Duration = Duration::from_millis(1500);
/// What Postgres lets a transaction of the leader stand still before it ends it: so long can one that is frozen in the
/// middle keep another from leading.
const IDLE_MAX: &str = "2s";

/// The code of a transaction that was refused because another leads.
const NOT_LEADING: &str = "jobs.not_leading";

/// The right to do the common work, good for as long as the database names its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lead {
    epoch: i64,
}

impl Lead {
    /// Begins a transaction that is committed under this lead or not at all.
    ///
    /// # Errors
    /// `jobs.not_leading`; as the database.
    pub(crate) async fn begin(self, pool: &PgPool) -> Result<Transaction<'static, Postgres>, Fail> {
        let mut transaction = pool.begin().await?;
        let held = sqlx::query_scalar!(
            "select set_config('idle_in_transaction_session_timeout', $2, true)
             from jobs.leader
             where epoch = $1
             for key share",
            self.epoch,
            IDLE_MAX,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        match held {
            Some(_) => Ok(transaction),
            None => Err(Fail::unavailable(NOT_LEADING, "Another replica does this.")),
        }
    }

    /// Takes the lead, whoever has it.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn seize(pool: &PgPool, replica: Uuid) -> Result<Self, Fail> {
        let epoch = sqlx::query_scalar!(
            "update jobs.leader set epoch = epoch + 1, beat = 0, replica = $1 returning epoch",
            replica,
        )
        .fetch_one(pool)
        .await?;
        Ok(Self { epoch })
    }

    /// Takes the lead from the epoch and beat that were seen; nothing when either has moved since.
    async fn take(connection: &mut PgConnection, replica: Uuid, seen: Seen) -> Result<Option<Self>, Fail> {
        let epoch = sqlx::query_scalar!(
            "update jobs.leader
             set epoch = epoch + 1, beat = 0, replica = $3
             where epoch = $1 and beat = $2
             returning epoch",
            seen.epoch,
            seen.beat,
            replica,
        )
        .fetch_optional(connection)
        .await?;
        Ok(epoch.map(|epoch| Self { epoch }))
    }

    /// Says that its holder lives; whether it still leads.
    async fn beat(self, connection: &mut PgConnection) -> Result<bool, Fail> {
        let beaten = sqlx::query!("update jobs.leader set beat = beat + 1 where epoch = $1", self.epoch)
            .execute(connection)
            .await?;
        Ok(beaten.rows_affected() > 0)
    }

    /// Lays the lead down, so that another need not wait.
    async fn lay_down(self, pool: &PgPool) -> Result<(), Fail> {
        sqlx::query!("update jobs.leader set replica = null where epoch = $1", self.epoch).execute(pool).await?;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    epoch: i64,
    beat: i64,
}

/// This replica's part in leading.
#[derive(Debug)]
pub(super) struct Leader {
    replica: Uuid,
    lead: watch::Sender<Option<Lead>>,
    /// A transaction was refused: the row is to be looked at.
    is_doubted: Notify,
    pub(super) standstill: Standstill,
}

impl Leader {
    pub(super) fn new(replica: Uuid, lead: Option<Lead>) -> Self {
        Self {
            replica,
            lead: watch::Sender::new(lead),
            is_doubted: Notify::new(),
            // By the wall clock of the machine, which leases are counted by: it goes on while the machine is suspended,
            // and it can be set.
            standstill: Standstill::new(Clock::system()),
        }
    }

    fn lead(&self) -> Option<Lead> {
        *self.lead.borrow()
    }

    fn tell(&self, lead: Option<Lead>) {
        self.lead.send_if_modified(|present| {
            let is_new = *present != lead;
            if is_new {
                match (lead, *present) {
                    (Some(lead), _) => info!(leader.epoch = lead.epoch, "this replica leads"),
                    (None, Some(lost)) => info!(leader.epoch = lost.epoch, "this replica leads no more"),
                    (None, None) => {}
                }
                *present = lead;
            }
            is_new
        });
        metrics::gauge!("guildhall_jobs_leads").set(if lead.is_some() { 1.0 } else { 0.0 });
    }
}

/// Starts beating, looking and taking.
pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    let (ground, stopping) = (Arc::clone(ground), tasks.stopping());
    tasks.spawn_restarting("jobs.leader", move || {
        let (ground, stopping) = (Arc::clone(&ground), stopping.clone());
        async move {
            let leader = &ground.leader;
            Box::pin(run(&ground, &stopping)).await;
            let led = leader.lead();
            leader.tell(None);
            match led {
                Some(lead) => lead.lay_down(&ground.pool).await,
                None => Ok(()),
            }
        }
    });
}

/// Does `work` while this replica leads, and drops it where it stands when it does so no more. A work that ends well is
/// over for good; one that fails is begun again.
pub(crate) fn while_leading<M, F>(ground: &Arc<Ground>, tasks: &Tasks, name: &'static str, work: M)
where
    M: Fn(Arc<Ground>, Lead) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Fail>> + Send + 'static,
{
    let (ground, stopping) = (Arc::clone(ground), tasks.stopping());
    tasks.spawn_restarting(name, move || {
        let (ground, stopping, work) = (Arc::clone(&ground), stopping.clone(), work.clone());
        async move {
            let mut leads = ground.leader.lead.subscribe();
            loop {
                let led = stopping.run_until_cancelled(leads.wait_for(Option::is_some)).await;
                let Some(lead) = led.and_then(|led| *led.ok()?) else { return Ok(()) };
                let worked = tokio::select! {
                    worked = work(Arc::clone(&ground), lead) => worked,
                    _ = leads.wait_for(|present| *present != Some(lead)) => continue,
                };
                match worked {
                    Err(fail) if fail.code() == NOT_LEADING => {
                        ground.leader.is_doubted.notify_one();
                        drop(leads.wait_for(|present| *present != Some(lead)).await);
                    }
                    worked => return worked,
                }
            }
        }
    });
}

/// Beats while it leads, and looks for its turn while it does not. Over a connection of its own: one of the pool might not
/// be had in time while the pool is in demand. Asked to stop it ends between two turns and never within one: a lead that was
/// taken and not told yet could not be laid down.
async fn run(ground: &Ground, stopping: &CancellationToken) {
    let leader = &ground.leader;
    let mut connection = None;
    let mut answered_at = Instant::now();
    let mut stands: Option<(Seen, Instant)> = None;
    while !stopping.is_cancelled() {
        leader.standstill.look();
        let asked_at = Instant::now();
        let lead = leader.lead();
        let until = if lead.is_some() { answered_at + DOUBT_AFTER } else { asked_at + DOUBT_AFTER };
        let turn = async {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(ground.pool.acquire().await?.detach()),
            };
            turn(leader.replica, lead, connection, &mut stands).await
        };
        match timeout_at(until, turn).await.unwrap_or_else(|_| Err(no_answer())) {
            Ok(lead) => {
                answered_at = asked_at;
                leader.tell(lead);
            }
            Err(fail) => {
                connection = None;
                if lead.is_some() && answered_at.elapsed() >= DOUBT_AFTER {
                    warn!(error = %fail, "the leader's beats are not answered; another may lead");
                    leader.tell(None);
                }
            }
        }
        tokio::select! {
            () = sleep(BEAT_EVERY) => {}
            () = leader.is_doubted.notified() => {}
            () = stopping.cancelled() => {}
        }
    }
}

/// One beat or one look; the lead that this replica has after it.
async fn turn(
    replica: Uuid,
    lead: Option<Lead>,
    connection: &mut PgConnection,
    stands: &mut Option<(Seen, Instant)>,
) -> Result<Option<Lead>, Fail> {
    if let Some(lead) = lead
        && lead.beat(connection).await?
    {
        return Ok(Some(lead));
    }
    let row = sqlx::query!("select epoch, beat, replica from jobs.leader").fetch_one(&mut *connection).await?;
    let seen = Seen { epoch: row.epoch, beat: row.beat };
    let since = match stands {
        Some((stood, since)) if *stood == seen => *since,
        _ => stands.insert((seen, Instant::now())).1,
    };
    // Nobody's, or its own from when an answer did not come.
    let is_free = row.replica.is_none_or(|holder| holder == replica);
    if is_free || since.elapsed() >= TAKE_AFTER { Lead::take(connection, replica, seen).await } else { Ok(None) }
}

fn no_answer() -> Fail {
    Fail::unavailable("database_unavailable", "The database does not answer.")
}

/// A gauge about the whole database: the leader's alone, and 0 at once where the lead is lost.
#[derive(Debug)]
pub(crate) struct Told(metrics::Gauge);

impl Told {
    pub(crate) const fn by(gauge: metrics::Gauge) -> Self {
        Self(gauge)
    }

    pub(crate) fn set(&self, value: f64) {
        self.0.set(value);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.set(0.0);
    }
}
