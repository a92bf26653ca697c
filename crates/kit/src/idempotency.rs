//! Idempotency keys: the first answer to a call is stored in the transaction of its effect, and given again to every
//! repeat. Keys belong to a caller and live for a day. Each service keeps them in a table of its own schema:
//!
//! ```sql
//! create table idempotency_key (
//!   caller uuid not null, key text not null, digest bytea not null,
//!   code text, answer bytea not null, created_at timestamptz not null, primary key (caller, key)
//! );
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};
use prost::Message;
use sqlx::{AssertSqlSafe, PgConnection, PgTransaction};
use tonic::Status;
use uuid::Uuid;

use crate::{Fail, db::Schema, grpc::IdempotencyKey};

/// How long a key is remembered.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What a key that was looked up in a transaction says about its call.
#[derive(Debug)]
pub enum Found {
    /// Nobody has answered it: do the work, then [`keep`] the answer in the same transaction.
    Fresh,
    /// The stored answer, success or refusal.
    Answered(Result<Vec<u8>, Fail>),
}

/// Digest, code of a refusal, answer, and when it was given.
type Row = (Vec<u8>, Option<String>, Vec<u8>, DateTime<Utc>);

/// Looks a key up and holds it for the rest of the transaction, so that a twin of the call cannot run beside it.
///
/// # Errors
/// `idempotency.in_flight` (409) when a twin holds it now, `idempotency.mismatch` (422) when it came with another body.
pub async fn find(
    transaction: &mut PgConnection,
    schema: Schema,
    caller: Uuid,
    key: &IdempotencyKey,
    now: DateTime<Utc>,
) -> Result<Found, Fail> {
    let is_held: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("{}:{caller}:{}", schema.name(), key.key))
        .fetch_one(&mut *transaction)
        .await?;
    if !is_held {
        return Err(in_flight());
    }
    let table = schema.name();
    // Its age is judged here: were it a condition, Postgres could go by the index of ages, and read all of the last day.
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "select digest, code, answer, created_at from {table}.idempotency_key where caller = $1 and key = $2"
    )))
    .bind(caller)
    .bind(&key.key)
    .fetch_optional(transaction)
    .await?;
    match row {
        None => Ok(Found::Fresh),
        Some((.., created_at)) if created_at <= now - LIFETIME => Ok(Found::Fresh),
        Some((digest, ..)) if digest != key.digest => {
            Err(Fail::invalid("idempotency.mismatch", "This idempotency key was used with another body."))
        }
        Some((_, None, answer, _)) => Ok(Found::Answered(Ok(answer))),
        Some((_, Some(_), refusal, _)) => Ok(Found::Answered(Err(refusal_from_bytes(&refusal)))),
    }
}

/// A twin of the call holds its key.
pub fn in_flight() -> Fail {
    Fail::conflict("idempotency.in_flight", "A call with this idempotency key is still in flight.")
}

/// Stores the answer to a fresh key, in the transaction of its effect.
///
/// # Errors
/// As the database.
pub async fn keep(
    transaction: &mut PgConnection,
    schema: Schema,
    caller: Uuid,
    key: &IdempotencyKey,
    answer: Result<&[u8], Fail>,
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    let (code, bytes) = match answer {
        Ok(bytes) => (None, bytes.to_vec()),
        Err(fail) => (Some(fail.code().to_owned()), refusal_to_bytes(fail)),
    };
    let table = schema.name();
    // An expired row of the same key may still stand there, since `prune` runs only now and then.
    sqlx::query(AssertSqlSafe(format!(
        "insert into {table}.idempotency_key (caller, key, digest, code, answer, created_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (caller, key) do update
         set digest = excluded.digest, code = excluded.code, answer = excluded.answer, created_at = excluded.created_at"
    )))
    .bind(caller)
    .bind(&key.key)
    .bind(&key.digest[..])
    .bind(code)
    .bind(bytes)
    .bind(now)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Runs `effect` in `transaction` once per key: a repeat gets the stored answer, and `true` beside it. A refusal that
/// is final (4xx) is stored too, with the effect undone; a failure on our side is not.
///
/// # Errors
/// As [`find`], and whatever `effect` fails with.
pub async fn once<T, F>(
    mut transaction: PgTransaction<'_>,
    schema: Schema,
    caller: Uuid,
    key: Option<&IdempotencyKey>,
    now: DateTime<Utc>,
    effect: F,
) -> Result<(T, bool), Fail>
where
    T: Message + Default,
    F: for<'c> FnOnce(&'c mut PgConnection) -> futures::future::BoxFuture<'c, Result<T, Fail>>,
{
    let Some(key) = key else {
        let answer = effect(&mut transaction).await?;
        transaction.commit().await?;
        return Ok((answer, false));
    };
    if let Found::Answered(answer) = find(&mut transaction, schema, caller, key, now).await? {
        return Ok((T::decode(answer?.as_slice()).map_err(Fail::internal)?, true));
    }
    sqlx::query("savepoint effect").execute(&mut *transaction).await?;
    match effect(&mut transaction).await {
        Ok(answer) => {
            keep(&mut transaction, schema, caller, key, Ok(&answer.encode_to_vec()), now).await?;
            transaction.commit().await?;
            Ok((answer, false))
        }
        Err(fail) if fail.is_transient() => Err(fail),
        Err(fail) => {
            sqlx::query("rollback to savepoint effect").execute(&mut *transaction).await?;
            let refusal = refusal_to_bytes(fail);
            let again = refusal_from_bytes(&refusal);
            keep(&mut transaction, schema, caller, key, Err(refusal_from_bytes(&refusal)), now).await?;
            transaction.commit().await?;
            Err(again)
        }
    }
}

/// Removes up to `rows_max` keys whose day is over; the number removed.
///
/// # Errors
/// As the database.
pub async fn prune(
    connection: &mut PgConnection,
    schema: Schema,
    now: DateTime<Utc>,
    rows_max: i64,
) -> Result<u64, Fail> {
    let table = schema.name();
    // Its age is looked at again once the row is locked: it may hold a new call's answer by then.
    let done = sqlx::query(AssertSqlSafe(format!(
        "delete from {table}.idempotency_key
         where created_at <= $1
           and (caller, key) in (select caller, key from {table}.idempotency_key where created_at <= $1 limit $2)"
    )))
    .bind(now - LIFETIME)
    .bind(rows_max)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// A refusal is kept as the gRPC status it is answered with: that form already crosses the network without loss.
fn refusal_to_bytes(fail: Fail) -> Vec<u8> {
    let status = Status::from(fail);
    tonic_types::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: tonic_types::pb::Status::decode(status.details()).map(|s| s.details).unwrap_or_default(),
    }
    .encode_to_vec()
}

fn refusal_from_bytes(bytes: &[u8]) -> Fail {
    match tonic_types::pb::Status::decode(bytes) {
        Ok(status) => {
            let code = tonic::Code::from_i32(status.code);
            let message = status.message.clone();
            Fail::from(Status::with_details(code, message, bytes.to_vec().into()))
        }
        Err(error) => Fail::internal(error),
    }
}
