//! A `jobs` that does what a test's script says, behind the real generated servers and the real guard, and a worker with
//! real children, storage and scratch folder in front of it: to test tasks and the runtime itself. Only tests use this
//! module; it panics where a service would answer.

#![expect(clippy::expect_used, clippy::panic, reason = "a test whose script does not come true can only fail")]
#![allow(missing_debug_implementations, reason = "nobody prints a test's house")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    grpc::{Credential, Guard, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    storage::Storage,
    tasks::Tasks,
};
use parking_lot::Mutex;
use proto::{
    auth::{
        ExchangeServiceKeyRequest, ServiceToken,
        service_keys_server::{ServiceKeys, ServiceKeysServer},
    },
    worker::{
        AddSiblingsRequest, AddSiblingsResponse, Assign, Assignment, AttemptFile, AttemptRef, Child,
        CreateAttemptFileRequest, FanOutRequest, FanOutResponse, FromWorker, GetAttemptFileRequest, Heartbeat, Hello,
        ListChildrenRequest, ListChildrenResponse, Outcome, ProgressUpdate, Receipt, Renewed, Stop, StopAttempt,
        ToWorker, Welcome,
        attempts_server::{Attempts, AttemptsServer},
        from_worker::Message as From,
        outcome::End,
        to_worker::Message as To,
        workers_server::{Workers, WorkersServer},
    },
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Registry, Setup, SlotCommand, Worker};

/// The batch of every fan-out and every finalize.
pub const BATCH_ID: &str = "01990000-0000-7000-8000-0000000000ba";
const ISSUER: &str = "http://worker.test";
/// Nothing here takes long; this ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker in front of a scripted `jobs`.
pub struct House {
    pub tasks: Tasks,
    pub worker: Worker,
    pub storage: Storage,
    pub files: Arc<Mutex<Files>>,
    pub folder: TempDir,
    streams: mpsc::Receiver<Stream>,
}

/// What the scripted `jobs` knows of files and batches.
#[derive(Default)]
pub struct Files {
    pub rows: HashMap<String, AttemptFile>,
    pub created: Vec<AttemptFile>,
    /// What attempts made of their batches.
    pub fan_outs: Vec<FanOutRequest>,
    /// What attempts added to the batches that they are in.
    pub siblings: Vec<AddSiblingsRequest>,
    /// What a finalize finds, by ordinal.
    pub children: Vec<Child>,
}

impl Files {
    /// Makes the files whole that come with a result.
    fn complete(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let Some(End::Succeeded(succeeded)) = &outcome.end else { continue };
            for written in &succeeded.files {
                let row = self.created.iter().find(|row| row.id == written.file_id).cloned();
                let row = AttemptFile {
                    content_type: written.content_type.clone(),
                    size_bytes: written.size_bytes,
                    sha256: written.sha256.clone(),
                    ..row.expect("it was created")
                };
                self.rows.insert(row.id.clone(), row);
            }
        }
    }
}

/// How a worker of the tests differs from the default.
pub struct Shape {
    pub slots: u32,
    pub slot_mib_max: u64,
    pub grace_s: u32,
    pub drain_s: u32,
    pub lease_s: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { slots: 2, slot_mib_max: 64, grace_s: 0, drain_s: 60, lease_s: 30.0 }
    }
}

