//! What administrators see: the audit log, events that could not be handled, and how every process fares.

mod shapes;

use kit::{Fail, clock::to_timestamp};
use proto::admin as rpc;

use shapes::{AuditEntry, AuditFilter, Health, ParkedEvent, ParkedFilter};

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Id, Idempotency, Nothing, Query, Reply, Route},
    wire::{LIMIT, List},
};

const TAG: &str = "admin";

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/admin/audit", TAG, "Read the audit log, newest entry first")
            .access(Access::Permission("audit:read"), &["/guildhall.admin.v1.Audit/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(400, "admin.invalid_filter")]))
            .by(audit),
        Route::get("/api/v1/admin/events/parked", TAG, "List the events that could not be handled, newest first")
            .access(Access::Permission("events:read"), &["/guildhall.admin.v1.ParkedEvents/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(400, "admin.invalid_filter")]))
            .by(parked_events),
        Route::post("/api/v1/admin/events/parked/{id}/replay", TAG, "Hand a parked event to its consumer again")
            .access(Access::Permission("events:replay"), &["/guildhall.admin.v1.ParkedEvents/Replay"])
            .limits(SMALL)
            .idempotency(Idempotency::Never)
            .refuses(Fails(&[(404, "admin.parked_event_not_found")]))
            .by(replay),
        Route::get("/api/v1/admin/health", TAG, "Show how every process fares")
            .access(Access::Permission("health:read"), &["/guildhall.admin.v1.Health/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(health),
    ]
}

async fn audit(ask: Ask<Nothing, Query<AuditFilter>>) -> Result<Reply<200, List<AuditEntry>>, Fail> {
    let Query(filter) = ask.query;
    let message = rpc::ListAuditRequest {
        limit: filter.limit.unwrap_or(LIMIT),
        cursor: filter.cursor.unwrap_or_default(),
        service: filter.service.unwrap_or_default(),
        actor_id: filter.actor_id.map(|id| id.to_string()).unwrap_or_default(),
        action: filter.action.unwrap_or_default(),
        target_kind: filter.target_kind.unwrap_or_default(),
        target_id: filter.target_id.unwrap_or_default(),
        outcome: filter.outcome.map(|outcome| outcome.as_str().to_owned()).unwrap_or_default(),
        request_id: filter.request_id.unwrap_or_default(),
        after: filter.after.map(to_timestamp),
        before: filter.before.map(to_timestamp),
    };
    let page = ask.door.audit().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, AuditEntry::read)?))
}

async fn parked_events(ask: Ask<Nothing, Query<ParkedFilter>>) -> Result<Reply<200, List<ParkedEvent>>, Fail> {
    let Query(filter) = ask.query;
    let message = rpc::ListParkedEventsRequest {
        limit: filter.limit.unwrap_or(LIMIT),
        cursor: filter.cursor.unwrap_or_default(),
        consumer: filter.consumer.unwrap_or_default(),
        r#type: filter.kind.unwrap_or_default(),
        with_replayed: filter.with_replayed.unwrap_or_default(),
    };
    let page = ask.door.parked_events().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, ParkedEvent::read)?))
}

async fn replay(ask: Ask<Id>) -> Result<Reply<200, ParkedEvent>, Fail> {
    let message = rpc::ReplayParkedEventRequest { id: ask.path.0.to_string() };
    let event = ask.door.parked_events().replay(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(ParkedEvent::read(event)?))
}

async fn health(ask: Ask) -> Result<Reply<200, Health>, Fail> {
    let health = ask.door.health().get(ask.call.request(rpc::GetHealthRequest {})).await?.into_inner();
    Ok(Reply::new(Health::read(health)?))
}
