//! How long a job waits on an idle system: one at a time, from its submission to the start of its handler.
//!
//! Only who runs the handler knows when it started, so the roles run in this process, wired as `guildhall up` wires them:
//! `auth` and `jobs` behind their guard, a real worker on the real stream, a task of ours that looks at the clock.
//! graphile-worker is timed alike, from one process that submits and works.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use auth::Auth;
use futures::future::BoxFuture;
use jobs::Jobs;
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Credential, Guard, Peer},
    identity::{FetchKeys, Verifier},
    storage::Storage,
    tasks::Tasks,
};
use proto::{
    auth::{
        ListSigningKeysRequest, LoginRequest, sessions_client::SessionsClient, signing_keys_client::SigningKeysClient,
    },
    jobs::{JobSpec, SubmitJobsRequest, jobs_client::JobsClient},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use worker::{Context, Ending, Failure, Place, Registry, SlotCommand, Task, Worker};

use crate::{
    Fault, Options,
    ground::Ground,
    proof::{self, Counters},
    rows::{Report, Row, Spread, percentile},
    yardstick::graphile,
};

const BENCH: &str = "pickup";
const TASK: &str = "look_at_the_clock";
const ISSUER: &str = "http://guildhall.bench";
/// The first jobs warm both sides up and are not counted.
const WARM_UP: u32 = 20;
/// Between two jobs, so that each finds the system idle.
const PAUSE: Duration = Duration::from_millis(5);
const START_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Latencies in milliseconds, sorted.
struct Pickups {
    from_commit: Vec<f64>,
    from_call: Vec<f64>,
}

impl Pickups {
    fn new(mut from_commit: Vec<f64>, mut from_call: Vec<f64>) -> Self {
        from_commit.sort_by(f64::total_cmp);
        from_call.sort_by(f64::total_cmp);
        Self { from_commit, from_call }
    }
}

/// A figure's name, and where it is taken from.
type Figure = (&'static str, fn(&Pickups) -> f64);

const FIGURES: [Figure; 4] = [
    ("from_commit_p50", |pickups| percentile(&pickups.from_commit, 0.5)),
    ("from_commit_p99", |pickups| percentile(&pickups.from_commit, 0.99)),
    ("from_call_p50", |pickups| percentile(&pickups.from_call, 0.5)),
    ("from_call_p99", |pickups| percentile(&pickups.from_call, 0.99)),
];

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        report.say(&format!("pickup, round {round} of {}: guildhall", options.rounds));
        let url = ground.empty_database("house").await?;
        let before = Counters::read(&url).await?;
        ours.push(guildhall(&url, options.pickups, ground).await?);
        if round == 1 {
            report.prove("server", &proof::settings(&url).await?);
            let counted = Counters::read(&url).await?.since(before);
            report.prove("guildhall", &format!("{}; {counted}", proof::rows(&url).await?));
        }
        if let Some(tools) = &options.tools {
            report.say(&format!("pickup, round {round}: graphile-worker"));
            let url = ground.empty_database("graphile").await?;
            let before = Counters::read(&url).await?;
            let told = graphile::pickup(tools, &url, options.pickups).await?;
            if round == 1 {
                let counted = Counters::read(&url).await?.since(before);
                report.prove("graphile-worker", &format!("jobs: {}; {counted}", options.pickups + WARM_UP));
            }
            let ms = |us: Vec<f64>| us.into_iter().map(|us| us / 1000.0).collect();
            theirs.push(Pickups::new(ms(told.from_commit_us), ms(told.from_call_us)));
        }
    }
    let rows = FIGURES.into_iter().map(|(metric, of)| {
        let spread = |pickups: &[Pickups]| pickups.iter().map(of).collect::<Spread>();
        let yardstick = (!theirs.is_empty()).then(|| (graphile::NAME, spread(&theirs)));
        Row { metric, value: spread(&ours), unit: "ms", yardstick }
    });
    report.rows(BENCH, rows.collect());
    Ok(())
}

async fn guildhall(url: &str, count: u32, ground: &Ground) -> Result<Pickups, Fault> {
    let tasks = Tasks::new();
    let timed = time(url, count, ground, &tasks).await;
    // The pools go with the last of them, and what their sessions counted is told then.
    tasks.join(STOP_WITHIN).await;
    timed
}

