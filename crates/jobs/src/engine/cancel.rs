//! Stopping: what waits is cancelled at once; what runs is asked, and is `cancelling` until its attempt answers with its
//! own token or its lease ends. A batch takes its children along, in bounded bites that the leader carries on.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kit::{Fail, audit::Act, telemetry::span};
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{
    Ground,
    events::{self, Telling},
    fan_in::BatchChange,
    leader::Lead,
    states::State,
    steps::{self, Aftermath, Row, Step},
};

/// Children that one transaction cancels.
const BITE: i64 = 500;

pub(super) async fn job(ground: &Ground, id: Uuid, by: Uuid, reason: &str, act: Act) -> Result<(), Fail> {
    let _told = span::transaction("jobs.cancel_job");
    let mut transaction = ground.pool.begin().await?;
    let row = steps::lock(&mut transaction, &[id]).await?.pop().ok_or_else(already_final)?;
    let was: State = row.state.parse()?;
    let is = if is_at_work(&row, was) { State::Cancelling } else { State::Cancelled };
    let Some(aftermath) = live_job(ground, &mut transaction, row, by, reason).await? else { return Ok(()) };
    let act = act.before("state", was.as_str()).after("state", is.as_str());
    ground.audit.record(&mut transaction, act).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(())
}

/// Asks one live job, whose row is locked; nothing for one that was asked before.
async fn live_job(
    ground: &Ground,
    transaction: &mut PgConnection,
    row: Row,
    by: Uuid,
    reason: &str,
) -> Result<Option<Aftermath>, Fail> {
    if row.state == "cancelling" {
        return Ok(None);
    }
    let now = ground.clock.now();
    ask(&mut *transaction, &[row.id], Some(by), reason, now).await?;
    stop(ground, transaction, vec![with_reason(row, Some(by), reason)], now).await.map(Some)
}

/// Of a batch that a live job has fanned out, the job is cancelled, which takes the batch along: it alone can say that no
/// more children come.
pub(super) async fn batch(ground: &Ground, id: Uuid, by: Uuid, reason: &str, act: Act) -> Result<(), Fail> {
    let act = act.before("is_cancel_asked", false).after("is_cancel_asked", true);
    let now = ground.clock.now();
    let _told = span::transaction("jobs.cancel_batch");
    let mut transaction = ground.pool.begin().await?;
    if let Some(parent) = steps::lock_parent(&mut transaction, id).await? {
        let Some(aftermath) = live_job(ground, &mut transaction, parent, by, reason).await? else { return Ok(()) };
        ground.audit.record(&mut transaction, act).await?;
        transaction.commit().await?;
        ground.after(&aftermath);
        return Ok(());
    }
    let row = sqlx::query!("select finished_at, cancel_asked_at from jobs.batch where id = $1 for update", id)
        .fetch_optional(&mut *transaction)
        .await?
        .filter(|row| row.finished_at.is_none())
        .ok_or_else(already_final)?;
    if row.cancel_asked_at.is_none() {
        ground.audit.record(&mut transaction, act).await?;
    }
    let change =
        BatchChange { close: true, cancel: Some((Some(by), Some(reason.to_owned()))), ..BatchChange::default() };
    let changes = BTreeMap::from([(id, change)]);
    let aftermath = steps::carry_out(ground, &mut transaction, Vec::new(), changes, Telling::default(), now).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    // The first bite at once, so that the answer shows a small batch as it will be. The leader takes the others.
    let transaction = ground.pool.begin().await?;
    bite(ground, transaction, id).await.map(drop)
}

pub(super) async fn close(ground: &Ground, id: Uuid) -> Result<(), Fail> {
    let _told = span::transaction("jobs.close_batch");
    let mut transaction = ground.pool.begin().await?;
    let aftermath = close_within(ground, &mut transaction, id, ground.clock.now()).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(())
}

/// Closes an open batch in the caller's transaction, which completes it when all its jobs have ended. No live job may have
/// fanned it out.
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
    steps::carry_out(ground, conn, Vec::new(), changes, Telling::default(), now).await
}

