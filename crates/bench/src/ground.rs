//! What every benchmark stands on: one folder that goes with us, and in it a private Postgres that syncs, as a real one
//! does. Each thing that is measured gets a database of its own in it.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::{
    private_postgres,
    private_rabbitmq::{self, PrivateRabbitMq},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{Fault, Options};

const SYNCS_FOR: Duration = Duration::from_millis(500);

/// The folder and the server.
#[derive(Debug)]
pub(crate) struct Ground {
    folder: tempfile::TempDir,
    postgres: private_postgres::PrivatePostgres,
    /// The `guildhall` that is measured.
    pub(crate) guildhall: PathBuf,
}

impl Ground {
    /// Makes the folder and starts Postgres in it, with syncs on.
    ///
    /// # Errors
    /// There is no Postgres, or no `guildhall` to measure.
    pub(crate) async fn start(options: &Options) -> Result<Self, Fault> {
        let guildhall = match &options.guildhall {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("guildhall"),
        };
        let guildhall = guildhall
            .canonicalize()
            .map_err(|error| format!("{}: {error}; build it first: cargo build -p guildhall", guildhall.display()))?;
        let folder = tempfile::Builder::new()
            .prefix("guildhall-bench-")
            // A root's Postgres runs as an ordinary user, who has to pass through.
            .permissions(Permissions::from_mode(0o711))
            .tempdir()?;
        let postgres = private_postgres::PrivatePostgres::start(private_postgres::Options {
            data_dir: folder.path().join("postgres"),
            bin_dir: options.pg_bin.clone(),
            durable: true,
        })
        .await?;
        Ok(Self { folder, postgres, guildhall })
    }

    /// Starts a private RabbitMQ in the folder.
    ///
    /// # Errors
    /// There is none, or it does not start.
    pub(crate) async fn rabbitmq(&self) -> Result<PrivateRabbitMq, Fault> {
        let options = private_rabbitmq::Options { data_dir: self.folder.path().join("rabbitmq") };
        Ok(PrivateRabbitMq::start(options).await?)
    }

    /// A folder of that name, empty.
    ///
    /// # Errors
    /// As the file system.
    pub(crate) fn empty_folder(&self, name: &str) -> Result<PathBuf, Fault> {
        let path = self.folder.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An empty database of that name; its URL, as the server's superuser.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn empty_database(&self, name: &str) -> Result<String, Fault> {
        let mut connection = PgConnection::connect(&self.postgres.url()).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {name} with (force)")))
            .execute(&mut connection)
            .await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await?;
        // What this wrote belongs to nobody's figures.
        sqlx::raw_sql("checkpoint").execute(&mut connection).await?;
        connection.close().await?;
        Ok(self.postgres.url().replacen("/guildhall?", &format!("/{name}?"), 1))
    }

    /// What the figures were taken on: cores, memory, the load of others, and how often a second the disk under the folder
    /// takes 8 KiB for good. On a file system in memory every commit is free and no figure with one means anything.
    ///
    /// # Errors
    /// As the system.
    pub(crate) fn machine(&self) -> Result<String, Fault> {
        let read = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
        };
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let path = self.folder.path().join("syncs");
        let mut file = fs::File::create(&path)?;
        let (started, mut syncs) = (Instant::now(), 0_u32);
        while started.elapsed() < SYNCS_FOR {
            file.write_all(&[0; 8192])?;
            file.sync_data()?;
            syncs += 1;
        }
        fs::remove_file(&path)?;
        Ok(format!(
            "{} x {}, {} GiB of memory; load {}; {:.0} fdatasync/s of 8 KiB on {}",
            std::thread::available_parallelism()?,
            read("/proc/cpuinfo", "model name"),
            read("/proc/meminfo", "MemTotal").split(' ').next().unwrap_or_default().parse::<u64>()? >> 20,
            load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            f64::from(syncs) / started.elapsed().as_secs_f64(),
            file_system(self.folder.path()),
        ))
    }

    /// Stops Postgres, and removes everything.
    pub(crate) async fn stop(self) {
        self.postgres.stop().await;
    }
}

/// The kind of file system that a path lies on.
fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let above = fields.filter(|fields| fields.get(1).is_some_and(|mount| path.starts_with(mount)));
    let nearest = above.max_by_key(|fields| fields[1].len());
    nearest.and_then(|fields| fields.get(2).map(|kind| (*kind).to_owned())).unwrap_or_else(|| "unknown".to_owned())
}
