//! Periodic, idempotent work that takes no input: what is due, what was lost, what is over. It is the leader's, and each
//! transaction of it proves that this replica still leads. Woken by signal and by timer alike, so the rare way is the
//! common way.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Days, TimeDelta, Utc};
use kit::{Fail, Kind, idempotency, outbox, tasks::Tasks};
use proto::worker::{AttemptRef, Stop, StopAttempt, to_worker};
use tracing::warn;

use super::{
    GROUP_MAX, Ground, admission, cancel, dependencies,
    events::{self, Telling},
    expiry,
    finish::{self, End, Fault, Outcome},
    history, holdups,
    leader::{Lead, Told, while_leading},
    reconcile, repair,
    states::State,
    steps::Aftermath,
    unique,
};
use crate::SCHEMA;

/// Rows that one step of a sweep takes.
const ROWS_MAX: i64 = 500;
/// An attempt that its worker did not end at its timeout is ended here, this much later.
const TIMEOUT_SLACK_S: f64 = 15.0;

const PROMOTE_EVERY: Duration = Duration::from_millis(200);
const EXPIRE_EVERY: Duration = Duration::from_millis(500);
const LEASES_EVERY: Duration = Duration::from_secs(1);
const DEPENDENTS_EVERY: Duration = Duration::from_secs(2);
const CANCELS_EVERY: Duration = Duration::from_secs(2);
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
const LANES_EVERY: Duration = Duration::from_secs(1);
const TIDY_EVERY: Duration = Duration::from_secs(600);

pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    every(ground, tasks, "jobs.promote", PROMOTE_EVERY, |ground, lead| async move { promote(&ground, lead).await });
    every(ground, tasks, "jobs.expire", EXPIRE_EVERY, |ground, lead| async move { expiry::run(&ground, lead).await });
    every(ground, tasks, "jobs.leases", LEASES_EVERY, |ground, lead| async move { leases(&ground, lead).await });
    every(ground, tasks, "jobs.tidy", TIDY_EVERY, |ground, lead| async move { tidy(&ground, lead).await });
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.reconcile", move |ground, lead| {
        let stopping = stopping.clone();
        async move {
            let drift = Told::by(metrics::gauge!("guildhall_batch_drift"));
            loop {
                reconcile::run(&ground, lead, &drift).await?;
                tokio::select! {
                    () = tokio::time::sleep(RECONCILE_EVERY) => {}
                    () = stopping.cancelled() => return Ok(()),
                }
            }
        }
    });
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.lanes", move |ground, lead| {
        let stopping = stopping.clone();
        async move {
            let followed = admission::Followed::default();
            while !stopping.is_cancelled() {
                admission::follow(&ground, lead, &followed).await?;
                tokio::select! {
                    () = ground.lanes.notified() => {}
                    () = tokio::time::sleep(LANES_EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.bites", move |ground, lead| {
        let stopping = stopping.clone();
        async move {
            while !stopping.is_cancelled() {
                let has_cancels = cancel::carry_on(&ground, lead).await?;
                let has_retries = repair::carry_on(&ground, lead).await?;
                if has_cancels || has_retries {
                    continue;
                }
                tokio::select! {
                    () = ground.bites.notified() => {}
                    () = tokio::time::sleep(CANCELS_EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.dependencies", move |ground, lead| {
        let stopping = stopping.clone();
        async move {
            while !stopping.is_cancelled() {
                if dependencies::carry_on(&ground, lead).await? {
                    continue;
                }
                tokio::select! {
                    () = ground.dependents.notified() => {}
                    () = tokio::time::sleep(DEPENDENTS_EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
    // Its own workers' affairs, leader or not.
    let (ground, stopping) = (Arc::clone(ground), tasks.stopping());
    tasks.spawn_restarting("jobs.cancels", move || {
        let (ground, stopping) = (Arc::clone(&ground), stopping.clone());
        async move {
            while !stopping.is_cancelled() {
                send_stops(&ground).await?;
                tokio::select! {
                    () = ground.cancels.notified() => {}
                    () = tokio::time::sleep(CANCELS_EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
}

/// Does a sweep of the leader's again and again.
fn every<M, F>(ground: &Arc<Ground>, tasks: &Tasks, name: &'static str, period: Duration, make: M)
where
    M: Fn(Arc<Ground>, Lead) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Fail>> + Send + 'static,
{
    let stopping = tasks.stopping();
    while_leading(ground, tasks, name, move |ground, lead| {
        let (stopping, make) = (stopping.clone(), make.clone());
        async move {
            loop {
                make(Arc::clone(&ground), lead).await?;
                tokio::select! {
                    () = tokio::time::sleep(period) => {}
                    () = stopping.cancelled() => return Ok(()),
                }
            }
        }
    });
}

/// Scheduled jobs whose time has come may start.
async fn promote(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    loop {
        let now = ground.clock.now();
        let mut transaction = lead.begin(&ground.pool).await?;
        let due = sqlx::query!(
            "update jobs.job
             set state = 'queued', since = $1, events = events + 1,
               queue_until = $1::timestamptz + make_interval(secs => queue_timeout_s)
             where id in (
               select id from jobs.job
               where state = 'scheduled' and run_at <= $1
               order by run_at
               limit $2
               for update skip locked
             )
             returning id, batch_id, attempt, events",
            now,
            ROWS_MAX,
        )
        .fetch_all(&mut *transaction)
        .await?;
        if due.is_empty() {
            return Ok(());
        }
        let mut telling = Telling::default();
        for job in &due {
            telling.job(
                job.id,
                job.events,
                job.batch_id,
                "state",
                events::state(job.id, State::Queued, job.attempt, None),
            );
        }
        let streams = telling.append(&mut transaction, now).await?;
        transaction.commit().await?;
        ground.after(&Aftermath { streams, has_work: true, ..Aftermath::default() });
    }
}

/// Attempts whose worker is gone or that outlived their time are fenced; their jobs go on or end.
async fn leases(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    let now = ground.clock.now();
    if ground.leader.standstill.has_just_ended() {
        // The clock on the wall has moved while nobody could renew anything: a pause of the machine, not of a worker.
        warn!("this process stood still; leases are extended once");
        let mut transaction = lead.begin(&ground.pool).await?;
        sqlx::query!(
            "update jobs.worker set expires_at = $2 where expires_at < $1",
            now,
            now + seconds(ground.settings.lease_s),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
    }
    let lost = sqlx::query!(
        "select job.id, job.token
         from jobs.worker
         join jobs.job on job.worker_id = worker.id
         where worker.expires_at < $1
         limit $2",
        now,
        ROWS_MAX,
    )
    .fetch_all(&ground.pool)
    .await?;
    let lost = lost.into_iter().map(|job| Outcome { job: job.id, token: job.token, end: End::LeaseOver });
    end_all(ground, lead, lost.collect()).await?;
    let mut transaction = lead.begin(&ground.pool).await?;
    // A job that is claimed for one of these meanwhile is found below without its worker.
    sqlx::query!(
        "delete from jobs.worker
         where expires_at < $1 and not exists (select from jobs.job where worker_id = worker.id)",
        now,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    // Every attempt at work is looked at, and that only once.
    let over = sqlx::query!(
        r#"select job.id, token, attempt_timeout_s, worker.id is null as "is_lost!"
           from jobs.job
           left join jobs.worker on worker.id = job.worker_id
           where worker_id is not null
             and (worker.id is null or attempt_started_at + make_interval(secs => attempt_timeout_s + $2 + $3) < $1)
           limit $4"#,
        now,
        ground.settings.cancel_grace_s,
        TIMEOUT_SLACK_S,
        ROWS_MAX,
    )
    .fetch_all(&ground.pool)
    .await?;
    let over = over.into_iter().map(|job| {
        let message = || format!("The attempt ran longer than {} s.", job.attempt_timeout_s);
        let end = if job.is_lost { End::LeaseOver } else { End::Failed(Fault::new("timeout", message(), true), None) };
        Outcome { job: job.id, token: job.token, end }
    });
    end_all(ground, lead, over.collect()).await
}

/// Ends attempts together; where that fails each alone, so that one that cannot be ended holds up no other.
async fn end_all(ground: &Ground, lead: Lead, outcomes: Vec<Outcome>) -> Result<(), Fail> {
    for group in outcomes.chunks(GROUP_MAX) {
        match finish::finish_led(ground, lead, group.to_vec()).await {
            Err(fail) if fail.kind() != Kind::Unavailable && group.len() > 1 => {
                for outcome in group {
                    if let Err(fail) = finish::finish_led(ground, lead, vec![outcome.clone()]).await {
                        warn!(job.id = %outcome.job, error = %fail, "an attempt that is over cannot be ended");
                    }
                }
            }
            ended => drop(ended?),
        }
    }
    Ok(())
}

/// Gives back what dead workers held. For a process that alone owns the database's workers and has just started.
pub(super) async fn release_all(ground: &Ground, lead: Lead) -> Result<u64, Fail> {
    let mut released = 0;
    loop {
        let held = sqlx::query!("select id, token from jobs.job where worker_id is not null limit $1", ROWS_MAX)
            .fetch_all(&ground.pool)
            .await?;
        if held.is_empty() {
            break;
        }
        released += held.len() as u64;
        let outcomes = held.into_iter().map(|job| Outcome { job: job.id, token: job.token, end: End::Interrupted });
        finish::finish_led(ground, lead, outcomes.collect()).await?;
    }
    let mut transaction = lead.begin(&ground.pool).await?;
    sqlx::query!("delete from jobs.worker").execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(released)
}

/// Tells this replica's workers which of their attempts are to end.
async fn send_stops(ground: &Ground) -> Result<(), Fail> {
    for seat in ground.seats.all() {
        let cancelling = sqlx::query!(
            "select id, token, is_expiring from jobs.job where worker_id = $1 and state = 'cancelling'",
            seat.worker
        )
        .fetch_all(&ground.pool)
        .await?;
        if cancelling.is_empty() {
            continue;
        }
        let items = cancelling.into_iter().map(|job| StopAttempt {
            attempt: Some(AttemptRef { job_id: job.id.to_string(), token: job.token.unsigned_abs() }),
            why: if job.is_expiring { "deadline" } else { "cancel" }.to_owned(),
            grace_s: ground.settings.cancel_grace_s,
        });
        // One worker that does not read must not keep the others waiting; what finds no room is sent again.
        seat.try_send(to_worker::Message::Stop(Stop { items: items.collect() }));
    }
    Ok(())
}

/// Partitions for the coming days, and the end of what is past its retention and of keys that nobody holds.
async fn tidy(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    history::make_partitions(ground).await?;
    history::drop_expired(ground, lead).await?;
    admission::tidy(ground, lead).await?;
    let now = ground.clock.now();
    holdups::tidy(ground, lead, now).await?;
    dependencies::recheck(ground, lead, ROWS_MAX).await?;
    let before = now - TimeDelta::days(i64::from(ground.settings.outbox_days));
    let oldest_kept = history::floor(now.date_naive() - Days::new(u64::from(ground.settings.history_days)));
    loop {
        let mut transaction = lead.begin(&ground.pool).await?;
        let keys = idempotency::prune(&mut transaction, SCHEMA, now, ROWS_MAX).await?;
        let rows = outbox::prune(&mut transaction, SCHEMA, before, ROWS_MAX).await?;
        let unique = unique::tidy(&mut transaction, now, ROWS_MAX).await?;
        let dependencies = dependencies::tidy(&mut transaction, oldest_kept, ROWS_MAX).await?;
        transaction.commit().await?;
        if keys + rows + unique + dependencies == 0 {
            return Ok(());
        }
    }
}

/// A span of `seconds`, which a setting gave.
fn seconds(seconds: f64) -> TimeDelta {
    #[expect(clippy::cast_possible_truncation, reason = "settings are bounded far below")]
    TimeDelta::milliseconds((seconds * 1000.0) as i64)
}

/// When a lease that is renewed now ends.
pub(crate) fn lease_end(ground: &Ground, now: DateTime<Utc>) -> DateTime<Utc> {
    now + seconds(ground.settings.lease_s)
}
