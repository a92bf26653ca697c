//! Depths, ages and workers, for the metrics page. They are the database's and not a replica's, so the leader tells
//! them and the others tell 0: a sum or maximum over all replicas is right. Counting reads the whole job table, so
//! it may take a fiftieth of the time and no more, however long the table is.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kit::{Fail, tasks::Tasks};
use metrics::{Gauge, Key, Label, Level, Metadata};
use tokio::time::Instant;

use super::{Ground, leader::while_leading};

const EVERY: Duration = Duration::from_secs(5);
/// Of the time a count took, between two counts.
const REST: u32 = 50;

pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    let stopping = tasks.stopping();
    while_leading(ground, tasks, "jobs.measure", move |ground, _lead| {
        let stopping = stopping.clone();
        async move {
            let mut told = Told::default();
            loop {
                let started = Instant::now();
                measure(&ground, &mut told).await?;
                tokio::select! {
                    () = tokio::time::sleep(EVERY.max(started.elapsed() * REST)) => {}
                    () = stopping.cancelled() => return Ok(()),
                }
            }
        }
    });
}

async fn measure(ground: &Ground, told: &mut Told) -> Result<(), Fail> {
    let now = ground.clock.now();
    let depths = sqlx::query!(
        r#"select queue.name as "name!", state.name as "state!", coalesce(depth, 0) as "depth!", oldest
           from jobs.queue
           cross join unnest(array['waiting', 'scheduled', 'queued', 'running', 'suspended', 'cancelling']) as state (name)
           left join (
             select queue, state, count(*) as depth, min(run_at) as oldest from jobs.job group by queue, state
           ) as live on live.queue = queue.name and live.state = state.name"#,
    )
    .fetch_all(&ground.pool)
    .await?;
    let workers = sqlx::query!(
        r#"select profile, count(*) filter (where not is_draining) as "ready!", count(*) filter (where is_draining) as "draining!"
           from jobs.worker
           group by profile"#,
    )
    .fetch_all(&ground.pool)
    .await?;

    let before = std::mem::take(&mut told.0);
    for row in depths {
        let labels = vec![Label::new("queue", row.name.clone()), Label::new("state", row.state.clone())];
        told.tell("guildhall_queue_depth", labels, count(row.depth));
        if row.state == "queued" {
            let age = row.oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64());
            told.tell("guildhall_queue_oldest_seconds", vec![Label::new("queue", row.name)], age.max(0.0));
        }
    }
    for row in workers {
        for (state, workers) in [("ready", row.ready), ("draining", row.draining)] {
            let labels = vec![Label::new("profile", row.profile.clone()), Label::new("state", state)];
            told.tell("guildhall_workers", labels, count(workers));
        }
    }
    // A profile whose last worker has gone is not among the rows.
    drop(Told(before.difference(&told.0).cloned().collect()));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
const fn count(rows: i64) -> f64 {
    rows as f64
}

/// The gauges that this replica tells.
#[derive(Debug, Default)]
struct Told(HashSet<Key>);

impl Told {
    fn tell(&mut self, name: &'static str, labels: Vec<Label>, value: f64) {
        let key = Key::from_parts(name, labels);
        gauge(&key).set(value);
        self.0.insert(key);
    }

    fn withdraw(&mut self) {
        for key in self.0.drain() {
            gauge(&key).set(0.0);
        }
    }
}

impl Drop for Told {
    /// Another tells them from now on.
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn gauge(key: &Key) -> Gauge {
    let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
    metrics::with_recorder(|recorder| recorder.register_gauge(key, &metadata))
}
