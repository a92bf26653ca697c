//! The proof of the batches: their counters are held against the rows of their jobs, page by page. A difference is told and
//! counted, never mended in silence; a batch that is complete and was not taken on is taken on.

use kit::Fail;
use sqlx::PgPool;
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    Ground,
    events::Telling,
    fan_in::BatchChange,
    leader::{Lead, Told},
    steps,
};

/// Batches of one look.
const PAGE: i64 = 500;

/// Goes through every batch that is not over.
pub(super) async fn run(ground: &Ground, lead: Lead, drift: &Told) -> Result<(), Fail> {
    let mut drifted = 0u32;
    let mut after = Uuid::nil();
    loop {
        let page = look(&ground.pool, after).await?;
        drifted += page.drifted;
        for batch in page.stuck {
            warn!(batch.id = %batch, "a complete batch was not taken on; it is now");
            take_on(ground, lead, batch).await?;
        }
        let Some(last) = page.last else { break };
        after = last;
    }
    drift.set(f64::from(drifted));
    Ok(())
}

#[derive(Debug, Default)]
struct Page {
    last: Option<Uuid>,
    drifted: u32,
    stuck: Vec<Uuid>,
}

async fn look(pool: &PgPool, after: Uuid) -> Result<Page, Fail> {
    // One statement sees one moment, so that a job which ends meanwhile is no difference.
    let batches = sqlx::query!(
        r#"select batch.id, batch.state, batch.retry_states is not null as "is_retried!", batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.expired,
             (select count(*) from jobs.job where job.batch_id = batch.id and job.ordinal is not null) as "live!",
             found.succeeded as "found_succeeded!", found.failed as "found_failed!", found.cancelled as "found_cancelled!",
             found.expired as "found_expired!"
           from jobs.batch
           cross join lateral (
             select count(*) filter (where past.state = 'succeeded') as succeeded,
               count(*) filter (where past.state = 'failed') as failed,
               count(*) filter (where past.state = 'cancelled') as cancelled,
               count(*) filter (where past.state = 'expired') as expired
             from jobs.job_history as past
             where past.batch_id = batch.id and past.ordinal is not null
           ) as found
           where batch.finished_at is null and batch.id > $1
           order by batch.id
           limit $2"#,
        after,
        PAGE,
    )
    .fetch_all(pool)
    .await?;
    let mut page = Page { last: batches.last().map(|batch| batch.id), ..Page::default() };
    for batch in batches {
        let counted = [batch.succeeded, batch.failed, batch.cancelled, batch.expired].map(i64::from);
        let found = [batch.found_succeeded, batch.found_failed, batch.found_cancelled, batch.found_expired];
        let ended = counted.iter().sum::<i64>();
        let total = i64::from(batch.total);
        if counted != found || batch.live + ended != total {
            page.drifted += 1;
            error!(batch.id = %batch.id, ?counted, ?found, live = batch.live, total,
                "a batch's counters differ from its jobs");
        }
        if batch.state == "running" && ended == total && !batch.is_retried {
            page.stuck.push(batch.id);
        }
    }
    Ok(page)
}

async fn take_on(ground: &Ground, lead: Lead, batch: Uuid) -> Result<(), Fail> {
    let mut transaction = lead.begin(&ground.pool).await?;
    steps::lock_parent(&mut transaction, batch).await?;
    let changes = [(batch, BatchChange::default())].into_iter().collect();
    let now = ground.clock.now();
    let aftermath = steps::carry_out(ground, &mut transaction, Vec::new(), changes, Telling::default(), now).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_counter_that_was_broken_is_found_and_a_complete_batch_that_was_left() {
        let database = kit::testing::database_with("jobs", |url| async move {
            kit::db::migrate(&url, crate::SCHEMA, &crate::MIGRATOR).await
        })
        .await;
        let pool = database.pool();
        sqlx::raw_sql(
            "insert into jobs.batch (id, owner_id, state, total, failed, created_at)
             values (gen_random_uuid(), gen_random_uuid(), 'running', 1, 1, now());
             insert into jobs.job_history (id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts,
               attempt_timeout_s, batch_id, ordinal, is_finalize, events, request_id, tags, args, created_at, finished_at)
             select gen_random_uuid(), owner_id, 'work', 'default', 'failed', 50, now(), 1, 1, 1, id, 0, false, 1, '', '{}',
               '{}', now(), now()
             from jobs.batch",
        )
        .execute(pool)
        .await
        .expect("rows");
        let page = look(pool, Uuid::nil()).await.expect("it looks");
        assert_eq!((page.drifted, page.stuck.len()), (0, 1));
        sqlx::raw_sql("update jobs.batch set failed = 0").execute(pool).await.expect("it breaks");
        let page = look(pool, Uuid::nil()).await.expect("it looks");
        assert_eq!((page.drifted, page.stuck.len()), (1, 0));
        // Jobs that are about to be queued again are not to be taken on.
        sqlx::raw_sql("update jobs.batch set failed = 1, retry_states = '{failed}', retry_after = -1")
            .execute(pool)
            .await
            .expect("it is retried");
        let page = look(pool, Uuid::nil()).await.expect("it looks");
        assert_eq!((page.drifted, page.stuck.len()), (0, 0));
    }
}
