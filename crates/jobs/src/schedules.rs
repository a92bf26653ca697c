//! Schedules: jobs that are submitted again and again, or once at a later time.
//!
//! [`cron`], [`zones`] and [`occurrences`] say when one comes due, [`plan`] what is to be done then, [`firing`] does it,
//! [`waiting`] takes up what had to wait. Nothing of a schedule stands in the tables of jobs: [`runs`] keeps which job runs
//! which occurrence, whose id follows from the two, so that none runs twice, whatever crashes.

mod by_hand;
mod cron;
mod edits;
mod firing;
mod occurrences;
mod plan;
mod rows;
mod runs;
mod spec;
mod waiting;
mod zones;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{
    Fail,
    clock::{from_timestamp, to_timestamp},
    cursor::page_rows,
    fail::Violation,
    grpc::Call,
    identity::Caller,
};
use proto::jobs::{
    BackfillScheduleRequest, BackfillScheduleResponse, CreateScheduleRequest, GetScheduleRequest, ListSchedulesRequest,
    ListSchedulesResponse, PauseScheduleRequest, PreviewScheduleRequest, PreviewScheduleResponse, PreviewedOccurrence,
    RemoveScheduleRequest, RemoveScheduleResponse, ResumeScheduleRequest, RunScheduleRequest, RunScheduleResponse,
    Schedule, UpdateScheduleRequest, schedules_server,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::Core;

const READ: &str = "schedules:read";
const WRITE: &str = "schedules:write";
const RUN: &str = "schedules:run";

/// Occurrences that a preview shows unless said, and at most.
const PREVIEWED: u32 = 10;
const PREVIEWED_MAX: u32 = 100;
/// Longest time between two looks at what is due: another replica may have written, and a clock been set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Rows that one step of tidying removes.
const ROWS_MAX: i64 = 500;

/// The gRPC service.
pub(crate) struct Schedules(Arc<Core>);

impl Schedules {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }
}

#[tonic::async_trait]
impl schedules_server::Schedules for Schedules {
    async fn create(&self, request: Request<CreateScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let call = Call::of(&request)?.clone();
        Ok(Response::new(edits::create(&self.0, &call, request.into_inner().spec).await?))
    }

    async fn get(&self, request: Request<GetScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(get(&self.0, caller, &request.get_ref().id).await?))
    }

    async fn list(&self, request: Request<ListSchedulesRequest>) -> Result<Response<ListSchedulesResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        Ok(Response::new(list(&self.0, caller, request.get_ref()).await?))
    }

    async fn update(&self, request: Request<UpdateScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let call = Call::of(&request)?.clone();
        let asked = request.into_inner();
        Ok(Response::new(edits::update(&self.0, &call, &asked.id, asked.spec).await?))
    }

    async fn remove(
        &self,
        request: Request<RemoveScheduleRequest>,
    ) -> Result<Response<RemoveScheduleResponse>, Status> {
        Ok(Response::new(edits::remove(&self.0, Call::of(&request)?, &request.get_ref().id).await?))
    }

    async fn pause(&self, request: Request<PauseScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let (call, asked) = (Call::of(&request)?, request.get_ref());
        Ok(Response::new(edits::pause(&self.0, call, &asked.id, &asked.reason).await?))
    }

    async fn resume(&self, request: Request<ResumeScheduleRequest>) -> Result<Response<Schedule>, Status> {
        Ok(Response::new(edits::resume(&self.0, Call::of(&request)?, &request.get_ref().id).await?))
    }

    async fn run(&self, request: Request<RunScheduleRequest>) -> Result<Response<RunScheduleResponse>, Status> {
        Ok(Response::new(by_hand::run(&self.0, Call::of(&request)?, &request.get_ref().id).await?))
    }

    async fn backfill(
        &self,
        request: Request<BackfillScheduleRequest>,
    ) -> Result<Response<BackfillScheduleResponse>, Status> {
        let call = Call::of(&request)?.clone();
        Ok(Response::new(by_hand::backfill(&self.0, &call, request.into_inner()).await?))
    }

    async fn preview(
        &self,
        request: Request<PreviewScheduleRequest>,
    ) -> Result<Response<PreviewScheduleResponse>, Status> {
        Ok(Response::new(preview(request.into_inner(), self.0.clock.now())?))
    }
}

async fn get(core: &Core, caller: &Caller, id: &str) -> Result<Schedule, Fail> {
    let (id, owner) = find(core, id).await?;
    check_may(caller, READ, owner)?;
    rows::show(&core.pool, &[id]).await?.pop().ok_or_else(rows::not_found)
}

