//! The rows of `jobs.unique_key`. Each statement takes its locks by scope, task and key.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use kit::Fail;
use sqlx::PgConnection;
use uuid::Uuid;

/// A key with what it is a key of: scope, task, key.
pub(super) type Name = (Uuid, String, String);

/// What a job that asks for a key would hold it by.
pub(super) struct Asked<'a> {
    pub(super) job: Uuid,
    pub(super) hold: &'a str,
    pub(super) held_until: DateTime<Utc>,
}

/// A key and the job that holds it.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(super) name: Name,
    pub(super) job: Uuid,
}

/// Asks for keys, each for one job; who holds each then. A key that was let go and whose time is over is as good as free.
pub(super) async fn ask(
    conn: &mut PgConnection,
    asked: &BTreeMap<Name, Asked<'_>>,
    now: DateTime<Utc>,
) -> Result<HashMap<Name, Uuid>, Fail> {
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    let (scopes, tasks, keys) = columns(asked.keys());
    // A row that is held is locked and stays as it is; so none can vanish before it is read.
    let taken = sqlx::query!(
        r#"insert into jobs.unique_key as held (scope, task, key, job_id, hold, held_until)
           select scope, task, key, job_id, hold, held_until
           from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::timestamptz[])
             as asked (scope, task, key, job_id, hold, held_until)
           order by scope, task collate "C", key collate "C"
           on conflict (scope, task, key) do update
           set job_id = excluded.job_id, hold = excluded.hold, is_let_go = false,
             held_until = greatest(held.held_until, excluded.held_until)
           where held.job_id = excluded.job_id or (held.is_let_go and held.held_until <= $7)
           returning scope, task, key, job_id"#,
        &scopes,
        &tasks,
        &keys,
        &asked.values().map(|asked| asked.job).collect::<Vec<_>>(),
        &asked.values().map(|asked| asked.hold.to_owned()).collect::<Vec<_>>(),
        &asked.values().map(|asked| asked.held_until).collect::<Vec<_>>(),
        now,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut held_by: HashMap<Name, Uuid> =
        taken.into_iter().map(|row| ((row.scope, row.task, row.key), row.job_id)).collect();
    if held_by.len() < asked.len() {
        let (scopes, tasks, keys) = columns(asked.keys().filter(|name| !held_by.contains_key(*name)));
        let others = sqlx::query!(
            "select held.scope, held.task, held.key, held.job_id
             from jobs.unique_key as held
             join unnest($1::uuid[], $2::text[], $3::text[]) as asked (scope, task, key)
               on held.scope = asked.scope and held.task = asked.task and held.key = asked.key",
            &scopes,
            &tasks,
            &keys,
        )
        .fetch_all(conn)
        .await?;
        held_by.extend(others.into_iter().map(|row| ((row.scope, row.task, row.key), row.job_id)));
    }
    Ok(held_by)
}

