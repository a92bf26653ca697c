//! A job as it is shown: its row, and why it waits. The reason is found when it is asked for, from the job's state and
//! what surrounds it (paused queues, connected workers), so that nothing has to be kept true while nobody looks.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, SecondsFormat, Utc};
use kit::{Fail, clock::to_timestamp};
use proto::jobs::{CancelAsked, Job, JobError, Progress, WaitingReason};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::engine::{Standing, State};

/// A row of the view `jobs.any_job`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct JobRow {
    pub(crate) id: Uuid,
    pub(crate) owner_id: Uuid,
    pub(crate) task: String,
    pub(crate) queue: String,
    pub(crate) state: String,
    pub(crate) priority: i16,
    pub(crate) run_at: DateTime<Utc>,
    pub(crate) attempt: i32,
    pub(crate) max_attempts: i32,
    pub(crate) worker_id: Option<Uuid>,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) progress_percent: Option<f64>,
    pub(crate) progress_stage: Option<String>,
    pub(crate) progress_message: Option<String>,
    pub(crate) error_kind: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) error_retryable: Option<bool>,
    pub(crate) batch_id: Option<Uuid>,
    pub(crate) child_batch_id: Option<Uuid>,
    pub(crate) tags: Vec<String>,
    pub(crate) args: String,
    pub(crate) result: Option<String>,
    pub(crate) since: DateTime<Utc>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) finished_at: Option<DateTime<Utc>>,
    pub(crate) queue_until: Option<DateTime<Utc>>,
    pub(crate) deadline_at: Option<DateTime<Utc>>,
    pub(crate) cancel_asked_at: Option<DateTime<Utc>>,
    pub(crate) cancel_asked_by: Option<Uuid>,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) concurrency_key: Option<String>,
    pub(crate) lane: Option<String>,
    pub(crate) unique_key: Option<String>,
    pub(crate) after: Vec<Uuid>,
    pub(crate) after_needs: Option<String>,
}

impl JobRow {
    /// Bytes of the parts that may be large.
    pub(crate) fn text_bytes(&self) -> usize {
        let optional = [&self.result, &self.error_message, &self.progress_message, &self.progress_stage];
        let optional: usize = optional.into_iter().flatten().map(String::len).sum();
        self.args.len() + optional + self.tags.iter().map(String::len).sum::<usize>()
    }

    /// Whether why it waits depends on more than itself.
    pub(crate) fn has_surroundings(&self) -> bool {
        [State::Queued, State::Waiting].iter().any(|state| self.state == state.as_str())
    }

    /// The job as the contract shows it.
    ///
    /// # Errors
    /// `internal` for a state that this version does not know.
    pub(crate) fn into_proto(self, surroundings: &Surroundings) -> Result<Job, Fail> {
        let state: State = self.state.parse()?;
        let waiting_reason = self.waiting_reason(state, surroundings);
        let cancel_asked = self.cancel_asked(state);
        Ok(Job {
            id: self.id.to_string(),
            task: self.task,
            queue: self.queue,
            state: state.to_proto() as i32,
            attempt: self.attempt.unsigned_abs(),
            max_attempts: self.max_attempts.unsigned_abs(),
            owner_id: self.owner_id.to_string(),
            args_json: self.args,
            priority: u32::from(self.priority.unsigned_abs()),
            tags: self.tags,
            progress: self.progress_percent.map(|percent| Progress {
                percent,
                stage: self.progress_stage.unwrap_or_default(),
                message: self.progress_message.unwrap_or_default(),
            }),
            waiting_reason,
            result_json: self.result.unwrap_or_default(),
            error: self.error_kind.map(|kind| JobError {
                kind,
                message: self.error_message.unwrap_or_default(),
                retryable: self.error_retryable.unwrap_or(false),
            }),
            worker_id: text(self.worker_id),
            batch_id: text(self.batch_id),
            child_batch_id: text(self.child_batch_id),
            created_at: Some(to_timestamp(self.created_at)),
            run_at: Some(to_timestamp(self.run_at)),
            started_at: self.started_at.map(to_timestamp),
            finished_at: self.finished_at.map(to_timestamp),
            queue_until: self.queue_until.filter(|_| state == State::Queued).map(to_timestamp),
            deadline_at: self.deadline_at.map(to_timestamp),
            cancel_asked,
            concurrency_key: self.concurrency_key.as_deref().map(plain_key).unwrap_or_default().to_owned(),
            waited: HashMap::new(),
            unique_key: self.unique_key.unwrap_or_default(),
            after: self.after.iter().map(Uuid::to_string).collect(),
            after_needs: self.after_needs.unwrap_or_default(),
        })
    }

