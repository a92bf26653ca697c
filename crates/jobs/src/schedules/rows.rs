//! The rows of schedules: read, written, and shown.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kit::{Fail, clock::to_timestamp, identity::Caller};
use prost::Message as _;
use proto::jobs::{Schedule, ScheduleRun, ScheduleSpec};
use sqlx::{PgConnection, PgPool};
use tracing::warn;
use uuid::Uuid;

use super::{
    runs,
    spec::{self, Spec},
};

/// A schedule as its row has it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) owner_id: Uuid,
    spec: Vec<u8>,
    roles: Vec<String>,
    pub(super) revision: i64,
    pub(super) next_at: Option<DateTime<Utc>>,
    pub(super) paused_at: Option<DateTime<Utc>>,
    pub(super) paused_by: Option<Uuid>,
    pub(super) pause_reason: Option<String>,
    pub(super) failures: i32,
    pub(super) missed: i64,
    pub(super) skipped: i64,
    pub(super) last_error: Option<String>,
    pub(super) last_error_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl Row {
    /// What is asked for, as it was checked when it was written.
    ///
    /// # Errors
    /// `internal` for what this version of the program cannot read.
    pub(super) fn spec(&self) -> Result<Spec, Fail> {
        let (_, spec) = spec::check(self.kept()?, self.updated_at).map_err(|faults| {
            let first = faults.first().map(|fault| format!("{} {}", fault.pointer, fault.message)).unwrap_or_default();
            Fail::internal(format!("the kept spec of the schedule {} is not good: {first}", self.id))
        })?;
        Ok(spec)
    }

    /// The same as it is kept.
    ///
    /// # Errors
    /// `internal` for what this version of the program cannot read.
    pub(super) fn kept(&self) -> Result<ScheduleSpec, Fail> {
        ScheduleSpec::decode(self.spec.as_slice()).map_err(Fail::internal)
    }

    pub(super) fn has_roles(&self, roles: &[String]) -> bool {
        self.roles == roles
    }

    /// By whose leave its job is submitted: its owner, with the roles of whoever wrote the spec.
    pub(super) fn caller(&self) -> Caller {
        let roles = self.roles.iter().filter_map(|role| role.parse().ok()).collect();
        Caller::standing_in(self.owner_id, roles)
    }

    /// Its job cannot be submitted, for this reason.
    pub(super) fn failed(&mut self, fail: &Fail, now: DateTime<Utc>) {
        let told = fail.violations().first().map(|fault| format!(" {} {}.", fault.pointer, fault.message));
        self.last_error = Some(format!("{}{}", fail.message(), told.unwrap_or_default()));
        self.last_error_at = Some(now);
    }

    pub(super) fn pause(&mut self, by: Option<Uuid>, reason: &str, now: DateTime<Utc>) {
        self.paused_at = Some(now);
        self.paused_by = by;
        self.pause_reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
    }

    /// One more run ended so; a cancelled one says nothing. Pauses a schedule that has failed as often as it may.
    pub(super) fn count_end(&mut self, state: &str, now: DateTime<Utc>) {
        match state {
            "succeeded" => self.failures = 0,
            "failed" | "expired" => self.failures = self.failures.saturating_add(1),
            _ => {}
        }
        let failures_max = self.spec().ok().and_then(|spec| spec.pause_after_failures);
        if self.paused_at.is_none() && failures_max.is_some_and(|max| self.failures.unsigned_abs() >= max) {
            warn!(schedule.id = %self.id, failures = self.failures, "a schedule is paused, as its runs fail");
            self.pause(None, &format!("{} runs failed in a row.", self.failures), now);
        }
    }

    fn into_proto(self, runs: Vec<ScheduleRun>) -> Result<Schedule, Fail> {
        let state = match (self.paused_at, self.next_at) {
            (Some(_), _) => "paused",
            (None, Some(_)) => "active",
            (None, None) => "finished",
        };
        Ok(Schedule {
            id: self.id.to_string(),
            owner_id: self.owner_id.to_string(),
            spec: Some(self.kept()?),
            state: state.to_owned(),
            next_at: self.next_at.filter(|_| self.paused_at.is_none()).map(to_timestamp),
            paused_at: self.paused_at.map(to_timestamp),
            paused_by: self.paused_by.map(|id| id.to_string()).unwrap_or_default(),
            pause_reason: self.pause_reason.unwrap_or_default(),
            failures: self.failures.unsigned_abs(),
            last_error: self.last_error.unwrap_or_default(),
            last_error_at: self.last_error_at.map(to_timestamp),
            missed: self.missed.unsigned_abs(),
            skipped: self.skipped.unsigned_abs(),
            runs,
            created_at: Some(to_timestamp(self.created_at)),
            updated_at: Some(to_timestamp(self.updated_at)),
            replayed: false,
        })
    }
}