async fn list(core: &Core, caller: &Caller, asked: &ListSchedulesRequest) -> Result<ListSchedulesResponse, Fail> {
    const LIST: &str = "schedules";
    let rows_max = page_rows(asked.limit);
    let before: Uuid = core.cursors.place(LIST, &asked.cursor)?.unwrap_or(Uuid::max());
    // Two statements, since no one plan is good for both: an owner's rows stand in an index of their own.
    let mut ids = match caller.narrowed_to(READ) {
        Some(owner) => {
            sqlx::query_scalar!(
                "select id from jobs.schedule where owner_id = $1 and id < $2 order by id desc limit $3",
                owner,
                before,
                rows_max + 1,
            )
            .fetch_all(&core.pool)
            .await?
        }
        None => {
            sqlx::query_scalar!(
                "select id from jobs.schedule where id < $1 order by id desc limit $2",
                before,
                rows_max + 1,
            )
            .fetch_all(&core.pool)
            .await?
        }
    };
    let next_cursor = core.cursors.close_page(LIST, &mut ids, rows_max, Uuid::to_string);
    let mut items = rows::show(&core.pool, &ids).await?;
    items.reverse();
    Ok(ListSchedulesResponse { items, next_cursor })
}

fn preview(asked: PreviewScheduleRequest, now: DateTime<Utc>) -> Result<PreviewScheduleResponse, Fail> {
    let fault = |pointer: &str, code: &str, message: String| {
        invalid(vec![Violation { pointer: pointer.to_owned(), code: code.to_owned(), message }])
    };
    let count = if asked.count == 0 { PREVIEWED } else { asked.count };
    if count > PREVIEWED_MAX {
        return Err(fault("/count", "maximum", format!("must be between 1 and {PREVIEWED_MAX}")));
    }
    let after = match asked.after.as_ref().map(from_timestamp) {
        None => now,
        Some(Some(after)) if after >= DateTime::UNIX_EPOCH && after <= now + TimeDelta::days(36_525) => after,
        Some(_) => return Err(fault("/after", "maximum", "must be a time since 1970 and within a century".to_owned())),
    };
    let (kept, timing) = spec::check_timing(asked.timing.unwrap_or_default(), now).map_err(invalid)?;
    let zone = zones::Zone::find(&kept.time_zone).ok_or_else(|| Fail::internal("a checked time zone is none"))?;
    let occurrences = std::iter::successors(timing.after(after), |at| timing.after(*at)).take(count as usize);
    let items = occurrences.map(|at| {
        let local = zone.rfc3339(at);
        // A sign, hours and minutes.
        let utc_offset = local[local.len() - 6..].to_owned();
        let note = zone.note(at).map(|note| note.as_str().to_owned()).unwrap_or_default();
        PreviewedOccurrence { at: Some(to_timestamp(at)), local, utc_offset, note }
    });
    Ok(PreviewScheduleResponse { items: items.collect(), time_zone_data: zones::DATA.to_owned() })
}

/// A schedule's id, and whose it is.
///
/// # Errors
/// `schedules.not_found`, for a malformed id too.
async fn find(core: &Core, id: &str) -> Result<(Uuid, Uuid), Fail> {
    let id: Uuid = id.parse().map_err(|_| rows::not_found())?;
    let owner = sqlx::query_scalar!("select owner_id from jobs.schedule where id = $1", id)
        .fetch_optional(&core.pool)
        .await?
        .ok_or_else(rows::not_found)?;
    Ok((id, owner))
}

/// # Errors
/// `schedules.not_found`: a stranger's schedule is not there.
fn check_may(caller: &Caller, permission: &str, owner: Uuid) -> Result<(), Fail> {
    if caller.may_touch(permission, owner) { Ok(()) } else { Err(rows::not_found()) }
}

fn invalid(violations: Vec<Violation>) -> Fail {
    Fail::invalid("schedules.invalid", "The schedule cannot be taken as it is.").with_violations(violations)
}

/// Starts looking for what is due: every second, and when the next comes due if that is sooner.
pub(crate) fn start(core: &Arc<Core>) {
    let on = Arc::clone(core);
    core.tasks.spawn_restarting("jobs.schedules", move || {
        let core = Arc::clone(&on);
        async move {
            let stopping = core.tasks.stopping();
            let mut looked = (Uuid::nil(), DateTime::UNIX_EPOCH, Uuid::nil());
            let mut tidy_at = Instant::now();
            while !stopping.is_cancelled() {
                firing::fire(&core).await?;
                waiting::release(&core).await?;
                waiting::settle(&core, &mut looked).await?;
                if tidy_at <= Instant::now() {
                    tidy(&core).await?;
                    tidy_at = Instant::now() + TIDY_EVERY;
                }
                tokio::select! {
                    () = tokio::time::sleep(until_next(&core).await?) => {}
                    () = core.schedules.notified() => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
}

async fn until_next(core: &Core) -> Result<Duration, Fail> {
    let next =
        sqlx::query_scalar!("select min(next_at) from jobs.schedule where next_at is not null and paused_at is null")
            .fetch_one(&core.pool)
            .await?;
    let wait = next.and_then(|next| (next - core.clock.now()).to_std().ok());
    // What is overdue and still there is in another replica's hands, or came just now.
    Ok(wait.unwrap_or(LOOK_EVERY).clamp(Duration::from_millis(10), LOOK_EVERY))
}

/// Runs are forgotten with the history of their jobs.
async fn tidy(core: &Core) -> Result<(), Fail> {
    let before = core.clock.now() - TimeDelta::days(i64::from(core.settings.history_days));
    let mut connection = core.pool.acquire().await?;
    while runs::prune(&mut connection, before, ROWS_MAX).await? > 0 {}
    Ok(())
}