    /// Since when the job is to stop, for whom and why, and what has not answered yet.
    fn cancel_asked(&self, state: State) -> Option<CancelAsked> {
        let is_stopping = state == State::Cancelling;
        // Nobody has asked where it is the job's own deadline that ends it.
        let at = self.cancel_asked_at.or(is_stopping.then_some(self.since))?;
        let awaits = match (self.worker_id, self.child_batch_id) {
            (Some(worker), _) if is_stopping => format!("worker {worker}"),
            (None, Some(batch)) if is_stopping => format!("batch {batch}"),
            _ => String::new(),
        };
        let own = if self.cancel_asked_at.is_none() { "Its deadline is over." } else { "" };
        Some(CancelAsked {
            at: Some(to_timestamp(at)),
            by: text(self.cancel_asked_by),
            reason: self.cancel_reason.clone().unwrap_or_else(|| own.to_owned()),
            awaits,
        })
    }

    fn waiting_reason(&self, state: State, surroundings: &Surroundings) -> Option<WaitingReason> {
        let run_at = || self.run_at.to_rfc3339_opts(SecondsFormat::Millis, true);
        let mut since = self.since;
        let (reason, detail) = match state {
            State::Waiting => {
                let open = surroundings.open.get(&self.id).map(String::as_str).unwrap_or_default();
                ("waiting_for_jobs", open.to_owned())
            }
            State::Scheduled if self.attempt > 0 => {
                ("retry", format!("Attempt {} starts at {}.", self.attempt + 1, run_at()))
            }
            State::Scheduled => ("not_due", format!("Due at {}.", run_at())),
            State::Suspended => ("waiting_for_children", text(self.child_batch_id)),
            State::Queued => {
                if let Some(paused_at) = surroundings.paused.get(&self.queue) {
                    // It has waited for this reason only while both were so.
                    since = since.max(*paused_at);
                    ("queue_paused", format!("The queue `{}` is paused.", self.queue))
                } else if !surroundings.offered.contains(&(self.queue.clone(), self.task.clone())) {
                    let detail = format!("No connected worker runs `{}` from the queue `{}`.", self.task, self.queue);
                    ("no_worker", detail)
                } else if let Some((hindrance, detail)) =
                    surroundings.standing.hindrance(&self.queue, self.lane.as_deref())
                {
                    (hindrance.as_str(), detail)
                } else if surroundings.has_room.contains(&(self.queue.clone(), self.task.clone())) {
                    ("turn", "It is about to start, or others come before it.".to_owned())
                } else {
                    ("no_free_slot", "Every slot of the workers that could run it is taken.".to_owned())
                }
            }
            State::Running
            | State::Cancelling
            | State::Succeeded
            | State::Failed
            | State::Cancelled
            | State::Expired => return None,
        };
        Some(WaitingReason { reason: reason.to_owned(), since: Some(to_timestamp(since)), detail })
    }
}

/// What decides why a queued job has not started.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Paused queues, and since when.
    paused: HashMap<String, DateTime<Utc>>,
    /// Queue and task, where a connected worker takes that task from that queue.
    offered: HashSet<(String, String)>,
    /// As above, where such a worker has a free slot.
    has_room: HashSet<(String, String)>,
    /// Limits, where a queue or task has some.
    standing: Standing,
    /// What those jobs wait for that wait for others.
    open: HashMap<Uuid, String>,
}

