//! Reading jobs, live and final alike, and what belongs to them: attempts, logs, workers. Nothing here changes a row.
//! A job that is not the caller's is not there: the answer to a stranger's id is that of one that never was.

mod shown;
mod waited;

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use kit::{
    Clock, Fail,
    clock::{from_timestamp, to_timestamp},
    cursor::page_rows,
    identity::Caller,
};
use proto::jobs::{
    Attempt, Job, JobError, JobState, ListAttemptsRequest, ListAttemptsResponse, ListJobsRequest, ListJobsResponse,
    ListLogsRequest, ListLogsResponse, ListWorkersRequest, ListWorkersResponse, LogLine, Worker,
};
use serde::Deserialize;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

pub(crate) use shown::{JobRow, Surroundings};
use waited::Stand;

use crate::{
    Core,
    engine::{State, straight},
};

/// One job.
///
/// # Errors
/// `jobs.job_not_found`.
pub(crate) async fn get_job(core: &Core, caller: &Caller, id: &str) -> Result<Job, Fail> {
    let id: Uuid = id.parse().map_err(|_| not_found())?;
    let mut connection = core.pool.acquire().await?;
    let mut look = straight::look(&mut connection, core.engine.ground.settings.history_days).await?;
    let job = job_in(&mut look, &core.clock, caller, id).await?;
    look.rollback().await?;
    Ok(job)
}

async fn job_in(conn: &mut PgConnection, clock: &Clock, caller: &Caller, id: Uuid) -> Result<Job, Fail> {
    let row = sqlx::query_as!(
        JobRow,
        r#"select id as "id!", owner_id as "owner_id!", task as "task!", queue as "queue!", state as "state!",
             priority as "priority!", run_at as "run_at!", attempt as "attempt!", max_attempts as "max_attempts!",
             worker_id, started_at, progress_percent, progress_stage, progress_message, error_kind, error_message,
             error_retryable, batch_id, child_batch_id, tags as "tags!", args as "args!", result, since as "since!",
             created_at as "created_at!", finished_at, queue_until, deadline_at, cancel_asked_at, cancel_asked_by,
             cancel_reason, concurrency_key, lane, unique_key,
             array(select after_id from jobs.dependency where job_id = any_job.id order by after_id) as "after!",
             (select needs from jobs.dependency where job_id = any_job.id limit 1) as after_needs
           from jobs.any_job
           where id = $1 and ($2::uuid is null or owner_id = $2)"#,
        id,
        caller.narrowed_to("jobs:read"),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or_else(not_found)?;
    let now = clock.now();
    let surroundings = Surroundings::of(conn, std::slice::from_ref(&row), now).await?;
    let stand = Stand {
        id: row.id,
        queue: &row.queue,
        task: &row.task,
        lane: row.lane.as_deref(),
        finished_at: row.finished_at,
    };
    let waited = waited::waited(conn, &stand, now).await?;
    let job = row.into_proto(&surroundings)?;
    Ok(Job { waited: waited.into_iter().map(|(reason, seconds)| (reason.to_owned(), seconds)).collect(), ..job })
}

/// Most bytes of jobs on one page, but for one job that is larger by itself: half of what a message between roles may have
/// (`kit::grpc::MESSAGE_BYTES_MAX`), so that what surrounds the text of a job always fits.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Jobs, newest first, that fit every filter given: as many as were asked for, or as fit into a message.
///
/// # Errors
/// `invalid_cursor`, `jobs.invalid_filter` (400).
pub(crate) async fn list_jobs(core: &Core, caller: &Caller, asked: &ListJobsRequest) -> Result<ListJobsResponse, Fail> {
    const LIST: &str = "jobs";
    let rows_max = page_rows(asked.limit);
    let before: Option<Uuid> = core.cursors.place(LIST, &asked.cursor)?;
    let filter = Filter::parse(asked)?;
    let mut query = filter.query(caller.narrowed_to("jobs:read"), before, rows_max + 1);
    let (mut rows, mut page_max, mut bytes) = (Vec::new(), rows_max, 0);
    {
        // Read one by one, so that no more than a page is ever held.
        let mut found = query.build_query_as::<JobRow>().fetch(&core.pool);
        while let Some(row) = found.try_next().await? {
            bytes += row.text_bytes();
            if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                // This row is the first of the next page.
                page_max = rows.len() as i64;
            }
            rows.push(row);
            if rows.len() as i64 > page_max {
                break;
            }
        }
    }
    let next_cursor = core.cursors.close_page(LIST, &mut rows, page_max, |row| row.id.to_string());
    let surroundings =
        if rows.iter().any(JobRow::has_surroundings) { around(core, &rows).await? } else { Surroundings::default() };
    let items = rows.into_iter().map(|row| row.into_proto(&surroundings)).collect::<Result<_, _>>()?;
    Ok(ListJobsResponse { items, next_cursor })
}

