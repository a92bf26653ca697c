//! How the transactions begin that are made over and over: submissions, claims, the ends of attempts, and looks at one job.
//! Each of their statements finds what it needs by an index, however much there is, so that one plan a connection is as good
//! as one for every group; making it anew cost half as much again as carrying it out, several times as much for a look, and
//! a lone job waits for it.
//!
//! A plan that is kept must not be one for small tables. On an empty one Postgres would read from end to end, and go on
//! doing so for as long as nobody has told it that the table has grown: that way is closed. A whole index can still look as
//! cheap as the one row that is meant, so `growth.rs` tells. Compiling is closed, too, since a plan with bounds that are
//! not known yet looks dear enough for it. What is read from end to end in such a transaction nevertheless, as it has no
//! index, is only slower to be chosen.
//!
//! A connection keeps one plan for a statement, whoever ran it first. So what surrounds jobs is read in looks by lists and
//! hold-ups, too. What sweeps share with ends may still bring a plan along, until its table is counted anew.
//!
//! Connections of all but looks are kept from one transaction to the next while there are many ([`Kept`]): the pool asks
//! Postgres whether a connection is good before it is used and when it is given back, which are three round trips beside the
//! five of such a transaction. One that has broken meanwhile is found by its use, as one that breaks in the middle is. Looks
//! take turns at the pool: of those that wait for it, none is passed over for one that comes later.

use std::time::Duration;

use kit::Fail;
use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, Transaction, pool::PoolConnection};
use tokio::time::Instant;

const BEGIN: &str =
    "begin; set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off; set local jit = off";
const LOOK: &str = "begin isolation level repeatable read, read only; set local plan_cache_mode = force_generic_plan; \
                    set local enable_seqscan = off; set local jit = off";
/// As [`LOOK`], with plans for the days that are meant.
const LOOK_AT_DAYS: &str = "begin isolation level repeatable read, read only; \
                            set local plan_cache_mode = force_custom_plan; set local enable_seqscan = off; \
                            set local jit = off";
/// Whoever runs a kept plan first locks all partitions of which the plan knows, two and a half a day for a look. Postgres has
/// room for some six thousand such locks by default, on all connections together.
const DAYS_OF_KEPT_PLANS_MAX: u32 = 31;
/// What was used this lately is good, as far as can be known; its next use tells.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Then it goes back to the pool, which ends those that are old.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Of the pool's connections, one in so many may be kept.
const KEPT_ONE_IN: u32 = 4;

/// Begins, in one round trip.
///
/// # Errors
/// As the database.
pub(crate) async fn begin(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, Fail> {
    Ok(conn.begin_with(BEGIN).await?)
}

/// Begins in one round trip to read alone: all of it as it stood at the first statement, where so many days of history are
/// kept.
///
/// # Errors
/// As the database.
pub(crate) async fn look(conn: &mut PgConnection, history_days: u32) -> Result<Transaction<'_, Postgres>, Fail> {
    let begin = if history_days <= DAYS_OF_KEPT_PLANS_MAX { LOOK } else { LOOK_AT_DAYS };
    Ok(conn.begin_with(begin).await?)
}

/// Begins in one round trip, and shares the lock of this name with others for the rest of the transaction. `name` is a
/// constant of ours.
///
/// # Errors
/// As the database.
pub(super) async fn begin_beside<'c>(
    conn: &'c mut PgConnection,
    name: &'static str,
) -> Result<Transaction<'c, Postgres>, Fail> {
    // What the statements after it see is what was there when the lock was given.
    let begin = format!("{BEGIN}; select pg_advisory_xact_lock_shared(hashtextextended('{name}', 0))");
    Ok(conn.begin_with(AssertSqlSafe(begin)).await?)
}

/// Connections that were used a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Held>>);

/// A connection out of [`Kept`]. One that is not kept again goes back to the pool when it is dropped, with whatever became
/// of its transaction.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) connection: PoolConnection<Postgres>,
    /// When the pool gave it.
    since: Instant,
    used_at: Instant,
}

impl Held {
    fn is_good(&self) -> bool {
        self.used_at.elapsed() < GOOD_FOR && self.since.elapsed() < KEPT_FOR
    }
}

impl Kept {
    /// One of these, or one of the pool's.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn take(&self, pool: &PgPool) -> Result<Held, Fail> {
        while let Some(held) = self.pop() {
            if held.is_good() {
                return Ok(held);
            }
        }
        let connection = pool.acquire().await?;
        let since = Instant::now();
        Ok(Held { connection, since, used_at: since })
    }

    /// Keeps a connection whose transaction is over, unless enough are.
    pub(crate) fn keep(&self, held: Held, pool: &PgPool) {
        let mut kept = self.0.lock();
        if kept.len() < (pool.options().get_max_connections() / KEPT_ONE_IN) as usize {
            kept.push(Held { used_at: Instant::now(), ..held });
        }
    }

    /// Gives back those that nobody has used for a while.
    pub(super) fn let_go(&self) {
        self.0.lock().retain(Held::is_good);
    }

    fn pop(&self) -> Option<Held> {
        self.0.lock().pop()
    }
}

#[cfg(test)]
mod tests {
    use kit::testing::TestDatabase;
    use uuid::Uuid;

    use super::*;
    use crate::{MIGRATOR, SCHEMA};

    async fn database() -> TestDatabase {
        kit::testing::database_with("jobs", |url| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await }).await
    }

    /// Locks that a look at one job takes, by the plan that its connection has then.
    async fn locks(pool: &PgPool, history_days: u32) -> i64 {
        let mut connection = pool.acquire().await.expect("a connection");
        let mut counted = 0;
        for _ in 0..2 {
            let mut look = look(&mut connection, history_days).await.expect("a transaction");
            sqlx::query("select from jobs.any_job where id = $1")
                .bind(Uuid::from_u128(7))
                .fetch_optional(&mut *look)
                .await
                .expect("an answer");
            counted = sqlx::query_scalar("select count(*) from pg_locks where pid = pg_backend_pid()")
                .fetch_one(&mut *look)
                .await
                .expect("an answer");
            look.rollback().await.expect("an end");
        }
        counted
    }

    #[tokio::test]
    async fn a_look_locks_only_the_day_that_it_is_at_where_many_are_kept() {
        let database = database().await;
        for n in 1..=60 {
            let (from, to) = (Uuid::from_u128(n << 64), Uuid::from_u128((n + 1) << 64));
            let partition = format!(
                "create table jobs.day_{n} partition of jobs.job_history for values from ('{from}') to ('{to}')"
            );
            sqlx::raw_sql(AssertSqlSafe(partition)).execute(database.pool()).await.expect("a partition");
        }

        let few = locks(database.pool(), DAYS_OF_KEPT_PLANS_MAX + 1).await;
        assert!(few < 30, "{few} locks");
        let all = locks(database.pool(), DAYS_OF_KEPT_PLANS_MAX).await;
        assert!(all > 60, "a plan that is kept knows them all, yet locks {all}");
    }
}