/// Gives keys, which are locked, to other jobs than hold them.
pub(super) async fn hand_over(conn: &mut PgConnection, to: &BTreeMap<Name, Asked<'_>>) -> Result<(), Fail> {
    let (scopes, tasks, keys) = columns(to.keys());
    sqlx::query!(
        "update jobs.unique_key as held
         set job_id = taken.job_id, hold = taken.hold, held_until = taken.held_until, is_let_go = false
         from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::timestamptz[])
           as taken (scope, task, key, job_id, hold, held_until)
         where held.scope = taken.scope and held.task = taken.task and held.key = taken.key",
        &scopes,
        &tasks,
        &keys,
        &to.values().map(|taken| taken.job).collect::<Vec<_>>(),
        &to.values().map(|taken| taken.hold.to_owned()).collect::<Vec<_>>(),
        &to.values().map(|taken| taken.held_until).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes keys, where they are still these jobs'.
pub(super) async fn remove(conn: &mut PgConnection, holdings: &[Holding]) -> Result<(), Fail> {
    let (scopes, tasks, keys) = columns(holdings.iter().map(|holding| &holding.name));
    sqlx::query!(
        "delete from jobs.unique_key as held
         using unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[]) as own (scope, task, key, job_id)
         where held.scope = own.scope and held.task = own.task and held.key = own.key and held.job_id = own.job_id",
        &scopes,
        &tasks,
        &keys,
        &holdings.iter().map(|holding| holding.job).collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets go of keys, where they are still these jobs'. The last thing in a transaction that may wait: see the order of locks
/// in `unique.rs`. One whose window is not over stays until it is.
///
/// # Errors
/// As the database.
pub(crate) async fn let_go(conn: &mut PgConnection, holdings: &[Holding], now: DateTime<Utc>) -> Result<(), Fail> {
    if holdings.is_empty() {
        return Ok(());
    }
    let (scopes, tasks, keys) = columns(holdings.iter().map(|holding| &holding.name));
    sqlx::query!(
        "with gone as (
           select held.scope, held.task, held.key
           from jobs.unique_key as held
           join unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[]) as own (scope, task, key, job_id)
             on held.scope = own.scope and held.task = own.task and held.key = own.key and held.job_id = own.job_id
           order by held.scope, held.task, held.key
           for update of held
         ), over as (
           delete from jobs.unique_key as held
           using gone
           where held.scope = gone.scope and held.task = gone.task and held.key = gone.key and held.held_until <= $5
         )
         update jobs.unique_key as held
         set is_let_go = true
         from gone
         where held.scope = gone.scope and held.task = gone.task and held.key = gone.key and held.held_until > $5",
        &scopes,
        &tasks,
        &keys,
        &holdings.iter().map(|holding| holding.job).collect::<Vec<_>>(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes up to `rows_max` keys that nobody holds any more: those let go whose time is over, those of dead letters that
/// history has dropped, and those of jobs that a replica of an earlier version ended. The number removed.
///
/// # Errors
/// As the database.
pub(crate) async fn tidy(conn: &mut PgConnection, now: DateTime<Utc>, rows_max: i64) -> Result<u64, Fail> {
    let found = sqlx::query!(
        "select scope, task, key
         from jobs.unique_key as held
         where held_until <= $1
           and (
             is_let_go
             or not exists (select from jobs.job where job.id = held.job_id)
             and not (
               hold = 'dead_letter'
               and exists (
                 select from jobs.job_history as past
                 where past.id = held.job_id and past.state in ('failed', 'expired')
               )
             )
           )
         limit $2
         for update of held skip locked",
        now,
        rows_max,
    )
    .fetch_all(&mut *conn)
    .await?;
    if found.is_empty() {
        return Ok(0);
    }
    let names: Vec<Name> = found.into_iter().map(|row| (row.scope, row.task, row.key)).collect();
    let (scopes, tasks, keys) = columns(names.iter());
    // Asked again now that the rows are locked: a job that took its key in between was not to be seen before.
    let removed = sqlx::query!(
        "delete from jobs.unique_key as held
         using unnest($2::uuid[], $3::text[], $4::text[]) as found (scope, task, key)
         where held.scope = found.scope and held.task = found.task and held.key = found.key and held_until <= $1
           and (
             is_let_go
             or not exists (select from jobs.job where job.id = held.job_id)
             and not (
               hold = 'dead_letter'
               and exists (
                 select from jobs.job_history as past
                 where past.id = held.job_id and past.state in ('failed', 'expired')
               )
             )
           )",
        now,
        &scopes,
        &tasks,
        &keys,
    )
    .execute(conn)
    .await?;
    Ok(removed.rows_affected())
}

/// Names as the columns that they travel in.
fn columns<'a>(names: impl Iterator<Item = &'a Name>) -> (Vec<Uuid>, Vec<String>, Vec<String>) {
    let (mut scopes, mut tasks, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (scope, task, key) in names {
        scopes.push(*scope);
        tasks.push(task.clone());
        keys.push(key.clone());
    }
    (scopes, tasks, keys)
}
