//! Progress and log lines of running attempts, written in groups. Both need the fencing token of the attempt that holds
//! the job; what a fenced attempt says changes nothing. How often an attempt is written about is `notebook.rs`'s.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use kit::Fail;
use uuid::Uuid;

use super::{
    Ground,
    events::{self, Telling},
    notebook::Page,
    steps::Aftermath,
};

/// Events that one job's stream holds before progress and logs are no longer kept in it. Its states always are, and the
/// job itself always shows its last progress.
const EVENTS_MAX: i64 = 20_000;

/// Something an attempt says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(crate) job: Uuid,
    pub(crate) token: i64,
    pub(crate) said: Said,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Progress(Progress),
    Log(Line),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    /// 0 to 100.
    pub(crate) percent: f64,
    pub(crate) stage: String,
    pub(crate) message: String,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) level: String,
    pub(crate) message: String,
    pub(crate) at: DateTime<Utc>,
}

impl Line {
    fn warning(message: String, at: DateTime<Utc>) -> Said {
        Said::Log(Self { level: "warn".to_owned(), message, at })
    }
}

/// A job that is written about, its row locked.
struct Held {
    id: Uuid,
    token: i64,
    batch: Option<Uuid>,
    events: i64,
    progress: Option<Progress>,
    is_changed: bool,
}

impl Held {
    /// Gives what was said a place in the stream, as long as there is one; the last place says that it is the last.
    fn tell(&mut self, said: Said, now: DateTime<Utc>, telling: &mut Telling) {
        if let Said::Progress(progress) = &said {
            self.progress = Some(progress.clone());
            self.is_changed = true;
        }
        let said = match said {
            _ if self.events >= EVENTS_MAX => return,
            Said::Log(_) if self.events == EVENTS_MAX - 1 => {
                Line::warning(format!("{EVENTS_MAX} events of the job are kept; what else it says is not"), now)
            }
            Said::Progress(_) if self.events == EVENTS_MAX - 1 => return,
            said => said,
        };
        self.events += 1;
        self.is_changed = true;
        match said {
            Said::Progress(Progress { percent, stage, message }) => {
                let data = events::progress(self.id, percent, &stage, &message);
                telling.job(self.id, self.events, self.batch, "progress", data);
            }
            Said::Log(Line { level, message, at }) => {
                let data = events::log(self.id, self.events, &level, &message, at);
                telling.job(self.id, self.events, self.batch, "log", data);
            }
        }
    }
}

/// Writes a group of pages, in their order.
///
/// # Errors
/// As the database; nothing is written then.
pub(super) async fn write(ground: &Ground, pages: Vec<Arc<Page>>) -> Result<Vec<()>, Fail> {
    let now = ground.clock.now();
    let mut transaction = ground.pool.begin().await?;
    let ids: Vec<Uuid> = pages.iter().map(|page| page.job).collect::<BTreeSet<_>>().into_iter().collect();
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
        let (id, token, batch, events) = (row.id, row.token, row.batch_id, row.events);
        (id, Held { id, token, batch, events, progress: None, is_changed: false })
    })
    .collect();

    let mut telling = Telling::default();
    for page in &pages {
        let Some(job) = held.get_mut(&page.job).filter(|job| job.token == page.token) else { continue };
        for said in page.said() {
            job.tell(said, now, &mut telling);
        }
        if page.lines_dropped > 0 {
            let message = format!("{} lines were dropped: too many at once", page.lines_dropped);
            job.tell(Line::warning(message, now), now, &mut telling);
        }
    }
    let changed: Vec<&Held> = held.values().filter(|job| job.is_changed).collect();
    if !changed.is_empty() {
        let part = |part: &dyn Fn(&Progress) -> String| -> Vec<Option<String>> {
            changed.iter().map(|job| job.progress.as_ref().map(part)).collect()
        };
        sqlx::query!(
            "update jobs.job
             set events = new.events, progress_percent = coalesce(new.percent, progress_percent),
               progress_stage = coalesce(new.stage, progress_stage),
               progress_message = coalesce(new.message, progress_message)
             from unnest($1::uuid[], $2::bigint[], $3::double precision[], $4::text[], $5::text[])
               as new (id, events, percent, stage, message)
             where job.id = new.id",
            &changed.iter().map(|job| job.id).collect::<Vec<_>>(),
            &changed.iter().map(|job| job.events).collect::<Vec<_>>(),
            &changed.iter().map(|job| job.progress.as_ref().map(|p| p.percent)).collect::<Vec<_>>() as &[Option<f64>],
            &part(&|progress| progress.stage.clone()) as &[Option<String>],
            &part(&|progress| progress.message.clone()) as &[Option<String>],
        )
        .execute(&mut *transaction)
        .await?;
    }
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    ground.after(&Aftermath { streams, ..Aftermath::default() });
    Ok(vec![(); pages.len()])
}
