//! Stands in for `admin`.

use std::sync::Arc;

use kit::{Fail, grpc::Call};
use parking_lot::Mutex;
use proto::admin::{
    AuditEntry, Dependency, GetHealthRequest, GetHealthResponse, Lag, ListAuditRequest, ListAuditResponse,
    ListParkedEventsRequest, ListParkedEventsResponse, ParkedEvent, ReplayParkedEventRequest, Replica, ReportRequest,
    ReportResponse,
    audit_server::{Audit, AuditServer},
    health_server::{Health, HealthServer},
    parked_events_server::{ParkedEvents, ParkedEventsServer},
};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;

use super::FOREIGN;

#[derive(Default)]
pub(crate) struct Admin {
    /// What the audit log was asked for.
    pub(crate) audit: Mutex<Vec<ListAuditRequest>>,
    pub(crate) parked: Mutex<Vec<ListParkedEventsRequest>>,
    /// The replays, and the ids of their requests.
    pub(crate) replayed: Mutex<Vec<(String, String)>>,
}

pub(crate) fn routes(admin: &Arc<Admin>) -> Routes {
    Routes::new(AuditServer::from_arc(admin.clone()))
        .add_service(ParkedEventsServer::from_arc(admin.clone()))
        .add_service(HealthServer::from_arc(admin.clone()))
}

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_700_000_000 + seconds, nanos: 0 })
}

fn parked(id: String) -> ParkedEvent {
    ParkedEvent {
        id,
        event_id: "event-1".into(),
        r#type: "auth.act.recorded".into(),
        source: "/guildhall/auth".into(),
        subject: String::new(),
        consumer: "admin".into(),
        reason: "admin.invalid_act: The act has no time.".into(),
        parked_at: at(0),
        replayed_at: None,
    }
}

#[tonic::async_trait]
impl Audit for Admin {
    async fn list(&self, request: Request<ListAuditRequest>) -> Result<Response<ListAuditResponse>, Status> {
        Call::of(&request)?.caller()?;
        let request = request.into_inner();
        if request.cursor == "foreign" {
            return Err(Fail::malformed("invalid_cursor", "The cursor does not belong to this list.").into());
        }
        self.audit.lock().push(request);
        let cancelled = AuditEntry {
            id: Uuid::nil().to_string(),
            at: at(0),
            service: "jobs".into(),
            actor_kind: "user".into(),
            actor_id: Uuid::nil().to_string(),
            credential: "session:1".into(),
            remote_address: "192.0.2.7".into(),
            action: "job.cancel".into(),
            target_kind: "job".into(),
            target_id: "a job".into(),
            outcome: "done".into(),
            before_json: r#"{"state":"queued"}"#.into(),
            request_id: "request-1".into(),
            ..AuditEntry::default()
        };
        Ok(Response::new(ListAuditResponse { items: vec![cancelled], next_cursor: "further".into() }))
    }
}

#[tonic::async_trait]
impl ParkedEvents for Admin {
    async fn list(
        &self,
        request: Request<ListParkedEventsRequest>,
    ) -> Result<Response<ListParkedEventsResponse>, Status> {
        self.parked.lock().push(request.into_inner());
        let items = vec![parked(Uuid::nil().to_string())];
        Ok(Response::new(ListParkedEventsResponse { items, next_cursor: String::new() }))
    }

    async fn replay(&self, request: Request<ReplayParkedEventRequest>) -> Result<Response<ParkedEvent>, Status> {
        let request_id = Call::of(&request)?.request_id.clone();
        let id = request.into_inner().id;
        if id == FOREIGN {
            return Err(Fail::not_found("admin.parked_event_not_found", "There is no such parked event.").into());
        }
        self.replayed.lock().push((id.clone(), request_id));
        Ok(Response::new(ParkedEvent { replayed_at: at(5), ..parked(id) }))
    }
}

#[tonic::async_trait]
impl Health for Admin {
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        Ok(Response::new(ReportResponse {}))
    }

    async fn get(&self, _: Request<GetHealthRequest>) -> Result<Response<GetHealthResponse>, Status> {
        let replica = Replica {
            id: "replica-1".into(),
            roles: vec!["auth".into(), "jobs".into()],
            version: "1.2.3".into(),
            host: "here".into(),
            pid: 7,
            started_at: at(0),
            dependencies: vec![
                Dependency { name: "database".into(), ok: true, duration_ms: 1.5, error: String::new() },
                Dependency { name: "bus".into(), ok: false, duration_ms: 3000.0, error: "It is away.".into() },
            ],
            lags: vec![Lag { service: "auth".into(), unpublished: 3, seconds: 0.25 }],
            reported_at: at(1),
            live: true,
        };
        Ok(Response::new(GetHealthResponse {
            ok: false,
            replicas: vec![replica],
            parked: 2,
            missing_roles: vec!["worker".into()],
        }))
    }
}
