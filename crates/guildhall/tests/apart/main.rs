//! The production shape on one machine: what dies is back, nothing is heard or left elsewhere. The scenarios that people
//! go through are tested in this shape by the tests of `system`.

#![allow(clippy::disallowed_methods, reason = "tests have settings and background work of their own")]

mod processes;

use std::{
    collections::BTreeSet,
    fmt,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use apart::{Apart, Options};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use processes::Process;
use serde::Deserialize;

/// Longest wait for anything. The bound only ends a test that has failed already.
const SOON: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Makes this test binary the owner of a directory; see `owner`.
const OWNER_OF: &str = "GUILDHALL_TEST_OWNER_OF";

/// `apart.json`.
#[derive(Debug, Deserialize)]
struct Told {
    http: String,
    processes: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Entry {
    role: String,
    pid: u32,
    grpc: Option<String>,
    ops: Option<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_is_back_at_once_on_its_own_ports_and_nothing_listens_beyond_loopback() {
    let dir = kit::testing::directory();
    let file = dir.join("apart.json");
    let mut owner = Owner::of(&dir);
    let http = owner.await_word("ready ");
    let told = read(&file);
    assert_eq!(told.http, http);
    let count = |role: &str| told.processes.iter().filter(|entry| entry.role == role).count();
    for (role, expected) in [("gateway", 2), ("auth", 2), ("jobs", 2), ("admin", 2), ("worker", 3)] {
        assert_eq!(count(role), expected, "{role}: {told:#?}");
    }
    for role in ["nginx", "postgres", "rabbitmq"] {
        assert_eq!(count(role), 1, "{role}: {told:#?}");
    }

    let family = Process::family(owner.child.id());
    let listeners = processes::listeners(&family);
    let elsewhere: Vec<_> = listeners.iter().filter(|(address, _)| !address.is_loopback()).collect();
    assert!(elsewhere.is_empty(), "something listens on {elsewhere:?}");
    // A port for the operations of each role, one for gRPC of each service, one for HTTP of each gateway, nginx, RabbitMQ.
    assert!(listeners.len() >= 21, "{listeners:?} are too few to be all");

    for victim in one_of_each(&told) {
        let since = Instant::now();
        send(victim.pid, Signal::SIGKILL);
        let back = until(&format!("another {}", victim.role), async || {
            let now = read(&file).processes;
            let others: BTreeSet<_> = told.processes.iter().map(|entry| entry.pid).collect();
            let is_back = |entry: &&Entry| entry.role == victim.role && !others.contains(&entry.pid);
            (now.len() == told.processes.len()).then(|| now.iter().find(is_back).cloned()).flatten()
        })
        .await;
        println!("{} is another process after {:?}", victim.role, since.elapsed());
        assert_eq!((&back.grpc, &back.ops), (&victim.grpc, &victim.ops), "{} has moved", victim.role);
        if let Some(ops) = &back.ops {
            until(&format!("{} to be ready", victim.role), async || is_ready(ops).await.then_some(())).await;
            println!("{} is ready after {:?}", victim.role, since.elapsed());
        }
    }
    until("all to be well behind the door", async || is_ready(&http).await.then_some(())).await;

    owner.closes().await;
    assert!(!file.exists(), "a closed one says what runs");
    for role in ["auth-1", "jobs-2", "gateway-1", "worker-3"] {
        let log = std::fs::read_to_string(dir.join(format!("logs/{role}.log"))).expect("a log");
        assert!(!log.contains("stopped at once"), "{role} was not let drain");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_runner_leaves_no_process_and_the_next_one_opens_the_same_directory() {
    let dir = kit::testing::directory();
    let mut owner = Owner::of(&dir);
    let http = owner.await_word("ready ");
    assert!(is_ready(&http).await);
    let family = Process::family(owner.child.id());
    assert!(family.len() > 15, "{family:#?}");
    // While it runs, nobody else gets the directory.
    let refusal = Apart::open(options(&dir), silent).await.expect_err("it is in use").to_string();
    assert!(refusal.contains(&format!("the process {}", owner.child.id())), "{refusal}");

    owner.child.kill().expect("it runs");
    owner.child.wait().expect("it has ended");

    nothing_runs(&family).await;
    let mut next = Owner::of(&dir);
    let http = next.await_word("ready ");
    assert!(is_ready(&http).await);
    next.closes().await;
    assert!(!dir.join("apart.json").exists());
}

/// A process for other tests to kill: it holds the production shape, tells where, and closes at the end of its input.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "other tests start it, in a process of its own"]
async fn owner() {
    let Some(dir) = variable(OWNER_OF) else { return };
    let apart = Apart::open(options(Path::new(&dir)), silent).await.expect("it opens");
    eprintln!("ready {}", apart.http());
    let input = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    input.await.expect("no panic").expect("a pipe");
    assert!(apart.close().await, "not everything ended in time");
}

/// The test `owner` in a process of its own.
struct Owner {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Owner {
    fn of(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "owner", "--ignored", "--nocapture", "--test-threads=1"])
            .env(OWNER_OF, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this binary starts");
        let said = BufReader::new(child.stderr.take().expect("a pipe"));
        Self { child, said }
    }

    /// Asks it to close, as Ctrl-C would: it must do so in time and leave nothing behind.
    async fn closes(&mut self) {
        let family = Process::family(self.child.id());
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("it has ended");
        assert!(status.success(), "it did not close in time");
        nothing_runs(&family).await;
    }

    /// Waits for a line with the word, and gives what follows it there.
    fn await_word(&mut self, word: &str) -> String {
        let mut said = String::new();
        loop {
            let start = said.len();
            assert_ne!(self.said.read_line(&mut said).expect("a pipe"), 0, "the owner ended: {said}");
            if let Some((_, rest)) = said[start..].split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn options(dir: &Path) -> Options {
    let ours = ["TMPDIR", "GUILDHALL_DEV_RUN", "LLVM_PROFILE_FILE"];
    Options {
        data_dir: dir.to_owned(),
        guildhall: env!("CARGO_BIN_EXE_guildhall").into(),
        http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        worker_slots: Some(1),
        pg_bin: variable("GUILDHALL_PG_BIN").map(PathBuf::from),
        env: ours.into_iter().filter_map(|name| Some((name.to_owned(), variable(name)?))).collect(),
    }
}

fn silent(_: &dyn fmt::Display) {}

fn read(told: &Path) -> Told {
    let text = std::fs::read(told).expect("an open one says what runs");
    serde_json::from_slice(&text).expect("apart.json is as the contract says")
}

fn one_of_each(told: &Told) -> Vec<Entry> {
    let mut seen = BTreeSet::new();
    told.processes.iter().filter(|entry| seen.insert(entry.role.clone())).cloned().collect()
}

async fn is_ready(base: &str) -> bool {
    // Plain HTTP needs no TLS, and the client is not made without.
    let _installed_already = rustls::crypto::ring::default_provider().install_default();
    let answer = reqwest::Client::new().get(format!("{base}/readyz")).timeout(Duration::from_secs(5)).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

async fn nothing_runs(family: &[Process]) {
    until("every process to end", async || {
        let left: Vec<_> = family.iter().filter(|process| process.is_alive()).collect();
        left.is_empty().then_some(())
    })
    .await;
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let Ok(seen) = tokio::time::timeout(SOON, looking).await else { panic!("waited in vain for {what}") };
    seen
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("it runs");
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
