//! The whole service before a test: a real database of its own, real storage in a folder of its own, the generated
//! servers behind the real guard, and a clock that stands still. Callers show real tokens; a [`Hand`] is a worker that does
//! what the test tells it.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jobs::{Jobs, MIGRATOR, SCHEMA, Settings};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Guard, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    storage::Storage,
    tasks::Tasks,
    testing::TestDatabase,
};
use proto::{
    jobs::{Job, JobSpec, SubmitJobsRequest, jobs_client::JobsClient},
    worker::{
        Assignment, Credit, FromWorker, Hello, LogEntry, OfferedTask, Outcome, Receipt, Report, from_worker,
        outcome::End, to_worker, workers_client::WorkersClient,
    },
};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

const ISSUER: &str = "http://jobs.test";
/// Nothing here takes long; this ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service, and what it stands on.
pub(crate) struct House {
    pub(crate) peer: Peer,
    pub(crate) clock: Clock,
    pub(crate) storage: Storage,
    database: TestDatabase,
    tasks: Tasks,
    _jobs: Jobs,
    _folder: TempDir,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    /// A service with other settings than the default.
    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let database =
            kit::testing::database_with("jobs", |url| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await })
                .await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::open(&format!("file://{}", folder.path().display()), None, None).expect("storage");
        let mut settings = Settings { jobs_connections_max: 8, ..Settings::default() };
        change(&mut settings);
        let clock = Clock::frozen(Clock::system().now());
        let tasks = Tasks::new();
        let jobs = Jobs::start(settings, database.url(), storage.clone(), clock.clone(), &tasks, false)
            .await
            .expect("the service starts");
        let verifier = Verifier::new(ISSUER, Arc::new(|| Box::pin(async { Ok(jwks()) })));
        let peer = Peer::local(jobs.routes(), &Guard::new(verifier));
        Self { peer, clock, storage, database, tasks, _jobs: jobs, _folder: folder }
    }

    /// Another process of the service on the same database, which runs until what is answered is dropped.
    pub(crate) async fn replica(&self) -> Replica {
        let tasks = Tasks::new();
        let (url, storage) = (self.database.url(), self.storage.clone());
        let settings = Settings { jobs_connections_max: 8, ..Settings::default() };
        let jobs = Jobs::start(settings, url, storage, self.clock.clone(), &tasks, false).await.expect("it starts");
        Replica { tasks, _jobs: jobs }
    }

    /// The database, as its superuser.
    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    /// Someone new who has `role`.
    pub(crate) fn user(&self, role: &str) -> User {
        let id = Clock::system().new_id();
        User { id, call: Call::with_token(token(id, role, ""), "request-1") }
    }

    pub(crate) fn jobs(&self) -> JobsClient<Peer> {
        JobsClient::new(self.peer.clone())
    }

    /// Submits one job; the job.
    pub(crate) async fn submit(&self, user: &User, spec: JobSpec) -> Result<Job, Fail> {
        let request = user.call.request(SubmitJobsRequest { jobs: vec![spec] });
        let answer = self.jobs().submit(request).await.map_err(Fail::from)?.into_inner();
        Ok(answer.job.expect("one job was submitted"))
    }

    /// A worker that says hello and offers these tasks from their queues, with no credit yet.
    pub(crate) async fn hand(&self, tasks: Vec<OfferedTask>) -> Hand {
        Hand::connect(self, tasks).await.expect("the worker is welcome")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A second process of a [`House`].
pub(crate) struct Replica {
    tasks: Tasks,
    _jobs: Jobs,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Someone who calls.
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) call: Call,
}

/// A worker without a will.
pub(crate) struct Hand {
    pub(crate) id: String,
    /// Shows the worker's token.
    pub(crate) call: Call,
    to: mpsc::Sender<FromWorker>,
    from: Streaming<proto::worker::ToWorker>,
}

impl Hand {
    pub(crate) async fn connect(house: &House, tasks: Vec<OfferedTask>) -> Result<Self, Fail> {
        let call = Call::with_token(token(Clock::system().new_id(), "service", "workers:connect:any"), "worker-1");
        let (to, stream) = mpsc::channel(16);
        let hello = Hello {
            profile: "test".to_owned(),
            host: "here".to_owned(),
            version: "1".to_owned(),
            slots: 8,
            tasks,
            ..Hello::default()
        };
        send(&to, from_worker::Message::Hello(hello)).await;
        let answer = WorkersClient::new(house.peer.clone()).work(call.request(ReceiverStream::new(stream))).await;
        let mut hand = Self { id: String::new(), call, to, from: answer.map_err(Fail::from)?.into_inner() };
        match hand.next().await {
            to_worker::Message::Welcome(welcome) => hand.id = welcome.worker_id,
            other => panic!("a welcome comes first, not {other:?}"),
        }
        Ok(hand)
    }

    async fn next(&mut self) -> to_worker::Message {
        let message = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("the service answers");
        message.expect("the stream is whole").and_then(|message| message.message).expect("a message")
    }

    /// Takes the next job that there is, with one credit.
    pub(crate) async fn take(&mut self) -> Assignment {
        send(&self.to, from_worker::Message::Credit(Credit { slots: 1 })).await;
        loop {
            if let to_worker::Message::Assign(mut assign) = self.next().await {
                return assign.items.remove(0);
            }
        }
    }

    /// Logs a line; it is written before the outcome that is told next.
    pub(crate) async fn log(&self, job: &Assignment, message: &str) {
        let line =
            LogEntry { attempt: job.attempt.clone(), level: "info".to_owned(), message: message.to_owned(), at: None };
        send(&self.to, from_worker::Message::Report(Report { logs: vec![line], ..Report::default() })).await;
    }

    /// Ends the attempt, and waits until that is durable.
    pub(crate) async fn end(&mut self, job: &Assignment, end: End) -> Receipt {
        let outcome = Outcome { attempt: job.attempt.clone(), end: Some(end) };
        send(&self.to, from_worker::Message::Report(Report { outcomes: vec![outcome], ..Report::default() })).await;
        loop {
            if let to_worker::Message::Receipt(receipt) = self.next().await {
                return receipt;
            }
        }
    }
}

async fn send(to: &mpsc::Sender<FromWorker>, message: from_worker::Message) {
    to.send(FromWorker { message: Some(message) }).await.expect("the service reads");
}

/// A task whose arguments are an object with these properties.
pub(crate) fn task(name: &str, queue: &str, properties: &serde_json::Value) -> OfferedTask {
    let schema = serde_json::json!({ "type": "object", "properties": properties, "additionalProperties": false });
    OfferedTask {
        name: name.to_owned(),
        queue: queue.to_owned(),
        schema_json: schema.to_string(),
        description: format!("Runs {name}."),
    }
}

pub(crate) fn spec(task: &str) -> JobSpec {
    JobSpec { task: task.to_owned(), args_json: "{}".to_owned(), ..JobSpec::default() }
}

/// The answer's message, or what it failed with.
pub(crate) fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Fail> {
    answer.map(Response::into_inner).map_err(Fail::from)
}

/// The stable code of a refusal.
pub(crate) fn code<T>(answer: Result<Response<T>, Status>) -> String {
    match self::answer(answer) {
        Ok(_) => "ok".to_owned(),
        Err(fail) => fail.code().to_owned(),
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn jwks() -> String {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key().verifying_key().as_bytes());
    serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k", "x": x }] })
        .to_string()
}

fn token(subject: Uuid, role: &str, scope: &str) -> Secret {
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