impl House {
    /// A worker with these tasks, whose children are started by `slot_program` without arguments.
    ///
    /// # Panics
    /// The worker does not start.
    pub fn new(shape: &Shape, registry: Registry, slot_program: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage =
            Storage::open(&format!("file://{}/storage", folder.path().display()), None, None).expect("storage");
        let (sender, streams) = mpsc::channel(8);
        let files = Arc::<Mutex<Files>>::default();
        let scripted = Scripted { streams: sender, files: files.clone(), lease_s: shape.lease_s };
        let routes = tonic::service::Routes::new(WorkersServer::new(scripted.clone()))
            .add_service(AttemptsServer::new(scripted.clone()))
            .add_service(ServiceKeysServer::new(scripted));
        let verifier = Verifier::new(ISSUER, Arc::new(|| Box::pin(async { Ok(jwks()) })));
        let peer = Peer::local(routes, &Guard::new(verifier));
        let settings = crate::Settings {
            worker_slots: shape.slots,
            worker_slot_bytes_max: kit::config::Bytes(shape.slot_mib_max * 1024 * 1024),
            worker_grace_s: shape.grace_s,
            worker_drain_s: shape.drain_s,
            ..crate::Settings::default()
        };
        let tasks = Tasks::new();
        let setup = Setup {
            settings,
            registry,
            jobs: peer.clone(),
            credential: Credential::new(peer, Secret::new("gld_test_key".to_owned()), "worker_key"),
            storage: storage.clone(),
            scratch_dir: folder.path().join("scratch"),
            slot_command: SlotCommand { program: slot_program.into(), args: Vec::new() },
            clock: Clock::system(),
            hooks: Vec::new(),
        };
        let worker = Worker::start(setup, &tasks).expect("a worker");
        Self { tasks, worker, storage, files, folder, streams }
    }

    /// The worker's next stream, after its hello and our welcome.
    pub async fn accept(&mut self) -> Stream {
        patient(self.streams.recv()).await.expect("the worker connects")
    }

    /// A whole file that the job's owner owns.
    pub async fn add_file(&self, id: &str, name: &str, bytes: &[u8]) {
        let key = format!("files/{id}");
        let mut writer = self.storage.writer(&key).expect("a writer");
        writer.write(bytes.to_vec().into()).await.expect("a write");
        let written = writer.finish().await.expect("an object");
        let row = AttemptFile {
            id: id.to_owned(),
            name: name.to_owned(),
            size_bytes: written.size,
            storage_key: key,
            ..AttemptFile::default()
        };
        self.files.lock().rows.insert(id.to_owned(), row);
    }

    /// The folders of slots that hold anything.
    pub fn scratch_leftovers(&self) -> Vec<String> {
        let slots = std::fs::read_dir(self.folder.path().join("scratch")).expect("the scratch folder");
        let slots = slots.map(|slot| slot.expect("an entry").path()).filter(|slot| slot.is_dir());
        let inside = slots.flat_map(|slot| std::fs::read_dir(slot).expect("a slot's folder"));
        inside.map(|entry| entry.expect("an entry").path().display().to_string()).collect()
    }
}

/// One stream, from the side of `jobs`.
pub struct Stream {
    pub hello: Hello,
    pub heartbeats: Vec<Heartbeat>,
    pub progress: Vec<ProgressUpdate>,
    pub logs: Vec<String>,
    /// What has come and was not taken.
    pub outcomes: Vec<Outcome>,
    /// Whether heartbeats are answered.
    pub renews: bool,
    /// Whether outcomes are.
    pub receipts: bool,
    /// All that was given on this stream.
    pub credit: u32,
    files: Arc<Mutex<Files>>,
    incoming: Streaming<FromWorker>,
    outgoing: mpsc::Sender<Result<ToWorker, Status>>,
    assigned: u32,
    last_token: u64,
}

impl Stream {
    pub async fn send(&self, message: To) {
        // A worker that has ended its side hears nothing, and need not.
        drop(self.outgoing.send(Ok(ToWorker { message: Some(message) })).await);
    }

    /// Assigns an attempt, once the worker has a slot for it.
    pub async fn assign(&mut self, job_id: &str, task: &str, args: Value) -> AttemptRef {
        self.assign_with(job_id, task, args, |_| {}).await
    }

    /// As [`assign`](Self::assign), with `more` to say about it.
    pub async fn assign_with(
        &mut self,
        job_id: &str,
        task: &str,
        args: Value,
        more: impl FnOnce(&mut Assignment),
    ) -> AttemptRef {
        self.read_until(|stream| stream.credit > stream.assigned).await;
        self.assign_anyway(job_id, task, args, more).await
    }

