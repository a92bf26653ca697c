//! The production shape for tests that do harm to it or look into it: each opens one of its own, kills, stops and asks
//! single processes of it, and holds what all of them say against each other.
//!
//! | file | promises |
//! |---|---|
//! | `faults` | whatever is killed wherever it stands, all ends once and all is told |
//! | `mixed` | work of every kind ends once, by journals outside of the database; what it is made of: |
//! | `clients`, `journalist` | who asks and who works, each with a journal |
//! | `journal`, `reckoning` | the journals, and how they are held against what the API shows |
//! | `broker` | work goes on without RabbitMQ, and nothing of it stays untold |
//! | `methods` | each gRPC method asks, at its own port, who calls and what they may |
//! | `strangers` | each gRPC method that takes an id, at its own port, knows a stranger's as little as nobody's |
//! | `gateways` | who is disabled is shut out at every gateway within a second |
//! | `foreign` | no promises: a RabbitMQ client of somebody else's, which writes down what it hears |

mod broker;
mod clients;
mod faults;
mod foreign;
mod gateways;
mod journal;
mod journalist;
mod methods;
mod mixed;
mod reckoning;
mod strangers;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use kit::{
    grpc::Peer,
    tasks::Tasks,
    tls::{Files, Tls},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{
    person::Person,
    variable,
    wait::{SOON, until},
};

/// nginx, two gateways, two each of three services, three workers, Postgres and RabbitMQ.
const PROCESSES: usize = 14;

/// One that is open, for one test.
pub(crate) struct Parts {
    apart: apart::Apart,
    /// A file in here kills the process that comes to the point of its name.
    crashes: tempfile::TempDir,
    tasks: Tasks,
}

#[derive(Deserialize)]
struct Told {
    processes: Vec<Process>,
}

/// A process, as `apart.json` tells of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    pub(crate) role: String,
    pub(crate) pid: u32,
    pub(crate) grpc: Option<String>,
    pub(crate) ops: Option<String>,
}

impl Parts {
    /// With settings that every role gets, by their names.
    pub(crate) async fn open(settings: &[(&str, &str)]) -> Self {
        crate::house::install_tls();
        let crashes = tempfile::tempdir().expect("a temporary directory");
        let mut env = vec![
            // Strong enough to be real, light enough for a test that signs many people in.
            ("GUILDHALL_PASSWORD_MEMORY_KIB".to_owned(), "8192".to_owned()),
            ("GUILDHALL_TEST_CRASH_DIR".to_owned(), crashes.path().display().to_string()),
        ];
        env.extend(
            settings.iter().map(|(name, value)| (format!("GUILDHALL_{}", name.to_uppercase()), (*value).to_owned())),
        );
        for name in ["TMPDIR", "GUILDHALL_DEV_RUN", "LLVM_PROFILE_FILE"] {
            env.extend(variable(name).map(|value| (name.to_owned(), value)));
        }
        let options = apart::Options {
            data_dir: kit::testing::directory(),
            guildhall: env!("CARGO_BIN_EXE_guildhall").into(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            worker_slots: Some(1),
            pg_bin: variable("GUILDHALL_PG_BIN").map(PathBuf::from),
            env,
        };
        let opened = apart::Apart::open(options, |sentence: &dyn std::fmt::Display| println!("{sentence}")).await;
        let apart = opened.unwrap_or_else(|error| panic!("it does not open: {error}"));
        Self { apart, crashes, tasks: Tasks::new() }
    }

    /// Everything in it must drain by itself.
    pub(crate) async fn close(self) {
        self.tasks.stop();
        assert!(self.apart.close().await, "not everything ended by itself");
    }

    pub(crate) fn http(&self) -> &str {
        self.apart.http()
    }

    pub(crate) fn amqp_url(&self) -> String {
        self.apart.amqp_url()
    }

    /// Leads to the database as its superuser.
    pub(crate) fn database_url(&self) -> String {
        self.apart.database_url()
    }

    /// Each gateway's own door, past nginx.
    pub(crate) fn gateways(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Ready {
            http: String,
        }
        let ready = |number| {
            let path = format!("processes/gateway-{number}/ready.json");
            let text = fs::read(self.apart.data_dir().join(path)).expect("the gateway is ready");
            serde_json::from_slice::<Ready>(&text).expect("ready.json is as the contract says").http
        };
        [1, 2].map(ready).to_vec()
    }

    pub(crate) async fn newcomer(&self, name: &str) -> Person {
        Person::register(self.http(), name).await
    }

    pub(crate) async fn administrator(&self) -> Person {
        let password = fs::read_to_string(self.apart.administrator_file()).expect("the password is kept");
        Person::login(self.http(), apart::ADMIN_EMAIL, password.trim()).await
    }

    /// What workers show to `auth`.
    pub(crate) fn worker_key(&self) -> String {
        let key = fs::read_to_string(self.apart.data_dir().join("keys/worker")).expect("the key is kept");
        key.trim().to_owned()
    }

    /// What every process has logged, by the file.
    pub(crate) fn logs(&self) -> Vec<(String, Vec<u8>)> {
        let logs = fs::read_dir(self.apart.data_dir().join("logs")).expect("a folder");
        let logs = logs.map(|entry| entry.expect("an entry").path());
        logs.map(|path| (path.display().to_string(), fs::read(&path).expect("a log"))).collect()
    }

    /// Those that run now.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let text = fs::read(self.apart.told()).expect("it is open");
        serde_json::from_slice::<Told>(&text).expect("apart.json is as the contract says").processes
    }

    /// Kills the next process that comes to `point`.
    pub(crate) fn crash_at(&self, point: &str) {
        fs::write(self.crashes.path().join(point), []).expect("a file");
    }

    /// Whether nobody has come to `point` since.
    pub(crate) fn is_armed(&self, point: &str) -> bool {
        self.crashes.path().join(point).exists()
    }

    pub(crate) fn send(&self, process: &Process, signal: Signal) {
        kill(Pid::from_raw(process.pid.try_into().expect("a pid is small")), signal).expect("it is there");
    }

    /// Waits until every process is there and ready, and the door is open; how long that took.
    pub(crate) async fn recovers(&self) -> Duration {
        let started = Instant::now();
        let http = reqwest::Client::new();
        let is_ready = async |url: String| {
            let answer = http.get(url).timeout(SOON).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        until("everything to be there and ready", SOON, async || {
            let processes = self.processes();
            if processes.len() < PROCESSES {
                return None;
            }
            for ops in processes.into_iter().filter_map(|process| process.ops) {
                if !is_ready(format!("{ops}/readyz")).await {
                    return None;
                }
            }
            is_ready(format!("{}/readyz", self.http())).await.then_some(())
        })
        .await;
        started.elapsed()
    }

    /// Each replica of a role at its own port, for a caller with a certificate of the same authority.
    pub(crate) fn peers(&self, role: &str) -> Vec<Peer> {
        let tls = self.apart.data_dir().join("tls");
        let files =
            Files { cert: tls.join("gateway-1.pem"), key: tls.join("gateway-1.key"), ca: Some(tls.join("ca.pem")) };
        let tls = Tls::open(files, &self.tasks).expect("the certificates fit");
        let urls =
            self.processes().into_iter().filter(|process| process.role == role).filter_map(|process| process.grpc);
        let peer = |url| Peer::remote("tested", &[url], Some(tls.clone()), &self.tasks).expect("a URL");
        urls.map(peer).collect()
    }
}
