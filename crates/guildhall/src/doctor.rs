//! `guildhall doctor [ROLE]...`: looks at each thing that `up` needs, or `serve` with these roles, one line each, and says
//! what to do about what is wrong. It changes nothing but for a probe that it removes again, and works beside a running
//! Guildhall.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use kit::{
    Fail, Secret,
    bus::{Bus, State},
    grpc::{Credential, Peer},
    private_postgres,
    storage::Storage,
    tasks::Tasks,
    tls::Tls,
};
use nix::sys::statvfs::statvfs;

use crate::{
    database, exit,
    house::{grpc_address, port_fail},
    roles::{Role, Roles},
    say,
    settings::{File, Settings},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at what `serve` with these roles needs; without any, at what `up` needs
    #[arg(value_name = "ROLE")]
    roles: Vec<Role>,
    #[command(flatten)]
    file: File,
}

/// How long another process may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Below this much free space a first start cannot make its cluster and a batch its models.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What a look at one thing found: a sentence, and when it is wrong, the way out with it.
type Finding = Result<String, String>;

pub(crate) fn run(args: &Args) -> ExitCode {
    let roles = Roles::said(&args.roles);
    let settings = match args.file.settle(&roles) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say::error(format_args!("the runtime does not start: {error}"));
            return exit::FAILED;
        }
    };
    let findings = runtime.block_on(look(&settings, &roles));
    let (good, bad) = (say::good(), say::bad());
    let mut wrong = 0;
    for (name, finding) in findings {
        match finding {
            Ok(sentence) => say::line(format_args!("{good}ok   {good:#} {name:<15} {sentence}")),
            Err(sentence) => {
                wrong += 1;
                say::line(format_args!("{bad}wrong{bad:#} {name:<15} {sentence}"));
            }
        }
    }
    if wrong == 0 { exit::DONE } else { exit::FAILED }
}

async fn look(settings: &Settings, roles: &Roles) -> Vec<(&'static str, Finding)> {
    let mut findings = vec![
        ("configuration", Ok("every setting is valid; `guildhall check-config` shows them".to_owned())),
        ("data directory", data_dir(&settings.data_dir)),
        ("disk space", disk_space(&settings.data_dir)),
    ];
    if roles.services().next().is_some() {
        findings.push(("Postgres", postgres(settings, roles).await));
    }
    if let Some(url) = &settings.process.amqp_url {
        findings.push(("RabbitMQ", rabbitmq(url).await));
    }
    if roles.any(Role::needs_storage) {
        findings.push(("file storage", storage(settings).await));
    }
    findings.extend(others(settings, roles).await);
    if roles.has(Role::Gateway) {
        findings.push(("http_listen", port(settings, "http_listen", settings.gateway.http_listen)));
    }
    findings.push(("ops_listen", port(settings, "ops_listen", settings.process.ops_listen)));
    let ports = roles.services().filter_map(|role| grpc_address(settings.process.grpc_listen, role, roles.is_up));
    findings.extend(ports.map(|address| ("grpc_listen", port(settings, "grpc_listen", address))));
    findings
}

/// The nearest directory at or above `path` that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn data_dir(path: &Path) -> Finding {
    let existing = existing(path);
    let probe = tempfile_in(existing);
    match probe {
        Ok(()) if existing == path => Ok(format!("{} can be written", path.display())),
        Ok(()) => Ok(format!("{} will be made at the first start", path.display())),
        Err(error) => Err(format!(
            "{} cannot be written ({error}): give it to this user, or choose another with GUILDHALL_DATA_DIR",
            existing.display()
        )),
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".guildhall-doctor-{}", std::process::id()));
    std::fs::write(&probe, b"probe")?;
    std::fs::remove_file(&probe)
}

fn disk_space(path: &Path) -> Finding {
    let existing = existing(path);
    let free = statvfs(existing).map(|disk| disk.blocks_available() * disk.fragment_size());
    let free = free.map_err(|error| format!("{} does not tell ({error})", existing.display()))?;
    let gib = Gib(free);
    if free < FREE_BYTES_MIN {
        return Err(format!("{gib} free at {}: make room, at least {}", existing.display(), Gib(FREE_BYTES_MIN)));
    }
    Ok(format!("{gib} free at {}", existing.display()))
}

struct Gib(u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}

async fn postgres(settings: &Settings, roles: &Roles) -> Finding {
    let Some(url) = &settings.process.database_url else {
        let options = database::private_options(settings);
        let found = tokio::task::spawn_blocking(move || private_postgres::find_binaries(&options)).await;
        let found = found.map_err(|error| error.to_string())?;
        let (dir, major) = found.map_err(|error| error.to_string())?;
        return Ok(format!("a private one of version {major} from {}", dir.display()));
    };
    let server = kit::db::inspect(url.expose()).await.map_err(|fail| told(&fail, "database_url"))?;
    if server.major < private_postgres::MAJOR_MIN {
        let least = private_postgres::MAJOR_MIN;
        return Err(format!("the server is version {}: {least} or newer is needed", server.version));
    }
    if !roles.is_up {
        let checked = kit::db::check(url.expose(), &database::schemas(roles.services())).await;
        checked.map_err(|fail| fail.message().to_owned())?;
        return Ok(format!("version {}, and its schemas are at this version", server.version));
    }
    let lacks = kit::db::lacks(url.expose(), &database::schemas(Role::ALL)).await;
    let lacks = lacks.map_err(|fail| told(&fail, "database_url"))?;
    if !(lacks.is_empty() || server.may_create_roles && server.may_create_schemas) {
        return Err(format!(
            "version {}; the user of database_url may not create roles and schemas: grant it createrole and create on the \
             database, or let an administrator run there: {};",
            server.version,
            lacks.join("; ")
        ));
    }
    Ok(format!("version {}, with the rights to migrate", server.version))
}

