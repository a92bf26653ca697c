//! Which job runs which occurrence, and what became of it. Jobs know nothing of schedules, and the table of live jobs is
//! asked for ids alone: what is live there is at work, what is not has ended as history says.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kit::{Fail, clock::to_timestamp};
use proto::jobs::ScheduleRun;
use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::Row;

/// Runs that are shown of a schedule.
const SHOWN: i64 = 10;
/// Ended runs of a schedule, the newest, that are looked at for having been retried by hand.
const RETRIED_AMONG: i64 = 20;

/// One occurrence, or one run by hand, and its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) schedule: Uuid,
    pub(super) at: DateTime<Utc>,
    pub(super) job: Uuid,
}

/// Runs of a schedule that are not over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) live: usize,
    /// Of those that came due.
    pub(super) waiting: usize,
    /// Of a backfill.
    pub(super) waiting_backfill: usize,
}

/// Notes runs as `state`, `live` or `waiting`. One that is noted already stays as it is.
pub(super) async fn insert(conn: &mut PgConnection, runs: &[Run], kind: &str, state: &str) -> Result<(), Fail> {
    let (schedules, ats, jobs) = columns(runs);
    sqlx::query!(
        "insert into jobs.schedule_run (schedule_id, occurrence_at, job_id, kind, state)
         select schedule_id, occurrence_at, job_id, $4, $5
         from unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) as new (schedule_id, occurrence_at, job_id)
         on conflict do nothing",
        &schedules,
        &ats,
        &jobs,
        kind,
        state,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Those of `runs` whose job is or was there, or that wait for theirs.
pub(super) async fn existing(conn: &mut PgConnection, runs: &[Run]) -> Result<Vec<Uuid>, Fail> {
    let (schedules, ats, jobs) = columns(runs);
    Ok(sqlx::query_scalar!(
        r#"select id as "id!" from jobs.job where id = any($3)
           union
           select id from jobs.job_history where id = any($3)
           union
           select run.job_id
           from unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) as new (schedule_id, occurrence_at, job_id)
           join jobs.schedule_run as run using (schedule_id, occurrence_at, job_id)"#,
        &schedules,
        &ats,
        &jobs,
    )
    .fetch_all(conn)
    .await?)
}

fn columns(runs: &[Run]) -> (Vec<Uuid>, Vec<DateTime<Utc>>, Vec<Uuid>) {
    let schedules = runs.iter().map(|run| run.schedule).collect();
    (schedules, runs.iter().map(|run| run.at).collect(), runs.iter().map(|run| run.job).collect())
}

/// Notices which runs have ended, and which that had were retried, and counts failures in the order of the ends. Pauses
/// those that have failed as often as they may. The rows are locked; whoever calls writes them.
pub(super) async fn settle(conn: &mut PgConnection, rows: &mut [Row], now: DateTime<Utc>) -> Result<(), Fail> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    sqlx::query!(
        "update jobs.schedule_run as run
         set state = 'live'
         from (
           select ended.schedule_id, ended.occurrence_at, ended.job_id
           from unnest($1::uuid[]) as schedule (id)
           cross join lateral (
             select schedule_id, occurrence_at, job_id
             from jobs.schedule_run
             where schedule_id = schedule.id and state in ('failed', 'cancelled', 'expired')
             order by occurrence_at desc
             limit $2
           ) as ended
           where exists (select from jobs.job where job.id = ended.job_id)
         ) as retried
         where (run.schedule_id, run.occurrence_at, run.job_id)
           = (retried.schedule_id, retried.occurrence_at, retried.job_id)",
        &ids,
        RETRIED_AMONG,
    )
    .execute(&mut *conn)
    .await?;
    let mut ended = sqlx::query!(
        r#"update jobs.schedule_run as run
           set state = ended.state
           from (
             select open.schedule_id, open.occurrence_at, open.job_id, coalesce(past.state, 'gone') as state,
               past.finished_at
             from jobs.schedule_run as open
             left join jobs.job_history as past on past.id = open.job_id
             where open.schedule_id = any($1) and open.state = 'live'
               and not exists (select from jobs.job where job.id = open.job_id)
           ) as ended
           where (run.schedule_id, run.occurrence_at, run.job_id)
             = (ended.schedule_id, ended.occurrence_at, ended.job_id)
           returning run.schedule_id, run.state, ended.finished_at as "finished_at?""#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    ended.sort_by_key(|run| run.finished_at);
    let mut rows: HashMap<Uuid, &mut Row> = rows.iter_mut().map(|row| (row.id, row)).collect();
    for run in ended {
        if let Some(row) = rows.get_mut(&run.schedule_id) {
            row.count_end(&run.state, now);
        }
    }
    Ok(())
}

