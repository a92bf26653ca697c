//! A running `jobs` with its database, users who call it, and workers whose every message a test decides.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::DateTime;
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jobs::{Jobs, Settings};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Guard, IdempotencyKey, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    storage::Storage,
    tasks::Tasks,
    testing::{TestDatabase, database_with},
};
use proto::{
    jobs::{
        Batch, CreateBatchRequest, GetBatchRequest, GetJobRequest, Job, JobSpec, JobState, ListAttemptsRequest,
        ListTasksRequest, SubmitJobsRequest, SubmitJobsResponse, WatchRequest, batches_client::BatchesClient,
        jobs_client::JobsClient, tasks_client::TasksClient,
    },
    worker::{
        Assignment, AttemptRef, Cancelled, Credit, Failed, FromWorker, Heartbeat, Hello, Interrupted, OfferedTask,
        Outcome, Receipt, Report, Snoozed, Stopped, Succeeded, Suspended, ToWorker, attempts_client::AttemptsClient,
        from_worker, outcome, to_worker, workers_client::WorkersClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

const ISSUER: &str = "http://guildhall.test";
const KEY: [u8; 32] = [7; 32];
/// A token outlives the longest test: some run for many minutes on a machine that does something else besides.
const TOKEN_S: i64 = 3_600;

/// Nothing here may take this long; a wait that does has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct House {
    pub(crate) clock: Clock,
    pub(crate) database: Arc<TestDatabase>,
    tasks: Tasks,
    peer: Peer,
    storage: Storage,
    _files: Arc<tempfile::TempDir>,
}

impl House {
    pub(crate) async fn new() -> Self {
        let database =
            database_with("jobs", |url| async move { kit::db::migrate(&url, jobs::SCHEMA, &jobs::MIGRATOR).await })
                .await;
        let files = tempfile::tempdir().unwrap();
        let storage = Storage::open(&format!("file://{}", files.path().display()), None, None).unwrap();
        let clock = Clock::frozen(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let tasks = Tasks::new();
        let peer = start(&database, &storage, &clock, &tasks, false).await;
        Self { clock, database: Arc::new(database), tasks, peer, storage, _files: Arc::new(files) }
    }

    /// Another replica on the same database.
    pub(crate) async fn beside(&self) -> Self {
        let tasks = Tasks::new();
        let peer = start(&self.database, &self.storage, &self.clock, &tasks, false).await;
        let (database, files) = (Arc::clone(&self.database), Arc::clone(&self._files));
        Self { clock: self.clock.clone(), database, tasks, peer, storage: self.storage.clone(), _files: files }
    }

    /// The same database under a new process, after the old one was dropped where it stood.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.tasks.abort().await;
        self.tasks = Tasks::new();
        self.peer = start(&self.database, &self.storage, &self.clock, &self.tasks, true).await;
    }

    /// Dies where it stands, as with SIGKILL.
    pub(crate) async fn crash(&self) {
        self.tasks.abort().await;
    }

    /// Is asked to stop.
    pub(crate) fn stop(&self) {
        self.tasks.stop();
    }

    pub(crate) fn customer(&self) -> User {
        self.user(&["customer"])
    }

    pub(crate) fn user(&self, roles: &[&str]) -> User {
        User { call: call(self.clock.new_id(), roles, ""), peer: self.peer.clone() }
    }

    /// One user, who asks this replica and another.
    pub(crate) fn user_at_both(&self, other: &Self) -> (User, User) {
        let call = call(self.clock.new_id(), &["operator"], "");
        (User { call: call.clone(), peer: self.peer.clone() }, User { call, peer: other.peer.clone() })
    }

    /// The same user, who asks the process that runs now.
    pub(crate) fn again(&self, user: &User) -> User {
        User { call: user.call.clone(), peer: self.peer.clone() }
    }

    /// A connected worker with as many free slots as it says.
    pub(crate) async fn worker(&self, slots: u32) -> Worker {
        let mut worker = self.stranger_worker("").await;
        worker.credit(slots).await;
        worker
    }

    /// A worker without credits, under the id that an earlier one had, or a new one.
    pub(crate) async fn stranger_worker(&self, id: &str) -> Worker {
        let call = call(self.clock.new_id(), &["service"], "workers:connect");
        let (out, messages) = mpsc::channel(64);
        let offered = ["work", "process", "finish"].map(|name| OfferedTask {
            name: name.to_owned(),
            queue: "default".to_owned(),
            schema_json:
                r#"{"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": false}"#
                    .to_owned(),
            description: "For tests".to_owned(),
        });
        let hello = Hello {
            profile: "test".to_owned(),
            host: "here".to_owned(),
            version: "0".to_owned(),
            slots: 100,
            queues: Vec::new(),
            tasks: offered.to_vec(),
            worker_id: id.to_owned(),
        };
        out.send(FromWorker { message: Some(from_worker::Message::Hello(hello)) }).await.unwrap();
        let mut client = WorkersClient::new(self.peer.clone());
        let stream = client.work(call.request(ReceiverStream::new(messages))).await.unwrap().into_inner();
        let mut worker = Worker { id: String::new(), call, peer: self.peer.clone(), out, stream, waiting: Vec::new() };
        match worker.next().await {
            to_worker::Message::Welcome(welcome) => worker.id = welcome.worker_id,
            other => panic!("expected a welcome, got {other:?}"),
        }
        worker
    }
}

/// Nobody asks it any more, and what goes on by itself would take the time of the tests that still run.
impl Drop for House {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A replica on a thread of its own that can be stopped and continued, as SIGSTOP and SIGCONT do with a process: its
/// connections stand meanwhile. It serves nobody.
pub(crate) struct Freezer {
    freeze: mpsc::Sender<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>,
    thread: std::thread::JoinHandle<()>,
}

impl Freezer {
    /// Beside the house, and running.
    pub(crate) async fn beside(house: &House) -> Self {
        let (database, storage, clock) = (Arc::clone(&house.database), house.storage.clone(), house.clock.clone());
        let (freeze, mut frozen) = mpsc::channel::<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>(1);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tasks = Tasks::new();
                let _peer = start(&database, &storage, &clock, &tasks, false).await;
                ready.send(()).unwrap();
                while let Some((stands, thaw)) = frozen.recv().await {
                    stands.send(()).unwrap();
                    // Blocks the only thread, and so everything in this replica.
                    let _dropped = thaw.recv();
                }
                tasks.abort().await;
            });
        });
        is_ready.await.unwrap();
        Self { freeze, thread }
    }

    /// Stops it until what this gives is dropped.
    pub(crate) async fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (stands, it_stands) = std::sync::mpsc::channel();
        let (thaw, thawed) = std::sync::mpsc::channel();
        self.freeze.send((stands, thawed)).await.unwrap();
        it_stands.recv_timeout(PATIENCE).unwrap();
        thaw
    }

    pub(crate) fn end(self) {
        drop(self.freeze);
        self.thread.join().unwrap();
    }
}