async fn storage(settings: &Settings) -> Finding {
    let Some(url) = &settings.process.storage_url else {
        return Ok("in the data directory".to_owned());
    };
    let (access, secret) = (&settings.process.storage_access_key, &settings.process.storage_secret_key);
    let probe = async {
        let storage = Storage::open(url, access.as_ref(), secret.as_ref())?;
        let key = format!("doctor/{}", std::process::id());
        let mut writer = storage.writer(&key)?;
        writer.write(bytes::Bytes::from_static(b"probe")).await?;
        writer.finish().await?;
        storage.remove(&key).await
    };
    match probe.await {
        Ok(()) => Ok("can be written to".to_owned()),
        Err(fail) => Err(told(&fail, "storage_url")),
    }
}

async fn rabbitmq(url: &Secret) -> Finding {
    let tasks = Tasks::new();
    let found = async {
        let bus = Bus::rabbitmq(url, &[], &tasks).map_err(|fail| told(&fail, "amqp_url"))?;
        let mut state = bus.state();
        let is_there =
            tokio::time::timeout(ANSWER_WITHIN, state.wait_for(|state| !matches!(state, State::Away(_)))).await;
        drop(is_there);
        let last = state.borrow().clone();
        match last {
            State::Connected => Ok("is connected to".to_owned()),
            State::Blocked(reason) => Err(format!("takes nothing for now: {reason}")),
            State::Away(reason) => Err(format!("cannot be connected to ({reason}): check amqp_url")),
        }
    };
    let found = found.await;
    tasks.abort().await;
    found
}

/// Each URL of each role elsewhere: whether a replica answers there, and serves.
async fn others(settings: &Settings, roles: &Roles) -> Vec<(&'static str, Finding)> {
    let tasks = Tasks::new();
    let process = &settings.process;
    let mut auth = None;
    let tls = match process.tls_files().map(|files| Tls::open(files, &tasks)).transpose() {
        Ok(tls) => tls,
        Err(fail) => return vec![("certificates", Err(fail.message().to_owned()))],
    };
    let mut findings = Vec::new();
    for role in roles.elsewhere() {
        for url in settings.urls_of(role) {
            let peer = match Peer::remote(role.name(), std::slice::from_ref(url), tls.clone(), &tasks) {
                Ok(peer) => peer,
                Err(fail) => return vec![(role.name(), Err(fail.message().to_owned()))],
            };
            let finding = match tokio::time::timeout(ANSWER_WITHIN, peer.connected()).await {
                Ok(()) => {
                    if role == Role::Auth {
                        auth = Some(peer);
                    }
                    Ok(format!("{url} serves"))
                }
                Err(_) => Err(format!(
                    "nobody serves at {url}: start it, or check {}_url and the certificates of both ends",
                    role.name()
                )),
            };
            findings.push((role.name(), finding));
        }
    }
    if let Some(auth) = auth {
        let worker_key = process.worker_key.as_ref().filter(|_| roles.has(Role::Worker));
        for (name, key) in [("service_key", process.service_key.as_ref()), ("worker_key", worker_key)] {
            if let Some(key) = key {
                findings.push((name, accepted(Credential::new(auth.clone(), key.clone(), name)).await));
            }
        }
    }
    tasks.abort().await;
    findings
}

/// Whether `auth` takes a key for what it is said to be.
async fn accepted(credential: Credential) -> Finding {
    match tokio::time::timeout(ANSWER_WITHIN, credential.call("doctor")).await {
        Ok(Ok(_)) => Ok("is known to auth".to_owned()),
        Ok(Err(fail)) => Err(fail.message().to_owned()),
        Err(_) => Err(format!("auth did not say within {} s whether it knows it", ANSWER_WITHIN.as_secs())),
    }
}

fn told(fail: &Fail, setting: &str) -> String {
    format!("{fail}: check {setting}")
}

fn port(settings: &Settings, name: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Ok(format!("{address} is free")),
        Err(_) if is_running(&settings.data_dir) => Ok(format!("{address} is taken: Guildhall runs")),
        Err(error) => Err(port_fail(name, address, &error).message().to_owned()),
    }
}

/// Whether the process that last said that it is ready still is.
fn is_running(data_dir: &Path) -> bool {
    let ready = std::fs::read(data_dir.join("ready.json")).ok();
    let ready: Option<serde_json::Value> = ready.and_then(|text| serde_json::from_slice(&text).ok());
    let pid = ready.and_then(|ready| i32::try_from(ready["pid"].as_i64()?).ok());
    pid.is_some_and(|pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok())
}