async fn around(core: &Core, rows: &[JobRow]) -> Result<Surroundings, Fail> {
    let mut connection = core.pool.acquire().await?;
    let mut look = straight::look(&mut connection, core.engine.ground.settings.history_days).await?;
    let surroundings = Surroundings::of(&mut look, rows, core.clock.now()).await?;
    look.rollback().await?;
    Ok(surroundings)
}

/// What a list of jobs is narrowed to.
struct Filter<'a> {
    states: Vec<&'static str>,
    task: &'a str,
    queue: &'a str,
    tag: &'a str,
    owner: Option<Uuid>,
    batch: Option<Uuid>,
    created_after: Option<DateTime<Utc>>,
    created_before: Option<DateTime<Utc>>,
}

impl<'a> Filter<'a> {
    fn parse(asked: &'a ListJobsRequest) -> Result<Self, Fail> {
        let fault = |field: &str| Fail::malformed("jobs.invalid_filter", format!("The filter `{field}` is not valid."));
        let id = |field: &str, text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| fault(field)),
        };
        let time = |field: &str, at: Option<&prost_types::Timestamp>| {
            at.map(|at| from_timestamp(at).ok_or_else(|| fault(field))).transpose()
        };
        let states = asked.states.iter().map(|state| {
            let state = JobState::try_from(*state).ok().and_then(State::from_proto);
            state.map(State::as_str).ok_or_else(|| fault("state"))
        });
        for (field, text) in [("task", &asked.task), ("queue", &asked.queue), ("tag", &asked.tag)] {
            // Postgres takes no text with a NUL.
            if text.contains('\0') {
                return Err(fault(field));
            }
        }
        Ok(Self {
            states: states.collect::<Result<_, _>>()?,
            task: &asked.task,
            queue: &asked.queue,
            tag: &asked.tag,
            owner: id("owner_id", &asked.owner_id)?,
            batch: id("batch_id", &asked.batch_id)?,
            created_after: time("created_after", asked.created_after.as_ref())?,
            created_before: time("created_before", asked.created_before.as_ref())?,
        })
    }

    /// Only what is asked for stands in the statement, so that the planner sees which index serves it.
    fn query(&self, owner: Option<Uuid>, before: Option<Uuid>, limit: i64) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(
            "select id, owner_id, task, queue, state, priority, run_at, attempt, max_attempts, worker_id, started_at,
               progress_percent, progress_stage, progress_message, error_kind, error_message, error_retryable, batch_id,
               child_batch_id, tags, args, result, since, created_at, finished_at, queue_until, deadline_at,
               cancel_asked_at, cancel_asked_by, cancel_reason, concurrency_key, lane, unique_key,
               array(select after_id from jobs.dependency where job_id = any_job.id order by after_id) as after,
               (select needs from jobs.dependency where job_id = any_job.id limit 1) as after_needs
             from jobs.any_job
             where true",
        );
        if let Some(owner) = owner {
            query.push(" and owner_id = ").push_bind(owner);
        }
        if let Some(owner) = self.owner {
            query.push(" and owner_id = ").push_bind(owner);
        }
        if let Some(batch) = self.batch {
            query.push(" and batch_id = ").push_bind(batch);
        }
        if !self.states.is_empty() {
            query.push(" and state = any(").push_bind(self.states.clone()).push(")");
        }
        for (column, text) in [("task", self.task), ("queue", self.queue)] {
            if !text.is_empty() {
                query.push(" and ").push(column).push(" = ").push_bind(text.to_owned());
            }
        }
        if !self.tag.is_empty() {
            query.push(" and ").push_bind(self.tag.to_owned()).push(" = any(tags)");
        }
        if let Some(at) = self.created_after {
            query.push(" and created_at > ").push_bind(at);
        }
        if let Some(at) = self.created_before {
            query.push(" and created_at < ").push_bind(at);
        }
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(limit);
        query
    }
}

