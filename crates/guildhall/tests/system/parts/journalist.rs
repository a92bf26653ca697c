//! Workers of somebody else's, built on the `worker` crate: each a process of its own whose one task writes into a journal
//! when an attempt starts and how it ends. The test kills them and starts others.

use std::{
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use kit::{
    Clock, Secret,
    grpc::{Credential, Peer},
    storage::Storage,
    tasks::Tasks,
    tls::{Files, Tls},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use worker::{Context, Ending, Failure, Place, Registry, Setup, SlotCommand, Task, Worker};

use super::{
    Parts,
    journal::{Journal, Journals, read},
};
use crate::{
    variable,
    wait::{SOON, until},
};

/// Attempts at once in each.
pub(super) const SLOTS: usize = 4;
pub(super) const TASK: &str = "demo_journal";
/// What the process is told, as JSON.
const TOLD: &str = "GUILDHALL_TEST_JOURNALIST";
/// Children that a finalize reads.
const CHILDREN: u32 = 200;

/// A worker that is there.
pub(super) struct Journalist {
    child: Child,
    pub(super) pid: u32,
}

impl Journalist {
    /// Starts one and waits until it may be given work.
    pub(super) async fn start(parts: &Parts, journals: &Journals) -> Self {
        let urls = |role: &str| -> Vec<String> {
            let processes = parts.processes().into_iter().filter(|process| process.role == role);
            processes.filter_map(|process| process.grpc).collect()
        };
        let told = json!({
            "jobs": urls("jobs"), "auth": urls("auth"), "key": parts.worker_key(), "done": journals.done,
            "data_dir": parts.apart.data_dir(),
        });
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "parts::journalist::journalist", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TOLD, told.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("this binary starts");
        let pid = child.id().expect("it runs");
        until("a worker to connect", SOON, async || {
            read(&journals.done).iter().any(|line| line["event"] == "ready" && line["pid"] == pid).then_some(())
        })
        .await;
        Self { child, pid }
    }

    /// `kill -9`; when it has died is written into the clients' journal.
    pub(super) async fn kill(mut self, asked: &Journal) {
        self.child.kill().await.expect("it ran");
        asked.write(json!({ "event": "died", "pid": self.pid }));
    }

    /// Lets it drain.
    pub(super) async fn close(mut self) {
        drop(self.child.stdin.take());
        let ended = tokio::time::timeout(SOON, self.child.wait()).await.expect("it drains in time");
        assert!(ended.expect("it can be waited for").success(), "a journalist did not end well");
    }
}

/// A worker's process, for other tests to start and kill; it drains at the end of its input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "other tests start it, in a process of its own"]
async fn journalist() {
    let Some(told) = variable(TOLD) else { return };
    let told: Value = serde_json::from_str(&told).expect("JSON");
    crate::house::install_tls();
    let text = |name: &str| told[name].as_str().expect("a text").to_owned();
    let urls = |name: &str| -> Vec<String> { serde_json::from_value(told[name].clone()).expect("URLs") };
    let data_dir = text("data_dir");
    let tls = Path::new(&data_dir).join("tls");
    let tasks = Tasks::new();
    let files = Files { cert: tls.join("worker-1.pem"), key: tls.join("worker-1.key"), ca: Some(tls.join("ca.pem")) };
    let tls = Tls::open(files, &tasks).expect("the certificates fit");
    let peer = |name| Peer::remote(name, &urls(name), Some(tls.clone()), &tasks).expect("URLs");
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let journal = Arc::new(Journal::open(Path::new(&text("done"))));
    let setup = Setup {
        settings: worker::Settings { worker_slots: SLOTS as u32, ..worker::Settings::default() },
        registry: Registry::new().with(Journaled(journal.clone())),
        jobs: peer("jobs"),
        credential: Credential::new(peer("auth"), Secret::new(text("key")), "worker_key"),
        storage: Storage::open(&format!("file://{data_dir}/files"), None, None).expect("storage"),
        scratch_dir: scratch.path().join("scratch"),
        // Its task never runs in one.
        slot_command: SlotCommand { program: "/bin/false".into(), args: Vec::new() },
        clock: Clock::system(),
        hooks: Vec::new(),
    };
    let mut worker = Worker::start(setup, &tasks).expect("a worker");
    worker.connected().await;
    journal.write(json!({ "event": "ready", "pid": std::process::id() }));
    let input = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    input.await.expect("no panic").expect("a pipe");
    tasks.stop();
    worker.ended().await;
}

/// The task: it takes `seconds`, fails its first `fails` attempts, or for good where it `gives_up`; as a finalize it counts
/// what became of the children. Its result names the attempt that reached it.
struct Journaled(Arc<Journal>);

impl Task for Journaled {
    fn name(&self) -> &'static str {
        TASK
    }
    fn queue(&self) -> &'static str {
        "default"
    }
    fn description(&self) -> &'static str {
        "Writes down when it starts and how it ends."
    }
    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": {
                "n": { "type": "integer" },
                "seconds": { "type": "number" },
                "fails": { "type": "integer" },
                "gives_up": { "type": "boolean" },
            },
            "additionalProperties": false,
        })
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        static RUNS: AtomicU64 = AtomicU64::new(1);
        let pid = std::process::id();
        let stamp = format!("{pid}-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        Box::pin(async move {
            let mut entry = Entry { journal: &self.0, stamp: &stamp, said: "dropped" };
            self.0.write(json!({
                "event": "start", "job": context.job_id(), "attempt": context.attempt(), "stamp": stamp, "pid": pid,
            }));
            let ended = carry_out(context, &args, &stamp).await;
            entry.said = match &ended {
                Ok(_) => "succeeded",
                Err(Failure::Stopped) => "stopped",
                Err(_) => "failed",
            };
            ended
        })
    }
}

async fn carry_out(context: &Context, args: &Value, stamp: &str) -> Result<Ending, Failure> {
    let length = Duration::from_secs_f64(args["seconds"].as_f64().unwrap_or(0.0));
    tokio::select! {
        () = tokio::time::sleep(length) => {}
        () = context.stopping() => return Err(Failure::Stopped),
    }
    if args["gives_up"] == true {
        return Err(Failure::permanent("journal", "It gave up, as it was asked to."));
    }
    if u64::from(context.attempt()) <= args["fails"].as_u64().unwrap_or(0) {
        return Err(Failure::passing("journal", "It failed, as it was asked to."));
    }
    let mut result = json!({ "attempt": context.attempt(), "stamp": stamp });
    if context.is_finalize() {
        let children = context.children(None, CHILDREN).await?.items;
        let count = |state: &str| children.iter().filter(|child| child.state == state).count();
        result["counts"] =
            json!({ "total": children.len(), "succeeded": count("succeeded"), "failed": count("failed") });
    }
    Ok(Ending::Done(result))
}

/// Writes the end of a run down, also of one that is dropped in the middle.
struct Entry<'a> {
    journal: &'a Journal,
    stamp: &'a str,
    said: &'static str,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.journal.write(json!({ "event": "end", "stamp": self.stamp, "said": self.said }));
    }
}
