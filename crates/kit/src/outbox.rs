//! The outbox: what happened is written down in the transaction of the change itself, so that word of it can neither be
//! lost nor precede it. Each service keeps its own:
//!
//! ```sql
//! create table outbox (
//!   id uuid primary key, type text not null, subject text not null, data bytea not null,
//!   traceparent text, at timestamptz not null
//! );
//! ```

use chrono::{DateTime, Utc};
use prost::Message;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{Clock, Fail, db::Schema};

/// One thing that happened, to be told to whom it may concern. Becomes a CloudEvent of type `kind` about `subject`.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: &'static str,
    pub subject: String,
    pub data: Vec<u8>,
}

impl Event {
    #[expect(clippy::needless_pass_by_value, reason = "an id is copied, and a borrow of it would only be in the way")]
    pub fn new(kind: &'static str, subject: impl ToString, message: &impl Message) -> Self {
        Self { kind, subject: subject.to_string(), data: message.encode_to_vec() }
    }
}

/// Writes events in one statement, in the transaction of what they tell of. Ids are made here, in the given order.
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
    let ids: Vec<_> = events.iter().map(|_| clock.new_id()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
    let subjects: Vec<&str> = events.iter().map(|event| event.subject.as_str()).collect();
    let data: Vec<&[u8]> = events.iter().map(|event| event.data.as_slice()).collect();
    let table = schema.name();
    sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.outbox (id, type, subject, data, traceparent, at)
         select id, type, subject, data, $5, $6
         from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[]) as event (id, type, subject, data)"
    )))
    .bind(ids)
    .bind(kinds)
    .bind(subjects)
    .bind(data)
    .bind(traceparent)
    .bind(clock.now())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Removes up to `rows_max` events older than `before`; the number removed.
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
    let done = sqlx::query(AssertSqlSafe(format!(
        "delete from {table}.outbox
         where id in (select id from {table}.outbox where at < $1 order by id limit $2)"
    )))
    .bind(before)
    .bind(rows_max)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