async fn time(url: &str, count: u32, ground: &Ground, tasks: &Tasks) -> Result<Pickups, Fault> {
    let (started, mut starts) = mpsc::unbounded_channel();
    let (jobs, call) = open(url, Registry::new().with(LookAtTheClock { started }), ground, tasks).await?;
    let mut client = JobsClient::new(jobs);
    let (mut from_commit, mut from_call) = (Vec::new(), Vec::new());
    for n in 0..count + WARM_UP {
        let spec = JobSpec { task: TASK.to_owned(), args_json: "{}".to_owned(), ..JobSpec::default() };
        let called = Instant::now();
        client.submit(call.request(SubmitJobsRequest { jobs: vec![spec] })).await?;
        let answered = Instant::now();
        let at = tokio::time::timeout(START_WITHIN, starts.recv()).await?.ok_or("the worker is gone")?;
        if n >= WARM_UP {
            from_call.push(ms(called, at));
            from_commit.push(ms(answered, at));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Pickups::new(from_commit, from_call))
}

/// Milliseconds from one moment to another, which may come before it: a handler need not wait for the submitter to have
/// heard.
fn ms(from: Instant, to: Instant) -> f64 {
    let forth = to.saturating_duration_since(from).as_secs_f64();
    let back = from.saturating_duration_since(to).as_secs_f64();
    (forth - back) * 1000.0
}

/// Starts the roles on an empty database; the way to `jobs`, and the call of a person who is signed in.
async fn open(url: &str, registry: Registry, ground: &Ground, tasks: &Tasks) -> Result<(Peer, Call), Fault> {
    let clock = Clock::system();
    kit::db::migrate(url, auth::SCHEMA, &auth::MIGRATOR).await?;
    kit::db::migrate(url, jobs::SCHEMA, &jobs::MIGRATOR).await?;
    let storage = Storage::open(&format!("file://{}", ground.empty_folder("files")?.display()), None, None)?;

    let settings = auth::Settings::default();
    let (email, password) = (settings.admin_email.clone(), auth::new_password()?);
    let auth = Auth::start(settings, url, ISSUER, clock.clone(), tasks).await?;
    auth.ensure_first_admin(&password).await?;
    let key = auth::new_service_key()?;
    auth.ensure_service_key("worker", &["workers:connect"], &key).await?;
    let verifier = Verifier::new(ISSUER, keys_of(&auth));
    let guard = Guard::new(verifier);
    let auth_peer = Peer::local(auth.routes(), &guard);

    let jobs = Jobs::start(jobs::Settings::default(), url, storage.clone(), clock.clone(), tasks, true).await?;
    let jobs_peer = Peer::local(jobs.routes(), &guard);
    let setup = worker::Setup {
        settings: worker::Settings::default(),
        registry,
        jobs: jobs_peer.clone(),
        credential: Credential::new(auth_peer.clone(), key, "worker_key"),
        storage,
        scratch_dir: ground.empty_folder("scratch")?,
        slot_command: SlotCommand { program: ground.guildhall.clone(), args: vec!["run-slot".into()] },
        clock,
        hooks: vec![Arc::new(worker::Metrics::default())],
    };
    Worker::start(setup, tasks)?.connected().await;

    let login = LoginRequest { email, password: password.expose().clone() };
    let answer = SessionsClient::new(auth_peer).login(Call::anonymous("bench").request(login)).await?.into_inner();
    Ok((jobs_peer, Call::with_token(Secret::new(answer.access_token), "bench")))
}

/// How the signing keys are asked for; the method is public.
fn keys_of(auth: &Auth) -> FetchKeys {
    let no_keys: FetchKeys = Arc::new(|| Box::pin(async { Err(Fail::internal("public methods verify no token")) }));
    let peer = Peer::local(auth.routes(), &Guard::new(Verifier::new(ISSUER, no_keys)));
    Arc::new(move || {
        let mut client = SigningKeysClient::new(peer.clone());
        Box::pin(async move {
            let keys = client.list(Call::anonymous("keys").request(ListSigningKeysRequest {})).await?;
            Ok(keys.into_inner().jwks_json)
        })
    })
}

/// Tells when it was started, and is done.
#[derive(Debug)]
struct LookAtTheClock {
    started: mpsc::UnboundedSender<Instant>,
}

impl Task for LookAtTheClock {
    fn name(&self) -> &'static str {
        TASK
    }
    fn queue(&self) -> &'static str {
        "default"
    }
    fn description(&self) -> &'static str {
        "Tells when it was started."
    }
    fn schema(&self) -> Value {
        json!({ "type": "object" })
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, _context: &'a Context, _args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        let at = Instant::now();
        Box::pin(async move {
            self.started.send(at).map_err(Failure::internal)?;
            Ok(Ending::Done(Value::Null))
        })
    }
}
