//! What a running task can see and do: who it is, progress, logs, files, children, and whether it was asked to stop.
//!
//! The same context serves a task in the worker process and one in a child: behind it is a [`Host`], which is the worker
//! itself or the pipe to it. A task holds no credential and opens no connection of its own.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::Failure;

/// What is known of an attempt from its assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) job_id: String,
    pub(crate) number: u32,
    pub(crate) owner_id: String,
    pub(crate) is_finalize: bool,
}

/// How loud a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// What is known of a file of the owner's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// As its owner named it: not fit to be a path.
    pub name: String,
    pub content_type: String,
    pub size_bytes: u64,
    /// Of all its bytes, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// A file of the owner's that was brought into the scratch folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where its bytes lie; the task may remove it when it is done with it.
    pub path: PathBuf,
    pub facts: FileFacts,
}

/// A file that was stored. It is the owner's once the attempt has succeeded, and gone if it does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub file_id: String,
    pub size_bytes: u64,
}

/// A job to be run as a child of this one, or beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChildJob {
    /// Its place among the children, or among those that this job adds beside itself; a place that is taken already is left as it is.
    pub ordinal: u32,
    pub task: String,
    pub args: serde_json::Value,
    /// Ordinals of those that have to succeed before it starts, each lower than its own.
    #[serde(default)]
    pub after: Vec<u32>,
}

/// The job that runs once when all children have ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finalize {
    pub task: String,
    pub args: serde_json::Value,
    /// Whether it runs; where it does not, this job fails as `batch_policy`. What the first call says counts.
    pub policy: Policy,
}

/// When a finalize runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Whatever became of the children.
    #[default]
    Always,
    /// If every child succeeded.
    All,
    /// If one did.
    Any,
    /// If so many did, 1 to 100,000.
    Threshold(u32),
}

/// One child as a finalize sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Child {
    pub ordinal: u32,
    pub job_id: String,
    /// `succeeded`, `failed`, `cancelled` or `expired`.
    pub state: String,
    pub args: serde_json::Value,
    /// Null unless it succeeded.
    pub result: serde_json::Value,
    /// Kind and message of its error, where it ended with one.
    pub error: Option<(String, String)>,
}

/// Children by ordinal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Children {
    pub items: Vec<Child>,
    /// Whether more follow the last.
    pub more: bool,
    pub batch_id: String,
}

/// Most children in one page.
pub const CHILDREN_PAGE_MAX: u32 = 200;

/// What a task tells; nothing answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    Progress { percent: f64, stage: String, message: String },
    Log { level: Level, message: String },
}

/// What a task asks of its worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Question {
    Describe { file_id: String },
    Fetch { file_id: String },
    Store { path: PathBuf, name: String, content_type: String },
    FanOut { jobs: Vec<ChildJob>, finalize: Finalize },
    AddSiblings { jobs: Vec<ChildJob> },
    Children { after_ordinal: Option<u32>, limit: u32 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Described(FileFacts),
    Fetched(Input),
    Stored(Stored),
    FannedOut { batch_id: String },
    AddedSiblings { job_ids: Vec<String> },
    Children(Children),
}

/// Who answers a task: the worker's desk, or in a child the pipe to it.
pub(crate) trait Host: Send + Sync {
    fn tell(&self, told: Told);
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Failure>>;
}

/// What a running task can see and do.
pub struct Context {
    facts: Facts,
    scratch: PathBuf,
    /// The task was told where its scratch folder is, or something was put there for it.
    has_shown_scratch: AtomicBool,
    host: Arc<dyn Host>,
    stop: CancellationToken,
}

impl Context {
    pub(crate) fn new(facts: Facts, scratch: PathBuf, host: Arc<dyn Host>, stop: CancellationToken) -> Self {
        Self { facts, scratch, has_shown_scratch: AtomicBool::new(false), host, stop }
    }

    /// Whether the scratch folder may have something in it: whoever has not been told of it has left nothing there.
    pub(crate) fn has_shown_scratch(&self) -> bool {
        self.has_shown_scratch.load(Ordering::Acquire)
    }

    /// The job's id: the same in every attempt, so that outside effects can be recognised by it.
    #[must_use]
    pub fn job_id(&self) -> &str {
        &self.facts.job_id
    }

