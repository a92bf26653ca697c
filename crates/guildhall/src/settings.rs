//! The settings of the whole process: each role's own, and those that belong to no role. They are read once, at the
//! start, and every fault is told at once.

mod lacks;

use std::{
    ffi::OsString,
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kit::{
    Fail, Secret,
    config::{Field, Source},
    telemetry::{LogFormat, init_logs},
};

use crate::{
    exit,
    roles::{Role, Roles},
    say,
};

/// The file that is read when none is named, if it is there.
const FILE: &str = "guildhall.toml";
/// The variable that names another.
const FILE_VARIABLE: &str = "GUILDHALL_CONFIG";

/// What is logged where nothing is said about it. The pool warns of a connection that breaks while it is given back, as
/// some do when the private Postgres stops; nothing is lost with it.
const LOG_ELSEWHERE: &str = "info,sqlx_core::pool::connection=error";
const LOG_AT_A_TERMINAL: &str = "warn,sqlx_core::pool::connection=error";

kit::settings! {
    /// What belongs to the process and to no one role.
    pub(crate) struct Process {
        /// The directory of all that is kept on this machine: database, files, keys. Unset: `/var/lib/guildhall/data` for
        /// root, else `guildhall` under `$XDG_DATA_HOME` or `~/.local/share`. One process at a time may use it.
        pub(crate) data_dir: Option<PathBuf> = "",
        /// Postgres 15 or newer, as `postgresql://user:password@host/database`. Unset in `up`: a private server in `data_dir`,
        /// which starts and stops with this process. `serve` needs it for services.
        pub(crate) database_url: Option<Secret> = "",
        /// The directory of `postgres` and `initdb` for the private server. Unset: they are looked for where packages put
        /// them.
        pub(crate) pg_bin: Option<PathBuf> = "",
        /// Where the bytes of files lie: `file:///folder`, or `s3://bucket/prefix?endpoint=https://host&region=name`. Unset in
        /// `up`: `files` in `data_dir`. `serve` needs it for gateway, jobs and worker, which all read and write there.
        pub(crate) storage_url: Option<String> = "",
        /// The access key of an `s3:` storage.
        pub(crate) storage_access_key: Option<Secret> = "",
        /// The secret key of an `s3:` storage.
        pub(crate) storage_secret_key: Option<Secret> = "",
        /// Where metrics (`/metrics`) and probe details (`/livez`, `/readyz`) are served, as address and port. They tell of
        /// the inside, so never on the public listener. Port 0 picks a free one.
        pub(crate) ops_listen: SocketAddr = "127.0.0.1:9464",
        /// The URL by which people reach the API; it is the issuer of access tokens, so all roles must be told the same.
        /// Unset in `up`: `http_listen` as a URL, which is right on one machine only. `serve` needs it for all but a worker.
        pub(crate) public_url: Option<String> = "",
        /// RabbitMQ 3.10 or newer, as `amqp://user:password@host/vhost`, by which services in several processes tell each other
        /// what happened. Unset: told within this process, which must then be the only one with services.
        pub(crate) amqp_url: Option<Secret> = "",
        /// Where a service answers other processes over gRPC, as address and port. Unset: nowhere in `up`; in `serve` on
        /// 127.0.0.1 and the service's own port, auth 7001, jobs 7002, admin 7005. Port 0 picks a free one; a process with
        /// several services can be given no other, since each has its own. `ready.json` tells them; those of `up` have
        /// gRPC reflection, for tools that show an access token.
        pub(crate) grpc_listen: Option<SocketAddr> = "",
        /// Where the role `auth` is reached when it is not in this process, as `http://host:7001`, with certificates as
        /// `https://host:7001`. Several replicas: separated by commas, or a name that stands for all of their addresses.
        pub(crate) auth_url: Vec<String> = "",
        /// Where the role `jobs` is reached, likewise.
        pub(crate) jobs_url: Vec<String> = "",
        /// Where the role `admin` is reached, likewise. Every process tells it how it fares.
        pub(crate) admin_url: Vec<String> = "",
        /// The certificate, in PEM with its chain, that this process shows on gRPC to those who call it and, with
        /// `tls_ca_file`, to those whom it calls. Read again when it changes. Unset: gRPC without TLS.
        pub(crate) tls_cert_file: Option<PathBuf> = "",
        /// The private key of `tls_cert_file`, in PEM.
        pub(crate) tls_key_file: Option<PathBuf> = "",
        /// The CA, in PEM, of which everybody on gRPC must show a certificate: those who call this process, and those whom
        /// it calls. Unset: callers show none, and the system's CAs vouch for those who are called.
        pub(crate) tls_ca_file: Option<PathBuf> = "",
        /// The key by which the roles of this installation are known to `auth`, the same in every process: `gld_`, 32
        /// hexadecimal digits, `_`, 64 more, all random. Unset in `up`: made and kept in `data_dir`. `serve` needs it for all
        /// but a worker, which should not be told it.
        pub(crate) service_key: Option<Secret> = "",
        /// The key by which workers are known to `auth`, written likewise and not the same. `serve` needs it for auth and
        /// worker.
        pub(crate) worker_key: Option<Secret> = "",
        /// Whether the tasks `demo_*` are offered. They only show and test the engine. Unset: in `up` they are, in `serve`
        /// they are not.
        pub(crate) demo_tasks: Option<bool> = "",
        /// Seconds that everything together has to end by itself after the first signal; what is left then is dropped, and
        /// the exit code says so. More than the worker's `worker_drain_s` and `worker_grace_s` and 5 s.
        pub(crate) drain_s: u32 = "45",
        /// What is logged, as in `info,jobs=debug`. Unset: `info`, and on a terminal `warn`, where people want the answer.
        pub(crate) log_filter: Option<String> = "",
        /// `text`, `json`, or `auto`: text on a terminal and JSON lines elsewhere.
        pub(crate) log_format: LogFormat = "auto",
        /// The collector of traces, as `http://host:4317` (OTLP over gRPC). Unset: none are made. One that is away costs the
        /// spans that do not reach it and nothing else.
        pub(crate) otlp_endpoint: Option<String> = "",
        /// Share of traces that are recorded, 0 to 1. The gateway decides, whatever a `traceparent` from outside asks for;
        /// what it calls goes along.
        pub(crate) trace_ratio: f64 = "1",
    }
}

impl Process {
    /// Where the certificates of gRPC lie, if there are any.
    pub(crate) fn tls_files(&self) -> Option<kit::tls::Files> {
        let (cert, key) = (self.tls_cert_file.clone()?, self.tls_key_file.clone()?);
        Some(kit::tls::Files { cert, key, ca: self.tls_ca_file.clone() })
    }
}

/// Where a command reads its settings from, beside the environment.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct File {
    /// The settings file; GUILDHALL_CONFIG or ./guildhall.toml when left out
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl File {
    /// The settings for a process with these roles, with the log started as they say. Faults go to standard error.
    ///
    /// # Errors
    /// The exit code of a configuration with faults.
    pub(crate) fn settle(&self, roles: &Roles) -> Result<Settings, ExitCode> {
        let settings = match self.read(roles) {
            Ok((settings, _)) => settings,
            Err(faults) => {
                say::faults(&faults);
                return Err(exit::usage());
            }
        };
        match settings.start_log() {
            Ok(()) => Ok(settings),
            Err(fail) => {
                say::faults(&[format!("log_filter: {}", fail.message())]);
                Err(exit::usage())
            }
        }
    }

    /// As [`Settings::load`].
    ///
    /// # Errors
    /// Every fault there is, a sentence each.
    pub(crate) fn read(&self, roles: &Roles) -> Result<(Settings, Vec<Effective>), Vec<String>> {
        Settings::load(self.config.as_deref(), roles)
    }
}

/// Every setting of the process.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) process: Process,
    pub(crate) gateway: gateway::Settings,
    pub(crate) auth: auth::Settings,
    pub(crate) jobs: jobs::Settings,
    pub(crate) admin: admin::Settings,
    pub(crate) worker: worker::Settings,
    /// Resolved from `process.data_dir`; absolute.
    pub(crate) data_dir: PathBuf,
}

