//! What the database itself says of a measurement: which rows there are now, under which settings they were written, and
//! how often the log was committed to and forced to the disk.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::Fault;

const POLL: Duration = Duration::from_millis(10);
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(300);

/// What the server has counted so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counters {
    commits: i64,
    syncs: i64,
    wal_bytes: i64,
}

impl Counters {
    /// Reads them. A session tells what it counted when it ends, and before that about once a second: so after those that
    /// were measured have gone.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn read(url: &str) -> Result<Self, Fault> {
        let mut connection = PgConnection::connect(url).await?;
        let major: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
            .fetch_one(&mut connection)
            .await?;
        // Version 18 moved it.
        let syncs = if major >= 18 {
            "select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io where object = 'wal'"
        } else {
            "select wal_sync from pg_stat_wal"
        };
        let syncs = sqlx::query_scalar(syncs).fetch_one(&mut connection).await?;
        let wal_bytes =
            sqlx::query_scalar("select wal_bytes::bigint from pg_stat_wal").fetch_one(&mut connection).await?;
        let commits = sqlx::query_scalar("select sum(xact_commit)::bigint from pg_stat_database")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(Self { commits, syncs, wal_bytes })
    }

    /// What was counted since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> String {
        format!(
            "{} commits, {} WAL syncs, {} MiB of WAL",
            self.commits - earlier.commits,
            self.syncs - earlier.syncs,
            (self.wal_bytes - earlier.wal_bytes) >> 20
        )
    }
}

/// The settings that decide what a commit is worth.
///
/// # Errors
/// As the database.
pub(crate) async fn settings(url: &str) -> Result<String, Fault> {
    let mut connection = PgConnection::connect(url).await?;
    let text: String = sqlx::query_scalar(
        "select 'Postgres ' || current_setting('server_version') || ': ' ||
           string_agg(name || ' = ' || current_setting(name), ', ' order by name)
         from pg_settings
         where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_sync_method', 'shared_buffers')",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(text)
}

/// The rows of a house: jobs by state, attempts, events and the outbox.
///
/// # Errors
/// As the database.
pub(crate) async fn rows(url: &str) -> Result<String, Fault> {
    let mut connection = PgConnection::connect(url).await?;
    let jobs: String = sqlx::query_scalar(
        "select coalesce(string_agg(count || ' ' || state, ', ' order by state), 'none')
         from (select state, count(*) from jobs.any_job group by state) as state",
    )
    .fetch_one(&mut connection)
    .await?;
    let attempts: i64 = sqlx::query_scalar(
        "select (select count(*) from jobs.attempt) + (select count(*) from jobs.job_history where token is not null)",
    )
    .fetch_one(&mut connection)
    .await?;
    let events: i64 = sqlx::query_scalar("select count(*) from jobs.any_event").fetch_one(&mut connection).await?;
    let (outbox, published, outbox_rows): (i64, i64, i64) = sqlx::query_as(
        "select coalesce(sum(events), 0)::bigint,
           coalesce(sum(events) filter (where published_at is not null), 0)::bigint,
           count(*)
         from jobs.outbox",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(format!(
        "jobs: {jobs}; attempts: {attempts}; live events: {events}; outbox: {outbox} written in {outbox_rows} rows, \
         {published} published"
    ))
}

/// Waits until a query says that nothing is left; how long that took since `started`. It has to find out by an index: a
/// scan over all the rows that are dead by then, every few milliseconds, would take a good part of what is measured.
///
/// # Errors
/// As the database, or when it takes too long.
pub(crate) async fn worked_off(
    connection: &mut PgConnection,
    is_left: &'static str,
    started: Instant,
) -> Result<Duration, Fault> {
    sqlx::raw_sql("set enable_seqscan = off; set enable_bitmapscan = off").execute(&mut *connection).await?;
    while sqlx::query_scalar(is_left).fetch_one(&mut *connection).await? {
        if started.elapsed() > WORKED_OFF_WITHIN {
            return Err(format!("jobs were not worked off within {} s", WORKED_OFF_WITHIN.as_secs()).into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(started.elapsed())
}

/// A number that a query counts.
///
/// # Errors
/// As the database.
pub(crate) async fn count(connection: &mut PgConnection, sql: &str) -> Result<i64, Fault> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await?)
}
