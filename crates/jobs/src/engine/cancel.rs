//! Stopping: what waits is cancelled at once; what runs is asked, and is `cancelling` until its attempt answers with its
//! own token or its lease ends. A batch takes its children along, in bounded bites that a sweep carries on after a crash.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kit::Fail;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Ground,
    events::{self, Telling},
    fan_in::BatchChange,
    finish::{self, Aftermath, Row, Step},
    states::State,
};

/// Children that one transaction cancels.
const BITE: i64 = 500;

pub(super) async fn job(ground: &Ground, id: Uuid, by: Uuid, reason: &str) -> Result<(), Fail> {
    let now = ground.clock.now();
    let mut transaction = ground.pool.begin().await?;
    let mut rows = finish::lock(&mut transaction, &[id]).await?;
    let Some(row) = rows.pop() else { return Err(already_final()) };
    if row.state == "cancelling" {
        return Ok(());
    }
    ask(&mut transaction, &[id], by, reason, now).await?;
    let mut changes = BTreeMap::new();
    let steps = stop(&mut transaction, vec![with_reason(row, by, reason)], &mut changes, now).await?;
    let mut aftermath = finish::carry_out(ground, &mut transaction, steps.ended, changes, now).await?;
    aftermath.streams.extend(steps.telling.append(&mut transaction, now).await?);
    aftermath.has_cancels = true;
    transaction.commit().await?;
    ground.after(aftermath);
    Ok(())
}

pub(super) async fn batch(ground: &Ground, id: Uuid, by: Uuid, reason: &str) -> Result<(), Fail> {
    let now = ground.clock.now();
    let mut transaction = ground.pool.begin().await?;
    let is_over = sqlx::query_scalar!("select finished_at from jobs.batch where id = $1 for update", id)
        .fetch_optional(&mut *transaction)
        .await?
        .is_none_or(|finished_at| finished_at.is_some());
    if is_over {
        return Err(already_final());
    }
    let change =
        BatchChange { close: true, cancel: Some((Some(by), Some(reason.to_owned()))), ..BatchChange::default() };
    let changes = BTreeMap::from([(id, change)]);
    let mut aftermath = finish::carry_out(ground, &mut transaction, Vec::new(), changes, now).await?;
    transaction.commit().await?;
    // Carried on here first; the sweep is woken by each bite, and by its timer should this process end in between.
    aftermath.has_cancels = false;
    ground.after(aftermath);
    carry_on(ground, id).await
}

pub(super) async fn close(ground: &Ground, id: Uuid) -> Result<(), Fail> {
    let mut transaction = ground.pool.begin().await?;
    let aftermath = close_within(ground, &mut transaction, id, ground.clock.now()).await?;
    transaction.commit().await?;
    ground.after(aftermath);
    Ok(())
}

/// Closes an open batch in the caller's transaction, which completes it when all its jobs have ended.
///
/// # Errors
/// As the database.
pub(crate) async fn close_within(
    ground: &Ground,
    conn: &mut PgConnection,
    id: Uuid,
    now: DateTime<Utc>,
) -> Result<Aftermath, Fail> {
    let changes = BTreeMap::from([(id, BatchChange { close: true, ..BatchChange::default() })]);
    finish::carry_out(ground, conn, Vec::new(), changes, now).await
}

/// Takes up every batch that was asked to stop and still has children that were not.
pub(super) async fn carry_on_all(ground: &Ground) -> Result<(), Fail> {
    let batches = sqlx::query_scalar!(
        "select id from jobs.batch
         where cancel_asked_at is not null and finished_at is null
         order by id
         limit 1000",
    )
    .fetch_all(&ground.pool)
    .await?;
    for batch in batches {
        carry_on(ground, batch).await?;
    }
    Ok(())
}

async fn carry_on(ground: &Ground, batch: Uuid) -> Result<(), Fail> {
    while bite(ground, batch).await? {}
    Ok(())
}

