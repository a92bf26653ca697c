//! What is done to a schedule: made, changed, removed, paused, resumed.

use std::sync::Arc;

use kit::{
    Fail,
    audit::{Act, Action},
    fail::Violation,
    grpc::Call,
    idempotency,
    identity::{Caller, Reach},
    telemetry::span,
};
use proto::jobs::{RemoveScheduleResponse, Schedule, ScheduleSpec};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{WRITE, check_may, find, firing, get, invalid, occurrences::Timing, rows, spec};
use crate::{Core, SCHEMA, acts, jobs::check_reason, submissions::Origin};

/// Schedules that somebody may own: who reaches their own alone, and who reaches any.
const OWN_MAX: i64 = 10;
const ANY_MAX: i64 = 1_000;

pub(super) async fn create(core: &Core, call: &Call, asked: Option<ScheduleSpec>) -> Result<Schedule, Fail> {
    let caller = call.caller()?;
    let (now, id, owner) = (core.clock.now(), core.clock.new_id(), caller.subject);
    let checked = check(core, call, asked, None, owner).await;
    let roles = roles(caller);
    let owned_max = if caller.reach(WRITE) == Some(Reach::Any) { ANY_MAX } else { OWN_MAX };
    let act = Act::of(call, &acts::CREATE_SCHEDULE, id);
    let ground = Arc::clone(&core.engine.ground);
    let _told = span::transaction("jobs.create_schedule");
    let transaction = core.pool.begin().await?;
    let key = call.idempotency.as_ref();
    let (created, replayed): (Schedule, bool) = idempotency::once(transaction, SCHEMA, owner, key, now, |conn| {
        Box::pin(async move {
            let (kept, timing) = checked?;
            let next_at = timing.after(now).ok_or_else(over)?;
            check_count(conn, owner, owned_max).await?;
            rows::insert(conn, rows::NewRow { id, owner, spec: &kept, roles, next_at }, now).await?;
            ground.audit.record(conn, act).await?;
            Ok(Schedule { id: id.to_string(), ..Schedule::default() })
        })
    })
    .await?;
    core.schedules.notify_one();
    Ok(Schedule { replayed, ..get(core, caller, &created.id).await? })
}

/// Checks a spec and the job in it. An interval that names no anchor keeps the one that `before` has.
async fn check(
    core: &Core,
    call: &Call,
    asked: Option<ScheduleSpec>,
    before: Option<&ScheduleSpec>,
    owner: Uuid,
) -> Result<(ScheduleSpec, Timing), Fail> {
    let mut asked = asked.unwrap_or_default();
    if let (Some(timing), Some(before)) = (&mut asked.timing, before.and_then(|spec| spec.timing.as_ref()))
        && timing.every_s.is_some()
        && timing.anchor_at.is_none()
    {
        timing.anchor_at = before.anchor_at;
    }
    let (kept, spec) = spec::check(asked, core.clock.now()).map_err(invalid)?;
    let origin = Origin { owner, ..Origin::of(call)? };
    firing::job(core, call.caller()?, &origin, &spec).await?;
    Ok((kept, spec.timing))
}

fn roles(caller: &Caller) -> Vec<String> {
    caller.roles.iter().map(|role| role.as_str().to_owned()).collect()
}

fn over() -> Fail {
    let message = "must be in the future: as it is, nothing would ever come due".to_owned();
    invalid(vec![Violation { pointer: "/at".to_owned(), code: "minimum".to_owned(), message }])
}

/// Holds an owner to a number of schedules; two of its calls wait for each other.
async fn check_count(conn: &mut PgConnection, owner: Uuid, owned_max: i64) -> Result<(), Fail> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", format!("guildhall.jobs.schedules:{owner}"))
        .fetch_one(&mut *conn)
        .await?;
    let owned = sqlx::query_scalar!(r#"select count(*) as "owned!" from jobs.schedule where owner_id = $1"#, owner)
        .fetch_one(conn)
        .await?;
    if owned < owned_max {
        return Ok(());
    }
    Err(Fail::conflict(
        "schedules.too_many",
        format!("You have {owned} schedules; remove one before you make another."),
    ))
}

/// Finds the schedule, and acts on it: what is refused is written down.
async fn act_on<F>(
    core: &Core,
    call: &Call,
    id: &str,
    action: &'static Action,
    reason: &str,
    act: F,
) -> Result<(), Fail>
where
    F: AsyncFnOnce(Uuid, Act) -> Result<(), Fail>,
{
    let (id, owner) = find(core, id).await?;
    let told = Act::of(call, action, id).owned_by(owner).because(reason);
    let came_to = match check_may(call.caller()?, WRITE, owner) {
        Ok(()) => act(id, told.clone()).await,
        Err(fail) => Err(fail),
    };
    core.witness(told, came_to).await
}