impl Surroundings {
    /// Of these jobs; asks the database only when one of them is queued or waits for others.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn of(conn: &mut PgConnection, rows: &[JobRow], now: DateTime<Utc>) -> Result<Self, Fail> {
        let queued = rows.iter().filter(|row| row.state == State::Queued.as_str());
        let pairs: BTreeSet<(&str, &str)> = queued.map(|row| (row.queue.as_str(), row.task.as_str())).collect();
        let mut surroundings = Self { open: open(conn, rows).await?, ..Self::default() };
        if pairs.is_empty() {
            return Ok(surroundings);
        }
        let (queues, tasks): (Vec<String>, Vec<String>) =
            pairs.into_iter().map(|(queue, task)| (queue.to_owned(), task.to_owned())).unzip();
        let found = sqlx::query!(
            r#"select pair.queue as "queue!", pair.task as "task!", queue.paused_at as "paused_at?",
                 offer.workers > 0 as "is_offered!", offer.free > 0 as "has_room!",
                 queue.is_limited or task.concurrency is not null as "is_limited?"
               from unnest($1::text[], $2::text[]) as pair (queue, task)
               left join jobs.queue on queue.name = pair.queue
               left join jobs.task on task.name = pair.task
               cross join lateral (
                 select count(*) as workers,
                   count(*) filter (where slots > (select count(*) from jobs.job where worker_id = worker.id)) as free
                 from jobs.worker
                 where worker.expires_at > $3 and not worker.is_draining and pair.task = any(worker.tasks)
                   and (worker.queues = '{}' or pair.queue = any(worker.queues))
               ) as offer"#,
            &queues,
            &tasks,
            now,
        )
        .fetch_all(&mut *conn)
        .await?;
        let limited = found.iter().filter(|pair| pair.is_limited == Some(true));
        let (queues, tasks): (Vec<String>, Vec<String>) =
            limited.map(|pair| (pair.queue.clone(), pair.task.clone())).unzip();
        let queued = rows.iter().filter(|row| row.state == State::Queued.as_str());
        let places: Vec<_> = queued.map(|row| (row.queue.clone(), row.lane.clone())).collect();
        if !queues.is_empty() {
            surroundings.standing = Standing::of(conn, &queues, &tasks, &places, now).await?;
        }
        for pair in found {
            if pair.has_room {
                surroundings.has_room.insert((pair.queue.clone(), pair.task.clone()));
            }
            if let Some(paused_at) = pair.paused_at {
                surroundings.paused.insert(pair.queue.clone(), paused_at);
            }
            if pair.is_offered {
                surroundings.offered.insert((pair.queue, pair.task));
            }
        }
        Ok(surroundings)
    }
}

/// What those jobs wait for that wait for others, in a sentence each.
async fn open(conn: &mut PgConnection, rows: &[JobRow]) -> Result<HashMap<Uuid, String>, Fail> {
    let waiting: Vec<Uuid> = rows.iter().filter(|row| row.state == State::Waiting.as_str()).map(|row| row.id).collect();
    if waiting.is_empty() {
        return Ok(HashMap::new());
    }
    let found = sqlx::query!(
        r#"select job_id, count(*) as "count!", (array_agg(after_id order by after_id))[1:3] as "first!"
           from jobs.dependency
           where job_id = any($1) and outcome is null
           group by job_id"#,
        &waiting,
    )
    .fetch_all(conn)
    .await?;
    let told = found.into_iter().map(|row| {
        let first = row.first.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ");
        let told = match row.count {
            1 => format!("It waits for the job {first}."),
            2 | 3 => format!("It waits for {} jobs: {first}.", row.count),
            count => format!("It waits for {count} jobs, among them {first}."),
        };
        (row.job_id, told)
    });
    Ok(told.collect())
}

/// A key as its job named it: `k:<owner>:<name>` is the owner's own, `a:<name>` everyone's.
fn plain_key(key: &str) -> &str {
    let name = key.split_once(':').map_or(key, |(_, name)| name);
    if key.starts_with("k:") { name.split_once(':').map_or(name, |(_, name)| name) } else { name }
}

fn text(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
