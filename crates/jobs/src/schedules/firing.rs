//! Submitting what has come due. A schedule's row is locked, moved on to its next occurrence, and its jobs are inserted, in
//! one transaction: whoever dies before it is durable has done nothing, and whoever comes after it finds nothing due. Several
//! replicas may do it at once; each takes the rows that no other holds.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use kit::{Fail, Kind, crash_point};
use sqlx::PgConnection;
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    plan::{self, Came, Turns},
    rows::{self, Row},
    runs::{self, Run},
    spec::Spec,
};
use crate::{
    Core,
    engine::{self, Aftermath, Ground, Keys, NewJob, Place, Telling},
    submissions::{self, Origin},
};

/// Schedules that one transaction takes.
const PAGE: i64 = 50;

/// Submits everything that is due.
///
/// # Errors
/// As the database when it is away. A schedule that cannot be read or written is set aside, and keeps no other waiting.
pub(super) async fn fire(core: &Core) -> Result<(), Fail> {
    let now = core.clock.now();
    let (mut after_at, mut after_id) = (DateTime::UNIX_EPOCH, Uuid::nil());
    loop {
        let due = sqlx::query!(
            r#"select id, next_at as "next_at!"
               from jobs.schedule
               where next_at <= $1 and paused_at is null and (next_at, id) > ($2, $3)
               order by next_at, id
               limit $4"#,
            now,
            after_at,
            after_id,
            PAGE,
        )
        .fetch_all(&core.pool)
        .await?;
        let Some(last) = due.last() else { return Ok(()) };
        (after_at, after_id) = (last.next_at, last.id);
        let ids: Vec<Uuid> = due.iter().map(|schedule| schedule.id).collect();
        match page(core, &ids, now).await {
            Err(fail) if fail.kind() == Kind::Unavailable => return Err(fail),
            Err(fail) => {
                warn!(error = %fail, schedules = ids.len(), "schedules could not be fired together; each is tried alone");
                one_by_one(core, &ids, now).await?;
            }
            Ok(()) => {}
        }
        if due.len() as i64 != PAGE {
            return Ok(());
        }
    }
}

