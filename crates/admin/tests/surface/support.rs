//! A running service, what it hears, and who asks it.

use std::{sync::Arc, time::Duration};

use admin::{Admin, MIGRATOR, SCHEMA, Settings};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    bus::{Bus, Event, Message},
    clock::to_timestamp,
    grpc::{Call, Guard, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    tasks::Tasks,
    testing::TestDatabase,
};
use prost::Message as _;
use proto::{
    admin::{
        AuditEntry, ListAuditRequest, audit_client::AuditClient, health_client::HealthClient,
        parked_events_client::ParkedEventsClient,
    },
    events::ActRecorded,
};
use sqlx::PgPool;
use tonic::{Response, Status};
use uuid::Uuid;

const ISSUER: &str = "http://admin.test";
/// Nothing here takes long; this ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// One replica of the service, and what it stands on.
pub(crate) struct House {
    pub(crate) admin: Admin,
    pub(crate) peer: Peer,
    pub(crate) bus: Bus,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    database: Arc<TestDatabase>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl House {
    pub(crate) async fn open() -> Self {
        let migrate = |url: String| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await };
        let database = kit::testing::database_with("admin", migrate).await;
        let clock = Clock::frozen(Clock::system().now());
        Self::on(Arc::new(database), clock).await
    }

    /// Another process of the service, on a bus of its own.
    pub(crate) async fn replica(&self) -> Self {
        Self::on(Arc::clone(&self.database), self.clock.clone()).await
    }

    async fn on(database: Arc<TestDatabase>, clock: Clock) -> Self {
        let (tasks, bus) = (Tasks::new(), Bus::in_process());
        let settings = Settings { admin_connections_max: 6, ..Settings::default() };
        let admin = Admin::start(settings, database.url(), &bus, Vec::new(), clock.clone(), &tasks).await;
        let admin = admin.expect("the service starts");
        let verifier = Verifier::new(ISSUER, Arc::new(|| Box::pin(async { Ok(jwks()) })));
        let peer = Peer::local(admin.routes(), &Guard::new(verifier));
        Self { admin, peer, bus, clock, tasks, database }
    }

    /// The database, as its superuser.
    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    pub(crate) fn audit(&self) -> AuditClient<Peer> {
        AuditClient::new(self.peer.clone())
    }
    pub(crate) fn parked(&self) -> ParkedEventsClient<Peer> {
        ParkedEventsClient::new(self.peer.clone())
    }
    pub(crate) fn health(&self) -> HealthClient<Peer> {
        HealthClient::new(self.peer.clone())
    }

    /// Publishes events, and returns once whoever hears them is done with them.
    pub(crate) async fn tell(&self, events: &[Event]) {
        let messages: Vec<_> = events.iter().map(|event| message(event, event.to_bytes())).collect();
        self.publish(&messages).await;
    }

    /// One sweep; what failed of it.
    pub(crate) async fn sweep(&self) -> Vec<(&'static str, Fail)> {
        soon(Box::pin(self.admin.sweep())).await
    }

    pub(crate) async fn publish(&self, messages: &[Message]) {
        let mut publisher = self.bus.publisher();
        let published = soon(Box::pin(publisher.publish(messages))).await;
        assert!(published.confirmed.iter().all(|is| *is), "{published:?}");
    }

    /// The event of an act that `service` records now.
    pub(crate) fn act(&self, service: &str, act: ActRecorded) -> Event {
        let act = ActRecorded { at: Some(to_timestamp(self.clock.now())), ..act };
        let data = act.encode_to_vec();
        self.event(&format!("{service}.act.recorded"), &act.target_id, data)
    }

    pub(crate) fn event(&self, kind: &str, subject: &str, data: Vec<u8>) -> Event {
        let service = kind.split('.').next().unwrap_or_default();
        Event {
            id: self.clock.new_id(),
            kind: kind.to_owned(),
            source: format!("/guildhall/{service}"),
            subject: subject.to_owned(),
            at: self.clock.now(),
            traceparent: None,
            data: data.into(),
        }
    }

    /// The first page of the audit log, as `call` is shown it.
    pub(crate) async fn entries(&self, call: &Call, asked: ListAuditRequest) -> Result<Vec<AuditEntry>, Fail> {
        answer(self.audit().list(call.request(asked)).await).map(|page| page.items)
    }
}

/// As it travels.
pub(crate) fn message(event: &Event, body: bytes::Bytes) -> Message {
    Message { id: event.id, kind: event.kind.clone(), subject: event.subject.clone(), body, generation: 0 }
}

/// Someone new who has `role`.
pub(crate) fn someone(role: &str) -> Call {
    Call::with_token(token(Clock::system().new_id(), role, ""), "request-1")
}

/// A service account with this scope.
pub(crate) fn account(scope: &str) -> Call {
    Call::with_token(token(Clock::system().new_id(), "service", scope), "request-2")
}

pub(crate) fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Fail> {
    answer.map(Response::into_inner).map_err(Fail::from)
}

/// The stable code of a refusal.
pub(crate) fn code<T>(answer: Result<T, Fail>) -> String {
    answer.err().map_or_else(|| "ok".to_owned(), |fail| fail.code().to_owned())
}

/// For waits on a signal that a defect would make last for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens soon")
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn jwks() -> String {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key().verifying_key().as_bytes());
    serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k", "x": x }] })
        .to_string()
}

pub(crate) fn token(subject: Uuid, role: &str, scope: &str) -> Secret {
    let clock = Clock::system();
    let now = clock.now().timestamp();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: subject,
        exp: now + 300,
        iat: now,
        nbf: now,
        jti: clock.new_id(),
        sid: None,
        generation: 0,
        roles: vec![role.to_owned()],
        scope: scope.to_owned(),
    };
    let header =
        Header { typ: Some(ACCESS_TOKEN_TYPE.to_owned()), kid: Some("k".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let der = key().to_pkcs8_der().expect("a key");
    Secret::new(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(der.as_bytes())).expect("a token"))
}
