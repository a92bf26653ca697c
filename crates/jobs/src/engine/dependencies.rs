//! Jobs that run after others. Whoever submits a job writes down what it runs after and waits for nothing; the leader has
//! each of those watched, or finds how it ended long ago. A watched job tells its end in the transaction that ends it, and
//! the leader does what that means for those that wait: they may start, or are cancelled, which is an end that is told in
//! turn. So a crash at any line leaves a row that says what is still to be done, and no chain is too long for one
//! transaction.
//!
//! Order of locks: dependencies after the jobs that they are on, and before batches. The leader locks jobs alone, by id.

mod asked;

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use kit::{Fail, crash_point};
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) use asked::{AFTER_MAX, After, Nameable};

use super::{
    Ground,
    events::Telling,
    finish::Fault,
    leader::Lead,
    states::State,
    steps::{self, Row, Step},
    submit::NewJob,
};

/// Jobs that one transaction has watched, or looks at since others have ended.
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

/// Tells the ends of jobs to those that run after them. Whether there are any.
pub(super) async fn tell_ends(conn: &mut PgConnection, steps: &[Step]) -> Result<bool, Fail> {
    let ended: Vec<&Step> = steps.iter().filter(|step| step.row.has_dependents && step.next.is_final()).collect();
    if ended.is_empty() {
        return Ok(false);
    }
    sqlx::query!(
        "update jobs.dependency
         set state = 'ended', outcome = ended.state
         from unnest($1::uuid[], $2::text[]) as ended (id, state)
         where dependency.after_id = ended.id and dependency.state in ('asked', 'watched')",
        &ended.iter().map(|step| step.row.id).collect::<Vec<_>>(),
        &ended.iter().map(|step| step.next.as_str().to_owned()).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(true)
}

/// Asks anew for what jobs that are queued again run after and what was not met; which jobs have such. Comes before their
/// batches are locked.
pub(super) async fn ask_again(conn: &mut PgConnection, jobs: &[Uuid]) -> Result<Vec<Uuid>, Fail> {
    let mut waiting = sqlx::query_scalar!(
        "update jobs.dependency
         set state = 'asked', outcome = null
         where job_id = any($1)
           and (outcome is null or outcome = 'gone' or (needs = 'succeeded' and outcome <> 'succeeded'))
         returning job_id",
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
           where job_id = $1
             and (outcome is null or outcome = 'gone' or (needs = 'succeeded' and outcome <> 'succeeded'))
             and not exists (select from jobs.job where id = after_id)
             and (past.id is null or (needs = 'succeeded' and past.state <> 'succeeded'))
           order by after_id
           limit 1"#,
        job,
    )
    .fetch_optional(conn)
    .await?;
    Ok(unmet.map(|unmet| {
        let after = unmet.after_id;
        let message = match unmet.state {
            Some(state) => format!("The job {after}, after which it runs, ended {state}. Retry that one first."),
            None => format!("The job {after}, after which it runs, is not kept any more."),
        };
        Fail::conflict("jobs.dependency_unmet", message)
    }))
}

/// Has what was asked for watched, and does what the ends of others mean for those that wait. Whether there may be more.
pub(super) async fn carry_on(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let is_more_asked = watch(ground, lead).await?;
    let is_more_ended = settle(ground, lead).await?;
    Ok(is_more_asked || is_more_ended)
}

/// Has live jobs tell their ends to those that run after them, and finds how the others ended.
async fn watch(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let asked = sqlx::query_scalar!(
        "select distinct after_id from jobs.dependency where state = 'asked' order by after_id limit $1",
        BITE,
    )
    .fetch_all(&ground.pool)
    .await?;
    if asked.is_empty() {
        return Ok(false);
    }
    let mut transaction = lead.begin(&ground.pool).await?;
    let live = sqlx::query_scalar!("select id from jobs.job where id = any($1) order by id for update", &asked)
        .fetch_all(&mut *transaction)
        .await?;
    sqlx::query!("update jobs.job set has_dependents = true where id = any($1) and not has_dependents", &live)
        .execute(&mut *transaction)
        .await?;
    // One that is live now and was not above was retried meanwhile: the next bite has it.
    let found = sqlx::query!(
        "update jobs.dependency
         set state = case when after.is_live then 'watched' else 'ended' end,
           outcome = case when not after.is_live then coalesce(after.state, 'gone') end
         from (
           select asked.id, asked.id = any($2) as is_live, past.state
           from unnest($1::uuid[]) as asked (id)
           left join jobs.job_history as past on past.id = asked.id
         ) as after
         where dependency.after_id = after.id and dependency.state = 'asked'
           and (after.is_live or after.state is not null or not exists (select from jobs.job where id = after.id))",
        &asked,
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
    let told = sqlx::query_scalar!(
        "select distinct job_id from jobs.dependency where state = 'ended' order by job_id limit $1",
        BITE,
    )
    .fetch_all(&ground.pool)
    .await?;
    if told.is_empty() {
        return Ok(false);
    }
    let now = ground.clock.now();
    let mut transaction = lead.begin(&ground.pool).await?;
    let rows = steps::lock(&mut transaction, &told).await?;
    // First, so that what ends from here on is not taken for done.
    sqlx::query!("update jobs.dependency set state = 'settled' where job_id = any($1) and state = 'ended'", &told)
        .execute(&mut *transaction)
        .await?;
    let stands = stands(&mut transaction, &told).await?;
    let waiting = rows.into_iter().filter(|row| row.state == State::Waiting.as_str());
    let steps: Vec<Step> = waiting.filter_map(|row| step(stands.get(&row.id)?, row, now)).collect();
    let aftermath = steps::carry_out(ground, &mut transaction, steps, BTreeMap::new(), Telling::default(), now).await?;
    crash_point("dependents-not-freed");
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(true)
}

async fn stands(conn: &mut PgConnection, jobs: &[Uuid]) -> Result<HashMap<Uuid, Stand>, Fail> {
    let rows = sqlx::query!(
        r#"select job_id, bool_or(outcome is null or state = 'ended') as "is_open!",
             min(after_id::text || ' ' || outcome) filter (
               where outcome = 'gone' or (needs = 'succeeded' and outcome <> 'succeeded')
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
/// beside which this one ran for a while. How much.
pub(super) async fn recheck(conn: &mut PgConnection, rows_max: i64) -> Result<u64, Fail> {
    let untold = sqlx::query!(
        "update jobs.dependency
         set state = 'asked'
         where (job_id, after_id) in (
           select job_id, after_id
           from jobs.dependency
           where state = 'watched' and not exists (select from jobs.job where id = after_id)
           limit $1
         )",
        rows_max,
    )
    .execute(conn)
    .await?;
    Ok(untold.rows_affected())
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
