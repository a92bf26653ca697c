//! `guildhall doctor`: looks at each thing that Guildhall needs, one line each, and says what to do about what is wrong.
//! It changes nothing but for a probe that it removes again, and works beside a running Guildhall.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
};

use kit::{Fail, private_postgres, storage::Storage};
use nix::sys::statvfs::statvfs;

use crate::{
    database, exit, say,
    settings::{File, Settings},
    up::ops::port_fail,
};

/// Below this much free space a first start cannot make its cluster and a batch its models.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What a look at one thing found: a sentence, and when it is wrong, the way out with it.
type Finding = Result<String, String>;

pub(crate) fn run(file: &File) -> ExitCode {
    let settings = match file.settle() {
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
    let findings = [
        ("configuration", Ok("every setting is valid; `guildhall check-config` shows them".to_owned())),
        ("data directory", data_dir(&settings.data_dir)),
        ("disk space", disk_space(&settings.data_dir)),
        ("Postgres", runtime.block_on(postgres(&settings))),
        ("file storage", runtime.block_on(storage(&settings))),
        ("http_listen", port(&settings, "http_listen", settings.gateway.http_listen)),
        ("ops_listen", port(&settings, "ops_listen", settings.process.ops_listen)),
    ];
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

async fn postgres(settings: &Settings) -> Finding {
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
    if !(server.may_create_roles && server.may_create_schemas) {
        return Err(format!(
            "version {}; the user of database_url may not create roles and schemas: grant it createrole and create on the \
             database, or let an administrator run `guildhall migrate` once",
            server.version
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