/// A schedule about to be.
#[derive(Debug)]
pub(super) struct NewRow<'a> {
    pub(super) id: Uuid,
    pub(super) owner: Uuid,
    pub(super) spec: &'a ScheduleSpec,
    pub(super) roles: Vec<String>,
    pub(super) next_at: DateTime<Utc>,
}

pub(super) async fn insert(conn: &mut PgConnection, new: NewRow<'_>, now: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!(
        "insert into jobs.schedule (id, owner_id, spec, roles, next_at, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $6)",
        new.id,
        new.owner,
        new.spec.encode_to_vec(),
        &new.roles,
        new.next_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts another spec into a row that is locked.
pub(super) async fn replace(
    conn: &mut PgConnection,
    id: Uuid,
    spec: &ScheduleSpec,
    roles: &[String],
    next_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.schedule
         set spec = $2, roles = $3, next_at = $4, revision = revision + 1, updated_at = $5
         where id = $1",
        id,
        spec.encode_to_vec(),
        roles,
        next_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down where a schedule stands, whose row is locked.
pub(super) async fn write(conn: &mut PgConnection, row: &Row) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.schedule
         set next_at = $2, paused_at = $3, paused_by = $4, pause_reason = $5, failures = $6, missed = $7, skipped = $8,
           last_error = $9, last_error_at = $10
         where id = $1",
        row.id,
        row.next_at,
        row.paused_at,
        row.paused_by,
        row.pause_reason,
        row.failures,
        row.missed,
        row.skipped,
        row.last_error,
        row.last_error_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The rows with these ids, in the order of their ids.
pub(super) async fn read(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Row>, Fail> {
    Ok(sqlx::query_as!(
        Row,
        "select id, owner_id, spec, roles, revision, next_at, paused_at, paused_by, pause_reason, failures, missed, skipped,
           last_error, last_error_at, created_at, updated_at
         from jobs.schedule
         where id = any($1)
         order by id",
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// One row, locked.
///
/// # Errors
/// `schedules.not_found`.
pub(super) async fn lock(conn: &mut PgConnection, id: Uuid) -> Result<Row, Fail> {
    sqlx::query!("select id from jobs.schedule where id = $1 for update", id)
        .fetch_optional(&mut *conn)
        .await?
        .ok_or_else(not_found)?;
    read(conn, &[id]).await?.pop().ok_or_else(not_found)
}

/// Shows schedules in the order of their ids, which must be there.
pub(super) async fn show(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<Schedule>, Fail> {
    let mut connection = pool.acquire().await?;
    let rows = read(&mut connection, ids).await?;
    let mut runs: HashMap<Uuid, Vec<ScheduleRun>> = runs::newest(&mut connection, ids).await?;
    rows.into_iter()
        .map(|row| {
            let runs = runs.remove(&row.id).unwrap_or_default();
            row.into_proto(runs)
        })
        .collect()
}

pub(super) fn not_found() -> Fail {
    Fail::not_found("schedules.not_found", "There is no such schedule.")
}
