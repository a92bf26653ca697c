//! Events that a consumer could not handle: each parking is kept with the event's own bytes and the consumer's reason,
//! listed, and handed back to its consumer when somebody asks for it. Nothing is parked or replayed by itself here.

use chrono::{DateTime, Utc};
use kit::{
    Clock, Fail,
    audit::{Act, Action},
    bus::{Event, Parked},
    clock::to_timestamp,
    cursor::page_rows,
    grpc::Call,
};
use proto::admin::{
    ListParkedEventsRequest, ListParkedEventsResponse, ParkedEvent, ReplayParkedEventRequest,
    parked_events_server::ParkedEvents,
};
use sha2::{Digest as _, Sha256};
use sqlx::{PgPool, Postgres, QueryBuilder};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Admin, audit::text};

pub(crate) static REPLAY: Action = Action {
    name: "parked_event.replay",
    target: "parked_event",
    fields: &[],
    when: "A parked event is handed to its consumer again.",
};

#[tonic::async_trait]
impl ParkedEvents for Admin {
    async fn list(
        &self,
        request: Request<ListParkedEventsRequest>,
    ) -> Result<Response<ListParkedEventsResponse>, Status> {
        Ok(Response::new(self.list_parked(request.get_ref()).await?))
    }

    async fn replay(&self, request: Request<ReplayParkedEventRequest>) -> Result<Response<ParkedEvent>, Status> {
        let call = Call::of(&request)?;
        Ok(Response::new(self.replay_parked(call, &request.get_ref().id).await?))
    }
}

impl Admin {
    async fn list_parked(&self, asked: &ListParkedEventsRequest) -> Result<ListParkedEventsResponse, Fail> {
        const LIST: &str = "parked events";
        let rows_max = page_rows(asked.limit);
        let before: Option<Uuid> = self.0.cursors.place(LIST, &asked.cursor)?;
        let mut query = QueryBuilder::<Postgres>::new(
            "select id, event_id, type as kind, source, subject, consumer, reason, parked_at, replayed_at
             from admin.parked_event
             where true",
        );
        for (field, column, text) in [("consumer", "consumer", &asked.consumer), ("type", "type", &asked.r#type)] {
            if text.contains('\0') {
                let sentence = format!("The filter `{field}` is not valid.");
                return Err(Fail::malformed("admin.invalid_filter", sentence));
            }
            if !text.is_empty() {
                query.push(" and ").push(column).push(" = ").push_bind(text.clone());
            }
        }
        if !asked.with_replayed {
            query.push(" and replayed_at is null");
        }
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(rows_max + 1);
        let mut rows: Vec<Row> = query.build_query_as().fetch_all(&self.0.pool).await?;
        let next_cursor = self.0.cursors.close_page(LIST, &mut rows, rows_max, |row| row.id.to_string());
        Ok(ListParkedEventsResponse { items: rows.into_iter().map(Row::into_message).collect(), next_cursor })
    }
}

impl Admin {
    /// The event is published before it is marked: one that is published and not marked is replayed again, which its
    /// consumer knows by the event's id, while one that is marked and not published would be lost.
    async fn replay_parked(&self, call: &Call, id: &str) -> Result<ParkedEvent, Fail> {
        let not_found = || Fail::not_found("admin.parked_event_not_found", "There is no such parked event.");
        let id: Uuid = id.parse().map_err(|_| not_found())?;
        let parked = sqlx::query!("select consumer, event, parked_at from admin.parked_event where id = $1", id)
            .fetch_optional(&self.0.pool)
            .await?
            .ok_or_else(not_found)?;
        self.0.bus.send_to(&parked.consumer, parked.event.into()).await?;
        let mut transaction = self.0.pool.begin().await?;
        // It may have failed and been parked again since: then it waits again.
        sqlx::query!(
            "update admin.parked_event set replayed_at = $3 where id = $1 and parked_at = $2",
            id,
            parked.parked_at,
            self.0.clock.now(),
        )
        .execute(&mut *transaction)
        .await?;
        let row = sqlx::query_as!(
            Row,
            "select id, event_id, type as kind, source, subject, consumer, reason, parked_at, replayed_at
             from admin.parked_event
             where id = $1",
            id,
        )
        .fetch_one(&mut *transaction)
        .await?;
        self.0.acts.record(&mut transaction, Act::of(call, &REPLAY, id)).await?;
        transaction.commit().await?;
        Ok(row.into_message())
    }
}

/// Keeps what a consumer has parked. Told again, it is the same parking; after a replay it waits for another.
///
/// # Errors
/// As the database: then it is told again.
pub(crate) async fn keep(pool: &PgPool, clock: &Clock, parked: Parked) -> Result<(), Fail> {
    let read = Event::from_bytes(&parked.event).ok();
    let (event_id, source, subject) = match read {
        Some(event) => (event.id.to_string(), event.source, event.subject),
        None => (digest(&parked.event), String::new(), String::new()),
    };
    sqlx::query!(
        "insert into admin.parked_event (id, event_id, type, source, subject, consumer, reason, event, parked_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (consumer, event_id) do update
         set reason = excluded.reason, parked_at = excluded.parked_at, replayed_at = null",
        clock.new_id(),
        event_id,
        text(parked.kind),
        text(source),
        text(subject),
        text(parked.consumer),
        text(parked.reason),
        &parked.event[..],
        clock.now(),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What is no event has no id; the same bytes are the same parking.
fn digest(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// Events parked and not replayed.
///
/// # Errors
/// As the database.
pub(crate) async fn count(pool: &PgPool) -> Result<u64, Fail> {
    let count =
        sqlx::query_scalar!(r#"select count(*) as "count!" from admin.parked_event where replayed_at is null"#,)
            .fetch_one(pool)
            .await?;
    Ok(count.unsigned_abs())
}

/// Forgets the events that were replayed before `before`.
///
/// # Errors
/// As the database.
pub(crate) async fn forget(pool: &PgPool, before: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!("delete from admin.parked_event where replayed_at < $1", before).execute(pool).await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    event_id: String,
    kind: String,
    source: String,
    subject: String,
    consumer: String,
    reason: String,
    parked_at: DateTime<Utc>,
    replayed_at: Option<DateTime<Utc>>,
}

impl Row {
    fn into_message(self) -> ParkedEvent {
        ParkedEvent {
            id: self.id.to_string(),
            event_id: self.event_id,
            r#type: self.kind,
            source: self.source,
            subject: self.subject,
            consumer: self.consumer,
            reason: self.reason,
            parked_at: Some(to_timestamp(self.parked_at)),
            replayed_at: self.replayed_at.map(to_timestamp),
        }
    }
}
