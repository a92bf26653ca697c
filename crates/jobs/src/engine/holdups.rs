//! What keeps jobs from starting, and from when to when. The leader looks once a second and writes down what has begun and
//! what is over, so that it costs the same for ten waiting jobs and ten million. What one job has waited for is found from
//! this when it is asked for (`reads/waited.rs`).

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, tasks::Tasks};
use tokio::time::Instant;

use super::{
    Ground,
    admission::{self, Hindrance},
    leader::{Lead, while_leading},
    straight,
};

const EVERY: Duration = Duration::from_secs(1);
/// Queues and tasks without a worker, and lanes that are held up, of each of which no more are written down at a time.
const PAIRS_MAX: i64 = 5_000;
const LANES_MAX: usize = 500;

/// Something that is held up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holdup {
    reason: &'static str,
    queue: String,
    /// Empty for all of them.
    task: String,
    lane: String,
}

impl Holdup {
    fn of_queue(reason: &'static str, queue: String) -> Self {
        Self { reason, queue, task: String::new(), lane: String::new() }
    }
}

pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.holdups", move |ground, lead| {
        let stopping = stopping.clone();
        async move {
            let (mut known, mut looked_at, mut uncounted) = (None, Instant::now(), Duration::ZERO);
            let mut seen = HashSet::new();
            while !stopping.is_cancelled() {
                let now = find(&ground).await?;
                // A lane that is held up for less than a look is told as waiting for its turn: lanes of short jobs would
                // write down little else.
                let stays = |holdup: &&Holdup| holdup.lane.is_empty() || seen.contains(*holdup);
                let found: HashSet<Holdup> = now.iter().filter(stays).cloned().collect();
                seen = now;
                uncounted += looked_at.elapsed();
                looked_at = Instant::now();
                count(&found, uncounted.as_secs());
                uncounted -= Duration::from_secs(uncounted.as_secs());
                if known.as_ref() != Some(&found) {
                    write(&ground, lead, &found).await?;
                    known = Some(found);
                }
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        }
    });
}

/// What is held up now.
async fn find(ground: &Ground) -> Result<HashSet<Holdup>, Fail> {
    let now = ground.clock.now();
    let mut found = HashSet::new();
    let paused =
        sqlx::query_scalar!("select name from jobs.queue where paused_at is not null").fetch_all(&ground.pool).await?;
    found.extend(paused.into_iter().map(|queue| Holdup::of_queue("queue_paused", queue)));
    let idle = sqlx::query!(
        r#"select queue.name as "queue!", task.name as "task!"
           from jobs.queue
           cross join jobs.task
           where not exists (
             select from jobs.worker
             where expires_at > $1 and not is_draining and task.name = any(worker.tasks)
               and (cardinality(worker.queues) = 0 or queue.name = any(worker.queues))
           )
           order by queue.name, task.name
           limit $2"#,
        now,
        PAIRS_MAX,
    )
    .fetch_all(&ground.pool)
    .await?;
    found.extend(idle.into_iter().map(|pair| Holdup {
        reason: "no_worker",
        queue: pair.queue,
        task: pair.task,
        lane: String::new(),
    }));
    let mut connection = ground.pool.acquire().await?;
    let mut look = straight::look(&mut connection, ground.settings.history_days).await?;
    let held = admission::held_up(&mut look, LANES_MAX, now).await?;
    look.rollback().await?;
    found.extend(held.into_iter().map(|(queue, lane, hindrance)| match hindrance {
        Hindrance::QueueLimit | Hindrance::Rate => Holdup::of_queue(hindrance.as_str(), queue),
        Hindrance::TaskLimit | Hindrance::KeyLimit | Hindrance::KeyRate => {
            Holdup { reason: hindrance.as_str(), queue, task: String::new(), lane: lane.unwrap_or_default() }
        }
    }));
    Ok(found)
}

/// Writes down what has begun and what is over. What was open under an earlier leader is taken up, or over since then.
async fn write(ground: &Ground, lead: Lead, found: &HashSet<Holdup>) -> Result<(), Fail> {
    let now = ground.clock.now();
    let column = |value: fn(&Holdup) -> &str| found.iter().map(|holdup| value(holdup).to_owned()).collect::<Vec<_>>();
    let (reasons, queues) = (column(|holdup| holdup.reason), column(|holdup| &holdup.queue));
    let (tasks, lanes) = (column(|holdup| &holdup.task), column(|holdup| &holdup.lane));
    let mut transaction = lead.begin(&ground.pool).await?;
    sqlx::query!(
        "update jobs.holdup
         set to_at = greatest(from_at, $5)
         where to_at is null
           and (reason, queue, task, lane) not in (
             select reason, queue, task, lane
             from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as found (reason, queue, task, lane)
           )",
        &reasons,
        &queues,
        &tasks,
        &lanes,
        now,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "insert into jobs.holdup (reason, queue, task, lane, from_at)
         select reason, queue, task, lane, $5
         from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as found (reason, queue, task, lane)
         on conflict do nothing",
        &reasons,
        &queues,
        &tasks,
        &lanes,
        now,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Seconds for which each queue was held up, by reason; once for a queue, however many of its lanes it concerns.
fn count(found: &HashSet<Holdup>, seconds: u64) {
    let held: HashSet<(&str, &str)> = found.iter().map(|holdup| (holdup.queue.as_str(), holdup.reason)).collect();
    for (queue, reason) in held {
        let labels = [("queue", queue.to_owned()), ("reason", reason.to_owned())];
        metrics::counter!("guildhall_queue_held_up_seconds_total", &labels).increment(seconds);
    }
}

/// Forgets what was over before any job that is kept.
pub(super) async fn tidy(ground: &Ground, lead: Lead, now: DateTime<Utc>) -> Result<(), Fail> {
    let before = now - TimeDelta::days(i64::from(ground.settings.history_days) + 1);
    let mut transaction = lead.begin(&ground.pool).await?;
    sqlx::query!("delete from jobs.holdup where to_at < $1", before).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}