/// How many runs of each schedule are not over. Settled before.
pub(super) async fn open(conn: &mut PgConnection, schedules: &[Uuid]) -> Result<HashMap<Uuid, Open>, Fail> {
    let rows = sqlx::query!(
        r#"select schedule_id, count(*) filter (where state = 'live') as "live!",
             count(*) filter (where state = 'waiting' and kind = 'due') as "waiting!",
             count(*) filter (where state = 'waiting' and kind <> 'due') as "waiting_backfill!"
           from jobs.schedule_run
           where schedule_id = any($1) and state in ('live', 'waiting')
           group by schedule_id"#,
        schedules,
    )
    .fetch_all(conn)
    .await?;
    let count = |count: i64| usize::try_from(count).unwrap_or(0);
    let open = rows.into_iter().map(|row| {
        let (live, waiting) = (count(row.live), count(row.waiting));
        (row.schedule_id, Open { live, waiting, waiting_backfill: count(row.waiting_backfill) })
    });
    Ok(open.collect())
}

/// Forgets what waits of a schedule's own occurrences.
pub(super) async fn drop_waiting(conn: &mut PgConnection, schedule: Uuid) -> Result<(), Fail> {
    sqlx::query!(
        "delete from jobs.schedule_run where schedule_id = $1 and state = 'waiting' and kind = 'due'",
        schedule
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The newest runs of each schedule, with what their jobs are now.
pub(super) async fn newest(
    conn: &mut PgConnection,
    schedules: &[Uuid],
) -> Result<HashMap<Uuid, Vec<ScheduleRun>>, Fail> {
    let rows = sqlx::query!(
        r#"select schedule.id as "schedule_id!", run.occurrence_at, run.job_id, run.kind,
             coalesce(job.state, past.state, run.state) as "state!"
           from unnest($1::uuid[]) as schedule (id)
           cross join lateral (
             select occurrence_at, job_id, kind, state
             from jobs.schedule_run
             where schedule_id = schedule.id
             order by occurrence_at desc, job_id desc
             limit $2
           ) as run
           left join jobs.job on job.id = run.job_id
           left join jobs.job_history as past on past.id = run.job_id"#,
        schedules,
        SHOWN,
    )
    .fetch_all(conn)
    .await?;
    let mut runs: HashMap<Uuid, Vec<ScheduleRun>> = HashMap::new();
    for row in rows {
        runs.entry(row.schedule_id).or_default().push(ScheduleRun {
            occurrence_at: Some(to_timestamp(row.occurrence_at)),
            kind: row.kind,
            job_id: row.job_id.to_string(),
            state: row.state,
        });
    }
    for runs in runs.values_mut() {
        runs.sort_by_key(|run| std::cmp::Reverse(run.occurrence_at.map(|at| (at.seconds, at.nanos))));
    }
    Ok(runs)
}

/// Removes up to `rows_max` runs that are over and whose jobs' history is; the number removed.
pub(super) async fn prune(conn: &mut PgConnection, before: DateTime<Utc>, rows_max: i64) -> Result<u64, Fail> {
    // Whether it is over is looked at again once the row is locked: `settle` may have found its job retried meanwhile.
    let done = sqlx::query!(
        "delete from jobs.schedule_run
         where state not in ('waiting', 'live')
           and (schedule_id, occurrence_at, job_id) in (
             select schedule_id, occurrence_at, job_id
             from jobs.schedule_run
             where occurrence_at < $1 and state not in ('waiting', 'live')
             order by occurrence_at
             limit $2
           )",
        before,
        rows_max,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
