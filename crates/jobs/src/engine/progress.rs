//! Progress and log lines of running attempts, written in groups. Both need the fencing token of the attempt that holds
//! the job; what a fenced attempt says changes nothing.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use kit::Fail;
use uuid::Uuid;

use super::{
    Ground,
    events::{self, Telling},
    steps::Aftermath,
};

/// Events that one job's stream holds before progress and logs are no longer kept. Its states always are.
const EVENTS_MAX: i64 = 20_000;

/// Something an attempt says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(crate) job: Uuid,
    pub(crate) token: i64,
    pub(crate) said: Said,
}

#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// Percent is 0 to 100.
    Progress {
        percent: f64,
        stage: String,
        message: String,
    },
    Log {
        level: String,
        message: String,
        at: DateTime<Utc>,
    },
}

/// Writes a group of notes, in their order.
///
/// # Errors
/// As the database; nothing is written then.
pub(super) async fn write(ground: &Ground, notes: Vec<Note>) -> Result<Vec<()>, Fail> {
    let now = ground.clock.now();
    let mut transaction = ground.pool.begin().await?;
    let ids: Vec<Uuid> = notes.iter().map(|note| note.job).collect::<BTreeSet<_>>().into_iter().collect();
    struct Held {
        token: i64,
        batch: Option<Uuid>,
        events: i64,
        progress: Option<(f64, String, String)>,
        is_changed: bool,
    }
    let mut held: HashMap<Uuid, Held> = sqlx::query!(
        "select id, token, batch_id, events
         from jobs.job
         where id = any($1) and worker_id is not null
         order by id
         for update",
        &ids,
    )
    .fetch_all(&mut *transaction)
    .await?
    .into_iter()
    .map(|row| {
        (row.id, Held { token: row.token, batch: row.batch_id, events: row.events, progress: None, is_changed: false })
    })
    .collect();

    let answers = vec![(); notes.len()];
    let mut telling = Telling::default();
    for note in notes {
        let Some(job) = held.get_mut(&note.job).filter(|job| job.token == note.token && job.events < EVENTS_MAX) else {
            continue;
        };
        job.events += 1;
        job.is_changed = true;
        match note.said {
            Said::Progress { percent, stage, message } => {
                let data = events::progress(note.job, percent, &stage, &message);
                telling.job(note.job, job.events, job.batch, "progress", data);
                job.progress = Some((percent, stage, message));
            }
            Said::Log { level, message, at } => {
                let data = events::log(note.job, job.events, &level, &message, at);
                telling.job(note.job, job.events, job.batch, "log", data);
            }
        }
    }
    let changed: Vec<(&Uuid, &Held)> = held.iter().filter(|(_, job)| job.is_changed).collect();
    if !changed.is_empty() {
        let part = |part: &dyn Fn(&(f64, String, String)) -> String| -> Vec<Option<String>> {
            changed.iter().map(|(_, job)| job.progress.as_ref().map(part)).collect()
        };
        sqlx::query!(
            "update jobs.job
             set events = new.events, progress_percent = coalesce(new.percent, progress_percent),
               progress_stage = coalesce(new.stage, progress_stage),
               progress_message = coalesce(new.message, progress_message)
             from unnest($1::uuid[], $2::bigint[], $3::double precision[], $4::text[], $5::text[])
               as new (id, events, percent, stage, message)
             where job.id = new.id",
            &changed.iter().map(|(id, _)| **id).collect::<Vec<_>>(),
            &changed.iter().map(|(_, job)| job.events).collect::<Vec<_>>(),
            &changed.iter().map(|(_, job)| job.progress.as_ref().map(|p| p.0)).collect::<Vec<_>>() as &[Option<f64>],
            &part(&|progress| progress.1.clone()) as &[Option<String>],
            &part(&|progress| progress.2.clone()) as &[Option<String>],
        )
        .execute(&mut *transaction)
        .await?;
    }
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    ground.after(&Aftermath { streams, ..Aftermath::default() });
    Ok(answers)
}
