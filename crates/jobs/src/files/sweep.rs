//! What removes files: uploads whose lease is over, what ended attempts left, and everything doomed. Bytes leave first
//! and their row after them, so that a crash between the two leaves a row that the next sweep finds again. Every step
//! may be repeated, and several processes may sweep at once, as an old leader may for a moment beside the new one.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use kit::Fail;
use uuid::Uuid;

use super::storage_key;
use crate::{
    Core,
    engine::{Lead, Told},
};

/// Rows of one statement.
const PAGE_ROWS: i64 = 500;
/// Objects removed at once.
const REMOVALS_AT_ONCE: usize = 8;

/// Dooms what nobody will finish, and removes what is doomed.
///
/// # Errors
/// `storage_unavailable` and as the database, with the rest left for the next time.
pub(crate) async fn sweep_files(core: &Core, lead: Lead) -> Result<(), Fail> {
    let now = core.clock.now();
    while doom_expired(core, lead, now).await? == PAGE_ROWS.unsigned_abs() {}
    while doom_left_by_attempts(core, lead, now).await? == PAGE_ROWS.unsigned_abs() {}
    remove_doomed(core, lead).await
}

/// Removes objects that no row names, and what killed writers left unfinished, older than an upload's lease. It lists
/// the whole storage, so it runs seldom. An object whose key is no id is not ours and stays.
///
/// # Errors
/// `storage_unavailable` and as the database.
pub(crate) async fn sweep_storage(core: &Core) -> Result<(), Fail> {
    // A row is there before its bytes are, so age protects only what is being written now.
    let older_than = core.clock.now() - Duration::from_secs(u64::from(core.settings.upload_lease_s));
    let swept = core.storage.sweep(older_than, |keys| are_known(core, keys)).await?;
    if swept.objects > 0 || swept.unfinished > 0 {
        tracing::info!(
            storage.objects = swept.objects,
            storage.unfinished = swept.unfinished,
            "removed stored bytes that nothing referred to"
        );
    }
    metrics::counter!("guildhall_storage_swept_total", "kind" => "object").increment(swept.objects);
    metrics::counter!("guildhall_storage_swept_total", "kind" => "unfinished").increment(swept.unfinished);
    Ok(())
}

/// Proves that every owner's count is the sum over their whole files, and tells when it is not; how many differ.
///
/// # Errors
/// As the database.
pub(crate) async fn check_usage(core: &Core, drift: &Told) -> Result<u64, Fail> {
    // One statement sees one moment: both sides move in the same transactions.
    let drifted = sqlx::query!(
        r#"select owner_id as "owner_id!", coalesce(file_usage.bytes, 0) as "counted!", coalesce(stored.bytes, 0) as "stored!"
           from jobs.file_usage
           full join (
             select owner_id, sum(size_bytes)::bigint as bytes
             from jobs.file
             where state = 'whole'
             group by owner_id
           ) as stored using (owner_id)
           where coalesce(file_usage.bytes, 0) <> coalesce(stored.bytes, 0)
           limit $1"#,
        PAGE_ROWS,
    )
    .fetch_all(&core.pool)
    .await?;
    for owner in &drifted {
        tracing::error!(
            owner.id = %owner.owner_id,
            usage.counted_bytes = owner.counted,
            usage.stored_bytes = owner.stored,
            "an owner's count of bytes is not the sum of their files"
        );
    }
    drift.set(drifted.len() as f64);
    Ok(drifted.len() as u64)
}

async fn doom_expired(core: &Core, lead: Lead, now: DateTime<Utc>) -> Result<u64, Fail> {
    let mut transaction = lead.begin(&core.pool).await?;
    let doomed = sqlx::query!(
        "update jobs.file
         set state = 'doomed'
         where id in (
           select id
           from jobs.file
           where state = 'writing' and expires_at <= $1
           order by expires_at
           limit $2
           for update skip locked
         )",
        now,
        PAGE_ROWS,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(doomed.rows_affected())
}

/// An attempt's files belong to it as long as its job is live under its token. The end of an attempt dooms them in its
/// own transaction; this finds what another way of ending forgot.
async fn doom_left_by_attempts(core: &Core, lead: Lead, now: DateTime<Utc>) -> Result<u64, Fail> {
    let mut transaction = lead.begin(&core.pool).await?;
    let doomed = sqlx::query!(
        "update jobs.file
         set state = 'doomed', expires_at = $1
         where id in (
           select file.id
           from jobs.file
           where file.state = 'writing' and file.job_id is not null
             and not exists (
               select from jobs.job
               where job.id = file.job_id and job.token = file.token and job.state in ('running', 'cancelling')
             )
           limit $2
           for update of file skip locked
         )",
        now,
        PAGE_ROWS,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(doomed.rows_affected())
}

/// Goes through all doomed rows once, past those whose bytes cannot be removed now; stops at a page where none can.
pub(super) async fn remove_doomed(core: &Core, lead: Lead) -> Result<(), Fail> {
    let mut after: Option<(DateTime<Utc>, Uuid)> = None;
    let mut failed = None;
    loop {
        let (after_time, after_id) = after.unzip();
        let page = sqlx::query!(
            r#"select id, expires_at as "at!"
               from jobs.file
               where state = 'doomed' and ($1::timestamptz is null or (expires_at, id) > ($1, $2::uuid))
               order by expires_at, id
               limit $3"#,
            after_time,
            after_id,
            PAGE_ROWS,
        )
        .fetch_all(&core.pool)
        .await?;
        let Some(last) = page.last() else { break };
        after = Some((last.at, last.id));
        let answers: Vec<(Uuid, Result<(), Fail>)> = stream::iter(page.into_iter().map(|row| row.id))
            .map(|id| async move { (id, core.storage.remove(&storage_key(id)).await) })
            .buffer_unordered(REMOVALS_AT_ONCE)
            .collect()
            .await;
        let mut removed = Vec::with_capacity(answers.len());
        for (id, answer) in answers {
            match answer {
                Ok(()) => removed.push(id),
                Err(fail) => failed = Some(fail),
            }
        }
        if removed.is_empty() {
            break;
        }
        let mut transaction = lead.begin(&core.pool).await?;
        sqlx::query!("delete from jobs.file where id = any($1) and state = 'doomed'", &removed)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    failed.map_or(Ok(()), Err)
}

async fn are_known(core: &Core, keys: Vec<String>) -> Result<Vec<bool>, Fail> {
    let ids: Vec<Option<Uuid>> =
        keys.iter().map(|key| key.parse().ok().filter(|id| storage_key(*id) == *key)).collect();
    let asked: Vec<Uuid> = ids.iter().copied().flatten().collect();
    let known: HashSet<Uuid> = sqlx::query_scalar!("select id from jobs.file where id = any($1)", &asked)
        .fetch_all(&core.pool)
        .await?
        .into_iter()
        .collect();
    Ok(ids.into_iter().map(|id| id.is_none_or(|id| known.contains(&id))).collect())
}