/// One setting in effect, for people.
#[derive(Debug)]
pub(crate) struct Effective {
    pub(crate) name: &'static str,
    /// As in a variable; a secret's is `***`.
    pub(crate) value: String,
    /// Where it was said; none for a default.
    pub(crate) place: Option<String>,
}

/// The sections of the default file, in its order.
pub(crate) const PARTS: &[(&str, &[Field])] = &[
    ("process", Process::FIELDS),
    ("gateway", gateway::Settings::FIELDS),
    ("auth", auth::Settings::FIELDS),
    ("jobs", jobs::Settings::FIELDS),
    ("admin", admin::Settings::FIELDS),
    ("worker", worker::Settings::FIELDS),
];

impl Settings {
    /// Reads `file`, else the one that `GUILDHALL_CONFIG` names, else `guildhall.toml` where it is there; then the
    /// variables over it; and holds them against what `roles` need.
    ///
    /// # Errors
    /// Every fault there is, a sentence each.
    fn load(file: Option<&Path>, roles: &Roles) -> Result<(Self, Vec<Effective>), Vec<String>> {
        let Environment { variables, file: named, home, faults } = Environment::read();
        let named = file.map(Path::to_owned).or(named);
        let mut source = Source::read(named.as_deref().unwrap_or(Path::new(FILE)), named.is_some(), variables);
        for fault in faults {
            source.fault(fault);
        }
        let process = Process::take(&mut source);
        let data_dir = data_dir(process.data_dir.as_deref(), home, &mut source);
        let settings = Self {
            process,
            gateway: gateway::Settings::take(&mut source),
            auth: auth::Settings::take(&mut source),
            jobs: jobs::Settings::take(&mut source),
            admin: admin::Settings::take(&mut source),
            worker: worker::Settings::take(&mut source),
            data_dir,
        };
        for fault in settings.contradictions().into_iter().chain(settings.lacks(roles)) {
            source.fault(fault);
        }
        let effective = settings.effective(&source);
        match source.into_faults() {
            faults if faults.is_empty() => Ok((settings, effective)),
            faults => Err(faults),
        }
    }

