//! The worker's side of a task's [`Context`](crate::Context): what the task tells goes into the ledger, what it asks is
//! done here with the worker's credential and storage. A child process reaches the same desk over its pipe, which is why
//! it needs neither.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::BytesMut;
use futures::future::BoxFuture;
use kit::{Clock, Fail, storage::Storage};
use parking_lot::Mutex;
use proto::worker::{AttemptFile, FanOutJob, FanOutRequest, LogEntry, Sibling, WrittenFile};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::{
    Failure,
    calls::Calls,
    context::{Answer, Child, ChildJob, Children, FileFacts, Finalize, Host, Input, Policy, Question, Stored, Told},
    ledger::{Ledger, Order, Why},
};

/// The code with which `jobs` refuses a call of an attempt that does not count any more.
const FENCED: &str = "jobs.fenced";
const BATCH_CANCELLING: &str = "jobs.batch_cancelling";
/// Longest log line and progress message, in bytes.
const LINE_BYTES_MAX: usize = 4_096;
const COPY_BYTES: usize = 256 * 1024;

/// Serves one attempt.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) calls: Calls,
    pub(crate) ledger: Ledger,
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    /// The attempt's own folder: what is stored must lie in it.
    pub(crate) scratch: PathBuf,
    /// What the attempt has stored, for its result.
    pub(crate) written: Arc<Mutex<Vec<WrittenFile>>>,
}

impl Host for Desk {
    fn tell(&self, told: Told) {
        let attempt = &self.calls.attempt;
        match told {
            Told::Progress { percent, stage, message } => {
                self.ledger.progress(attempt, percent, clipped(stage), clipped(message));
            }
            Told::Log { level, message } => {
                let now = self.clock.now();
                let at = prost_types::Timestamp {
                    seconds: now.timestamp(),
                    nanos: i32::try_from(now.timestamp_subsec_nanos()).unwrap_or(0),
                };
                self.ledger.log(
                    attempt,
                    LogEntry {
                        attempt: Some(attempt.clone()),
                        level: level.as_str().to_owned(),
                        message: clipped(message),
                        at: Some(at),
                    },
                );
            }
        }
    }

    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Failure>> {
        Box::pin(async move {
            let answer = match question {
                Question::Describe { file_id } => {
                    self.calls.get_file(&file_id).await.map(|file| Answer::Described(facts(file)))
                }
                Question::Fetch { file_id } => self.fetch(&file_id).await.map(Answer::Fetched),
                Question::Store { path, name, content_type } => {
                    self.store(&path, &name, content_type).await.map(Answer::Stored)
                }
                Question::FanOut { jobs, finalize } => {
                    self.fan_out(jobs, finalize).await.map(|batch_id| Answer::FannedOut { batch_id })
                }
                Question::AddSiblings { jobs } => {
                    self.add_siblings(jobs).await.map(|job_ids| Answer::AddedSiblings { job_ids })
                }
                Question::Children { after_ordinal, limit } => {
                    self.children(after_ordinal, limit).await.map(Answer::Children)
                }
            };
            answer.map_err(|fail| {
                // What was to be added is not wanted any more, and this job is about to be told the same.
                if fail.code() == BATCH_CANCELLING {
                    return Failure::cancelled(fail.message());
                }
                if fail.code() == FENCED {
                    let order = Order { why: Why::Fenced, grace: std::time::Duration::ZERO };
                    self.ledger.order(&self.calls.attempt, order);
                }
                fail.into()
            })
        })
    }
}

