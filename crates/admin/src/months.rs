//! Partitions of the audit log, one a month. A month that is over for longer than the retention is dropped whole, which
//! costs the same for ten entries and ten million.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike as _, Days, Months, NaiveDate, NaiveTime, Utc};
use kit::Fail;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Admin;

const PREFIX: &str = "audit_entry_";
/// Months made ahead, this one among them. More than one, so that a month's first minute finds its partition.
const MONTHS_AHEAD: u32 = 3;

/// Makes the partitions of this month and the ones after it.
///
/// # Errors
/// As the database.
pub(crate) async fn make(admin: &Admin) -> Result<(), Fail> {
    let present = first_day(admin.0.clock.now().date_naive());
    for ahead in 0..MONTHS_AHEAD {
        make_one(admin, present + Months::new(ahead)).await?;
    }
    Ok(())
}

async fn make_one(admin: &Admin, month: NaiveDate) -> Result<(), Fail> {
    let name = name(month);
    let mut transaction = admin.0.pool.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('guildhall.admin.months', 0))")
        .fetch_one(&mut *transaction)
        .await?;
    if there_are(&mut transaction).await?.contains(&name) {
        return Ok(());
    }
    let sql = format!(
        "create table admin.{name} partition of admin.audit_entry for values from ('{}') to ('{}')",
        floor(midnight(month)),
        floor(midnight(month + Months::new(1))),
    );
    match sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await {
        Ok(_) => transaction.commit().await?,
        // 23514: entries of that month are in the default partition already; they stay there and are found all the same.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("23514") => {
            tracing::warn!(partition = name, %error, "a partition cannot be made");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Drops the months whose last day is older than the retention.
///
/// # Errors
/// As the database.
pub(crate) async fn drop_expired(admin: &Admin) -> Result<(), Fail> {
    let oldest_kept = admin.0.clock.now().date_naive() - Days::new(admin.0.settings.audit_days.into());
    let mut connection = admin.0.pool.acquire().await?;
    let there = there_are(&mut connection).await?;
    let is_over = |month: &NaiveDate| *month + Months::new(1) <= oldest_kept;
    for (name, month) in there.iter().filter_map(|name| Some((name, parse(name)?))).filter(|(_, month)| is_over(month))
    {
        sqlx::query(AssertSqlSafe(format!("drop table if exists admin.{name}"))).execute(&mut *connection).await?;
        tracing::info!(%month, "a month of the audit log has reached its end");
    }
    sqlx::query!("delete from admin.audit_entry_default where id < $1", floor(midnight(oldest_kept)))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn there_are(connection: &mut PgConnection) -> Result<BTreeSet<String>, Fail> {
    Ok(sqlx::query_scalar!(
        r#"select relname::text as "name!"
           from pg_inherits
           join pg_class on pg_class.oid = inhrelid
           where inhparent = 'admin.audit_entry'::regclass"#,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .collect())
}

fn name(month: NaiveDate) -> String {
    format!("{PREFIX}{}", month.format("%Y%m"))
}

fn parse(name: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(&format!("{}01", name.strip_prefix(PREFIX)?), "%Y%m%d").ok()
}

fn first_day(day: NaiveDate) -> NaiveDate {
    day - Days::new(u64::from(day.day0()))
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

fn floor(at: DateTime<Utc>) -> Uuid {
    floor_of_millis(at.timestamp_millis())
}

/// The least UUIDv7 of a millisecond, counted from 1970: what is older has a lesser id.
pub(crate) fn floor_of_millis(millis: i64) -> Uuid {
    // 48 bits; what they cannot say lies outside of every id.
    let millis = u64::try_from(millis).unwrap_or(0).min((1 << 48) - 1);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lies_between_the_floors_of_its_month_and_the_next() {
        let clock = kit::Clock::frozen(DateTime::from_timestamp(1_790_000_000, 0).expect("a time"));
        let month = first_day(clock.now().date_naive());
        let id = clock.new_id();
        assert!(floor(midnight(month)) < id && id < floor(midnight(month + Months::new(1))));
    }

    #[test]
    fn a_partitions_name_tells_its_month_and_the_default_one_has_none() {
        let month = NaiveDate::from_ymd_opt(2026, 11, 1).expect("a day");
        assert_eq!(parse(&name(month)), Some(month));
        assert_eq!(parse("audit_entry_default"), None);
        assert_eq!(first_day(NaiveDate::from_ymd_opt(2028, 2, 29).expect("a day")).day(), 1);
    }
}