async fn one_by_one(core: &Core, ids: &[Uuid], now: DateTime<Utc>) -> Result<(), Fail> {
    for id in ids {
        match page(core, &[*id], now).await {
            Err(fail) if fail.kind() == Kind::Unavailable => return Err(fail),
            Err(fail) => {
                error!(schedule.id = %id, error = %fail, "a schedule could not be fired; this occurrence is given up");
                set_aside(core, *id, &fail, now).await?;
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// What a schedule asks for, and the job that it would submit, or why it cannot.
pub(super) struct Prepared {
    pub(super) spec: Spec,
    pub(super) job: Result<NewJob, Fail>,
    revision: i64,
}

impl Prepared {
    /// Whether it was made of this row's spec.
    pub(super) const fn is_of(&self, row: &Row) -> bool {
        self.revision == row.revision
    }
}

/// Checks a schedule's job as a submission is checked. Apart from any transaction, as the check reads by itself.
///
/// # Errors
/// As the database; `internal` for a row that cannot be read.
pub(super) async fn prepare(core: &Core, row: &Row) -> Result<Prepared, Fail> {
    let spec = row.spec()?;
    let origin = Origin { owner: row.owner_id, request_id: format!("schedule-{}", row.id), traceparent: None };
    let job = job(core, &row.caller(), &origin, &spec).await;
    match job {
        Err(fail) if fail.is_transient() => Err(fail),
        job => Ok(Prepared { spec, job, revision: row.revision }),
    }
}

/// The job of a spec as `caller` may submit it; its faults stand below `/job`.
///
/// # Errors
/// As a submission.
pub(super) async fn job(
    core: &Core,
    caller: &kit::identity::Caller,
    origin: &Origin,
    spec: &Spec,
) -> Result<NewJob, Fail> {
    let jobs = submissions::check(core, caller, origin, vec![spec.job.clone()], |_| Place::Alone).await;
    let jobs = jobs.map_err(|fail| {
        fail.map_pointers(|at| at.strip_prefix("/jobs/0").map_or_else(|| at.to_owned(), |rest| format!("/job{rest}")))
    });
    jobs?.pop().ok_or_else(|| Fail::internal("a job was checked and is not there"))
}

async fn page(core: &Core, ids: &[Uuid], now: DateTime<Utc>) -> Result<(), Fail> {
    let mut prepared: HashMap<Uuid, Prepared> = HashMap::with_capacity(ids.len());
    {
        let rows = rows::read(&mut *core.pool.acquire().await?, ids).await?;
        for row in &rows {
            prepared.insert(row.id, prepare(core, row).await?);
        }
    }
    let mut transaction = core.pool.begin().await?;
    let locked = sqlx::query_scalar!(
        "select id from jobs.schedule
         where id = any($1) and next_at <= $2 and paused_at is null
         order by id
         for update skip locked",
        ids,
        now,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut rows = rows::read(&mut transaction, &locked).await?;
    // Of another spec than what was prepared: the next round has it.
    rows.retain(|row| prepared.get(&row.id).is_some_and(|prepared| prepared.is_of(row)));
    runs::settle(&mut transaction, &mut rows, now).await?;
    let mut fired = Fired::default();
    decide(&mut transaction, &mut rows, &prepared, now, &mut fired).await?;
    let (keys, replaced) = take_keys(&core.engine.ground, &mut transaction, &fired.jobs, now).await?;
    fired.leave_out(&keys, &mut rows, now);
    let mut telling = Telling::default();
    engine::insert(&mut transaction, &core.clock, &fired.jobs, now, &mut telling).await?;
    runs::insert(&mut transaction, &fired.live, "due", "live").await?;
    runs::insert(&mut transaction, &fired.waiting, "due", "waiting").await?;
    for row in &rows {
        rows::write(&mut transaction, row).await?;
    }
    let mut streams = telling.append(&mut transaction, now).await?;
    streams.extend(replaced.streams);
    crash_point("occurrence-not-committed");
    transaction.commit().await?;
    crash_point("occurrence-committed");
    fired.tell(now);
    core.engine.ground.took_in(streams, replaced.has_dependents);
    Ok(())
}

/// What a transaction does for the schedules it took.
#[derive(Default)]
struct Fired {
    jobs: Vec<NewJob>,
    live: Vec<Run>,
    waiting: Vec<Run>,
    skipped: u64,
    refused: u64,
    existing: u64,
    missed: u64,
}

impl Fired {
    /// Takes out the occurrences whose jobs do not hold the unique keys that they ask for.
    fn leave_out(&mut self, keys: &Keys, rows: &mut [Row], now: DateTime<Utc>) {
        let out: HashMap<Uuid, Option<Fail>> =
            self.jobs.iter().filter(|job| keys.holder(job).is_some()).map(|job| (job.id, held(job, keys))).collect();
        if out.is_empty() {
            return;
        }
        self.jobs.retain(|job| !out.contains_key(&job.id));
        for run in self.live.extract_if(.., |run| out.contains_key(&run.job)) {
            let Some(row) = rows.iter_mut().find(|row| row.id == run.schedule) else { continue };
            match out.get(&run.job).and_then(Option::as_ref) {
                Some(fail) => {
                    self.refused += 1;
                    refuse(row, fail, now);
                }
                None => {
                    self.skipped += 1;
                    row.skipped += 1;
                }
            }
        }
    }

    /// Counts it, once it is durable.
    fn tell(&self, now: DateTime<Utc>) {
        for (outcome, count) in [
            ("submitted", self.live.len() as u64),
            ("waiting", self.waiting.len() as u64),
            ("skipped", self.skipped),
            ("refused", self.refused),
            ("existing", self.existing),
        ] {
            if count > 0 {
                metrics::counter!("guildhall_schedule_fires_total", "outcome" => outcome).increment(count);
            }
        }
        metrics::counter!("guildhall_schedule_missed_total").increment(self.missed);
        for run in &self.live {
            metrics::histogram!("guildhall_schedule_lag_seconds").record((now - run.at).as_seconds_f64());
        }
    }
}

/// Takes the unique keys of occurrences, and has the jobs replaced that are to be. Who holds the keys, and the streams that
/// have news.
///
/// # Errors
/// As the database.
pub(super) async fn take_keys(
    ground: &Ground,
    conn: &mut PgConnection,
    jobs: &[NewJob],
    now: DateTime<Utc>,
) -> Result<(Keys, Aftermath), Fail> {
    let mut keys = Keys::take(conn, jobs, now).await?;
    let replaced = keys.replace(ground, conn, jobs.iter().map(|job| (job, None)), now).await?;
    Ok((keys, replaced))
}

/// Why an occurrence whose key another job holds counts as failed: it asks to be refused. Else it is skipped.
pub(super) fn held(job: &NewJob, keys: &Keys) -> Option<Fail> {
    keys.refusal(std::slice::from_ref(job))
}

/// Moves each schedule on to its next occurrence, and gives those that are due their turns. One that was paused by what has
/// become of its runs stays where it is.
async fn decide(
    conn: &mut PgConnection,
    rows: &mut [Row],
    prepared: &HashMap<Uuid, Prepared>,
    now: DateTime<Utc>,
    fired: &mut Fired,
) -> Result<(), Fail> {
    let mut came: HashMap<Uuid, Came> = HashMap::with_capacity(rows.len());
    for row in rows.iter().filter(|row| row.paused_at.is_none()) {
        if let (Some(prepared), Some(next)) = (prepared.get(&row.id), row.next_at) {
            came.insert(row.id, plan::came(&prepared.spec.timing, next, now, prepared.spec.missed));
        }
    }
    let due: Vec<Run> = came
        .iter()
        .flat_map(|(id, came)| came.due.iter().map(|at| Run { schedule: *id, at: *at, job: plan::job_id(*id, *at) }))
        .collect();
    let existing: HashSet<Uuid> = runs::existing(conn, &due).await?.into_iter().collect();
    let ids: Vec<Uuid> = came.keys().copied().collect();
    let open = runs::open(conn, &ids).await?;
    for row in rows {
        let (Some(came), Some(prepared)) = (came.remove(&row.id), prepared.get(&row.id)) else { continue };
        let count = came.due.len();
        let due: Vec<_> = came.due.into_iter().filter(|at| !existing.contains(&plan::job_id(row.id, *at))).collect();
        fired.existing += (count - due.len()) as u64;
        fired.missed += came.missed;
        row.missed = row.missed.saturating_add_unsigned(came.missed);
        row.next_at = came.next;
        let job = match &prepared.job {
            Ok(job) => job,
            Err(fail) => {
                fired.refused += due.len() as u64;
                if !due.is_empty() {
                    refuse(row, fail, now);
                }
                continue;
            }
        };
        let open = open.get(&row.id).copied().unwrap_or_default();
        let Turns { start, wait, drops_waiting, skipped } =
            plan::turns(prepared.spec.overlap, &due, open.live + open.waiting_backfill, open.waiting);
        if drops_waiting {
            runs::drop_waiting(conn, row.id).await?;
        }
        fired.skipped += skipped;
        row.skipped = row.skipped.saturating_add_unsigned(skipped);
        if !start.is_empty() {
            (row.last_error, row.last_error_at) = (None, None);
        }
        for at in start {
            let occurrence = occurrence(row.id, job, at, prepared.spec.jitter_s);
            fired.live.push(Run { schedule: row.id, at, job: occurrence.id });
            fired.jobs.push(occurrence);
        }
        fired.waiting.extend(wait.into_iter().map(|at| Run { schedule: row.id, at, job: plan::job_id(row.id, at) }));
    }
    Ok(())
}

/// The job of one occurrence.
pub(super) fn occurrence(schedule: Uuid, job: &NewJob, at: DateTime<Utc>, jitter_s: u32) -> NewJob {
    let run_at = (jitter_s > 0).then(|| at + plan::jitter(schedule, at, jitter_s));
    NewJob { id: plan::job_id(schedule, at), run_at, ..job.clone() }
}

/// An occurrence whose job cannot be submitted counts as a run that failed.
pub(super) fn refuse(row: &mut Row, fail: &Fail, now: DateTime<Utc>) {
    warn!(schedule.id = %row.id, error = %fail, "the job of a schedule cannot be submitted");
    row.failed(fail, now);
    row.count_end("failed", now);
}

/// Moves a schedule past what it could not do. One that cannot even be read is paused.
async fn set_aside(core: &Core, id: Uuid, fail: &Fail, now: DateTime<Utc>) -> Result<(), Fail> {
    let mut transaction = core.pool.begin().await?;
    let mut row = match rows::lock(&mut transaction, id).await {
        // Removed meanwhile.
        Err(fail) if fail.kind() == Kind::NotFound => return Ok(()),
        row => row?,
    };
    row.failed(fail, now);
    match row.spec() {
        Ok(spec) => {
            row.next_at = spec.timing.after(now);
            row.count_end("failed", now);
        }
        Err(_) => row.pause(None, "It cannot be read.", now),
    }
    rows::write(&mut transaction, &row).await?;
    transaction.commit().await?;
    metrics::counter!("guildhall_schedule_fires_total", "outcome" => "refused").increment(1);
    Ok(())
}
