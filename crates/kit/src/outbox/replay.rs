//! Sending again, for a consumer that has lost its queue: the kept events of its types are made unpublished, and the
//! relay does the rest.

use chrono::{DateTime, Utc};
use proto::events::{ReplayRequest, ReplayResponse, outbox_server::Outbox};
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Request, Response, Status};

use super::bell;
use crate::{
    Fail, bus,
    clock::{from_timestamp, to_timestamp},
    db::Schema,
};

/// `guildhall.events.v1.Outbox` for one schema. Every service that tells events mounts it beside its own.
#[derive(Debug, Clone)]
pub struct Service {
    pool: PgPool,
    schema: Schema,
}

impl Service {
    pub fn new(pool: PgPool, schema: Schema) -> Self {
        Self { pool, schema }
    }

    /// Has events of `types` (as in a topic binding) sent again that happened since `since`.
    ///
    /// # Errors
    /// `events.invalid_type` for what is no type; as the database.
    pub async fn replay(&self, types: &[String], since: Option<DateTime<Utc>>) -> Result<ReplayResponse, Fail> {
        let patterns: Option<Vec<String>> = types.iter().map(|kind| bus::sql_pattern(kind)).collect();
        let patterns =
            patterns.ok_or_else(|| Fail::invalid("events.invalid_type", "A type is no words between dots."))?;
        let table = self.schema.name();
        let mut transaction = self.pool.begin().await?;
        // First the generation: it waits for a relay that is marking, and keeps it from marking what it had read before.
        let generation: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "update {table}.outbox_replay set generation = generation + 1 returning generation"
        )))
        .fetch_one(&mut *transaction)
        .await?;
        let asked_for = "'.' || type ~ any ($1) and at >= coalesce($2, '-infinity'::timestamptz)";
        let events: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "with again as (
               update {table}.outbox
               set published_at = null
               where published_at is not null and {asked_for}
               returning events
             )
             select coalesce(sum(events), 0)::bigint from again"
        )))
        .bind(&patterns)
        .bind(since)
        .fetch_one(&mut *transaction)
        .await?;
        // The first row, and not the least time, for which every row would have to be read: the outbox is pruned from its
        // first row on.
        let kept_from: Option<DateTime<Utc>> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select at from {table}.outbox where {asked_for} order by seq limit 1"
        )))
        .bind(&patterns)
        .bind(since)
        .fetch_optional(&mut *transaction)
        .await?;
        transaction.commit().await?;
        bell(self.schema).notify_one();
        Ok(ReplayResponse { events: events.unsigned_abs(), generation, kept_from: kept_from.map(to_timestamp) })
    }
}

#[tonic::async_trait]
impl Outbox for Service {
    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<ReplayResponse>, Status> {
        let request = request.into_inner();
        let since = request.since.as_ref().and_then(from_timestamp);
        Ok(Response::new(Self::replay(self, &request.types, since).await?))
    }
}
