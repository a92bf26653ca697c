//! Where a test's processes run: a directory, a database and keys of its own, and what every process of it is told.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use kit::testing::TestDatabase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::wait::SOON;

/// The first administrator's.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

pub(crate) struct Place {
    dir: tempfile::TempDir,
    database: TestDatabase,
    settings: BTreeMap<String, String>,
}

impl Place {
    /// With all that roles apart must be told but where the others are.
    pub(crate) async fn new() -> Self {
        let mut place = Self::without_settings().await;
        let files = place.dir.path().join("files");
        fs::create_dir(&files).expect("a folder");
        let key = || auth::new_service_key().expect("randomness").expose().clone();
        let url = place.database.url().to_owned();
        for (name, value) in [
            ("database_url", url),
            ("storage_url", format!("file://{}", files.display())),
            ("public_url", "http://guildhall.test".to_owned()),
            ("service_key", key()),
            ("worker_key", key()),
            ("admin_password", PASSWORD.to_owned()),
        ] {
            place.set(name, &value);
        }
        place
    }

    /// Where processes are told nothing.
    pub(crate) async fn without_settings() -> Self {
        // Another test may have been first.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("guildhall-serve-").tempdir().expect("a temporary directory");
        Self { dir, database: kit::testing::database("serve").await, settings: BTreeMap::new() }
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// As every process is told it.
    pub(crate) fn setting(&self, name: &str) -> String {
        self.settings[name].clone()
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    pub(crate) fn data_dir(&self, process: &str) -> PathBuf {
        self.dir.path().join(process)
    }

    /// Tells every later process where these services are.
    pub(crate) fn others_are_at(&mut self, services: &Process) {
        let urls = services.ready["grpc"].as_object().expect("an object").clone();
        for (role, url) in urls {
            self.set(&format!("{role}_url"), url.as_str().expect("a URL"));
        }
    }

    /// Where a role was said to be.
    pub(crate) fn address_of(&self, role: &str) -> String {
        self.settings[&format!("{role}_url")].trim_start_matches("http://").to_owned()
    }

    pub(crate) async fn migrate(&self) {
        let (code, said) = self.run("migrate", &["migrate"], &[]).await;
        assert_eq!(code, Some(0), "{said}");
    }

    /// Runs a command to its end: its exit code, and all that it said.
    pub(crate) async fn run(
        &self,
        process: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> (Option<i32>, String) {
        let output = self.command(process, arguments, settings).stderr(Stdio::piped()).output();
        let output = tokio::time::timeout(SOON, output).await.expect("it ends").expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    /// Starts a process and waits until it is open.
    pub(crate) async fn start(&self, process: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        let mut child = self.command(process, arguments, settings).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("the pipe was asked for")).lines();
        let mut said = String::new();
        let opened = async {
            while let Some(line) = lines.next_line().await.expect("UTF-8") {
                said.push_str(&line);
                said.push('\n');
                if line.contains("drains first") {
                    return true;
                }
            }
            false
        };
        let is_open = tokio::time::timeout(SOON, opened).await.unwrap_or(false);
        let log = self.log(process);
        assert!(is_open, "{process} did not open; it said:\n{said}\nand logged:\n{}", read(&log));
        let ready = fs::read(self.data_dir(process).join("ready.json")).expect("an open process has a ready.json");
        let ready = serde_json::from_slice(&ready).expect("ready.json is as the contract says");
        Process { child, ready, log, lines, client: reqwest::Client::new() }
    }

    fn log(&self, process: &str) -> PathBuf {
        self.dir.path().join(format!("{process}.log"))
    }

    fn command(&self, process: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.log(process)).expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_guildhall"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("GUILDHALL_DATA_DIR", self.data_dir(process))
            .env("GUILDHALL_HTTP_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_OPS_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_WORKER_SLOTS", "1")
            // Strong enough to be real, light enough for a test.
            .env("GUILDHALL_PASSWORD_MEMORY_KIB", "8192")
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        for name in ["PATH", "TMPDIR", "GUILDHALL_PG_BIN", "GUILDHALL_DEV_RUN", "LLVM_PROFILE_FILE"] {
            if let Some(value) = variable(name) {
                command.env(name, value);
            }
        }
        let all = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in all.chain(settings.iter().copied()) {
            command.env(format!("GUILDHALL_{}", name.to_uppercase()), value);
        }
        command
    }
}

/// A process that is open. It ends with the test, however the test ends.
pub(crate) struct Process {
    child: Child,
    /// `ready.json`.
    pub(crate) ready: Value,
    log: PathBuf,
    /// Kept, so that it may go on speaking.
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    client: reqwest::Client,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
        kill(Pid::from_raw(pid), signal).expect("it can be signalled");
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it is killed");
    }

    /// The exit code, once it has ended by itself.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        let status =
            tokio::time::timeout(SOON, self.child.wait()).await.expect("it ends").expect("it can be waited for");
        drop(self.lines);
        status.code()
    }

    /// Asks it to stop; it must end well.
    pub(crate) async fn close(self) {
        self.signal(Signal::SIGTERM);
        let log = self.log.clone();
        assert_eq!(self.ended().await, Some(0), "it did not close well:\n{}", read(&log));
    }

    pub(crate) async fn is_ready(&self) -> bool {
        let url = format!("{}/readyz", self.ready["ops"].as_str().expect("a URL"));
        self.client.get(url).send().await.expect("an answer").status().is_success()
    }

    /// The first administrator's access token.
    pub(crate) async fn signed_in(&self) -> String {
        let body = json!({ "email": "admin@guildhall.localhost", "password": PASSWORD });
        let (status, answer) = self.post("auth/login", None, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let request = self.client.post(self.url(path)).json(body);
        answer(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
        .await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        answer(self.client.get(self.url(path)).bearer_auth(token)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.ready["http"].as_str().expect("a gateway"))
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = tokio::time::timeout(SOON, request.send()).await.expect("in time").expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variables, which no service knows")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