    /// Which attempt of the job this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.facts.number
    }

    #[must_use]
    pub fn owner_id(&self) -> &str {
        &self.facts.owner_id
    }

    /// Whether this job ends a batch, and may so list its [`children`](Self::children).
    #[must_use]
    pub fn is_finalize(&self) -> bool {
        self.facts.is_finalize
    }

    /// A folder of this attempt's own. It is empty at the start, and removed with all that is in it at the end.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.has_shown_scratch.store(true, Ordering::Release);
        &self.scratch
    }

    /// Tells how far the task is: `percent` from 0 to 100, the stage at work in a word, and a line for people. Cheap;
    /// of several in one stage within 50 ms only the last is sent.
    pub fn progress(&self, percent: f64, stage: &str, message: impl Into<String>) {
        let percent = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
        self.host.tell(Told::Progress { percent, stage: stage.to_owned(), message: message.into() });
    }

    /// Adds a line to the job's log.
    pub fn log(&self, level: Level, message: impl Into<String>) {
        self.host.tell(Told::Log { level, message: message.into() });
    }

    /// Whether somebody asked for the attempt to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until somebody asks for the attempt to stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// For a loop that computes: `context.check()?` ends the task where it was asked to stop.
    ///
    /// # Errors
    /// [`Failure::Stopped`] when it was.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_stopping() { Err(Failure::Stopped) } else { Ok(()) }
    }

    /// What is known of a whole file of the job's owner, without its bytes.
    ///
    /// # Errors
    /// `not_found` for a file that is missing or another owner's.
    pub async fn describe(&self, file_id: &str) -> Result<FileFacts, Failure> {
        match self.host.ask(Question::Describe { file_id: file_id.to_owned() }).await? {
            Answer::Described(facts) => Ok(facts),
            other => Err(mismatched(&other)),
        }
    }

    /// Brings a whole file of the job's owner into the scratch folder.
    ///
    /// # Errors
    /// `not_found` for a file that is missing or another owner's.
    pub async fn fetch(&self, file_id: &str) -> Result<Input, Failure> {
        self.has_shown_scratch.store(true, Ordering::Release);
        match self.host.ask(Question::Fetch { file_id: file_id.to_owned() }).await? {
            Answer::Fetched(input) => Ok(input),
            other => Err(mismatched(&other)),
        }
    }

    /// Stores a file of the scratch folder under `name`.
    ///
    /// # Errors
    /// `internal` when storage or jobs cannot take it.
    pub async fn store(&self, path: &Path, name: &str, content_type: &str) -> Result<Stored, Failure> {
        let question =
            Question::Store { path: path.to_owned(), name: name.to_owned(), content_type: content_type.to_owned() };
        match self.host.ask(question).await? {
            Answer::Stored(stored) => Ok(stored),
            other => Err(mismatched(&other)),
        }
    }

    /// Adds jobs to this job's child batch, which the first call creates; the batch's id. A repeated attempt may repeat
    /// its calls: each ordinal is made once. End with [`Ending::AwaitBatch`](crate::Ending::AwaitBatch) to let it run out.
    ///
    /// # Errors
    /// `invalid_input` for arguments that do not fit the children's schema.
    pub async fn fan_out(&self, jobs: Vec<ChildJob>, finalize: &Finalize) -> Result<String, Failure> {
        match self.host.ask(Question::FanOut { jobs, finalize: finalize.clone() }).await? {
            Answer::FannedOut { batch_id } => Ok(batch_id),
            other => Err(mismatched(&other)),
        }
    }

    /// Adds jobs to the batch that this job is one of, up to 1,000 at a time; their ids, in order. The batch waits for them as for this job, and its
    /// finalize sees them behind the others. A repeated attempt may repeat its calls: each ordinal is made once.
    ///
    /// # Errors
    /// `invalid_input` for arguments that do not fit a schema, a job of no batch, or a full one; [`Failure::Cancelled`] while the
    /// batch is being cancelled.
    pub async fn add_siblings(&self, jobs: Vec<ChildJob>) -> Result<Vec<String>, Failure> {
        match self.host.ask(Question::AddSiblings { jobs }).await? {
            Answer::AddedSiblings { job_ids } => Ok(job_ids),
            other => Err(mismatched(&other)),
        }
    }

    /// A page of the batch's jobs after an ordinal, up to `limit` (at most [`CHILDREN_PAGE_MAX`]).
    ///
    /// # Errors
    /// `invalid_input` for a job that is no finalize.
    pub async fn children(&self, after_ordinal: Option<u32>, limit: u32) -> Result<Children, Failure> {
        match self.host.ask(Question::Children { after_ordinal, limit: limit.clamp(1, CHILDREN_PAGE_MAX) }).await? {
            Answer::Children(children) => Ok(children),
            other => Err(mismatched(&other)),
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("facts", &self.facts).finish_non_exhaustive()
    }
}

fn mismatched(answer: &Answer) -> Failure {
    Failure::internal(format!("an answer to another question: {answer:?}"))
}
