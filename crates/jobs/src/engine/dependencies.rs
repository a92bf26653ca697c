//! Jobs that run after others. Whoever submits a job writes down what it runs after and waits for nothing; the leader has
//! each of those watched, or finds how it ended long ago. The end of a watched job is written down in the transaction that
//! ends it, in one row however many run after it; the leader tells it to each of them and does what it means: they may start,
//! or are cancelled, which is an end in turn. So a crash at any line leaves a row that says what is still to be done, and no
//! transaction grows with the length of a chain or with how many wait for one job.
//!
//! Order of locks: dependencies before the jobs that wait, their parents and batches, by job and by what it runs after; only
//! the leader, for what is watched, locks them after jobs.

mod asked;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use kit::{Fail, crash_point};
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) use asked::{AFTER_MAX, After, Nameable, rings};

use super::{
    Ground,
    events::Telling,
    finish::Fault,
    leader::Lead,
    states::State,
    steps::{self, Row, Step},
    submit::NewJob,
};

/// Dependencies that one transaction takes.
const BITE: i64 = 500;

/// Writes down what new jobs run after.
pub(super) async fn insert(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<(), Fail> {
    let asked = || jobs.iter().flat_map(|job| job.after.jobs.iter().map(move |after| (job, after)));
    if asked().next().is_none() {
        return Ok(());
    }
    sqlx::query!(
        "insert into jobs.dependency (job_id, after_id, needs, state)
         select job_id, after_id, needs, 'asked'
         from unnest($1::uuid[], $2::uuid[], $3::text[]) as asked (job_id, after_id, needs)",
        &asked().map(|(job, _)| job.id).collect::<Vec<_>>(),
        &asked().map(|(_, after)| *after).collect::<Vec<_>>(),
        &asked().map(|(job, _)| job.after.needs.as_str().to_owned()).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down the ends of jobs for those that run after them. Whether there are any.
pub(super) async fn note_ends(conn: &mut PgConnection, steps: &[Step]) -> Result<bool, Fail> {
    let ended: Vec<&Step> = steps.iter().filter(|step| step.row.has_dependents && step.next.is_final()).collect();
    if ended.is_empty() {
        return Ok(false);
    }
    sqlx::query!(
        "insert into jobs.dependency_end (job_id, outcome)
         select id, state
         from unnest($1::uuid[], $2::text[]) as ended (id, state)
         order by id
         on conflict (job_id) do update set outcome = excluded.outcome",
        &ended.iter().map(|step| step.row.id).collect::<Vec<_>>(),
        &ended.iter().map(|step| step.next.as_str().to_owned()).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(true)
}

/// Asks anew for what jobs that are queued again run after and what has not succeeded, which may be live again; which jobs
/// have such. Comes before their batches are locked.
pub(super) async fn ask_again(conn: &mut PgConnection, jobs: &[Uuid]) -> Result<Vec<Uuid>, Fail> {
    let mut waiting = sqlx::query_scalar!(
        "with unmet as (
           select job_id, after_id
           from jobs.dependency
           where job_id = any($1)
             and outcome is distinct from 'succeeded'
           order by job_id, after_id
           for update
         )
         update jobs.dependency
         set state = 'asked', outcome = null
         from unmet
         where dependency.job_id = unmet.job_id and dependency.after_id = unmet.after_id
         returning dependency.job_id",
        jobs,
    )
    .fetch_all(conn)
    .await?;
    waiting.sort_unstable();
    waiting.dedup();
    Ok(waiting)
}

/// Why a job that is over cannot be queued again: a job that it runs after has ended otherwise than it needs, so that it
/// would be cancelled at once.
pub(super) async fn refusal(conn: &mut PgConnection, job: Uuid) -> Result<Option<Fail>, Fail> {
    let unmet = sqlx::query!(
        r#"select after_id, past.state as "state?"
           from jobs.dependency
           left join jobs.job_history as past on past.id = after_id
           where job_id = $1 and needs = 'succeeded' and outcome is distinct from 'succeeded'
             and (past.id is null or past.state <> 'succeeded')
             and not exists (select from jobs.job where id = after_id)
           order by after_id
           limit 1"#,
        job,
    )
    .fetch_optional(conn)
    .await?;
    Ok(unmet.map(|unmet| {
        let after = unmet.after_id;
        let message = match unmet.state {
            Some(state) => format!("The job {after}, after which it runs, ended {state}, and has to succeed first."),
            None => format!("The job {after}, after which it runs, is not kept any more."),
        };
        Fail::conflict("jobs.dependency_unmet", message)
    }))
}

/// Has what was asked for watched, and does what the ends of others mean for those that wait. Whether there may be more.
pub(super) async fn carry_on(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let is_more_noted = tell(ground, lead).await?;
    let is_more_asked = watch(ground, lead).await?;
    let is_more_ended = settle(ground, lead).await?;
    Ok(is_more_noted || is_more_asked || is_more_ended)
}

/// Tells ends that were noted to some of those that run after these jobs.
async fn tell(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let ended = sqlx::query_scalar!("select job_id from jobs.dependency_end order by job_id limit $1", BITE)
        .fetch_all(&ground.pool)
        .await?;
    if ended.is_empty() {
        return Ok(false);
    }
    let mut transaction = lead.begin(&ground.pool).await?;
    let told = sqlx::query!(
        "with page as (
           select job_id, after_id
           from jobs.dependency
           where state = 'watched' and after_id = any($1)
           limit $2
         ), locked as (
           select dependency.job_id, dependency.after_id
           from jobs.dependency
           join page on page.job_id = dependency.job_id and page.after_id = dependency.after_id
           order by dependency.job_id, dependency.after_id
           for update of dependency
         )
         update jobs.dependency
         set state = 'ended', outcome = ended.outcome
         from locked
         join jobs.dependency_end as ended on ended.job_id = locked.after_id
         where dependency.job_id = locked.job_id and dependency.after_id = locked.after_id
           and dependency.state = 'watched'",
        &ended,
        BITE,
    )
    .execute(&mut *transaction)
    .await?;
    // One that was asked for anew meanwhile was not told, and leaves the others for the next bite.
    let is_left = sqlx::query_scalar!(
        r#"select exists (select from jobs.dependency where state = 'watched' and after_id = any($1)) as "is_left!""#,
        &ended,
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !is_left {
        sqlx::query!("delete from jobs.dependency_end where job_id = any($1)", &ended)
            .execute(&mut *transaction)
            .await?;
    }
    crash_point("end-not-told");
    transaction.commit().await?;
    Ok(is_left || told.rows_affected() > 0)
}

/// Has live jobs tell their ends to some of those that run after them, and finds how the others ended.
async fn watch(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let asked = sqlx::query!(
        "select job_id, after_id from jobs.dependency where state = 'asked' order by after_id, job_id limit $1",
        BITE,
    )
    .fetch_all(&ground.pool)
    .await?;
    if asked.is_empty() {
        return Ok(false);
    }
    let (jobs, after): (Vec<Uuid>, Vec<Uuid>) = asked.into_iter().map(|row| (row.job_id, row.after_id)).unzip();
    let mut transaction = lead.begin(&ground.pool).await?;
    let live = sqlx::query_scalar!("select id from jobs.job where id = any($1) order by id for update", &after)
        .fetch_all(&mut *transaction)
        .await?;
    sqlx::query!("update jobs.job set has_dependents = true where id = any($1) and not has_dependents", &live)
        .execute(&mut *transaction)
        .await?;
    // One that is live now and was not above was retried meanwhile: a later bite has it. So has it one whose earlier end is
    // still to be told, to those that were watched then and to no others, and one that its batch's retry is about to reach.
    let found = sqlx::query!(
        "with asked as (
           select job_id, after_id
           from unnest($1::uuid[], $2::uuid[]) as named (job, after)
           join jobs.dependency on job_id = job and after_id = after
           where state = 'asked'
           order by job_id, after_id
           -- Held by a retry that may want the jobs above: a later bite takes it.
           for update of dependency skip locked
         )
         update jobs.dependency
         set state = case when after.is_live then 'watched' else 'ended' end,
           outcome = case when not after.is_live then coalesce(after.state, 'gone') end
         from (
           select asked.job_id, asked.after_id, asked.after_id = any($3) as is_live, past.state,
             exists (
               select from jobs.batch
               where batch.id = past.batch_id and past.state = any(batch.retry_states)
                 and past.ordinal > batch.retry_after
             ) as is_retrying
           from asked
           left join jobs.job_history as past on past.id = asked.after_id
         ) as after
         where dependency.job_id = after.job_id and dependency.after_id = after.after_id
           and not exists (select from jobs.dependency_end as noted where noted.job_id = after.after_id)
           and not after.is_retrying
           and (
             after.is_live or after.state is not null or not exists (select from jobs.job where id = after.after_id)
           )",
        &jobs,
        &after,
        &live,
    )
    .execute(&mut *transaction)
    .await?;
    crash_point("dependencies-not-watched");
    transaction.commit().await?;
    Ok(found.rows_affected() > 0)
}

/// How it stands with a job that waits.
#[derive(Debug)]
struct Stand {
    /// Some of what it runs after has not ended.
    is_open: bool,
    /// What ended otherwise than it needs, and how.
    unmet: Option<(Uuid, String)>,
}

/// Lets jobs start, or cancels them, as what they run after has ended.
async fn settle(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let mut transaction = lead.begin(&ground.pool).await?;
    // First, so that what ends from here on is not taken for done.
    let ended = sqlx::query!(
        "with ended as (
           select job_id, after_id
           from jobs.dependency
           where state = 'ended'
           order by job_id, after_id
           limit $1
           for update
         )
         update jobs.dependency
         set state = 'settled'
         from ended
         where dependency.job_id = ended.job_id and dependency.after_id = ended.after_id
         returning dependency.job_id",
        BITE,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if ended.is_empty() {
        return Ok(false);
    }
    let told: BTreeSet<Uuid> = ended.into_iter().map(|row| row.job_id).collect();
    // Those for which nothing follows yet are not locked: of a hundred that one runs after, each ends by itself.
    let decided = decided(&mut transaction, &told.into_iter().collect::<Vec<_>>()).await?;
    let rows = steps::lock(&mut transaction, &decided).await?;
    // One that was cancelled, or retried, before its row was locked stands otherwise by now.
    let stands = stands(&mut transaction, &decided).await?;
    let waiting = rows.into_iter().filter(|row| row.state == State::Waiting.as_str());
    let steps: Vec<Step> = waiting.filter_map(|row| step(stands.get(&row.id)?, row, now)).collect();
    let aftermath = steps::carry_out(ground, &mut transaction, steps, BTreeMap::new(), Telling::default(), now).await?;
    crash_point("dependents-not-freed");
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(true)
}

/// Of these jobs those that may start or are to be cancelled. What was not met and is live again, or has succeeded by now,
/// was retried since: it is asked for anew.
async fn decided(conn: &mut PgConnection, jobs: &[Uuid]) -> Result<Vec<Uuid>, Fail> {
    sqlx::query!(
        "update jobs.dependency
         set state = 'asked', outcome = null
         where job_id = any($1) and needs = 'succeeded' and state = 'settled' and outcome <> 'succeeded'
           and (
             exists (select from jobs.job where id = after_id)
             or exists (select from jobs.job_history as past where past.id = after_id and past.state = 'succeeded')
           )
           and exists (select from jobs.job as waiting where waiting.id = job_id and waiting.state = 'waiting')",
        jobs,
    )
    .execute(&mut *conn)
    .await?;
    Ok(sqlx::query_scalar!(
        r#"select id as "id!"
           from unnest($1::uuid[]) as told (id)
           where not exists (select from jobs.dependency where job_id = id and (outcome is null or state = 'ended'))
             or exists (
               select from jobs.dependency where job_id = id and needs = 'succeeded' and outcome <> 'succeeded'
             )"#,
        jobs,
    )
    .fetch_all(conn)
    .await?)
}

async fn stands(conn: &mut PgConnection, jobs: &[Uuid]) -> Result<HashMap<Uuid, Stand>, Fail> {
    let rows = sqlx::query!(
        r#"select job_id, bool_or(outcome is null or state = 'ended') as "is_open!",
             min(after_id::text || ' ' || outcome) filter (
               where needs = 'succeeded' and outcome <> 'succeeded'
             ) as unmet
           from jobs.dependency
           where job_id = any($1)
           group by job_id"#,
        jobs,
    )
    .fetch_all(conn)
    .await?;
    let stand = |is_open, unmet: Option<String>| {
        let unmet = unmet.as_deref().and_then(|unmet| unmet.split_once(' '));
        Stand { is_open, unmet: unmet.and_then(|(id, outcome)| Some((id.parse().ok()?, outcome.to_owned()))) }
    };
    Ok(rows.into_iter().map(|row| (row.job_id, stand(row.is_open, row.unmet))).collect())
}

/// What becomes of a job that waits; nothing, where it goes on waiting.
fn step(stand: &Stand, row: Row, now: DateTime<Utc>) -> Option<Step> {
    if let Some((after, outcome)) = &stand.unmet {
        let message = match outcome.as_str() {
            "gone" => format!("How the job {after} ended, after which it was to run, is not known any more."),
            outcome => format!("The job {after}, after which it was to run, ended {outcome}."),
        };
        let error = Some(Fault::new("dependency", message, false));
        return Some(Step { error, ..Step::to(row, State::Cancelled) });
    }
    if stand.is_open {
        return None;
    }
    let next = if row.run_at > now { State::Scheduled } else { State::Queued };
    Some(Step { run_at: Some(row.run_at.max(now)), ..Step::to(row, next) })
}

/// Asks again for what is watched and has ended without telling: under a replica of a version that knows nothing of this,
/// beside which this one ran for a while.
pub(super) async fn recheck(ground: &Ground, lead: Lead, rows_max: i64) -> Result<(), Fail> {
    loop {
        let mut transaction = lead.begin(&ground.pool).await?;
        let untold = sqlx::query!(
            "update jobs.dependency
             set state = 'asked'
             where (job_id, after_id) in (
               select job_id, after_id
               from jobs.dependency
               where state = 'watched' and not exists (select from jobs.job where id = after_id)
                 and not exists (select from jobs.dependency_end as noted where noted.job_id = after_id)
               limit $1
             )",
            rows_max,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        transaction.commit().await?;
        if untold == 0 {
            return Ok(());
        }
        ground.dependents.notify_one();
    }
}

/// Forgets what jobs before `before` ran after that are not kept any more; how much.
pub(super) async fn tidy(conn: &mut PgConnection, before: Uuid, rows_max: i64) -> Result<u64, Fail> {
    let forgotten = sqlx::query!(
        "delete from jobs.dependency
         where (job_id, after_id) in (
           select job_id, after_id
           from jobs.dependency
           where job_id < $1
             and not exists (select from jobs.job where id = job_id)
             and not exists (select from jobs.job_history where id = job_id)
           limit $2
         )",
        before,
        rows_max,
    )
    .execute(conn)
    .await?;
    Ok(forgotten.rows_affected())
}
