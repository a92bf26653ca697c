//! What waits and what has ended: an occurrence that waits for the run before it starts when that is over, the run at work is
//! cancelled where the schedule says so, and the ends of runs are noticed, a page of them in each round.

use chrono::{DateTime, Utc};
use kit::{Fail, Kind, audit::Act};
use sqlx::PgConnection;
use tracing::error;
use uuid::Uuid;

use super::{
    firing::{self, Prepared},
    rows::{self, Row},
    runs::{self, Open},
    spec::Overlap,
};
use crate::{
    Core, acts,
    engine::{self, Telling},
};

/// Schedules, and runs, that one look takes.
const PAGE: i64 = 500;
/// Schedules whose runs one transaction settles.
const SETTLED: usize = 50;
/// Pages of runs that one round looks at.
const PAGES_MAX: usize = 10;
const CANCEL_REASON: &str = "The next occurrence of its schedule has come.";

/// Starts what waits and whose turn it is, and cancels what is in the way where it may be.
///
/// # Errors
/// As the database when it is away.
pub(super) async fn release(core: &Core) -> Result<(), Fail> {
    let mut after = Uuid::nil();
    loop {
        let ids = sqlx::query_scalar!(
            "select distinct schedule_id
             from jobs.schedule_run
             where state = 'waiting' and schedule_id > $1
             order by schedule_id
             limit $2",
            after,
            PAGE,
        )
        .fetch_all(&core.pool)
        .await?;
        let Some(last) = ids.last() else { return Ok(()) };
        after = *last;
        let (rows, open) = {
            let mut connection = core.pool.acquire().await?;
            (rows::read(&mut connection, &ids).await?, runs::open(&mut connection, &ids).await?)
        };
        for row in rows {
            let open = open.get(&row.id).copied().unwrap_or_default();
            // Of a paused schedule only what was asked for by hand goes on.
            if row.paused_at.is_some() && open.waiting_backfill == 0 {
                continue;
            }
            match advance(core, &row, open).await {
                Err(fail) if fail.kind() == Kind::Unavailable => return Err(fail),
                Err(fail) => error!(schedule.id = %row.id, error = %fail, "a waiting occurrence could not be started"),
                Ok(()) => {}
            }
        }
    }
}

async fn advance(core: &Core, row: &Row, open: Open) -> Result<(), Fail> {
    let at_work = sqlx::query!(
        r#"select job.id, job.state = 'cancelling' as "is_cancelling!"
           from jobs.schedule_run as run
           join jobs.job on job.id = run.job_id
           where run.schedule_id = $1 and run.state = 'live'"#,
        row.id,
    )
    .fetch_all(&core.pool)
    .await?;
    if at_work.is_empty() {
        let prepared = firing::prepare(core, row).await?;
        return start(core, row.id, &prepared).await;
    }
    if row.paused_at.is_some() || open.waiting == 0 || row.spec()?.overlap != Overlap::CancelRunning {
        return Ok(());
    }
    for job in at_work.into_iter().filter(|job| !job.is_cancelling) {
        let act = Act::by_system(&acts::CANCEL_JOB, job.id).owned_by(row.owner_id).because(CANCEL_REASON);
        match core.engine.cancel_job(job.id, row.owner_id, CANCEL_REASON, act).await {
            // It has ended by itself.
            Err(fail) if fail.kind() == Kind::Conflict => {}
            done => done?,
        }
    }
    Ok(())
}