/// Cancels some of a batch's children; whether there were any.
async fn bite(ground: &Ground, batch: Uuid) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let mut transaction = ground.pool.begin().await?;
    let ids = sqlx::query_scalar!(
        "select id from jobs.job
         where batch_id = $1 and not is_finalize and state <> 'cancelling'
         order by id
         limit $2
         for update skip locked",
        batch,
        BITE,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if ids.is_empty() {
        return Ok(false);
    }
    let asked = sqlx::query!("select cancel_asked_by, cancel_reason from jobs.batch where id = $1", batch)
        .fetch_one(&mut *transaction)
        .await?;
    let by = asked.cancel_asked_by.unwrap_or_default();
    let reason = asked.cancel_reason.unwrap_or_default();
    ask(&mut transaction, &ids, by, &reason, now).await?;
    let rows = finish::lock(&mut transaction, &ids).await?;
    let mut changes = BTreeMap::new();
    let steps = stop(&mut transaction, rows, &mut changes, now).await?;
    let mut aftermath = finish::carry_out(ground, &mut transaction, steps.ended, changes, now).await?;
    aftermath.streams.extend(steps.telling.append(&mut transaction, now).await?);
    aftermath.has_cancels = true;
    transaction.commit().await?;
    ground.after(aftermath);
    Ok(true)
}

#[derive(Debug, Default)]
struct Stopped {
    /// Jobs that end at once.
    ended: Vec<Step>,
    telling: Telling,
}

/// Ends what waits, and turns what runs or has children at work into `cancelling`.
async fn stop(
    conn: &mut PgConnection,
    rows: Vec<Row>,
    changes: &mut BTreeMap<Uuid, BatchChange>,
    now: DateTime<Utc>,
) -> Result<Stopped, Fail> {
    let mut stopped = Stopped::default();
    let mut asked = Vec::new();
    for row in rows {
        match (row.state.parse()?, row.child_batch_id) {
            (State::Scheduled | State::Queued, None) | (State::Suspended, None) => {
                stopped.ended.push(Step::cancelled(row))
            }
            (State::Cancelling, _) => {}
            (state, child_batch) => {
                let is_waiting = matches!(state, State::Scheduled | State::Queued);
                if let Some(child_batch) = child_batch {
                    let change: &mut BatchChange = changes.entry(child_batch).or_default();
                    // A running parent may still be adding to its batch; its end closes it.
                    change.close = state != State::Running;
                    change.cancel = Some((row.cancel_asked_by, row.cancel_reason.clone()));
                }
                if is_waiting {
                    // Between two attempts of a parent: the batch is cancelled on its own, the job ends now.
                    stopped.ended.push(Step::cancelled(row));
                } else {
                    asked.push(row.id);
                    let data = events::state(row.id, State::Cancelling, row.attempt, None);
                    stopped.telling.job(row.id, row.events + 1, row.batch_id, "state", data);
                }
            }
        }
    }
    if !asked.is_empty() {
        sqlx::query!(
            "update jobs.job set state = 'cancelling', since = $2, events = events + 1 where id = any($1)",
            &asked,
            now,
        )
        .execute(conn)
        .await?;
    }
    Ok(stopped)
}

/// Notes who asked, why and when.
async fn ask(conn: &mut PgConnection, ids: &[Uuid], by: Uuid, reason: &str, now: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.job
         set cancel_asked_at = $2, cancel_asked_by = $3, cancel_reason = nullif($4, '')
         where id = any($1) and cancel_asked_at is null",
        ids,
        now,
        by,
        reason,
    )
    .execute(conn)
    .await?;
    Ok(())
}

fn with_reason(row: Row, by: Uuid, reason: &str) -> Row {
    let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
    Row { cancel_asked_by: Some(by), cancel_reason: reason, ..row }
}

fn already_final() -> Fail {
    Fail::conflict("jobs.already_final", "It has already ended.")
}
