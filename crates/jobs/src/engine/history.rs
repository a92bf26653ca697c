//! Partitions of what is kept: final jobs, attempts and events, one partition a day of their job's id. A partition whose
//! days are over is dropped whole, which costs the same for ten rows and ten million.

use std::collections::BTreeSet;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use kit::Fail;
use sqlx::AssertSqlSafe;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Ground, leader::Lead};

/// Tables partitioned by the id of their job or stream.
const TABLES: [&str; 3] = ["job_history", "attempt", "event"];
/// Days made ahead, today among them. More than one, so that a day without a sweep loses nothing.
const DAYS_AHEAD: u64 = 4;

/// Makes the partitions of today and the days after it. Rows whose day has none go to the default partition.
pub(super) async fn make_partitions(ground: &Ground) -> Result<(), Fail> {
    let today = ground.clock.now().date_naive();
    for table in TABLES {
        for ahead in 0..DAYS_AHEAD {
            make_partition(ground, table, today + Days::new(ahead)).await?;
        }
    }
    Ok(())
}

/// In a transaction of its own, as each of these locks its whole table: with two of them held it could stand in a ring with
/// those who write to both.
async fn make_partition(ground: &Ground, table: &str, day: NaiveDate) -> Result<(), Fail> {
    let name = name(table, day);
    let mut transaction = ground.pool.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('guildhall.jobs.partitions', 0))")
        .fetch_one(&mut *transaction)
        .await?;
    if partitions(&mut transaction).await?.contains(&name) {
        return Ok(());
    }
    let sql = format!(
        "create table jobs.{name} partition of jobs.{table} for values from ('{}') to ('{}')",
        floor(day),
        floor(day + Days::new(1)),
    );
    match sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await {
        Ok(_) => transaction.commit().await?,
        // 23514: rows of that day are in the default partition already; they stay there and are found all the same.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("23514") => {
            warn!(partition = name, %error, "a partition cannot be made");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Drops the days that are over for longer than the retention, but for those of which a live job or a batch that is not
/// over still needs something, and forgets the batches of which nothing is left.
pub(super) async fn drop_expired(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    let now = ground.clock.now();
    let oldest_kept = now.date_naive() - Days::new(u64::from(ground.settings.history_days));
    let there = partitions(&mut *ground.pool.acquire().await?).await?;
    for (name, table, day) in there.iter().filter_map(|name| parse(name).map(|(table, day)| (name, table, day))) {
        if day >= oldest_kept {
            continue;
        }
        let mut transaction = lead.begin(&ground.pool).await?;
        if is_needed(&mut transaction, floor(day), floor(day + Days::new(1))).await? {
            continue;
        }
        sqlx::query(AssertSqlSafe(format!("drop table if exists jobs.{name}"))).execute(&mut *transaction).await?;
        transaction.commit().await?;
        info!(table, %day, "a day of history has reached its end");
    }
    let bound = floor(oldest_kept);
    let mut transaction = lead.begin(&ground.pool).await?;
    if !is_needed(&mut transaction, Uuid::nil(), bound).await? {
        for sql in [
            "delete from jobs.job_history_default where id < $1",
            "delete from jobs.attempt_default where job_id < $1",
            "delete from jobs.event_default where stream_id < $1",
        ] {
            sqlx::query(sql).bind(bound).execute(&mut *transaction).await?;
        }
    }
    sqlx::query!(
        "delete from jobs.batch
         where id < $1 and finished_at is not null
           and not exists (select from jobs.job where job.batch_id = batch.id)
           and not exists (select from jobs.job_history as past where past.batch_id = batch.id)",
        bound,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Whether something live tells of itself in this span of ids, or has children that ended there.
async fn is_needed(conn: &mut sqlx::PgConnection, from: Uuid, to: Uuid) -> Result<bool, Fail> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select from jobs.job where id >= $1 and id < $2)
             or exists (
               select from jobs.batch
               where finished_at is null
                 and (
                   id >= $1 and id < $2
                   or exists (
                     select from jobs.job_history as past
                     where past.batch_id = batch.id and past.id >= $1 and past.id < $2
                   )
                 )
             ) as "is_needed!""#,
        from,
        to,
    )
    .fetch_one(conn)
    .await?)
}

async fn partitions(conn: &mut sqlx::PgConnection) -> Result<BTreeSet<String>, Fail> {
    Ok(sqlx::query_scalar!(
        r#"select child.relname::text as "name!"
           from pg_inherits
           join pg_class child on child.oid = inhrelid
           join pg_class parent on parent.oid = inhparent
           join pg_namespace on pg_namespace.oid = parent.relnamespace
           where nspname = 'jobs' and parent.relkind = 'p'"#,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .collect())
}

fn name(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

fn parse(name: &str) -> Option<(&'static str, NaiveDate)> {
    TABLES.into_iter().find_map(|table| {
        let day = name.strip_prefix(table)?.strip_prefix('_')?;
        Some((table, NaiveDate::parse_from_str(day, "%Y%m%d").ok()?))
    })
}

/// The least UUIDv7 of a day: its first millisecond, and nothing after it.
pub(super) fn floor(day: NaiveDate) -> Uuid {
    let at: DateTime<Utc> = day.and_time(NaiveTime::MIN).and_utc();
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lies_between_the_floors_of_its_day_and_the_next() {
        let clock = kit::Clock::frozen(DateTime::from_timestamp(1_790_000_000, 0).expect("a time"));
        let day = clock.now().date_naive();
        let id = clock.new_id();
        assert!(floor(day) < id && id < floor(day + Days::new(1)));
    }

    #[test]
    fn a_partitions_name_tells_its_day_and_a_default_one_has_none() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 21).expect("a day");
        assert_eq!(parse(&name("job_history", day)), Some(("job_history", day)));
        assert_eq!(parse("event_default"), None);
    }
}