/// The attempts of a job, newest first, the running one among them.
///
/// # Errors
/// `jobs.job_not_found`, `invalid_cursor`.
pub(crate) async fn list_attempts(
    core: &Core,
    caller: &Caller,
    asked: &ListAttemptsRequest,
) -> Result<ListAttemptsResponse, Fail> {
    let job = readable(core, caller, &asked.job_id).await?;
    let list = format!("attempts of {job}");
    let rows_max = page_rows(asked.limit);
    let before: i64 = core.cursors.place(&list, &asked.cursor)?.unwrap_or(i64::MAX);
    let mut rows = sqlx::query!(
        r#"select number as "number!", token as "token!", outcome as "outcome!", worker_id,
             started_at as "started_at!", finished_at, error_kind, error_message, error_retryable
           from (
             select number, token, outcome, worker_id, started_at, finished_at, error_kind, error_message,
               error_retryable
             from jobs.attempt
             where job_id = $1
             union all
             select attempt, token, 'running', worker_id, attempt_started_at, null, null, null, null
             from jobs.job
             where id = $1 and worker_id is not null and attempt_started_at is not null
             union all
             -- The one that succeeded has no row of its own.
             select attempt, token, 'succeeded', worker_id, attempt_started_at, finished_at, null, null, null
             from jobs.job_history
             where id = $1 and token is not null
           ) as attempts
           where token < $2
           order by token desc
           limit $3"#,
        job,
        before,
        rows_max + 1,
    )
    .fetch_all(&core.pool)
    .await?;
    let next_cursor = core.cursors.close_page(&list, &mut rows, rows_max, |row| row.token.to_string());
    let items = rows
        .into_iter()
        .map(|row| Attempt {
            number: row.number.unsigned_abs(),
            outcome: row.outcome,
            worker_id: row.worker_id.map(|id| id.to_string()).unwrap_or_default(),
            started_at: Some(to_timestamp(row.started_at)),
            finished_at: row.finished_at.map(to_timestamp),
            error: row.error_kind.map(|kind| JobError {
                kind,
                message: row.error_message.unwrap_or_default(),
                retryable: row.error_retryable.unwrap_or(false),
            }),
        })
        .collect();
    Ok(ListAttemptsResponse { items, next_cursor })
}

/// A log line as its event carries it (`engine/events.rs`).
#[derive(Deserialize)]
struct LoggedLine {
    level: String,
    message: String,
    at: DateTime<Utc>,
}

/// What a job has logged, oldest first.
///
/// # Errors
/// `jobs.job_not_found`, `invalid_cursor`.
pub(crate) async fn list_logs(core: &Core, caller: &Caller, asked: &ListLogsRequest) -> Result<ListLogsResponse, Fail> {
    let job = readable(core, caller, &asked.job_id).await?;
    let list = format!("logs of {job}");
    let rows_max = page_rows(asked.limit);
    let after: i64 = core.cursors.place(&list, &asked.cursor)?.unwrap_or(0);
    let mut rows = sqlx::query!(
        "select at_offset, data
         from jobs.event
         where stream_id = $1 and kind = 'log' and at_offset > $2
         order by at_offset
         limit $3",
        job,
        after,
        rows_max + 1,
    )
    .fetch_all(&core.pool)
    .await?;
    let next_cursor = core.cursors.close_page(&list, &mut rows, rows_max, |row| row.at_offset.to_string());
    let items = rows
        .into_iter()
        .map(|row| {
            let line: LoggedLine = serde_json::from_str(&row.data).map_err(Fail::internal)?;
            Ok(LogLine {
                offset: row.at_offset.unsigned_abs(),
                level: line.level,
                message: line.message,
                at: Some(to_timestamp(line.at)),
            })
        })
        .collect::<Result<_, Fail>>()?;
    Ok(ListLogsResponse { items, next_cursor })
}

/// Connected workers, newest first. Only those who may read any worker come here: the permission has no owners.
///
/// # Errors
/// `invalid_cursor`.
pub(crate) async fn list_workers(core: &Core, asked: &ListWorkersRequest) -> Result<ListWorkersResponse, Fail> {
    const LIST: &str = "workers";
    let rows_max = page_rows(asked.limit);
    let before: Uuid = core.cursors.place(LIST, &asked.cursor)?.unwrap_or(Uuid::max());
    let mut rows = sqlx::query!(
        r#"select id, profile, host, version, queues, tasks, slots, connected_at, seen_at,
             (select count(*) from jobs.job where worker_id = worker.id) as "running!"
           from jobs.worker
           where expires_at > $1 and id < $2
           order by id desc
           limit $3"#,
        core.clock.now(),
        before,
        rows_max + 1,
    )
    .fetch_all(&core.pool)
    .await?;
    let next_cursor = core.cursors.close_page(LIST, &mut rows, rows_max, |row| row.id.to_string());
    let items = rows
        .into_iter()
        .map(|row| Worker {
            id: row.id.to_string(),
            profile: row.profile,
            host: row.host,
            version: row.version,
            queues: row.queues,
            tasks: row.tasks,
            slots: row.slots.unsigned_abs(),
            running: u32::try_from(row.running).unwrap_or(u32::MAX),
            connected_at: Some(to_timestamp(row.connected_at)),
            last_seen_at: Some(to_timestamp(row.seen_at)),
        })
        .collect();
    Ok(ListWorkersResponse { items, next_cursor })
}

/// The id of a job that the caller may read.
async fn readable(core: &Core, caller: &Caller, id: &str) -> Result<Uuid, Fail> {
    let id: Uuid = id.parse().map_err(|_| not_found())?;
    sqlx::query_scalar!(
        r#"select id as "id!" from jobs.any_job where id = $1 and ($2::uuid is null or owner_id = $2)"#,
        id,
        caller.narrowed_to("jobs:read"),
    )
    .fetch_optional(&core.pool)
    .await?
    .ok_or_else(not_found)
}

fn not_found() -> Fail {
    Fail::not_found("jobs.job_not_found", "There is no such job.")
}
