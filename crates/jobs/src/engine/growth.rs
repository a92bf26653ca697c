//! Telling Postgres how large its tables have become. It looks by itself once a minute, and a queue goes from empty to a
//! hundred thousand jobs in seconds: a plan for a table of next to nothing, which is kept (`straight.rs`), may read a whole
//! index to find one row. What is counted anew is planned anew, by every connection.
//!
//! The leader looks, and counts only what has grown tenfold, so that a table which grows for ever is counted a few times.

use std::{sync::Arc, time::Duration};

use kit::{Fail, tasks::Tasks};
use sqlx::{AssertSqlSafe, PgPool};
use tracing::debug;

use super::{Ground, leader::while_leading};

const EVERY: Duration = Duration::from_secs(5);
const GROWN_TIMES: f64 = 10.0;
/// Of fewer rows each plan is as good as another.
const ROWS_MIN: f64 = 1_000.0;

pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.growth", move |ground, _lead| {
        let stopping = stopping.clone();
        async move {
            while !stopping.is_cancelled() {
                count_grown(&ground.pool).await?;
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
}

/// Has Postgres count the tables of ours that have grown. A leader that leads no more does no harm by it.
async fn count_grown(pool: &PgPool) -> Result<(), Fail> {
    let grown = sqlx::query_scalar!(
        r#"select quote_ident(relname) as "name!"
           from pg_class
           where relnamespace = 'jobs'::regnamespace and relkind = 'r'
             and pg_stat_get_live_tuples(oid) > $1 * greatest(reltuples::double precision, $2)"#,
        GROWN_TIMES,
        ROWS_MIN,
    )
    .fetch_all(pool)
    .await?;
    for name in grown {
        // One that Postgres vacuums just now is counted by that.
        let counted = sqlx::query(AssertSqlSafe(format!("analyze (skip_locked) jobs.{name}"))).execute(pool).await;
        match counted {
            Ok(_) => debug!(table = name, "a table that has grown was counted"),
            // It may be a day of history that was dropped meanwhile.
            Err(error) => debug!(table = name, %error, "a table that has grown was not counted"),
        }
    }
    Ok(())
}