    /// Where a role is reached that is not in this process.
    pub(crate) fn urls_of(&self, role: Role) -> &[String] {
        match role {
            Role::Auth => &self.process.auth_url,
            Role::Jobs => &self.process.jobs_url,
            Role::Admin => &self.process.admin_url,
            Role::Gateway | Role::Worker => &[],
        }
    }

    fn start_log(&self) -> Result<(), Fail> {
        let quiet = if std::io::stderr().is_terminal() { LOG_AT_A_TERMINAL } else { LOG_ELSEWHERE };
        init_logs(self.process.log_filter.as_deref().unwrap_or(quiet), self.process.log_format)
    }

    /// What only the values together show to be wrong.
    fn contradictions(&self) -> Vec<String> {
        let mut faults =
            [self.gateway.faults(), self.auth.faults(), self.jobs.faults(), self.admin.faults(), self.worker.faults()]
                .concat();
        let worker_s = self.worker.stop_within().as_secs();
        if u64::from(self.process.drain_s) <= worker_s {
            faults.push(format!("drain_s must be more than {worker_s}, the seconds in which the worker stops"));
        }
        if let Some(clause) = self.process.database_url.as_ref().and_then(|url| kit::db::url_fault(url.expose())) {
            faults.push(format!("database_url {clause}"));
        }
        if let Some(url) = &self.process.storage_url
            && !["file:///", "s3://"].iter().any(|start| url.starts_with(start))
        {
            faults.push(format!("storage_url must begin with file:/// or s3://, not `{url}`"));
        }
        let is_s3 = self.process.storage_url.as_deref().is_some_and(|url| url.starts_with("s3:"));
        if is_s3 && (self.process.storage_access_key.is_none() || self.process.storage_secret_key.is_none()) {
            faults.push("storage_url is of S3, which needs storage_access_key and storage_secret_key".to_owned());
        }
        if let Some(url) = &self.process.public_url {
            let is_url = url.starts_with("http://") || url.starts_with("https://");
            if !is_url || url.ends_with('/') {
                faults.push(format!(
                    "public_url must begin with http:// or https:// and end without a slash, not `{url}`"
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.process.trace_ratio) {
            faults.push("trace_ratio must be between 0 and 1".to_owned());
        }
        if let Some(endpoint) = &self.process.otlp_endpoint
            && !url::Url::parse(endpoint).is_ok_and(|url| url.scheme() == "http" && url.has_host())
        {
            faults.push(format!("otlp_endpoint must be as http://host:4317, not `{endpoint}`"));
        }
        if self.process.ops_listen == self.gateway.http_listen && self.process.ops_listen.port() != 0 {
            faults.push(
                "ops_listen and http_listen are the same address: the inside is never told on the public one".into(),
            );
        }
        faults
    }

    fn effective(&self, source: &Source) -> Vec<Effective> {
        let parts = [
            self.process.values(),
            self.gateway.values(),
            self.auth.values(),
            self.jobs.values(),
            self.admin.values(),
            self.worker.values(),
        ];
        let mut effective: Vec<Effective> = parts
            .into_iter()
            .flatten()
            .map(|(name, value)| Effective { name, value, place: source.place(name).map(str::to_owned) })
            .collect();
        if let Some(data_dir) = effective.iter_mut().find(|setting| setting.name == "data_dir") {
            data_dir.value = self.data_dir.display().to_string();
        }
        effective
    }
}

/// What the environment says about settings.
struct Environment {
    variables: Vec<(String, String)>,
    file: Option<PathBuf>,
    /// Where this user's programs keep their data.
    home: Option<PathBuf>,
    faults: Vec<String>,
}

impl Environment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment, for kit::config")]
    fn read() -> Self {
        let mut environment = Self { variables: Vec::new(), file: None, home: None, faults: Vec::new() };
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("GUILDHALL_")) else { continue };
            if name == FILE_VARIABLE {
                environment.file = Some(PathBuf::from(value)).filter(|file| !file.as_os_str().is_empty());
                continue;
            }
            match OsString::into_string(value) {
                Ok(value) => environment.variables.push((name.to_owned(), value)),
                Err(_) => environment.faults.push(format!("{name}: its value is not UTF-8")),
            }
        }
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        environment.home = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        environment
    }
}

fn data_dir(said: Option<&Path>, home: Option<PathBuf>, source: &mut Source) -> PathBuf {
    let chosen = match said {
        Some(dir) => dir.to_owned(),
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/guildhall/data"),
        None => match home {
            Some(home) => home.join("guildhall"),
            None => {
                source.fault("data_dir: neither it nor HOME is set, so there is no place to keep anything");
                PathBuf::new()
            }
        },
    };
    std::path::absolute(&chosen).unwrap_or(chosen)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_worker_may_be_given_as_many_slots_as_jobs_takes_of_one() {
        assert_eq!(worker::SLOTS_MAX, jobs::WORKER_SLOTS_MAX);
    }

    #[test]
    fn no_two_roles_declare_the_same_setting() {
        let mut seen = BTreeSet::new();
        for field in PARTS.iter().flat_map(|(_, fields)| *fields) {
            assert!(seen.insert(field.name), "{} is declared twice", field.name);
        }
    }
}