impl Desk {
    async fn fetch(&self, file_id: &str) -> Result<Input, Fail> {
        let file = self.calls.get_file(file_id).await?;
        // The id, which came from `jobs`, and not the owner's name for it: that may hold anything.
        let path = self.scratch.join(format!("in-{}", file.id.replace(['/', '.'], "-")));
        // `jobs` says that the file is whole: an object that is not there is our fault, not the owner's.
        let size = self.storage.download_to(&file.storage_key, &path).await.map_err(|fail| match fail.kind() {
            kit::Kind::NotFound => Fail::internal(fail),
            _ => fail,
        })?;
        if size != file.size_bytes {
            return Err(Fail::internal(format!("file {} has {size} bytes, not {}", file.id, file.size_bytes)));
        }
        Ok(Input { path, facts: facts(file) })
    }

    async fn store(&self, path: &Path, name: &str, content_type: String) -> Result<Stored, Fail> {
        let path = tokio::fs::canonicalize(path).await.map_err(Fail::internal)?;
        let scratch = tokio::fs::canonicalize(&self.scratch).await.map_err(Fail::internal)?;
        if !path.starts_with(&scratch) {
            return Err(Fail::internal(format!("{} lies outside of the scratch folder", path.display())));
        }
        let mut file = tokio::fs::File::open(&path).await.map_err(Fail::internal)?;
        let row = self.calls.create_file(name).await?;
        let mut writer = self.storage.writer(&row.storage_key)?;
        loop {
            let mut bytes = BytesMut::with_capacity(COPY_BYTES);
            let sent = match file.read_buf(&mut bytes).await {
                Ok(0) => break,
                Ok(_) => writer.write(bytes.freeze()).await,
                Err(error) => Err(Fail::internal(error)),
            };
            if let Err(fail) = sent {
                writer.abort().await;
                return Err(fail);
            }
        }
        let written = writer.finish().await?;
        let stored = Stored { file_id: row.id.clone(), size_bytes: written.size };
        self.written.lock().push(WrittenFile {
            file_id: row.id,
            content_type,
            size_bytes: written.size,
            sha256: written.sha256,
        });
        Ok(stored)
    }

    async fn fan_out(&self, jobs: Vec<ChildJob>, finalize: Finalize) -> Result<String, Fail> {
        let jobs = jobs.into_iter().map(|job| FanOutJob {
            ordinal: job.ordinal,
            task: job.task,
            args_json: job.args.to_string(),
            after: job.after,
        });
        let (policy, policy_at_least) = match finalize.policy {
            Policy::Always => ("always", None),
            Policy::All => ("all", None),
            Policy::Any => ("any", None),
            Policy::Threshold(number) => ("threshold", Some(number)),
        };
        self.calls
            .fan_out(FanOutRequest {
                attempt: None,
                jobs: jobs.collect(),
                finalize_task: finalize.task,
                finalize_args_json: finalize.args.to_string(),
                policy: policy.to_owned(),
                policy_at_least,
            })
            .await
    }

    async fn add_siblings(&self, jobs: Vec<ChildJob>) -> Result<Vec<String>, Fail> {
        let jobs = jobs.into_iter().map(|job| Sibling {
            number: job.ordinal,
            task: job.task,
            args_json: job.args.to_string(),
            after: job.after,
        });
        self.calls.add_siblings(jobs.collect()).await
    }

    async fn children(&self, after_ordinal: Option<u32>, limit: u32) -> Result<Children, Fail> {
        let page = self.calls.list_children(after_ordinal, limit).await?;
        let items = page.items.into_iter().map(|child| Child {
            ordinal: child.ordinal,
            job_id: child.job_id,
            state: child.state,
            args: parsed(&child.args_json),
            result: parsed(&child.result_json),
            error: (!child.error_kind.is_empty()).then_some((child.error_kind, child.error_message)),
        });
        Ok(Children { items: items.collect(), more: page.more, batch_id: page.batch_id })
    }
}

fn facts(file: AttemptFile) -> FileFacts {
    FileFacts { name: file.name, content_type: file.content_type, size_bytes: file.size_bytes, sha256: file.sha256 }
}

/// What `jobs` keeps as JSON; absent is null.
fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or(Value::Null)
}

fn clipped(mut line: String) -> String {
    line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
    line
}