pub(super) async fn update(core: &Core, call: &Call, id: &str, asked: Option<ScheduleSpec>) -> Result<Schedule, Fail> {
    act_on(core, call, id, &acts::UPDATE_SCHEDULE, "", async |id, act| replace(core, call, id, asked, act).await)
        .await?;
    core.schedules.notify_one();
    get(core, call.caller()?, id).await
}

async fn replace(core: &Core, call: &Call, id: Uuid, asked: Option<ScheduleSpec>, act: Act) -> Result<(), Fail> {
    let now = core.clock.now();
    let before = rows::read(&mut *core.pool.acquire().await?, &[id]).await?.pop().ok_or_else(rows::not_found)?;
    let (kept, timing) = check(core, call, asked, Some(&before.kept()?), before.owner_id).await?;
    let _told = span::transaction("jobs.update_schedule");
    let mut transaction = core.pool.begin().await?;
    let row = rows::lock(&mut transaction, id).await?;
    let before = row.kept()?;
    let is_timing_changed = before.timing != kept.timing;
    let next_at = if is_timing_changed { Some(timing.after(now).ok_or_else(over)?) } else { row.next_at };
    let roles = roles(call.caller()?);
    if before != kept || !row.has_roles(&roles) {
        rows::replace(&mut transaction, id, &kept, &roles, next_at, now).await?;
        let act = act.after("is_timing_changed", is_timing_changed);
        core.engine.ground.audit.record(&mut transaction, act).await?;
        transaction.commit().await?;
    }
    Ok(())
}

pub(super) async fn remove(core: &Core, call: &Call, id: &str) -> Result<RemoveScheduleResponse, Fail> {
    act_on(core, call, id, &acts::REMOVE_SCHEDULE, "", async |id, act| {
        let _told = span::transaction("jobs.remove_schedule");
        let mut transaction = core.pool.begin().await?;
        let done = sqlx::query!("delete from jobs.schedule where id = $1", id).execute(&mut *transaction).await?;
        if done.rows_affected() == 0 {
            return Err(rows::not_found());
        }
        core.engine.ground.audit.record(&mut transaction, act).await?;
        transaction.commit().await?;
        Ok(())
    })
    .await?;
    Ok(RemoveScheduleResponse {})
}

/// Pausing a paused schedule leaves the time and the reason that it has, and no entry in the audit log.
pub(super) async fn pause(core: &Core, call: &Call, id: &str, reason: &str) -> Result<Schedule, Fail> {
    let by = call.caller()?.subject;
    act_on(core, call, id, &acts::PAUSE_SCHEDULE, reason, async |id, act| {
        check_reason(reason)?;
        let now = core.clock.now();
        let _told = span::transaction("jobs.pause_schedule");
        let mut transaction = core.pool.begin().await?;
        let mut row = rows::lock(&mut transaction, id).await?;
        if row.paused_at.is_none() {
            row.pause(Some(by), reason, now);
            rows::write(&mut transaction, &row).await?;
            let act = act.before("is_paused", false).after("is_paused", true);
            core.engine.ground.audit.record(&mut transaction, act).await?;
            transaction.commit().await?;
        }
        Ok(())
    })
    .await?;
    get(core, call.caller()?, id).await
}

/// Goes on with the next occurrence from now, and counts failures anew.
pub(super) async fn resume(core: &Core, call: &Call, id: &str) -> Result<Schedule, Fail> {
    act_on(core, call, id, &acts::RESUME_SCHEDULE, "", async |id, act| {
        let now = core.clock.now();
        let _told = span::transaction("jobs.resume_schedule");
        let mut transaction = core.pool.begin().await?;
        let mut row = rows::lock(&mut transaction, id).await?;
        if row.paused_at.is_some() {
            row.next_at = row.spec()?.timing.after(now);
            (row.paused_at, row.paused_by, row.pause_reason, row.failures) = (None, None, None, 0);
            rows::write(&mut transaction, &row).await?;
            let act = act.before("is_paused", true).after("is_paused", false);
            core.engine.ground.audit.record(&mut transaction, act).await?;
            transaction.commit().await?;
        }
        Ok(())
    })
    .await?;
    core.schedules.notify_one();
    get(core, call.caller()?, id).await
}
