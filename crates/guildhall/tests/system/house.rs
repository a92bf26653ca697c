//! A running Guildhall with a data directory of its own, and every way to end it. What a test starts here ends with the
//! test, however the test ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    person::Person,
    variable,
    wait::{SOON, until},
};

/// Attempts at once in every house; the memory test counts on it.
pub(crate) const SLOTS: u32 = 2;

pub(crate) struct House {
    dir: tempfile::TempDir,
    settings: BTreeMap<String, String>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    ready: Ready,
    /// What it has said on standard output so far.
    said: Arc<Mutex<String>>,
}

/// `ready.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) http: String,
    pub(crate) ops: String,
    pub(crate) grpc: BTreeMap<String, String>,
    pub(crate) pid: u32,
}

impl House {
    /// A new house with nothing in it.
    pub(crate) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// A new house with settings of its own, by their names.
    pub(crate) async fn open_with(settings: &[(&str, &str)]) -> Self {
        let mut house = Self::closed(settings);
        house.reopen().await;
        house
    }

    /// A house that is not open yet.
    pub(crate) fn closed(settings: &[(&str, &str)]) -> Self {
        install_tls();
        let dir = tempfile::Builder::new()
            .prefix("guildhall-system-")
            // A root's Postgres is an ordinary user, who has to pass through.
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory");
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { dir, settings, running: None }
    }

    /// Starts the binary in the house's directory and waits until it is ready.
    pub(crate) async fn reopen(&mut self) {
        self.open_by(&["up", "--no-sample"]).await;
    }

    /// As [`reopen`](Self::reopen), by a command line that is the test's.
    pub(crate) async fn open_by(&mut self, arguments: &[&str]) {
        assert!(self.running.is_none(), "the house is open");
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let said = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().expect("the pipe was asked for");
        let opened = listen(stdout, said.clone());
        let is_open = tokio::select! {
            opened = tokio::time::timeout(SOON, opened) => matches!(opened, Ok(Ok(()))),
            _ = child.wait() => false,
        };
        if !is_open {
            let log = self.log();
            let _gone = child.start_kill();
            panic!("the house did not open; it said:\n{}\nand logged:\n{log}", said.lock());
        }
        let ready = fs::read(self.data_dir().join("ready.json")).expect("an open house has a ready.json");
        let ready: Ready = serde_json::from_slice(&ready).expect("ready.json is as the contract says");
        assert_eq!(Some(ready.pid), child.id());
        self.running = Some(Running { child, ready, said });
    }

    /// The binary with this house's settings and nothing else of our environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guildhall"));
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("GUILDHALL_DATA_DIR", self.data_dir())
            .env("GUILDHALL_HTTP_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_OPS_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_WORKER_SLOTS", SLOTS.to_string())
            .env("GUILDHALL_LOG_FILTER", "info,gateway=warn")
            // Strong enough to be real, light enough for a test that signs many people in.
            .env("GUILDHALL_PASSWORD_MEMORY_KIB", "8192")
            // As a shell starts it, so that a signal can be sent as a terminal sends it: to the whole group.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(log.expect("a log file"));
        for name in ["PATH", "TMPDIR", "GUILDHALL_PG_BIN", "GUILDHALL_DEV_RUN", "LLVM_PROFILE_FILE"] {
            if let Some(value) = variable(name) {
                command.env(name, value);
            }
        }
        for (name, value) in &self.settings {
            command.env(format!("GUILDHALL_{}", name.to_uppercase()), value);
        }
        command
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Everything that was logged, by every life of the house.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What the present life has said on standard output.
    pub(crate) fn said(&self) -> String {
        self.running().said.lock().clone()
    }

    pub(crate) fn ready(&self) -> &Ready {
        &self.running().ready
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running().ready.pid
    }

    /// Somebody new, signed in.
    pub(crate) async fn newcomer(&self, name: &str) -> Person {
        Person::register(&self.ready().http, name).await
    }

    /// The first administrator, by the password that the house has kept.
    pub(crate) async fn administrator(&self) -> Person {
        let password = fs::read_to_string(self.data_dir().join("keys/administrator")).expect("the password is kept");
        Person::login(&self.ready().http, "admin@guildhall.localhost", password.trim()).await
    }

    /// Leads to the private database as its superuser.
    pub(crate) fn database_url(&self) -> String {
        let home = fs::read_to_string(self.data_dir().join("postgres.location"))
            .map_or_else(|_| self.data_dir(), |text| PathBuf::from(text.lines().next().unwrap_or_default()));
        let socket = home.join("postgres.socket");
        format!("postgresql://guildhall@localhost:5432/guildhall?host={}&sslmode=disable", socket.display())
    }

