//! graphile-worker, the fastest job queue on Postgres that was found, of one version and at the settings that made it
//! fastest: two processes of 24 attempts each that fetch 500 jobs ahead and complete in groups. It deletes what is done
//! and keeps no history.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{Fault, proof};

pub(crate) const NAME: &str = "graphile-worker 0.17.3, best";
pub(crate) const NAME_DEFAULT: &str = "graphile-worker 0.17.3, default";

/// The program that speaks to its library.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/yardstick/graphile.cjs");
const BATCH: u32 = 2_000;
const CLIENTS: u32 = 2;
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// How many processes work, and by which settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    processes: usize,
    name: &'static str,
}
pub(crate) const BEST: Setting = Setting { processes: 2, name: "best" };
pub(crate) const DEFAULT: Setting = Setting { processes: 1, name: "default" };

/// From the call that adds a job, and from its answer, to the start of the handler.
#[derive(Debug, Deserialize)]
pub(crate) struct Pickups {
    pub(crate) from_call_us: Vec<f64>,
    pub(crate) from_commit_us: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct Submitted {
    ms: f64,
}

/// Adds jobs while nobody works, and forgets them; how many a second.
///
/// # Errors
/// What the program wrote to standard error stands there; as the database.
pub(crate) async fn submit(tools: &Path, url: &str, jobs: u32) -> Result<f64, Fault> {
    let mut process = Process::start(tools, url)?;
    process.tell(&format!("submit {jobs} {BATCH} {CLIENTS}")).await?;
    let submitted: Submitted = process.answer().await?;
    process.end().await?;
    let mut connection = PgConnection::connect(url).await?;
    let added: i64 =
        sqlx::query_scalar("select count(*) from graphile_worker._private_jobs").fetch_one(&mut connection).await?;
    sqlx::query("delete from graphile_worker._private_jobs").execute(&mut connection).await?;
    connection.close().await?;
    if added != i64::from(jobs) {
        return Err(format!("graphile-worker has taken {added} of {jobs} jobs").into());
    }
    Ok(f64::from(jobs) / (submitted.ms / 1000.0))
}

/// Lets idle workers find `jobs` jobs that one transaction makes visible; how many a second they work off, the last one
/// deleted.
///
/// # Errors
/// As [`submit`].
pub(crate) async fn drain(tools: &Path, url: &str, jobs: u32, setting: Setting) -> Result<f64, Fault> {
    let mut workers = Vec::new();
    for _ in 0..setting.processes {
        let mut worker = Process::start(tools, url)?;
        worker.tell(&format!("work {}", setting.name)).await?;
        let _ready: serde_json::Value = worker.answer().await?;
        workers.push(worker);
    }
    let mut connection = PgConnection::connect(url).await?;
    let mut transaction = connection.begin().await?;
    for from in (0..jobs).step_by(BATCH as usize) {
        let count = BATCH.min(jobs - from) as usize;
        let specs = json!(vec![json!({ "identifier": "noop", "payload": { "value": 1 } }); count]);
        // As its library adds them.
        sqlx::query(
            "select count(*) from graphile_worker.add_jobs(
               array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)), false
             )",
        )
        .bind(specs)
        .execute(&mut *transaction)
        .await?;
    }
    let started = Instant::now();
    transaction.commit().await?;
    let is_left =
        "select count(*) > 0 from (select id from graphile_worker._private_jobs order by id desc limit 1) as last";
    let took = proof::worked_off(&mut connection, is_left, started).await?;
    for worker in workers {
        worker.end().await?;
    }
    connection.close().await?;
    Ok(f64::from(jobs) / took.as_secs_f64())
}

/// Times `count` jobs, one at a time, from an idle worker's own process.
///
/// # Errors
/// As [`submit`].
pub(crate) async fn pickup(tools: &Path, url: &str, count: u32) -> Result<Pickups, Fault> {
    let mut process = Process::start(tools, url)?;
    process.tell(&format!("pickup {count}")).await?;
    let pickups = process.answer().await?;
    process.end().await?;
    Ok(pickups)
}

/// A running copy of the program.
struct Process {
    child: Child,
    words: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(tools: &Path, url: &str) -> Result<Self, Fault> {
        let mut child = Command::new("node")
            .arg(SCRIPT)
            .arg(url)
            .env("NODE_PATH", tools.join("node_modules"))
            .env("NODE_ENV", "production")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let words = child.stdin.take().ok_or("node has no standard input")?;
        let answers = child.stdout.take().ok_or("node has no standard output")?;
        Ok(Self { child, words, answers: BufReader::new(answers).lines() })
    }

    async fn tell(&mut self, words: &str) -> Result<(), Fault> {
        Ok(self.words.write_all(format!("{words}\n").as_bytes()).await?)
    }

    async fn answer<A: serde::de::DeserializeOwned>(&mut self) -> Result<A, Fault> {
        let line = tokio::time::timeout(ANSWER_WITHIN, self.answers.next_line()).await;
        let line = line.map_err(|_| "graphile-worker did not answer")??;
        Ok(serde_json::from_str(&line.ok_or("graphile-worker ended without an answer")?)?)
    }

    /// Ends its input, which ends it.
    async fn end(self) -> Result<(), Fault> {
        let Self { mut child, words, answers } = self;
        drop(words);
        let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
        drop(answers);
        let status = status.map_err(|_| "graphile-worker did not end")??;
        if status.success() { Ok(()) } else { Err(format!("graphile-worker ended with {status}").into()) }
    }
}