    /// As [`assign_with`](Self::assign_with), without waiting for a slot.
    pub async fn assign_anyway(
        &mut self,
        job_id: &str,
        task: &str,
        args: Value,
        more: impl FnOnce(&mut Assignment),
    ) -> AttemptRef {
        self.assigned += 1;
        self.last_token += 1;
        let attempt = AttemptRef { job_id: job_id.to_owned(), token: self.last_token };
        let mut item = Assignment {
            attempt: Some(attempt.clone()),
            number: 1,
            task: task.to_owned(),
            queue: "default".to_owned(),
            args_json: args.to_string(),
            owner_id: "owner".to_owned(),
            timeout_s: 60.0,
            ..Assignment::default()
        };
        more(&mut item);
        self.send(To::Assign(Assign { items: vec![item] })).await;
        attempt
    }

    pub async fn stop(&self, attempt: &AttemptRef, why: &str) {
        let item = StopAttempt { attempt: Some(attempt.clone()), why: why.to_owned(), grace_s: 0.0 };
        self.send(To::Stop(Stop { items: vec![item] })).await;
    }

    /// Reads what the worker says until `until` holds; answers heartbeats and outcomes meanwhile.
    ///
    /// # Panics
    /// It does not hold within a minute, or the worker closes the stream.
    pub async fn read_until(&mut self, mut until: impl FnMut(&Self) -> bool) {
        let read = async {
            while !until(self) {
                assert!(self.read().await, "the worker keeps its stream open");
            }
        };
        patient(read).await;
    }

    /// Waits for this attempt's outcome, and takes it from [`outcomes`](Self::outcomes).
    ///
    /// # Panics
    /// None comes.
    pub async fn outcome(&mut self, attempt: &AttemptRef) -> End {
        let is_it = |outcome: &Outcome| outcome.attempt.as_ref() == Some(attempt);
        self.read_until(|stream| stream.outcomes.iter().any(is_it)).await;
        let found = self.outcomes.extract_if(.., |outcome| is_it(outcome)).next();
        found.and_then(|outcome| outcome.end).expect("an end")
    }

    /// Reads until this attempt has told progress; its message.
    pub async fn started(&mut self, attempt: &AttemptRef) -> String {
        let told = |stream: &Self| {
            let mut updates = stream.progress.iter();
            updates.find(|update| update.attempt.as_ref() == Some(attempt)).map(|update| update.message.clone())
        };
        self.read_until(|stream| told(stream).is_some()).await;
        told(self).expect("it was told")
    }

    /// Reads to the stream's end; the outcomes that nobody has taken.
    pub async fn read_to_end(mut self) -> Vec<Outcome> {
        let read = async { while self.read().await {} };
        patient(read).await;
        self.outcomes
    }

    /// Reads one message; false at the stream's end.
    async fn read(&mut self) -> bool {
        let Ok(Some(message)) = self.incoming.message().await else { return false };
        match message.message.expect("a message") {
            From::Heartbeat(heartbeat) => {
                if self.renews {
                    self.send(To::Renewed(Renewed { sequence: heartbeat.sequence })).await;
                }
                self.heartbeats.push(heartbeat);
            }
            From::Credit(credit) => self.credit += credit.slots,
            From::Report(report) => {
                self.progress.extend(report.progress);
                self.logs.extend(report.logs.into_iter().map(|entry| entry.message));
                if self.receipts && !report.outcomes.is_empty() {
                    self.files.lock().complete(&report.outcomes);
                    let accepted = report.outcomes.iter().filter_map(|outcome| outcome.attempt.clone()).collect();
                    self.send(To::Receipt(Receipt { accepted, refused: Vec::new() })).await;
                }
                self.outcomes.extend(report.outcomes);
            }
            From::Hello(_) => panic!("a second hello"),
        }
        true
    }
}

#[derive(Clone)]
struct Scripted {
    streams: mpsc::Sender<Stream>,
    files: Arc<Mutex<Files>>,
    lease_s: f64,
}

