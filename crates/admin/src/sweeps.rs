//! What is done again and again and takes no input: keeping the months of the audit log, forgetting what is over, and
//! telling how many events are parked. Every step may be repeated, and done by any number of replicas at once.

use std::time::Duration;

use chrono::TimeDelta;
use kit::{Fail, outbox};
use tokio::time::Instant;

use crate::{Admin, SCHEMA, health, months, parked};

/// How often the number of parked events is told.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How often what is over is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Rows that one statement removes: few enough to hold no lock for long.
const ROWS_MAX: i64 = 1000;

/// Sweeps for as long as the process runs.
///
/// # Errors
/// None: what fails is logged, and done with the next sweep.
pub(crate) async fn run(admin: Admin) -> Result<(), Fail> {
    let stopping = admin.0.tasks.stopping();
    let mut forget_at = Instant::now();
    loop {
        match parked::count(&admin.0.pool).await {
            Ok(count) => metrics::gauge!("guildhall_events_parked").set(count as f64),
            Err(fail) => tracing::warn!(error = %fail, "the parked events cannot be counted now"),
        }
        if forget_at <= Instant::now() {
            for (name, fail) in admin.sweep().await {
                tracing::warn!(sweep.name = name, error = %fail, "a sweep failed and will be done again");
            }
            forget_at = Instant::now() + FORGET_EVERY;
        }
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(COUNT_EVERY) => {}
        }
    }
}

impl Admin {
    /// One sweep, whole; it is done every minute anyway. A step that fails keeps none of the others from being done: what
    /// failed is returned by the step's name.
    pub async fn sweep(&self) -> Vec<(&'static str, Fail)> {
        let (pool, now) = (&self.0.pool, self.0.clock.now());
        let days = |count: u32| now - TimeDelta::days(count.into());
        let outbox = async {
            let mut connection = pool.acquire().await?;
            outbox::prune(&mut connection, SCHEMA, days(self.0.settings.admin_outbox_days), ROWS_MAX).await.map(drop)
        };
        let (ahead, expired, replicas, parked, outbox) = (
            months::make(self).await,
            months::drop_expired(self).await,
            health::forget(pool, now).await,
            parked::forget(pool, days(self.0.settings.parked_days)).await,
            outbox.await,
        );
        [("months", ahead), ("audit", expired), ("replicas", replicas), ("parked_events", parked), ("outbox", outbox)]
            .into_iter()
            .filter_map(|(name, outcome)| Some((name, outcome.err()?)))
            .collect()
    }
}
