//! The throttle before sign-in. Every attempt is paid for before the account is looked up and before a password is
//! hashed, and given back when the password was right; so guessing is slow whether the account exists or not, and a right
//! guess waits like a wrong one.
//!
//! An attempt pays into three leaky buckets. The tight one is the account as seen from one address: whoever hammers an
//! account shuts out himself and not its owner elsewhere. Failures, in a row or spread, that each lets pass at once, and
//! then one per:
//!
//! | bucket | at once | then one per |
//! |---|---|---|
//! | account at one address | 10 | minute |
//! | account from anywhere | 50 | 10 minutes |
//! | address, whatever account | 100 | 10 seconds |
//!
//! NIST SP 800-63B-4 (3.2.2) wants at most 100 failures in a row on an account: the second line lets through 50 and then
//! 144 a day, spread over the world. An IPv6 address counts by its /64, which is what one customer is given; an IPv4
//! address counts whole, since a carrier's customers sit behind neighbours of it.

use std::net::{IpAddr, Ipv6Addr};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, telemetry::span};
use sqlx::{PgConnection, PgPool, PgTransaction};

use crate::random::sha256_of_parts;

/// What a bucket lets pass.
#[derive(Debug, Clone, Copy)]
struct Limit {
    name: &'static str,
    at_once: i32,
    then_one_per: TimeDelta,
}

const ACCOUNT_AT_ADDRESS: Limit =
    Limit { name: "account_at_address", at_once: 10, then_one_per: TimeDelta::seconds(60) };
const ACCOUNT: Limit = Limit { name: "account", at_once: 50, then_one_per: TimeDelta::seconds(600) };
const ADDRESS: Limit = Limit { name: "address", at_once: 100, then_one_per: TimeDelta::seconds(10) };

/// The audit log hears of a full bucket at most so often, however many attempts it refuses.
const TOLD_EVERY: TimeDelta = TimeDelta::seconds(60);

impl Limit {
    /// Pays one attempt into a bucket that is empty at `empty_at`: when it is empty then, or how long it stays full.
    fn pay(&self, empty_at: DateTime<Utc>, now: DateTime<Utc>) -> Result<DateTime<Utc>, TimeDelta> {
        let empty_at = empty_at.max(now);
        let too_much = (empty_at - now) - self.then_one_per * (self.at_once - 1);
        if too_much > TimeDelta::zero() { Err(too_much) } else { Ok(empty_at + self.then_one_per) }
    }
}

/// An attempt that the throttle refuses.
#[derive(Debug)]
pub(crate) struct Throttled {
    /// `auth.too_many_attempts` (429) with the time to wait.
    pub(crate) fail: Fail,
    /// There when a full bucket is to be told of now: the transaction that notes that it was, for the entry to be written in.
    pub(crate) untold: Option<PgTransaction<'static>>,
}

/// One attempt to sign in, as the throttle sees it.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Ordered by key: two attempts lock their rows in one order.
    buckets: Vec<([u8; 32], Limit)>,
}

impl Attempt {
    /// `account` is the normalised address of the account, or what was given in its place; `remote_address` is the
    /// caller's as the gateway saw it. Callers without one count as one.
    pub(crate) fn new(account: &str, remote_address: &str) -> Self {
        let prefix = prefix(remote_address);
        let bucket = |limit: Limit, parts: [&str; 2]| {
            (sha256_of_parts(&[limit.name.as_bytes(), parts[0].as_bytes(), parts[1].as_bytes()]), limit)
        };
        let mut buckets = vec![
            bucket(ACCOUNT_AT_ADDRESS, [account, &prefix]),
            bucket(ACCOUNT, [account, ""]),
            bucket(ADDRESS, [&prefix, ""]),
        ];
        buckets.sort_by_key(|(key, _)| *key);
        Self { buckets }
    }

