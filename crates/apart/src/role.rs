//! How a role is run: `guildhall serve <role>` with nothing but variables to tell it where it is.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kit::private_server::account::Account;
use kit::private_server::confine::confine;
use kit::private_server::home::make_dir;
use kit::private_server::keeper::{Restart, Server};
pub(crate) use kit::private_server::log::Log;
use kit::private_server::{PlaceError, leftovers};
use nix::sys::signal::Signal;

use crate::Error;
use crate::keys::Keys;
use crate::shape::{Instance, Role};

/// What every role is told.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) guildhall: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) keys: Keys,
    pub(crate) http: SocketAddr,
    pub(crate) database_url: String,
    pub(crate) instances: Vec<Instance>,
    pub(crate) worker_slots: Option<u32>,
    pub(crate) env: Vec<(String, String)>,
}

impl Surroundings {
    /// Whether the process of this number has said that it is ready.
    pub(crate) fn is_ready(&self, instance: &Instance, pid: Option<u32>) -> bool {
        #[derive(serde::Deserialize)]
        struct Ready {
            pid: u32,
        }
        let Ok(text) = fs::read(self.dir(&instance.name()).join("ready.json")) else { return false };
        serde_json::from_slice::<Ready>(&text).is_ok_and(|ready| Some(ready.pid) == pid)
    }

    /// A process's own directory: its data directory, and the one that it works in, by which it is known.
    fn dir(&self, name: &str) -> PathBuf {
        self.data_dir.join("processes").join(name)
    }

    /// What every process is told, whatever its role: nothing that lets it in anywhere.
    fn command(&self, name: &str) -> Command {
        let dir = self.dir(name);
        let mut command = Command::new(&self.guildhall);
        // What it holds is taken up by others when it is gone, so it need not hear of our end in time.
        confine(&mut command, &Account::Ourselves, Signal::SIGKILL);
        command.current_dir(&dir).env("HOME", &dir).env("GUILDHALL_DATA_DIR", &dir).env("GUILDHALL_LOG_FORMAT", "json");
        command
    }

    fn serve(&self, instance: &Instance) -> Command {
        let mut command = self.command(&instance.name());
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        command
            .args(["serve", instance.role.as_str()])
            .env("GUILDHALL_STORAGE_URL", format!("file://{}", percent_encoded(&self.data_dir.join("files"))))
            .env("GUILDHALL_PUBLIC_URL", format!("http://{}", self.http))
            .env("GUILDHALL_DEMO_TASKS", "true")
            .env("GUILDHALL_OPS_LISTEN", loopback(instance.ops))
            .env("GUILDHALL_AUTH_URL", self.urls(Role::Auth))
            .env("GUILDHALL_JOBS_URL", self.urls(Role::Jobs))
            .env("GUILDHALL_ADMIN_URL", self.urls(Role::Admin))
            .env("GUILDHALL_TLS_CA_FILE", self.keys.ca())
            .env("GUILDHALL_TLS_CERT_FILE", self.keys.certificate(instance))
            .env("GUILDHALL_TLS_KEY_FILE", self.keys.certificate_key(instance));
        if instance.role != Role::Worker {
            command.env("GUILDHALL_SERVICE_KEY_FILE", self.keys.file("service"));
        }
        if let Some(port) = instance.grpc {
            command
                .env("GUILDHALL_GRPC_LISTEN", loopback(port))
                .env("GUILDHALL_DATABASE_URL", &self.database_url)
                .env("GUILDHALL_AMQP_URL_FILE", self.keys.file("amqp_url"));
        }
        match instance.role {
            Role::Auth => {
                command
                    .env("GUILDHALL_WORKER_KEY_FILE", self.keys.file("worker"))
                    .env("GUILDHALL_ADMIN_PASSWORD_FILE", self.keys.file("administrator"));
            }
            Role::Worker => {
                command.env("GUILDHALL_WORKER_KEY_FILE", self.keys.file("worker"));
                if let Some(slots) = self.worker_slots {
                    command.env("GUILDHALL_WORKER_SLOTS", slots.to_string());
                }
            }
            Role::Gateway => {
                // nginx, and nobody else, is believed about who is calling.
                command.env("GUILDHALL_TRUSTED_PROXIES", "127.0.0.1");
                if let Some(port) = instance.http {
                    command.env("GUILDHALL_HTTP_LISTEN", loopback(port));
                }
            }
            Role::Jobs | Role::Admin => {}
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Every replica of a role.
    fn urls(&self, role: Role) -> String {
        let ports = self.instances.iter().filter(|instance| instance.role == role).filter_map(|instance| instance.grpc);
        ports.map(|port| format!("https://127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }
}

/// A role's process, for its keeper.
#[derive(Debug)]
pub(crate) struct RoleServer {
    around: Arc<Surroundings>,
    instance: Instance,
    name: String,
    log: Log,
}

impl RoleServer {
    pub(crate) fn new(around: Arc<Surroundings>, instance: Instance) -> Result<Self, PlaceError> {
        let name = instance.name();
        make_dir(&around.dir(&name), 0o700)?;
        make_dir(&around.data_dir.join("files"), 0o700)?;
        let logs = around.data_dir.join("logs");
        make_dir(&logs, 0o700)?;
        let log = Log::new(logs.join(format!("{name}.log")));
        Ok(Self { around, instance, name, log })
    }

    pub(crate) fn log_file(&self) -> Log {
        self.log.clone()
    }
}

impl Server for RoleServer {
    fn name(&self) -> &str {
        &self.name
    }

    fn restart(&self) -> Restart {
        Restart::Always
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn command(&self) -> Command {
        self.around.serve(&self.instance)
    }

    /// A worker's children end by themselves when it is gone; here they end now.
    fn clear(&self) -> Result<(), PlaceError> {
        let program = self.around.guildhall.file_name().and_then(|name| name.to_str()).unwrap_or("guildhall");
        leftovers::end(&self.around.dir(&self.name), "Guildhall", &[program], Signal::SIGKILL)
    }

    fn leave(self) {}
}

/// Brings every schema to the binary's version.
pub(crate) async fn migrate(around: Arc<Surroundings>) -> Result<(), Error> {
    make_dir(&around.dir("migrate"), 0o700)?;
    let mut command = around.command("migrate");
    command.arg("migrate").env("GUILDHALL_DATABASE_URL", &around.database_url);
    // The kernel ends it with its thread, which lives until it has ended.
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.map_err(std::io::Error::other).flatten().map_err(PlaceError::io("run `guildhall migrate`"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Migration { said: String::from_utf8_lossy(&said).trim().to_owned() })
}

/// A path as it stands in a URL.
fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;

    let mut encoded = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(*byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes every write"),
        }
    }
    encoded
}
