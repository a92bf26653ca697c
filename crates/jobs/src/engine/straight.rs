//! How the transactions begin that are made over and over: claims, and the ends of attempts. Each of their statements finds
//! what it needs by an index, however much there is, so that one plan a connection is as good as one for every group; making
//! it anew cost half as much again as carrying it out, and a lone job waits for it.
//!
//! A plan that is kept must not be one for small tables. On an empty one Postgres would read from end to end, and go on
//! doing so for as long as nobody has told it that the table has grown: that way is closed. Compiling is closed, too, since
//! a plan with bounds that are not known yet looks dear enough for it. What is read from end to end in such a transaction
//! nevertheless, as it has no index, is only slower to be chosen.

use kit::Fail;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};

const BEGIN: &str =
    "begin; set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off; set local jit = off";

/// Begins, in one round trip.
///
/// # Errors
/// As the database.
pub(super) async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, Fail> {
    Ok(pool.begin_with(BEGIN).await?)
}

/// Begins in one round trip, and shares the lock of this name with others for the rest of the transaction. `name` is a
/// constant of ours.
///
/// # Errors
/// As the database.
pub(super) async fn begin_beside(pool: &PgPool, name: &'static str) -> Result<Transaction<'static, Postgres>, Fail> {
    // What the statements after it see is what was there when the lock was given.
    let begin = format!("{BEGIN}; select pg_advisory_xact_lock_shared(hashtextextended('{name}', 0))");
    Ok(pool.begin_with(AssertSqlSafe(begin)).await?)
}
