//! Plain SQL: what a job costs when nobody does anything for it but make it durable. Two connections insert in groups;
//! then two claim in groups with `skip locked`, commit, and move what they claimed into a history, and commit. No one
//! else is told, nothing can be cancelled, and a crash between the two loses the claim: this is the floor, and no engine.

use std::time::Instant;

use futures::future::try_join;
use sqlx::{Connection as _, PgConnection};

use crate::{Fault, proof::count};

/// Jobs in one statement: more made it no faster where it was tried.
const INSERT: u32 = 1_000;
pub(super) const CLAIM: i64 = 500;
/// How the engine's claims and ends are planned: once a connection, and by the indexes.
pub(super) const STRAIGHT: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off";

/// Inserts `jobs` and works them off; jobs a second of each.
///
/// # Errors
/// As the database, or when not every job came to its end.
pub(crate) async fn measure(url: &str, jobs: u32) -> Result<(f64, f64), Fault> {
    let (mut one, mut other) = (PgConnection::connect(url).await?, PgConnection::connect(url).await?);
    sqlx::raw_sql(
        "create table job (
           id bigint generated always as identity primary key,
           task text not null, args text not null, state text not null, attempt integer not null,
           created_at timestamptz not null default now()
         ) with (fillfactor = 70);
         create index job_next on job (id) where state = 'queued';
         create table job_history (
           id bigint primary key, task text not null, args text not null, attempt integer not null, result text not null,
           created_at timestamptz not null, finished_at timestamptz not null
         );",
    )
    .execute(&mut one)
    .await?;

    let started = Instant::now();
    try_join(insert(&mut one, jobs / 2), insert(&mut other, jobs - jobs / 2)).await?;
    let bulk = f64::from(jobs) / started.elapsed().as_secs_f64();

    let started = Instant::now();
    try_join(work(&mut one), work(&mut other)).await?;
    let drain = f64::from(jobs) / started.elapsed().as_secs_f64();

    let finished = count(&mut one, "select count(*) from job_history").await?;
    if finished != i64::from(jobs) {
        return Err(format!("plain SQL has finished {finished} of {jobs} jobs").into());
    }
    one.close().await?;
    other.close().await?;
    Ok((bulk, drain))
}

async fn insert(connection: &mut PgConnection, jobs: u32) -> Result<(), sqlx::Error> {
    for from in (0..jobs).step_by(INSERT as usize) {
        let args = vec![r#"{"value":1}"#.to_owned(); INSERT.min(jobs - from) as usize];
        sqlx::query(
            "insert into job (task, args, state, attempt)
             select 'demo_echo', args, 'queued', 0 from unnest($1::text[]) as new (args)",
        )
        .bind(args)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn work(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(STRAIGHT).execute(&mut *connection).await?;
    loop {
        let claimed: Vec<(i64, String)> = sqlx::query_as(
            "update job
             set state = 'running', attempt = attempt + 1
             where id in (select id from job where state = 'queued' order by id limit $1 for update skip locked)
             returning id, args",
        )
        .bind(CLAIM)
        .fetch_all(&mut *connection)
        .await?;
        if claimed.is_empty() {
            return Ok(());
        }
        let (ids, results): (Vec<i64>, Vec<String>) = claimed.into_iter().unzip();
        sqlx::query(
            "with done as (
               delete from job where id = any($1) returning id, task, args, attempt, created_at
             )
             insert into job_history (id, task, args, attempt, result, created_at, finished_at)
             select done.id, task, args, attempt, result, created_at, now()
             from done join unnest($1, $2::text[]) as told (id, result) on told.id = done.id",
        )
        .bind(ids)
        .bind(results)
        .execute(&mut *connection)
        .await?;
    }
}