    /// Pays for the attempt, or refuses it and takes nothing.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn pay(&self, pool: &PgPool, now: DateTime<Utc>) -> Result<Option<Throttled>, Fail> {
        let keys: Vec<Vec<u8>> = self.buckets.iter().map(|(key, _)| key.to_vec()).collect();
        let _told = span::transaction("auth.throttle");
        let mut transaction = pool.begin().await?;
        // The update changes nothing: it locks what is there and shows it, in the order of the keys.
        let rows = sqlx::query!(
            "insert into auth.login_throttle as bucket (key, empty_at)
             select key, $2 from unnest($1::bytea[]) as paid (key) order by key
             on conflict (key) do update set empty_at = bucket.empty_at
             returning key, empty_at, told_at",
            &keys,
            now,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut empty_at = Vec::with_capacity(keys.len());
        let (mut longest_wait, mut untold) = (TimeDelta::zero(), Vec::new());
        for (key, limit) in &self.buckets {
            let row =
                rows.iter().find(|row| row.key == key).ok_or_else(|| Fail::internal("a bucket was not locked"))?;
            match limit.pay(row.empty_at, now) {
                Ok(paid) => empty_at.push(paid),
                Err(wait) => {
                    metrics::counter!("guildhall_rate_limited_total", "limit" => limit.name).increment(1);
                    longest_wait = longest_wait.max(wait);
                    if row.told_at.is_none_or(|told_at| told_at + TOLD_EVERY <= now) {
                        untold.push(key.to_vec());
                    }
                }
            }
        }
        if longest_wait > TimeDelta::zero() {
            let fail = Fail::limited("auth.too_many_attempts", "Too many attempts to sign in. Wait, then try again.")
                .retry_after(longest_wait.to_std().unwrap_or_default());
            if untold.is_empty() {
                transaction.rollback().await?;
                return Ok(Some(Throttled { fail, untold: None }));
            }
            sqlx::query!("update auth.login_throttle set told_at = $2 where key = any($1)", &untold, now)
                .execute(&mut *transaction)
                .await?;
            return Ok(Some(Throttled { fail, untold: Some(transaction) }));
        }
        sqlx::query!(
            "update auth.login_throttle as bucket
             set empty_at = paid.empty_at
             from unnest($1::bytea[], $2::timestamptz[]) as paid (key, empty_at)
             where bucket.key = paid.key",
            &keys,
            &empty_at,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(None)
    }

    /// Gives back what a successful attempt paid. Failures before it stay paid for: otherwise one's own account would
    /// buy an attacker new guesses at others'.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn give_back(&self, connection: &mut PgConnection) -> Result<(), Fail> {
        let keys: Vec<Vec<u8>> = self.buckets.iter().map(|(key, _)| key.to_vec()).collect();
        let seconds: Vec<i64> = self.buckets.iter().map(|(_, limit)| limit.then_one_per.num_seconds()).collect();
        sqlx::query!(
            "with locked as (
               select key from auth.login_throttle where key = any($1::bytea[]) order by key for update
             )
             update auth.login_throttle as bucket
             set empty_at = bucket.empty_at - paid.seconds * interval '1 second'
             from locked
             join unnest($1::bytea[], $2::bigint[]) as paid (key, seconds) on paid.key = locked.key
             where bucket.key = locked.key",
            &keys,
            &seconds,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Forgets up to `rows_max` buckets that have run empty; the number forgotten.
///
/// # Errors
/// As the database.
pub(crate) async fn prune(pool: &PgPool, now: DateTime<Utc>, rows_max: i64) -> Result<u64, Fail> {
    let done = sqlx::query!(
        "delete from auth.login_throttle
         where key in (
           select key from auth.login_throttle where empty_at < $1 limit $2 for update skip locked
         )",
        now,
        rows_max,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// The part of an address that one customer has. What is no address is one place of its own.
fn prefix(remote_address: &str) -> String {
    match remote_address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => {
            let network = u128::from(address) & (u128::MAX << 64);
            format!("{}/64", Ipv6Addr::from(network))
        }
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn a_bucket_lets_its_number_pass_at_once_and_then_one_per_interval() {
        let limit = Limit { name: "test", at_once: 3, then_one_per: TimeDelta::seconds(60) };
        let mut empty_at = at(0);
        for _ in 0..3 {
            empty_at = limit.pay(empty_at, at(1000)).expect("room for three");
        }
        assert_eq!(limit.pay(empty_at, at(1000)), Err(TimeDelta::seconds(60)));
        assert_eq!(limit.pay(empty_at, at(1059)), Err(TimeDelta::seconds(1)));
        empty_at = limit.pay(empty_at, at(1060)).expect("one more after the wait");
        assert_eq!(limit.pay(empty_at, at(1060)), Err(TimeDelta::seconds(60)));
        for _ in 0..3 {
            empty_at = limit.pay(empty_at, at(5000)).expect("all of it again after a long rest");
        }
    }

    #[test]
    fn an_address_counts_by_what_one_customer_has() {
        assert_eq!(prefix("192.0.2.7"), "192.0.2.7");
        assert_eq!(prefix("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(prefix("2001:db8:1:2:3:4:5:6"), prefix("2001:db8:1:2::9"));
        assert_ne!(prefix("2001:db8:1:2::9"), prefix("2001:db8:1:3::9"));
        assert_eq!(prefix(""), prefix("someone"));
    }
}