/// Takes a bite of every batch that was asked to stop and still has children that were not. Whether there may be more.
pub(super) async fn carry_on(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let batches = sqlx::query_scalar!(
        "select id from jobs.batch
         where cancel_asked_at is not null and finished_at is null
         order by id
         limit 1000",
    )
    .fetch_all(&ground.pool)
    .await?;
    let mut is_more = false;
    for batch in batches {
        let transaction = lead.begin(&ground.pool).await?;
        is_more |= bite(ground, transaction, batch).await?;
    }
    Ok(is_more)
}

/// Cancels some of a batch's children; whether there were any.
async fn bite(ground: &Ground, mut transaction: Transaction<'static, Postgres>, batch: Uuid) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let ids = sqlx::query_scalar!(
        "select id from jobs.job
         where batch_id = $1 and ordinal is not null and state <> 'cancelling'
         order by id
         limit $2",
        batch,
        BITE,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if ids.is_empty() {
        return Ok(false);
    }
    let rows = steps::lock(&mut transaction, &ids).await?;
    let asked = sqlx::query!("select cancel_asked_by, cancel_reason from jobs.batch where id = $1", batch)
        .fetch_one(&mut *transaction)
        .await?;
    let reason = asked.cancel_reason.unwrap_or_default();
    ask(&mut transaction, &ids, asked.cancel_asked_by, &reason, now).await?;
    let rows = rows.into_iter().map(|row| with_reason(row, asked.cancel_asked_by, &reason)).collect();
    let aftermath = stop(ground, &mut transaction, rows, now).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(true)
}

/// Ends what waits, and turns what runs or has children at work into `cancelling`. The rows are locked, and say whether it
/// is their deadline that ends them.
pub(super) async fn stop(
    ground: &Ground,
    conn: &mut PgConnection,
    rows: Vec<Row>,
    now: DateTime<Utc>,
) -> Result<Aftermath, Fail> {
    let mut changes: BTreeMap<Uuid, BatchChange> = BTreeMap::new();
    let mut telling = Telling::default();
    let (mut ended, mut asked, mut expiring) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let state: State = row.state.parse()?;
        if state == State::Cancelling {
            continue;
        }
        if let Some(child_batch) = row.child_batch_id {
            let change = changes.entry(child_batch).or_default();
            // A running parent may still be adding to its batch; its end closes it.
            change.close = state != State::Running;
            change.cancel = Some((row.cancel_asked_by, row.cancel_reason.clone()));
        }
        if is_at_work(&row, state) {
            asked.push(row.id);
            expiring.push(row.is_expiring);
            let data = events::state(row.id, State::Cancelling, row.attempt, None);
            telling.job(row.id, row.events + 1, row.batch_id, "state", data);
        } else {
            // A parent between two attempts ends at once, too; its batch is cancelled by itself.
            ended.push(Step::stopped(row));
        }
    }
    if !asked.is_empty() {
        sqlx::query!(
            "update jobs.job
             set state = 'cancelling', since = $3, is_expiring = asked.is_expiring, events = events + 1
             from unnest($1::uuid[], $2::boolean[]) as asked (id, is_expiring)
             where job.id = asked.id",
            &asked,
            &expiring,
            now,
        )
        .execute(&mut *conn)
        .await?;
    }
    let mut aftermath = steps::carry_out(ground, conn, ended, changes, telling, now).await?;
    aftermath.has_cancels = true;
    Ok(aftermath)
}

/// Whether something must come to its end before the job does: its attempt, or the children it waits for.
fn is_at_work(row: &Row, state: State) -> bool {
    state == State::Running || (state == State::Suspended && row.child_batch_id.is_some())
}

/// Notes who asked, why and when.
async fn ask(
    conn: &mut PgConnection,
    ids: &[Uuid],
    by: Option<Uuid>,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), Fail> {
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

fn with_reason(row: Row, by: Option<Uuid>, reason: &str) -> Row {
    let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
    Row { cancel_asked_by: by, cancel_reason: reason, ..row }
}

fn already_final() -> Fail {
    Fail::conflict("jobs.already_final", "It has already ended.")
}
