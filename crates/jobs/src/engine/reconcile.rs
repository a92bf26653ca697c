//! The proof of the batches: their counters are held against the rows of their jobs, page by page. A difference is told and
//! counted, never mended in silence; a batch that is complete and was not taken on is taken on.

use kit::Fail;
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
        let page = look(ground, after).await?;
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

async fn look(ground: &Ground, after: Uuid) -> Result<Page, Fail> {
    // One statement sees one moment, so that a job which ends meanwhile is no difference.
    let batches = sqlx::query!(
        r#"select batch.id, batch.state, batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.expired,
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
    .fetch_all(&ground.pool)
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
        if batch.state == "running" && ended == total {
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
