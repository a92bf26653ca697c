//! Keeping jobs in the lanes that the limits ask for. A job is given its lane when it is inserted. When a limit is set or
//! taken back, what runs gets its lane with it, and what waits soon after: until then it does not start where its lane
//! would decide.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use kit::Fail;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::engine::{Ground, leader::Lead};

/// Jobs that one transaction gives lanes to.
const ROWS_MAX: i64 = 1_000;
/// A transaction that has read the limits before they were changed may commit as much later as one may take.
const STRAGGLERS_FOR: TimeDelta = TimeDelta::seconds(60);

/// What runs is counted under the limits as they are now: in one queue, or, after a change for a task, in all. The caller
/// holds admission alone. In the order of ids, as everywhere.
pub(crate) async fn lane_running(conn: &mut PgConnection, queue: Option<&str>) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.job
         set lane = held.lane
         from (
           select job.id,
             jobs.lane(job.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed) as lane
           from jobs.job
           join jobs.queue on queue.name = job.queue
           left join jobs.task on task.name = job.task
           where worker_id is not null and ($1::text is null or job.queue = $1)
           order by job.id
           for update of job
         ) as held
         where job.id = held.id and job.lane is distinct from held.lane",
        queue,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Which changes of limits the waiting jobs have followed.
#[derive(Debug, Default)]
pub(in crate::engine) struct Followed(Mutex<HashMap<String, DateTime<Utc>>>);

impl Followed {
    fn has(&self, name: &str, changed_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.get(name).is_some_and(|at| *at > changed_at + STRAGGLERS_FOR && *at <= now)
    }

    fn note(&self, name: String, at: DateTime<Utc>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, at);
    }
}

/// Gives the waiting jobs of queues and tasks whose limits have changed their lanes.
///
/// # Errors
/// As the database; what was done is durable, and the rest is done by the next call.
pub(in crate::engine) async fn follow(ground: &Ground, lead: Lead, followed: &Followed) -> Result<(), Fail> {
    let changed = sqlx::query!(
        r#"select 'queue ' || name as "name!", name as queue, null::text as task, limits_changed_at as "at!"
           from jobs.queue
           where limits_changed_at is not null
           union all
           select 'task ' || name, null, name, limits_changed_at from jobs.task where limits_changed_at is not null"#,
    )
    .fetch_all(&ground.pool)
    .await?;
    for change in changed {
        let now = ground.clock.now();
        if followed.has(&change.name, change.at, now) {
            continue;
        }
        let mut after = Uuid::nil();
        while let Some(last) = lane_some(ground, lead, change.queue.as_deref(), change.task.as_deref(), after).await? {
            after = last;
        }
        followed.note(change.name, now);
    }
    Ok(())
}

/// The next jobs after an id; the last of them, or none when there are no more.
async fn lane_some(
    ground: &Ground,
    lead: Lead,
    queue: Option<&str>,
    task: Option<&str>,
    after: Uuid,
) -> Result<Option<Uuid>, Fail> {
    let mut transaction = lead.begin(&ground.pool).await?;
    let laned = sqlx::query!(
        r#"with held as (
             select job.id, job.queue,
               jobs.lane(job.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed) as lane
             from jobs.job
             join jobs.queue on queue.name = job.queue
             left join jobs.task on task.name = job.task
             where job.id > $3 and ($1::text is null or job.queue = $1) and ($2::text is null or job.task = $2)
               and lane is distinct from
                 jobs.lane(job.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed)
             order by job.id
             limit $4
             for update of job
           ), laned as (
             update jobs.job set lane = held.lane from held where job.id = held.id returning job.id
           ), marked as (
             update jobs.queue
             set has_lanes = true
             where name in (select queue from held where lane is not null) and not has_lanes
           )
           select id as "id!" from laned order by id desc limit 1"#,
        queue,
        task,
        after,
        ROWS_MAX,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    if laned.is_some() {
        ground.limits.limited();
        ground.work.notify_one();
    }
    Ok(laned.map(|job| job.id))
}

/// Forgets buckets and shares that say nothing any more: a bucket that is full again, or for which there is no rate, and a
/// share behind its queue's own time, which begins there.
pub(in crate::engine) async fn tidy(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    let mut transaction = lead.begin(&ground.pool).await?;
    super::alone(&mut transaction).await?;
    sqlx::query!(
        "delete from jobs.bucket
         using jobs.queue
         where queue.name = bucket.queue
           and coalesce(
             tokens + extract(epoch from $1 - at)
               * case when key = '' then rate_starts / rate_seconds else key_rate_starts / key_rate_seconds end
               >= case when key = '' then rate_burst else key_rate_burst end,
             true
           )",
        ground.clock.now(),
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "delete from jobs.share
         using jobs.share as own
         where own.queue = share.queue and own.name = '' and share.name <> '' and share.had <= own.had",
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}