/// Starts the oldest occurrence that waits, unless a run is at work or another replica is about to.
async fn start(core: &Core, id: Uuid, prepared: &Prepared) -> Result<(), Fail> {
    let now = core.clock.now();
    let mut transaction = core.pool.begin().await?;
    let Some(mut row) = try_lock(&mut transaction, &[id]).await?.pop().filter(|row| prepared.is_of(row)) else {
        return Ok(());
    };
    runs::settle(&mut transaction, std::slice::from_mut(&mut row), now).await?;
    let is_free = runs::open(&mut transaction, &[id]).await?.get(&id).is_none_or(|open| open.live == 0);
    let next = match is_free {
        true => next(&mut transaction, &row).await?,
        false => None,
    };
    let mut telling = Telling::default();
    let mut streams = Vec::new();
    let (mut started, mut has_dependents) = (0, false);
    if let Some((at, job_id)) = next {
        let state = match &prepared.job {
            Ok(job) => {
                let job = firing::occurrence(id, job, at, 0);
                let ground = &core.engine.ground;
                let (keys, replaced) =
                    firing::take_keys(ground, &mut transaction, std::slice::from_ref(&job), now).await?;
                streams.extend(replaced.streams);
                has_dependents |= replaced.has_dependents;
                match (keys.holder(&job), firing::held(&job, &keys)) {
                    (None, _) => {
                        engine::insert(&mut transaction, &core.clock, &[job], now, &mut telling).await?;
                        (row.last_error, row.last_error_at) = (None, None);
                        started = 1;
                        "live"
                    }
                    (Some(_), Some(fail)) => {
                        firing::refuse(&mut row, &fail, now);
                        "gone"
                    }
                    (Some(_), None) => {
                        row.skipped += 1;
                        "gone"
                    }
                }
            }
            Err(fail) => {
                firing::refuse(&mut row, fail, now);
                "gone"
            }
        };
        sqlx::query!(
            "update jobs.schedule_run
             set state = $4
             where schedule_id = $1 and occurrence_at = $2 and job_id = $3",
            id,
            at,
            job_id,
            state,
        )
        .execute(&mut *transaction)
        .await?;
    }
    rows::write(&mut transaction, &row).await?;
    streams.extend(telling.append(&mut transaction, now).await?);
    transaction.commit().await?;
    if started > 0 {
        metrics::counter!("guildhall_schedule_fires_total", "outcome" => "submitted").increment(started);
    }
    core.engine.ground.took_in(streams, has_dependents);
    Ok(())
}

/// The occurrence whose turn it is.
async fn next(conn: &mut PgConnection, row: &Row) -> Result<Option<(DateTime<Utc>, Uuid)>, Fail> {
    let next = sqlx::query!(
        "select occurrence_at, job_id
         from jobs.schedule_run
         where schedule_id = $1 and state = 'waiting' and (kind = 'backfill' or not $2)
         order by occurrence_at
         limit 1",
        row.id,
        row.paused_at.is_some(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(next.map(|run| (run.occurrence_at, run.job_id)))
}

/// Where the round before stopped looking for runs that have ended.
pub(super) type Looked = (Uuid, DateTime<Utc>, Uuid);

/// Notices the ends of runs. Looks at no more than a few pages, from where it stopped the last time on.
///
/// # Errors
/// As the database.
pub(super) async fn settle(core: &Core, looked: &mut Looked) -> Result<(), Fail> {
    for _ in 0..PAGES_MAX {
        let page = sqlx::query!(
            r#"select schedule_id, occurrence_at, job_id,
                 not exists (select from jobs.job where job.id = run.job_id) as "has_ended!"
               from jobs.schedule_run as run
               where state = 'live' and (schedule_id, occurrence_at, job_id) > ($1, $2, $3)
               order by schedule_id, occurrence_at, job_id
               limit $4"#,
            looked.0,
            looked.1,
            looked.2,
            PAGE,
        )
        .fetch_all(&core.pool)
        .await?;
        let is_last = page.len() as i64 != PAGE;
        *looked = match page.last() {
            Some(run) if !is_last => (run.schedule_id, run.occurrence_at, run.job_id),
            _ => (Uuid::nil(), DateTime::UNIX_EPOCH, Uuid::nil()),
        };
        let mut ended: Vec<Uuid> = page.iter().filter(|run| run.has_ended).map(|run| run.schedule_id).collect();
        ended.dedup();
        for ids in ended.chunks(SETTLED) {
            let now = core.clock.now();
            let mut transaction = core.pool.begin().await?;
            let mut rows = try_lock(&mut transaction, ids).await?;
            runs::settle(&mut transaction, &mut rows, now).await?;
            for row in &rows {
                rows::write(&mut transaction, row).await?;
            }
            transaction.commit().await?;
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

/// Locks those of the rows that nobody holds.
async fn try_lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Row>, Fail> {
    let locked =
        sqlx::query_scalar!("select id from jobs.schedule where id = any($1) order by id for update skip locked", ids)
            .fetch_all(&mut *conn)
            .await?;
    rows::read(conn, &locked).await
}
