//! What a live stream is told, and under which offset. A stream belongs to a job or a batch, whose row counts its
//! events; that row is locked while an offset is taken, so offsets of one stream become visible in their order and
//! without a gap, and a reader who has seen one has seen all before it.
//!
//! That an attempt started, and that it succeeded, stands in no row of its own: the job's row, and later its row in the
//! history, says so, and the view `jobs.any_event` reads it from there. Every other end writes both down.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use kit::Fail;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::states::State;

/// An event with its place in its stream.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) stream: Uuid,
    pub(crate) offset: i64,
    pub(crate) kind: &'static str,
    pub(crate) data: String,
    /// When it happened, where that was before now.
    at: Option<DateTime<Utc>>,
}

/// Events of one transaction, gathered and then appended in one statement. An event about a job in a batch goes to the
/// streams of both.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    told: Vec<Told>,
    /// Streams of jobs whose own rows tell the news.
    by_rows: Vec<Uuid>,
    /// For batches' streams, whose offsets are taken at the end, when their rows are locked.
    for_batches: BTreeMap<Uuid, Vec<(&'static str, String)>>,
}

impl Telling {
    /// Tells of a job at `offset` of its own stream, and in its batch's.
    pub(crate) fn job(&mut self, job: Uuid, offset: i64, batch: Option<Uuid>, kind: &'static str, data: String) {
        if let Some(batch) = batch {
            self.for_batches.entry(batch).or_default().push((kind, data.clone()));
        }
        self.told.push(Told { stream: job, offset, kind, data, at: None });
    }

    /// Tells in its batch's stream of a new state that the job's own row tells in the job's: the view `jobs.any_event` has it
    /// from there. No stream but the batch's needs `data`.
    pub(crate) fn by_row(&mut self, job: Uuid, batch: Option<Uuid>, data: impl FnOnce() -> String) {
        if let Some(batch) = batch {
            self.for_batches.entry(batch).or_default().push(("state", data()));
        }
        self.by_rows.push(job);
    }

    /// Writes down at `offset` of the job's stream that its attempt started at `at`, which its row told until now.
    pub(crate) fn started(&mut self, job: Uuid, offset: i64, attempt: i32, at: Option<DateTime<Utc>>) {
        let data = self::state(job, State::Running, attempt, None);
        self.told.push(Told { stream: job, offset, kind: "state", data, at });
    }

    /// Tells of a job's new state.
    pub(crate) fn state(&mut self, id: Uuid, offset: i64, batch: Option<Uuid>, state: State, attempt: i32) {
        self.job(id, offset, batch, "state", self::state(id, state, attempt, None));
    }

    /// Tells of a batch.
    pub(crate) fn batch(&mut self, batch: Uuid, data: String) {
        self.for_batches.entry(batch).or_default().push(("batch", data));
    }

    /// The batches whose streams will be appended to.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Uuid> {
        self.for_batches.keys().copied()
    }

    /// Appends everything gathered, and names the streams that have news.
    ///
    /// Locks the batches' rows in the order of their ids: whoever locks several batches does it in that order, and after
    /// the rows of jobs.
    pub(crate) async fn append(mut self, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Vec<Uuid>, Fail> {
        if !self.for_batches.is_empty() {
            let (batches, counts): (Vec<Uuid>, Vec<i64>) = self
                .for_batches
                .iter()
                .map(|(batch, events)| (*batch, i64::try_from(events.len()).unwrap_or(i64::MAX)))
                .unzip();
            sqlx::query!("select id from jobs.batch where id = any($1) order by id for update", &batches)
                .fetch_all(&mut *conn)
                .await?;
            let ends: HashMap<Uuid, i64> = sqlx::query!(
                "update jobs.batch
                 set events = batch.events + news.count
                 from unnest($1::uuid[], $2::bigint[]) as news (id, count)
                 where batch.id = news.id
                 returning batch.id, batch.events",
                &batches,
                &counts,
            )
            .fetch_all(&mut *conn)
            .await?
            .into_iter()
            .map(|row| (row.id, row.events))
            .collect();
            for (batch, events) in self.for_batches {
                let Some(end) = ends.get(&batch) else { continue };
                let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
                for (offset, (kind, data)) in (end - count + 1..).zip(events) {
                    self.told.push(Told { stream: batch, offset, kind, data, at: None });
                }
            }
        }
        if self.told.is_empty() {
            return Ok(self.by_rows);
        }
        let mut streams: Vec<Uuid> = self.told.iter().map(|told| told.stream).collect();
        let times: Vec<Option<DateTime<Utc>>> = self.told.iter().map(|told| told.at).collect();
        let offsets: Vec<i64> = self.told.iter().map(|told| told.offset).collect();
        let kinds: Vec<String> = self.told.iter().map(|told| told.kind.to_owned()).collect();
        let data: Vec<String> = self.told.into_iter().map(|told| told.data).collect();
        sqlx::query!(
            "insert into jobs.event (stream_id, at_offset, kind, data, at)
             select stream_id, at_offset, kind, data, coalesce(at, $5)
             from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $6::timestamptz[])
               as told (stream_id, at_offset, kind, data, at)",
            &streams,
            &offsets,
            &kinds,
            &data,
            now,
            &times as &[Option<DateTime<Utc>>],
        )
        .execute(conn)
        .await?;
        streams.extend(self.by_rows);
        Ok(streams)
    }
}

/// `state {job_id, state, attempt, error?}`
pub(crate) fn state(job: Uuid, state: State, attempt: i32, error: Option<(&str, &str, bool)>) -> String {
    let mut data = json!({ "job_id": job, "state": state.as_str(), "attempt": attempt });
    if let (Some((kind, message, retryable)), Some(object)) = (error, data.as_object_mut()) {
        object.insert("error".to_owned(), json!({ "kind": kind, "message": message, "retryable": retryable }));
    }
    data.to_string()
}

/// `progress {job_id, percent, stage, message}`
pub(crate) fn progress(job: Uuid, percent: f64, stage: &str, message: &str) -> String {
    json!({ "job_id": job, "percent": percent, "stage": stage, "message": message }).to_string()
}

/// `log {job_id, offset, level, message, at}`
pub(crate) fn log(job: Uuid, offset: i64, level: &str, message: &str, at: DateTime<Utc>) -> String {
    let at = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    json!({ "job_id": job, "offset": offset, "level": level, "message": message, "at": at }).to_string()
}