/// Waits until a query that answers yes or no says yes.
pub(crate) async fn eventually(pool: &sqlx::PgPool, question: &'static str) {
    let yes = async { while !sqlx::query_scalar::<_, bool>(question).fetch_one(pool).await.unwrap() {} };
    tokio::time::timeout(PATIENCE, yes).await.unwrap_or_else(|_| panic!("it never came to be: {question}"));
}

async fn start(database: &TestDatabase, storage: &Storage, clock: &Clock, tasks: &Tasks, is_restart: bool) -> Peer {
    let settings = Settings { jobs_connections_max: 10, ..Settings::default() };
    let jobs = Jobs::start(settings, database.url(), storage.clone(), clock.clone(), tasks, is_restart).await.unwrap();
    let jwks = jwks();
    let verifier = Verifier::new(
        ISSUER,
        Arc::new(move || {
            let jwks = jwks.clone();
            Box::pin(async move { Ok(jwks) })
        }),
    );
    Peer::local(jobs.routes(), &Guard::new(verifier))
}

fn jwks() -> String {
    use base64::Engine as _;
    let x = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&KEY).verifying_key().as_bytes());
    serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "test", "alg": "EdDSA", "use": "sig", "x": x }] })
        .to_string()
}

fn call(subject: Uuid, roles: &[&str], scope: &str) -> Call {
    // Tokens are verified by the machine's clock, whatever the service's says.
    let now = Clock::system().now().timestamp();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: subject,
        exp: now + TOKEN_S,
        iat: now,
        nbf: now,
        jti: Uuid::nil(),
        sid: None,
        generation: 0,
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        scope: scope.to_owned(),
    };
    let header = Header {
        typ: Some(ACCESS_TOKEN_TYPE.to_owned()),
        kid: Some("test".to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let der = SigningKey::from_bytes(&KEY).to_pkcs8_der().unwrap();
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap();
    Call::with_token(Secret::new(token), "test-request")
}

/// Someone who calls the service.
pub(crate) struct User {
    pub(crate) call: Call,
    pub(crate) peer: Peer,
}

pub(crate) fn spec(task: &str, args: &str) -> JobSpec {
    JobSpec { task: task.to_owned(), args_json: args.to_owned(), ..JobSpec::default() }
}

impl User {
    pub(crate) fn jobs(&self) -> JobsClient<Peer> {
        JobsClient::new(self.peer.clone())
    }
    pub(crate) fn batches(&self) -> BatchesClient<Peer> {
        BatchesClient::new(self.peer.clone())
    }

    /// The tasks that it is shown, with how many workers offer each.
    pub(crate) async fn tasks(&self) -> Vec<(String, u32)> {
        let request = self.call.request(ListTasksRequest::default());
        let page = TasksClient::new(self.peer.clone()).list(request).await.unwrap().into_inner();
        page.items.into_iter().map(|task| (task.name, task.workers)).collect()
    }

    /// Submits under roles that may run anything; most tests are not about roles.
    pub(crate) async fn submit(&self, spec: JobSpec) -> String {
        self.submit_all(vec![spec], None).await.unwrap().items.remove(0).id
    }

    pub(crate) async fn submit_all(
        &self,
        jobs: Vec<JobSpec>,
        key: Option<(&str, u8)>,
    ) -> Result<SubmitJobsResponse, Fail> {
        let key = key.map(|(key, digest)| IdempotencyKey { key: key.to_owned(), digest: [digest; 32] });
        let call = self.call.clone().with_idempotency(key);
        Ok(self.jobs().submit(call.request(SubmitJobsRequest { jobs })).await?.into_inner())
    }

    pub(crate) async fn job(&self, id: &str) -> Job {
        self.jobs().get(self.call.request(GetJobRequest { id: id.to_owned() })).await.unwrap().into_inner()
    }

    pub(crate) async fn state(&self, id: &str) -> JobState {
        self.job(id).await.state()
    }

    pub(crate) async fn batch(&self, jobs: Vec<JobSpec>, finalize: Option<&str>, open: bool) -> Batch {
        let finalize =
            finalize.map(|task| proto::jobs::FinalizeSpec { task: task.to_owned(), args_json: String::new() });
        let asked = CreateBatchRequest { jobs, finalize, open, policy: None };
        self.batches().create(self.call.request(asked)).await.unwrap().into_inner()
    }

    pub(crate) async fn get_batch(&self, id: &str) -> Batch {
        self.batches().get(self.call.request(GetBatchRequest { id: id.to_owned() })).await.unwrap().into_inner()
    }

    /// `outcome` of each ended attempt, oldest first.
    pub(crate) async fn attempts(&self, id: &str) -> Vec<String> {
        let asked = ListAttemptsRequest { job_id: id.to_owned(), limit: 200, cursor: String::new() };
        let listed = self.jobs().list_attempts(self.call.request(asked)).await.unwrap().into_inner();
        listed.items.into_iter().rev().map(|attempt| attempt.outcome).collect()
    }

    /// Every event of a job's stream up to its end, as `(offset, event, data)`.
    pub(crate) async fn events(&self, id: &str, after: u64) -> Vec<(u64, String, serde_json::Value)> {
        let asked = WatchRequest { id: id.to_owned(), after_offset: after };
        read_to_end(self.jobs().watch(self.call.request(asked)).await.unwrap().into_inner()).await
    }

    pub(crate) async fn batch_events(&self, id: &str, after: u64) -> Vec<(u64, String, serde_json::Value)> {
        let asked = WatchRequest { id: id.to_owned(), after_offset: after };
        read_to_end(self.batches().watch(self.call.request(asked)).await.unwrap().into_inner()).await
    }

    /// Waits on the batch's own stream for its counts.
    pub(crate) async fn wait_for_batch(&self, id: &str, is_it: impl Fn(&serde_json::Value) -> bool) {
        let asked = WatchRequest { id: id.to_owned(), after_offset: 0 };
        let mut stream = self.batches().watch(self.call.request(asked)).await.unwrap().into_inner();
        let seen = async {
            while let Some(event) = stream.message().await.unwrap() {
                let data: serde_json::Value = serde_json::from_str(&event.data_json).unwrap();
                if event.event == "batch" && is_it(&data["counts"]) {
                    return;
                }
            }
            panic!("the stream ended before the batch was so");
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the batch becomes so");
    }

    /// Waits on the job's own stream until it is in `state`.
    pub(crate) async fn wait_for(&self, id: &str, state: &str) {
        let asked = WatchRequest { id: id.to_owned(), after_offset: 0 };
        let mut stream = self.jobs().watch(self.call.request(asked)).await.unwrap().into_inner();
        let seen = async {
            while let Some(event) = stream.message().await.unwrap() {
                let data: serde_json::Value = serde_json::from_str(&event.data_json).unwrap();
                if event.event == "state"
                    && data["state"] == state
                    && self.job(id).await.state().as_str_name().to_lowercase().ends_with(state)
                {
                    return;
                }
            }
            panic!("the stream ended before {id} was {state}");
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{id} did not become {state}"));
    }
}

async fn read_to_end(mut stream: Streaming<proto::jobs::LiveEvent>) -> Vec<(u64, String, serde_json::Value)> {
    let mut events = Vec::new();
    let all = async {
        while let Some(event) = stream.message().await.unwrap() {
            events.push((event.offset, event.event, serde_json::from_str(&event.data_json).unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the stream ends");
    events
}

/// A worker whose every message a test decides.
pub(crate) struct Worker {
    pub(crate) id: String,
    call: Call,
    peer: Peer,
    out: mpsc::Sender<FromWorker>,
    stream: Streaming<ToWorker>,
    /// Messages that came while another kind was waited for.
    waiting: Vec<to_worker::Message>,
}

impl Worker {
    pub(crate) fn attempts(&self) -> AttemptsClient<Peer> {
        AttemptsClient::new(self.peer.clone())
    }
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.call.request(message)
    }

    async fn next(&mut self) -> to_worker::Message {
        let message = tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("a message comes");
        message.unwrap().expect("the stream goes on").message.unwrap()
    }

    /// The next message that `pick` takes; others are kept for later.
    async fn find<T>(&mut self, pick: impl Fn(&to_worker::Message) -> Option<T>) -> T {
        if let Some((at, found)) = self.waiting.iter().enumerate().find_map(|(at, message)| Some((at, pick(message)?)))
        {
            self.waiting.remove(at);
            return found;
        }
        loop {
            let message = self.next().await;
            match pick(&message) {
                Some(found) => return found,
                None => self.waiting.push(message),
            }
        }
    }

    pub(crate) async fn send(&self, message: from_worker::Message) {
        self.out.send(FromWorker { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn credit(&mut self, slots: u32) {
        self.send(from_worker::Message::Credit(Credit { slots })).await;
    }

    /// The next `count` assignments, by the order in which they came.
    pub(crate) async fn assigned(&mut self, count: usize) -> Vec<Assignment> {
        let mut items = Vec::new();
        while items.len() < count {
            items.extend(
                self.find(|message| match message {
                    to_worker::Message::Assign(assign) => Some(assign.items.clone()),
                    _ => None,
                })
                .await,
            );
        }
        items
    }

    pub(crate) async fn next_assigned(&mut self) -> Assignment {
        self.assigned(1).await.remove(0)
    }

    /// Whether a stop for the attempt comes, and why.
    pub(crate) async fn stop_of(&mut self, job_id: &str) -> String {
        self.find(|message| match message {
            to_worker::Message::Stop(stop) => stop
                .items
                .iter()
                .find(|item| item.attempt.as_ref().is_some_and(|attempt| attempt.job_id == job_id))
                .map(|item| item.why.clone()),
            _ => None,
        })
        .await
    }

    /// Says that it drains, and waits until that was heard.
    pub(crate) async fn drain(&mut self) {
        let heartbeat = Heartbeat { holding: Vec::new(), draining: true, sequence: 1, assignments_read: 0 };
        self.send(from_worker::Message::Heartbeat(heartbeat)).await;
        self.find(|message| matches!(message, to_worker::Message::Renewed(_)).then_some(())).await;
    }

    /// A heartbeat whose answer nobody waits for.
    pub(crate) async fn say_holding(&self, holding: Vec<AttemptRef>, sequence: u64, assignments_read: u64) {
        let heartbeat = Heartbeat { holding, draining: false, sequence, assignments_read };
        self.send(from_worker::Message::Heartbeat(heartbeat)).await;
    }

    pub(crate) async fn heartbeat(&mut self, holding: Vec<AttemptRef>, sequence: u64, assignments_read: u64) {
        self.say_holding(holding, sequence, assignments_read).await;
        self.find(|message| {
            matches!(message, to_worker::Message::Renewed(renewed) if renewed.sequence == sequence).then_some(())
        })
        .await;
    }

    /// Tells outcomes and waits for their receipt: which were accepted.
    pub(crate) async fn tell(&mut self, outcomes: Vec<(&Assignment, outcome::End)>) -> Vec<bool> {
        let attempts: Vec<AttemptRef> =
            outcomes.iter().map(|(assigned, _)| assigned.attempt.clone().unwrap()).collect();
        let outcomes =
            outcomes.into_iter().map(|(assigned, end)| Outcome { attempt: assigned.attempt.clone(), end: Some(end) });
        let report = Report { outcomes: outcomes.collect(), ..Report::default() };
        self.send(from_worker::Message::Report(report)).await;
        let mut verdicts: HashMap<(String, u64), bool> = HashMap::new();
        // One that is told twice has one name.
        let told: HashSet<&AttemptRef> = attempts.iter().collect();
        while verdicts.len() < told.len() {
            let Receipt { accepted, refused } = self
                .find(|message| match message {
                    to_worker::Message::Receipt(receipt) => Some(receipt.clone()),
                    _ => None,
                })
                .await;
            verdicts.extend(accepted.into_iter().map(|attempt| ((attempt.job_id, attempt.token), true)));
            verdicts.extend(refused.into_iter().map(|attempt| ((attempt.job_id, attempt.token), false)));
        }
        attempts.into_iter().map(|attempt| verdicts[&(attempt.job_id, attempt.token)]).collect()
    }

    /// Tells an outcome and waits for nothing.
    pub(crate) async fn say(&self, assigned: &Assignment, end: outcome::End) {
        let outcomes = vec![Outcome { attempt: assigned.attempt.clone(), end: Some(end) }];
        self.send(from_worker::Message::Report(Report { outcomes, ..Report::default() })).await;
    }

    /// The jobs of the next receipt whose outcomes were accepted.
    pub(crate) async fn receipted(&mut self) -> Vec<String> {
        self.find(|message| match message {
            to_worker::Message::Receipt(receipt) => {
                Some(receipt.accepted.iter().map(|attempt| attempt.job_id.clone()).collect())
            }
            _ => None,
        })
        .await
    }

    /// What the service ends the stream with.
    pub(crate) async fn broken(&mut self) -> Fail {
        let end = async {
            loop {
                if let Err(status) = self.stream.message().await {
                    return Fail::from(status);
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("the stream breaks")
    }

    pub(crate) async fn succeed(&mut self, assigned: &Assignment, result: &str) -> bool {
        self.tell(vec![(assigned, succeeded(result))]).await[0]
    }

    pub(crate) async fn fail(&mut self, assigned: &Assignment, kind: &str, is_retryable: bool) -> bool {
        self.tell(vec![(assigned, failed(kind, is_retryable))]).await[0]
    }
}

pub(crate) fn succeeded(result: &str) -> outcome::End {
    outcome::End::Succeeded(Succeeded { result_json: result.to_owned(), files: Vec::new() })
}
pub(crate) fn failed(kind: &str, is_retryable: bool) -> outcome::End {
    outcome::End::Failed(Failed {
        kind: kind.to_owned(),
        message: "It did not work.".to_owned(),
        retryable: is_retryable,
        retry_after_s: None,
    })
}
pub(crate) fn retry_after(seconds: f64) -> outcome::End {
    let message = "It did not work.".to_owned();
    outcome::End::Failed(Failed { kind: "provider".into(), message, retryable: true, retry_after_s: Some(seconds) })
}
pub(crate) fn snoozed(seconds: f64) -> outcome::End {
    outcome::End::Snoozed(Snoozed { seconds })
}
pub(crate) fn cancelled(reason: &str) -> outcome::End {
    outcome::End::Cancelled(Cancelled { reason: reason.to_owned() })
}
pub(crate) fn stopped() -> outcome::End {
    outcome::End::Stopped(Stopped {})
}
pub(crate) fn interrupted() -> outcome::End {
    outcome::End::Interrupted(Interrupted {})
}
pub(crate) fn suspended(batch: &str) -> outcome::End {
    outcome::End::Suspended(Suspended { batch_id: batch.to_owned() })
}