#[tonic::async_trait]
impl Workers for Scripted {
    type WorkStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::WorkStream>, Status> {
        let mut incoming = request.into_inner();
        let Some(FromWorker { message: Some(From::Hello(hello)) }) = incoming.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (outgoing, receiver) = mpsc::channel(64);
        let stream = Stream {
            hello,
            heartbeats: Vec::new(),
            progress: Vec::new(),
            logs: Vec::new(),
            outcomes: Vec::new(),
            renews: true,
            receipts: true,
            credit: 0,
            files: self.files.clone(),
            incoming,
            outgoing,
            assigned: 0,
            last_token: 0,
        };
        let welcome = Welcome { worker_id: "w1".to_owned(), lease_s: self.lease_s, heartbeat_s: self.lease_s / 3.0 };
        stream.send(To::Welcome(welcome)).await;
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Attempts for Scripted {
    async fn get_file(&self, request: Request<GetAttemptFileRequest>) -> Result<Response<AttemptFile>, Status> {
        let file_id = request.into_inner().file_id;
        let found = self.files.lock().rows.get(&file_id).cloned();
        let found = found.ok_or_else(|| Fail::not_found("jobs.file_not_found", "There is no such file."))?;
        Ok(Response::new(found))
    }

    async fn create_file(&self, request: Request<CreateAttemptFileRequest>) -> Result<Response<AttemptFile>, Status> {
        let mut files = self.files.lock();
        let id = Clock::system().new_id().to_string();
        let row = AttemptFile {
            storage_key: format!("files/{id}"),
            id,
            name: request.into_inner().name,
            ..AttemptFile::default()
        };
        files.created.push(row.clone());
        Ok(Response::new(row))
    }

    async fn fan_out(&self, request: Request<FanOutRequest>) -> Result<Response<FanOutResponse>, Status> {
        let request = request.into_inner();
        if request.attempt.as_ref().is_some_and(|attempt| attempt.job_id == "fenced") {
            return Err(Fail::conflict("jobs.fenced", "This attempt does not count any more.").into());
        }
        self.files.lock().fan_outs.push(request);
        Ok(Response::new(FanOutResponse { batch_id: BATCH_ID.to_owned() }))
    }

    async fn add_siblings(
        &self,
        request: Request<AddSiblingsRequest>,
    ) -> Result<Response<AddSiblingsResponse>, Status> {
        let request = request.into_inner();
        let job_ids = request.jobs.iter().map(|job| format!("sibling-{}", job.number)).collect();
        self.files.lock().siblings.push(request);
        Ok(Response::new(AddSiblingsResponse { job_ids }))
    }

    async fn list_children(
        &self,
        request: Request<ListChildrenRequest>,
    ) -> Result<Response<ListChildrenResponse>, Status> {
        let request = request.into_inner();
        let files = self.files.lock();
        let is_after = |child: &&Child| request.after_ordinal.is_none_or(|after| child.ordinal > after);
        let mut items: Vec<Child> = files.children.iter().filter(is_after).cloned().collect();
        let more = items.len() > request.limit as usize;
        items.truncate(request.limit as usize);
        Ok(Response::new(ListChildrenResponse { items, more, batch_id: BATCH_ID.to_owned() }))
    }
}

#[tonic::async_trait]
impl ServiceKeys for Scripted {
    async fn exchange(&self, request: Request<ExchangeServiceKeyRequest>) -> Result<Response<ServiceToken>, Status> {
        assert_eq!(request.into_inner().key, "gld_test_key");
        Ok(Response::new(ServiceToken { access_token: token(), expires_in: 300 }))
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn jwks() -> String {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key().verifying_key().as_bytes());
    serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k", "x": x }] })
        .to_string()
}

fn token() -> String {
    let clock = Clock::system();
    let now = clock.now().timestamp();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: clock.new_id(),
        exp: now + 300,
        iat: now,
        nbf: now,
        jti: clock.new_id(),
        sid: None,
        generation: 0,
        roles: vec!["service".to_owned()],
        scope: "workers:connect:any".to_owned(),
    };
    let header =
        Header { typ: Some(ACCESS_TOKEN_TYPE.to_owned()), kid: Some("k".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let der = key().to_pkcs8_der().expect("a key");
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(der.as_bytes())).expect("a token")
}

async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing here takes that long")
}