    /// Every process of the house but the first: children, their children, and so on.
    pub(crate) fn family(&self) -> Vec<Process> {
        let mut processes = Process::all();
        let mut known = BTreeSet::from([self.pid()]);
        let mut family = Vec::new();
        loop {
            let (found, others): (Vec<_>, Vec<_>) =
                processes.into_iter().partition(|process| known.contains(&process.parent));
            if found.is_empty() {
                return family;
            }
            known.extend(found.iter().map(|process| process.pid));
            family.extend(found);
            processes = others;
        }
    }

    /// The worker's children.
    pub(crate) fn slots(&self) -> Vec<Process> {
        self.family().into_iter().filter(|process| process.command.contains("run-slot")).collect()
    }

    /// The private server's first process.
    pub(crate) fn postgres(&self) -> Process {
        let pid = self.pid();
        let mut family = self.family().into_iter();
        family.find(|process| process.parent == pid && process.command.contains("postgres")).expect("Postgres runs")
    }

    /// `kill -9` for every process there is, as a power cut would.
    pub(crate) async fn kill(&mut self) {
        let family = self.family();
        let mut running = self.running.take().expect("the house is open");
        send(running.ready.pid, Signal::SIGKILL);
        for process in &family {
            send(process.pid, Signal::SIGKILL);
        }
        running.child.wait().await.expect("it has ended");
        nothing_runs(&family).await;
    }

    /// `kill -9` for the binary alone; its children notice by themselves.
    pub(crate) async fn kill_parent(&mut self) {
        let family = self.family();
        let mut running = self.running.take().expect("the house is open");
        send(running.ready.pid, Signal::SIGKILL);
        running.child.wait().await.expect("it has ended");
        nothing_runs(&family).await;
    }

    /// Sends one signal to the binary.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Ctrl-C at a terminal: the signal reaches every process of the group.
    pub(crate) fn ctrl_c(&self) {
        let group = Pid::from_raw(self.pid().try_into().expect("a pid is small"));
        killpg(group, Signal::SIGINT).expect("the group is there");
    }

    /// Waits until the binary has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let family = self.family();
        let mut running = self.running.take().expect("the house is open");
        let status =
            tokio::time::timeout(SOON, running.child.wait()).await.expect("it ends").expect("it can be waited for");
        nothing_runs(&family).await;
        status
    }

    /// Asks the house to stop; it must end well and leave nothing running.
    pub(crate) async fn close(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "the house did not close well:\n{}", self.log());
        assert!(!self.data_dir().join("ready.json").exists(), "a closed house says that it is ready");
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the house is open")
    }
}

impl Drop for House {
    /// After a test that failed halfway: everything by force.
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            let family = self.family();
            send(running.ready.pid, Signal::SIGKILL);
            for process in family {
                send(process.pid, Signal::SIGKILL);
            }
            println!("the house's log:\n{}", self.log());
        }
        // Where Postgres could not reach the directory, its cluster is elsewhere, and is ours to remove.
        if let Ok(location) = fs::read_to_string(self.data_dir().join("postgres.location")) {
            let elsewhere = PathBuf::from(location.lines().next().unwrap_or_default());
            if elsewhere.starts_with("/var/lib/guildhall") {
                let _gone_already = fs::remove_dir_all(elsewhere);
            }
        }
    }
}

/// A process as `/proc` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) command: String,
    /// In clock ticks since the machine started; with the pid it names a process for ever.
    started: u64,
}

impl Process {
    fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").expect("/proc can be read");
        entries.filter_map(|entry| Self::look(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// None for one that has ended, also while nobody has waited for it.
    fn look(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything; the fields follow the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
            started: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::look(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// The most memory it has had at once, in bytes.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        memory_peak_bytes(self.pid)
    }

    pub(crate) fn kill(&self) {
        send(self.pid, Signal::SIGKILL);
    }
}

/// The most memory a process has had at once, in bytes; 0 for one that has ended.
pub(crate) fn memory_peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().expect("a pid is small"));
    // One that has ended needs no signal.
    let _ended = kill(pid, signal);
}

async fn nothing_runs(family: &[Process]) {
    until("every process of the house to end", SOON, async || {
        let left: Vec<_> = family.iter().filter(|process| process.is_alive()).collect();
        left.is_empty().then_some(())
    })
    .await;
}

/// Keeps what is said, and resolves when it is said that the house is open.
fn listen(stdout: tokio::process::ChildStdout, said: Arc<Mutex<String>>) -> tokio::sync::oneshot::Receiver<()> {
    let (open, opened) = tokio::sync::oneshot::channel();
    #[expect(clippy::disallowed_methods, reason = "it ends with the pipe it reads")]
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        let mut open = Some(open);
        while let Ok(Some(line)) = lines.next_line().await {
            // The last line of the banner.
            let is_open = line.trim_start().starts_with("stop ");
            said.lock().push_str(&format!("{line}\n"));
            if is_open && let Some(open) = open.take() {
                let _nobody_waits = open.send(());
            }
        }
    });
    opened
}

pub(crate) fn install_tls() {
    // Another test may have been first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
}
