//! How a process fares: the checks of what it stands on. Its operations port asks them for `/readyz`, and a [`Reporter`]
//! tells `admin` what came of them, so that one look shows every process there is.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::{BoxFuture, join, join_all};
use proto::admin::{Dependency, Lag, Replica, ReportRequest, health_client::HealthClient};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::{
    Clock, Fail, Kind,
    clock::to_timestamp,
    db::Schema,
    grpc::{Credential, Peer},
    outbox,
    tasks::Tasks,
};

/// How often a process tells how it fares: often enough that one which is gone is known within some seconds.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// A check that takes longer has failed.
const CHECK_WITHIN: Duration = Duration::from_secs(3);

type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Fail>> + Send + Sync>;

/// The checks of one process, by the names of what they look at. Cheap to clone.
#[derive(Clone, Default)]
pub struct Checks(Vec<(&'static str, Probe)>);

/// What came of one check.
#[derive(Debug)]
pub struct Checked {
    pub name: &'static str,
    pub took: Duration,
    pub outcome: Result<(), Fail>,
}

impl Checks {
    /// Adds a check: `probe` fails while `name` cannot be used.
    #[must_use]
    pub fn with<F>(mut self, name: &'static str, probe: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Fail>> + Send + 'static,
    {
        self.0.push((name, Arc::new(move || Box::pin(probe()))));
        self
    }

    /// Makes all of them at once; done within 3 s.
    pub async fn run(&self) -> Vec<Checked> {
        join_all(self.0.iter().map(|(name, probe)| async move {
            let started = Instant::now();
            let outcome = tokio::time::timeout(CHECK_WITHIN, probe()).await.unwrap_or_else(|_| {
                Err(Fail::unavailable("check.timeout", format!("No answer within {} s.", CHECK_WITHIN.as_secs())))
            });
            Checked { name, took: started.elapsed(), outcome }
        }))
        .await
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Tells `admin` how this process fares, for as long as it runs. That `admin` is away hinders nothing here.
#[derive(Debug)]
pub struct Reporter {
    pub admin: Peer,
    /// A service key whose scope has `health:report`, which lets it tell of workers, or `health:report:any`.
    pub credential: Credential,
    /// All that run in this process.
    pub roles: Vec<&'static str>,
    pub version: &'static str,
    pub checks: Checks,
    /// The services of this process that tell events, and where.
    pub outboxes: Vec<(Schema, PgPool)>,
    pub clock: Clock,
}

impl Reporter {
    /// Reports every 2 s until `tasks` are asked to stop.
    pub fn start(self, tasks: &Tasks) {
        let process = Replica {
            id: self.clock.new_id().to_string(),
            roles: self.roles.iter().map(|role| (*role).to_owned()).collect(),
            version: self.version.to_owned(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            started_at: Some(to_timestamp(self.clock.now())),
            ..Replica::default()
        };
        let (reporter, stopping) = (Arc::new(self), tasks.stopping());
        tasks.spawn_restarting("health report", move || {
            let (reporter, process, stopping) = (Arc::clone(&reporter), process.clone(), stopping.clone());
            async move {
                stopping.run_until_cancelled(reporter.report_on(&process)).await;
                Ok(())
            }
        });
    }

    async fn report_on(&self, process: &Replica) {
        let mut was_heard = true;
        let mut tick = tokio::time::interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let outcome = self.report(process).await;
            if let Err(fail) = &outcome {
                if fail.kind() == Kind::Unauthenticated {
                    self.credential.forget().await;
                }
                // Once an outage: the next reports fail for the same reason.
                if was_heard {
                    tracing::warn!(error = %fail, "admin does not hear how this process fares");
                }
            }
            was_heard = outcome.is_ok();
        }
    }

    async fn report(&self, process: &Replica) -> Result<(), Fail> {
        let (checked, lags) = join(self.checks.run(), self.lags()).await;
        let dependencies = checked.into_iter().map(Checked::into_message).collect();
        let replica = Replica { dependencies, lags, ..process.clone() };
        let call = self.credential.call("health").await?;
        let request = call.request_within(CHECK_WITHIN, ReportRequest { replica: Some(replica) });
        HealthClient::new(self.admin.clone()).report(request).await?;
        Ok(())
    }

    /// Of each service whose outbox can be looked at now; that the database is away is told by its check.
    async fn lags(&self) -> Vec<Lag> {
        let lags = self.outboxes.iter().map(|(schema, pool)| async move {
            let lag =
                tokio::time::timeout(CHECK_WITHIN, outbox::lag(pool, *schema, self.clock.now())).await.ok()?.ok()?;
            Some(Lag { service: schema.name().to_owned(), unpublished: lag.unpublished, seconds: lag.seconds })
        });
        join_all(lags).await.into_iter().flatten().collect()
    }
}

impl Checked {
    /// Told with the sentence that anyone may read; the causes stay on the operations port.
    fn into_message(self) -> Dependency {
        Dependency {
            name: self.name.to_owned(),
            ok: self.outcome.is_ok(),
            duration_ms: self.took.as_secs_f64() * 1000.0,
            error: self.outcome.err().map(|fail| fail.message().to_owned()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_fails_alone_and_in_time() {
        let checks = Checks::default().with("rock", async || Ok(())).with("swamp", std::future::pending);
        let checked = checks.run().await;
        let [rock, swamp] = checked.as_slice() else { panic!("{checked:?}") };
        assert!(rock.outcome.is_ok());
        assert_eq!((swamp.name, swamp.took), ("swamp", CHECK_WITHIN));
        assert_eq!(swamp.outcome.as_ref().expect_err("it hangs").code(), "check.timeout");
    }
}
