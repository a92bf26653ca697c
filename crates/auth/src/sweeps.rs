//! What is done again and again and takes no input: exchanging signing keys, and forgetting what is over. Every step may be
//! repeated, and done by any number of replicas at once.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, idempotency, outbox};
use sqlx::PgPool;

use crate::{Auth, SCHEMA, signing_keys, throttle};

const EVERY: Duration = Duration::from_secs(60);
/// Statements of one kind in one sweep; the next sweep goes on.
const STATEMENTS_MAX: usize = 1000;
/// How long a session is kept after its end, so that its tokens are told that it has ended. Far above what an access token
/// lives: watchers are told of every end for as long.
const SESSION_KEPT: TimeDelta = TimeDelta::days(1);

/// Sweeps for as long as the process runs.
///
/// # Errors
/// None: what fails is logged, and done with the next sweep.
pub(crate) async fn run(auth: Auth) -> Result<(), Fail> {
    let stopping = auth.0.tasks.stopping();
    loop {
        for (name, fail) in auth.sweep().await {
            tracing::warn!(sweep.name = name, error = %fail, "a sweep failed and will be done again");
        }
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

impl Auth {
    /// One sweep, whole; it is done every minute anyway. A step that fails keeps none of the others from being done: what
    /// failed is returned by the step's name.
    pub async fn sweep(&self) -> Vec<(&'static str, Fail)> {
        let mut failed = Vec::new();
        if let Err(fail) = self.renew_signing_key().await {
            failed.push(("signing_key", fail));
        }
        for over in Over::ALL {
            if let Err(fail) = self.forget(over).await {
                failed.push((over.name(), fail));
            }
        }
        failed
    }

    async fn renew_signing_key(&self) -> Result<(), Fail> {
        signing_keys::rotate(&self.0.pool, &self.0.clock, self.0.settings.signing_key_days).await?;
        // Another replica may have done it: what signs is what stands in the table.
        self.0.signer.reload(&self.0.pool).await
    }

    /// Removes what is over, a bounded number of rows at a time, until a statement finds fewer than it may take.
    async fn forget(&self, over: Over) -> Result<(), Fail> {
        for _ in 0..STATEMENTS_MAX {
            let was_last = self.forget_some(over).await? < over.rows_max().unsigned_abs();
            if was_last || self.0.tasks.stopping().is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    async fn forget_some(&self, over: Over) -> Result<u64, Fail> {
        let (pool, now, rows_max) = (&self.0.pool, self.0.clock.now(), over.rows_max());
        match over {
            Over::Sessions => prune_sessions(pool, now - SESSION_KEPT, rows_max).await,
            Over::LoginThrottle => throttle::prune(pool, now, rows_max).await,
            Over::Outbox => {
                let before = now - TimeDelta::days(self.0.settings.auth_outbox_days.into());
                outbox::prune(&mut *pool.acquire().await?, SCHEMA, before, rows_max).await
            }
            Over::IdempotencyKeys => idempotency::prune(&mut *pool.acquire().await?, SCHEMA, now, rows_max).await,
        }
    }
}

/// What becomes old and is removed.
#[derive(Debug, Clone, Copy)]
enum Over {
    Sessions,
    LoginThrottle,
    Outbox,
    IdempotencyKeys,
}

impl Over {
    const ALL: [Self; 4] = [Self::Sessions, Self::LoginThrottle, Self::Outbox, Self::IdempotencyKeys];

    const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::LoginThrottle => "login_throttle",
            Self::Outbox => "outbox",
            Self::IdempotencyKeys => "idempotency_keys",
        }
    }

    /// Rows that one statement removes: few enough to hold no lock for long.
    const fn rows_max(self) -> i64 {
        match self {
            // A session takes its spent refresh tokens with it, up to some thousands.
            Self::Sessions => 50,
            Self::LoginThrottle | Self::Outbox | Self::IdempotencyKeys => 1000,
        }
    }
}

/// Sessions that were ended, or reached their last day, before `before`. Their refresh tokens go with them.
async fn prune_sessions(pool: &PgPool, before: DateTime<Utc>, rows_max: i64) -> Result<u64, Fail> {
    let done = sqlx::query!(
        "delete from auth.session
         where id in (
           select id from auth.session where ended_at < $1 or expires_at < $1 limit $2 for update skip locked
         )",
        before,
        rows_max,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}
