//! How the transactions begin that are made over and over: submissions, claims, the ends of attempts, and looks at one job.
//! Each of their statements finds what it needs by an index, however much there is, so that one plan a connection is as good
//! as one for every group; making it anew cost half as much again as carrying it out, several times as much for a look, and
//! a lone job waits for it.
//!
//! A plan that is kept must not be one for small tables. On an empty one Postgres would read from end to end, and go on
//! doing so for as long as nobody has told it that the table has grown: that way is closed. Compiling is closed, too, since
//! a plan with bounds that are not known yet looks dear enough for it. What is read from end to end in such a transaction
//! nevertheless, as it has no index, is only slower to be chosen.
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

/// Begins in one round trip to read alone: all of it as it stood at the first statement.
///
/// # Errors
/// As the database.
pub(crate) async fn look(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, Fail> {
    Ok(conn.begin_with(LOOK).await?)
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
