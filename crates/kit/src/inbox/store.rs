//! The rows of an inbox: which events were handled, what is owed, and from which generation on each source is heard.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Floor, Inbox, KEPT, Setup};
use crate::Fail;

const PRUNE_EVERY: Duration = Duration::from_secs(600);
const PRUNE_ROWS_MAX: i64 = 1000;

/// Writes down that the event is handled in this transaction; false for one that was handled before.
pub(super) async fn is_new(transaction: &mut PgConnection, setup: &Setup, id: Uuid) -> Result<bool, Fail> {
    let table = setup.schema.name();
    let done = sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.inbox (consumer, id, at) values ($1, $2, $3) on conflict do nothing"
    )))
    .bind(setup.consumer.name)
    .bind(id)
    .bind(setup.clock.now())
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes down that the consumer has lost something when its queue is gone, when it is new, or when it wants types that
/// it did not have.
pub(super) async fn enroll(setup: &Setup, is_queue_lost: bool) -> Result<(), Fail> {
    let table = setup.schema.name();
    sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.inbox_consumer as known (name, types, losses, caught_up)
         values ($1, $2, 1, 0)
         on conflict (name) do update
         set losses = known.losses + case when $3 or not excluded.types <@ known.types then 1 else 0 end,
             types = array(select distinct unnest(known.types || excluded.types))"
    )))
    .bind(setup.consumer.name)
    .bind(setup.consumer.types)
    .bind(is_queue_lost)
    .execute(&setup.pool)
    .await?;
    Ok(())
}

/// How many losses were written down, when they are more than were caught up with.
pub(super) async fn owed(setup: &Setup) -> Result<Option<i64>, Fail> {
    let table = setup.schema.name();
    let losses = sqlx::query_scalar(AssertSqlSafe(format!(
        "select losses from {table}.inbox_consumer where name = $1 and losses > caught_up"
    )))
    .bind(setup.consumer.name)
    .fetch_optional(&setup.pool)
    .await?;
    Ok(losses)
}

/// Writes down that everything lost up to `losses` was asked for again. Not more than that: another replica may have
/// lost the queue once more meanwhile.
pub(super) async fn settle(setup: &Setup, losses: i64) -> Result<(), Fail> {
    let table = setup.schema.name();
    sqlx::query(AssertSqlSafe(format!(
        "update {table}.inbox_consumer set caught_up = greatest(caught_up, $2) where name = $1"
    )))
    .bind(setup.consumer.name)
    .bind(losses)
    .execute(&setup.pool)
    .await?;
    Ok(())
}

/// From now on, what `source` had read before this floor's generation, and keeps still, is let go.
pub(super) async fn raise_floor(setup: &Setup, source: &str, floor: Floor) -> Result<(), Fail> {
    let table = setup.schema.name();
    sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.inbox_source as known (consumer, source, generation, kept_from)
         values ($1, $2, $3, $4)
         on conflict (consumer, source) do update
         set generation = excluded.generation, kept_from = excluded.kept_from
         where known.generation < excluded.generation"
    )))
    .bind(setup.consumer.name)
    .bind(source)
    .bind(floor.generation)
    .bind(floor.kept_from)
    .execute(&setup.pool)
    .await?;
    Ok(())
}

pub(super) async fn floors(setup: &Setup) -> Result<HashMap<String, Floor>, Fail> {
    let table = setup.schema.name();
    let rows: Vec<(String, i64, DateTime<Utc>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select source, generation, kept_from from {table}.inbox_source where consumer = $1"
    )))
    .bind(setup.consumer.name)
    .fetch_all(&setup.pool)
    .await?;
    Ok(rows.into_iter().map(|(source, generation, kept_from)| (source, Floor { generation, kept_from })).collect())
}

/// Forgets old ids, again and again, until the process stops.
pub(super) async fn prune_on(inbox: Arc<Inbox>, stopping: CancellationToken) -> Result<(), Fail> {
    loop {
        let before = inbox.setup.clock.now() - KEPT;
        while !stopping.is_cancelled() && prune(&inbox.setup, before).await? == PRUNE_ROWS_MAX.unsigned_abs() {}
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
    }
}

async fn prune(setup: &Setup, before: DateTime<Utc>) -> Result<u64, Fail> {
    let table = setup.schema.name();
    let done = sqlx::query(AssertSqlSafe(format!(
        "delete from {table}.inbox
         where (consumer, id) in (select consumer, id from {table}.inbox where at < $1 order by at limit $2)"
    )))
    .bind(before)
    .bind(PRUNE_ROWS_MAX)
    .execute(&setup.pool)
    .await?;
    Ok(done.rows_affected())
}
