//! The audit log: who did what, to what, by what credential and from where, and what came of it. Every service tells of
//! an act in the act's own transaction; here each is written down once, under its event's id, and read. An entry is never
//! changed, and leaves with its month.

use chrono::{DateTime, Utc};
use kit::{
    Fail,
    bus::Event,
    clock::{from_timestamp, to_timestamp},
    cursor::page_rows,
    grpc::Call,
    identity::Caller,
};
use proto::{
    admin::{AuditEntry, ListAuditRequest, ListAuditResponse, audit_server::Audit},
    events::ActRecorded,
};
use sqlx::{PgConnection, Postgres, QueryBuilder};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Admin, months};

/// What a type ends in that tells of an act; before it stands the service.
const ACT: &str = ".act.recorded";
/// An event's id is made when it is written, a moment after its act. In milliseconds, and far more than that moment.
const ID_AFTER_ACT_MS: i64 = 60 * 60 * 1000;

#[tonic::async_trait]
impl Audit for Admin {
    async fn list(&self, request: Request<ListAuditRequest>) -> Result<Response<ListAuditResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(self.list_audit(caller, request.get_ref()).await?))
    }
}

impl Admin {
    async fn list_audit(&self, caller: &Caller, asked: &ListAuditRequest) -> Result<ListAuditResponse, Fail> {
        const LIST: &str = "audit";
        let rows_max = page_rows(asked.limit);
        let before: Option<Uuid> = self.0.cursors.place(LIST, &asked.cursor)?;
        let filter = Filter::parse(asked)?;
        let mut query = filter.query(caller.audit_narrowed_to(), before, rows_max + 1);
        let mut rows: Vec<Row> = query.build_query_as().fetch_all(&self.0.pool).await?;
        let next_cursor = self.0.cursors.close_page(LIST, &mut rows, rows_max, |row| row.id.to_string());
        Ok(ListAuditResponse { items: rows.into_iter().map(Row::into_message).collect(), next_cursor })
    }
}

/// Writes down the act that an event tells of; a repeat changes nothing.
///
/// # Errors
/// `admin.invalid_act` and `event.undecodable` for an event that tells of none; as the database.
pub(crate) async fn record(event: &Event, transaction: &mut PgConnection) -> Result<(), Fail> {
    let refuse = |message: &str| Fail::invalid("admin.invalid_act", message);
    let service = event.kind.strip_suffix(ACT).ok_or_else(|| refuse("The event tells of no act."))?;
    let act: ActRecorded = event.message()?;
    let at = act.at.as_ref().and_then(from_timestamp).ok_or_else(|| refuse("The act has no time."))?;
    for json in [&act.before_json, &act.after_json] {
        let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json).is_ok();
        if !json.is_empty() && !is_object {
            return Err(refuse("What the act has changed is told by something else than a JSON object."));
        }
    }
    let done = sqlx::query!(
        "insert into admin.audit_entry (
           id, at, service, actor_kind, actor_id, on_behalf_of, credential, remote_address, user_agent, action,
           target_kind, target_id, outcome, reason, before_json, after_json, request_id
         )
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
         on conflict (id) do nothing",
        event.id,
        at,
        service,
        text(act.actor_kind),
        text(act.actor_id),
        text(act.on_behalf_of),
        text(act.credential),
        text(act.remote_address),
        text(act.user_agent),
        text(act.action),
        text(act.target_kind),
        text(act.target_id),
        text(act.outcome),
        text(act.reason),
        act.before_json,
        act.after_json,
        text(act.request_id),
    )
    .execute(transaction)
    .await?;
    metrics::counter!("guildhall_audit_entries_total").increment(done.rows_affected());
    Ok(())
}

/// Postgres takes no NUL, which a caller's own words may hold; the act is written down all the same.
pub(crate) fn text(words: String) -> String {
    if words.contains('\0') { words.replace('\0', "\u{fffd}") } else { words }
}

/// What a list of entries is narrowed to.
struct Filter<'a> {
    /// Columns and what must stand in them.
    equal: [(&'static str, &'a str); 7],
    after: Option<DateTime<Utc>>,
    before: Option<DateTime<Utc>>,
}

impl<'a> Filter<'a> {
    fn parse(asked: &'a ListAuditRequest) -> Result<Self, Fail> {
        let fault =
            |field: &str| Fail::malformed("admin.invalid_filter", format!("The filter `{field}` is not valid."));
        let time = |field: &str, at: Option<&prost_types::Timestamp>| {
            at.map(|at| from_timestamp(at).ok_or_else(|| fault(field))).transpose()
        };
        let equal = [
            ("service", asked.service.as_str()),
            ("actor_id", &asked.actor_id),
            ("action", &asked.action),
            ("target_kind", &asked.target_kind),
            ("target_id", &asked.target_id),
            ("outcome", &asked.outcome),
            ("request_id", &asked.request_id),
        ];
        if let Some((field, _)) = equal.iter().find(|(_, text)| text.contains('\0')) {
            return Err(fault(field));
        }
        let after = time("after", asked.after.as_ref())?;
        Ok(Self { equal, after, before: time("before", asked.before.as_ref())? })
    }

    /// Only what is asked for stands in the statement, so that the planner sees which index serves it; a bound of time is
    /// a bound of ids, too, so that it sees which months.
    fn query(&self, services: Option<Vec<&'static str>>, before: Option<Uuid>, limit: i64) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(
            "select id, at, service, actor_kind, actor_id, on_behalf_of, credential, remote_address, user_agent, action,
               target_kind, target_id, outcome, reason, before_json, after_json, request_id
             from admin.audit_entry
             where true",
        );
        if let Some(services) = services {
            query.push(" and service = any(").push_bind(services).push(")");
        }
        for (column, text) in self.equal {
            if !text.is_empty() {
                query.push(" and ").push(column).push(" = ").push_bind(text.to_owned());
            }
        }
        if let Some(at) = self.after {
            let floor = months::floor_of_millis(at.timestamp_millis() - ID_AFTER_ACT_MS);
            query.push(" and at > ").push_bind(at).push(" and id > ").push_bind(floor);
        }
        if let Some(at) = self.before {
            let floor = months::floor_of_millis(at.timestamp_millis() + ID_AFTER_ACT_MS);
            query.push(" and at < ").push_bind(at).push(" and id < ").push_bind(floor);
        }
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(limit);
        query
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    at: DateTime<Utc>,
    service: String,
    actor_kind: String,
    actor_id: String,
    on_behalf_of: String,
    credential: String,
    remote_address: String,
    user_agent: String,
    action: String,
    target_kind: String,
    target_id: String,
    outcome: String,
    reason: String,
    before_json: String,
    after_json: String,
    request_id: String,
}

impl Row {
    fn into_message(self) -> AuditEntry {
        AuditEntry {
            id: self.id.to_string(),
            at: Some(to_timestamp(self.at)),
            service: self.service,
            actor_kind: self.actor_kind,
            actor_id: self.actor_id,
            on_behalf_of: self.on_behalf_of,
            credential: self.credential,
            remote_address: self.remote_address,
            user_agent: self.user_agent,
            action: self.action,
            target_kind: self.target_kind,
            target_id: self.target_id,
            outcome: self.outcome,
            reason: self.reason,
            before_json: self.before_json,
            after_json: self.after_json,
            request_id: self.request_id,
        }
    }
}
