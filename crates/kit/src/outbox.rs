//! The outbox: what happened is written down in the transaction of the change itself, so that word of it can neither be
//! lost nor precede it. A relay publishes the rows and marks them once the bus has confirmed them ([`start_relay`]); a
//! consumer that has lost something has them sent again ([`Service`]). Each service keeps its own:
//!
//! ```sql
//! create table outbox (
//!   seq bigint generated always as identity primary key,
//!   id uuid, type text not null, subject text, events integer not null default 1, data bytea not null,
//!   traceparent text, at timestamptz not null, published_at timestamptz
//! );
//! create index outbox_unpublished on outbox (seq) where published_at is null;
//! create table outbox_replay (generation bigint not null);
//! insert into outbox_replay values (0);
//! ```
//!
//! A row holds one event, or as many as one transaction told of one type: `bundle.rs`.
//!
//! **Order.** Events of one subject are sent in the order of `seq`, and within a row in theirs. That is the order in which things happened wherever a
//! transaction takes the subject's row before it writes the event, as every change of a job, batch or user does.
//! Transactions that touch one subject without such a row are side by side, and their order means nothing.

mod bundle;
mod group;
mod relay;
mod replay;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use prost::Message;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::sync::Notify;

use crate::{Clock, Fail, bus, db::Schema};

pub use relay::start_relay;
pub use replay::Service;

/// One thing that happened, to be told to whom it may concern. Becomes a CloudEvent of type `kind` about `subject`.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: &'static str,
    pub subject: String,
    pub data: Bytes,
    /// Whose doing it is, as W3C trace context, where it is not that of the whole transaction.
    pub traceparent: Option<String>,
}

impl Event {
    #[expect(clippy::needless_pass_by_value, reason = "an id is copied, and a borrow of it would only be in the way")]
    pub fn new(kind: &'static str, subject: impl ToString, message: &impl Message) -> Self {
        Self { kind, subject: subject.to_string(), data: message.encode_to_vec().into(), traceparent: None }
    }

    #[must_use]
    pub fn with_traceparent(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }
}

/// Writes events in one statement, in the transaction of what they tell of. Ids are made here, in the given order.
/// `traceparent` is of those that name none themselves.
///
/// # Errors
/// As the database.
pub async fn write(
    transaction: &mut PgConnection,
    schema: Schema,
    events: &[Event],
    clock: &Clock,
    traceparent: Option<&str>,
) -> Result<(), Fail> {
    if events.is_empty() {
        return Ok(());
    }
    let rows = bundle::pack(events, clock, traceparent);
    let table = schema.name();
    sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.outbox (id, type, subject, events, data, traceparent, at)
         select id, type, subject, events, data, traceparent, $7
         from unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::bytea[], $6::text[])
           with ordinality as row (id, type, subject, events, data, traceparent, place)
         order by place"
    )))
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.kind).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.subject.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.events).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.data.as_slice()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.traceparent.as_deref()).collect::<Vec<_>>())
    .bind(clock.now())
    .execute(transaction)
    .await?;
    bell(schema).notify_one();
    Ok(())
}

/// Every event that is kept in the rows behind `after` (0: in all of them), in the order in which they are sent. It reads all
/// of them: for tests, and for whoever looks for something by hand.
///
/// # Errors
/// As the database.
pub async fn kept(connection: &mut PgConnection, schema: Schema, after: i64) -> Result<Vec<bus::Event>, Fail> {
    let (table, columns) = (schema.name(), bundle::COLUMNS);
    let rows = sqlx::query(AssertSqlSafe(format!("select {columns} from {table}.outbox where seq > $1 order by seq")))
        .bind(after)
        .fetch_all(connection)
        .await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        events.extend(bundle::unpack(&row, table)?);
    }
    Ok(events)
}

/// Removes rows that were published before `before`; the number removed. It looks at the first `rows_max` rows and takes
/// them from the first on, until one that is not published or was published later: that one stays with all behind it, so
/// that what is kept is whole from some event on.
///
/// The age is that of the publishing: an event that waited a week for the broker is kept as long after that as any other,
/// or a queue that is lost in its first hour would have lost it for good.
///
/// # Errors
/// As the database.
pub async fn prune(
    connection: &mut PgConnection,
    schema: Schema,
    before: DateTime<Utc>,
    rows_max: i64,
) -> Result<u64, Fail> {
    let table = schema.name();
    // Whether it is published is looked at again once the row is locked: it may have been asked for again meanwhile.
    let done = sqlx::query(AssertSqlSafe(format!(
        "delete from {table}.outbox
         where published_at < $1
           and seq in (
             select seq
             from (
               select seq, bool_and(coalesce(published_at < $1, false)) over (order by seq) as is_over
               from (select seq, published_at from {table}.outbox order by seq limit $2) as first
             ) as row
             where is_over
           )"
    )))
    .bind(before)
    .bind(rows_max)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// How far the relay is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    /// Events that are not published yet; more than [`LAG_EVENTS_MAX`] are told as that.
    pub unpublished: u64,
    /// How long ago the first of them was written.
    pub seconds: f64,
}

/// As far as [`lag`] counts, so that asking stays cheap when much waits.
pub const LAG_EVENTS_MAX: u32 = 100_000;

/// How far the relay of `schema` is behind at `now`.
///
/// # Errors
/// As the database.
pub async fn lag(pool: &PgPool, schema: Schema, now: DateTime<Utc>) -> Result<Lag, Fail> {
    let table = schema.name();
    let (unpublished, oldest): (i64, Option<DateTime<Utc>>) = sqlx::query_as(AssertSqlSafe(format!(
        "select
           (select least(coalesce(sum(events), 0), $1)::bigint
            from (select events from {table}.outbox where published_at is null limit $1) as unpublished),
           (select at from {table}.outbox where published_at is null order by seq limit 1)"
    )))
    .bind(i64::from(LAG_EVENTS_MAX))
    .fetch_one(pool)
    .await?;
    let seconds = oldest.map_or(0.0, |at| (now - at).as_seconds_f64().max(0.0));
    Ok(Lag { unpublished: unpublished.unsigned_abs(), seconds })
}

/// What events of a service have as their source.
pub(crate) fn source(service: &str) -> String {
    format!("/guildhall/{service}")
}

/// Rung when events are written in this process, so that its relay need not wait for its next look.
fn bell(schema: Schema) -> Arc<Notify> {
    static BELLS: Mutex<Option<HashMap<&'static str, Arc<Notify>>>> = Mutex::new(None);
    Arc::clone(BELLS.lock().get_or_insert_default().entry(schema.name()).or_default())
}
