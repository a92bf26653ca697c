//! Follows a batch from whatever id is at hand to its end: first the job that makes it, when that is the id, then its own
//! events, then once more the job, whose result is the batch's. Tells the board, and the view what has changed.

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    board::{Board, Change, Counts, Piece},
    view::View,
};
use crate::client::{
    api::{Api, Page, TRIES_SMALL, patiently},
    error::Error,
    events::{Event, Events, Heard},
    file::File,
    job::{self, Job, Told, is_final},
    words,
};

/// Names are asked for one by one, so many at a time.
const NAMES_AT_ONCE: usize = 8;

/// A batch, as far as the client reads it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) counts: Counts,
    pub(super) finalize_job_id: Option<String>,
    /// Why nothing was finalized.
    pub(super) finalize_skipped: Option<String>,
    pub(super) created_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
}

/// What is followed. The ids are filled in as they become known, so that Ctrl-C knows what to cancel.
#[derive(Debug, Default)]
pub(super) struct Target {
    /// The job that makes the batch.
    pub(super) job_id: OnceLock<String>,
    pub(super) batch_id: OnceLock<String>,
}

impl Target {
    pub(super) fn job(id: String) -> Self {
        Self { job_id: id.into(), batch_id: OnceLock::new() }
    }

    /// What `id` is the id of: a batch, or the job that makes one.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 when it is neither, or somebody else's; [`Error::Failed`] for a job that makes none.
    pub(super) async fn find(api: &Api, id: &str) -> Result<Self, Error> {
        match api.get::<Batch>(&["batches", id], &[]).await {
            Ok(batch) => Ok(Self { job_id: OnceLock::new(), batch_id: batch.id.into() }),
            Err(not_found) if not_found.is_status(404) => {
                let job: Job = match api.get(&["jobs", id], &[]).await {
                    Err(error) if error.is_status(404) => return Err(not_found),
                    found => found?,
                };
                let target = Self::job(job.id.clone());
                if let Some(batch_id) = child(&job) {
                    target.batch_id.get_or_init(|| batch_id);
                } else if job.task != "process_batch" {
                    let (id, task) = (words::plain(&job.id), words::plain(&job.task));
                    return Err(Error::Failed(format!(
                        "{id} is a job of {task}, which makes no batch. Watch it with `guildhall job watch {id}`."
                    )));
                }
                Ok(target)
            }
            Err(error) => Err(error),
        }
    }

    /// Cancels the batch, so that what is done is still gathered; or the job, when it has not made one yet.
    ///
    /// # Errors
    /// Those of the request.
    pub(super) async fn cancel(&self, api: &Api) -> Result<(), Error> {
        let path = match (self.batch_id.get(), self.job_id.get()) {
            (Some(batch_id), _) => ["batches", batch_id, "cancel"],
            (None, Some(job_id)) => ["jobs", job_id, "cancel"],
            (None, None) => return Ok(()),
        };
        api.post::<Value>(&path, &json!({}), None).await.map(drop)
    }

    /// The id to come back by.
    pub(super) fn id(&self) -> &str {
        self.batch_id.get().or(self.job_id.get()).map_or("", String::as_str)
    }
}

/// Everything there is to know of a batch that is watched no more.
#[derive(Debug)]
pub(super) struct Found {
    /// The job that made it, when that was watched.
    pub(super) job: Option<Job>,
    /// None when the job ended without having made one.
    pub(super) batch: Option<Batch>,
    /// In the order of the pictures when that is known, else oldest first. Without the finalize.
    pub(super) pieces: Vec<Job>,
    pub(super) finalize: Option<Job>,
    /// Names of files by their ids.
    pub(super) names: HashMap<String, String>,
}

/// Follows to the end. `names` are those of files that are known already.
///
/// # Errors
/// Those of the requests, after some minutes of trying when the server is out of reach.
pub(super) async fn follow(
    api: &Api,
    target: &Target,
    names: HashMap<String, String>,
    view: &mut View<'_>,
) -> Result<Found, Error> {
    let mut watch = Watch { api, board: Board::default(), names, listed_for: HashSet::new() };
    if let (Some(job_id), None) = (target.job_id.get(), target.batch_id.get()) {
        let job = follow_job(api, job_id, view, |job| child(job).is_some()).await?;
        match child(&job) {
            Some(batch_id) => target.batch_id.get_or_init(|| batch_id),
            None => return gather(api, None, Some(job), watch.names).await,
        };
    }
    let batch_id = target.batch_id.get().map_or("", String::as_str);
    watch.follow(batch_id, view).await?;
    let job = match target.job_id.get() {
        Some(job_id) => Some(follow_job(api, job_id, view, |job| is_final(&job.state)).await?),
        None => None,
    };
    gather(api, Some(batch_id), job, watch.names).await
}

/// What a batch and its jobs are now.
///
/// # Errors
/// Those of the requests.
pub(super) async fn gather(
    api: &Api,
    batch_id: Option<&str>,
    job: Option<Job>,
    mut names: HashMap<String, String>,
) -> Result<Found, Error> {
    let Some(batch_id) = batch_id else {
        return Ok(Found { job, batch: None, pieces: Vec::new(), finalize: None, names });
    };
    let batch = batch(api, batch_id).await?;
    let filter = [("batch_id", batch_id)];
    let all: Vec<Job> = patiently(TRIES_SMALL, async || api.list(&["jobs"], &filter).await).await?;
    let (mut finalize, mut pieces): (Vec<_>, Vec<_>) = all.into_iter().partition(|job| is_finalize(&batch, job));
    let mut finalize = finalize.pop();
    if let (None, Some(id)) = (&finalize, finalize_id(&batch)) {
        finalize = Some(patiently(TRIES_SMALL, async || api.get(&["jobs", id], &[]).await).await?);
    }
    let order: HashMap<&str, usize> = job
        .iter()
        .flat_map(|job| job.args["file_ids"].as_array())
        .flatten()
        .enumerate()
        .filter_map(|(place, id)| Some((id.as_str()?, place)))
        .collect();
    pieces.sort_by(|one, other| {
        let place =
            |job: &Job| order.get(job.args["file_id"].as_str().unwrap_or_default()).copied().unwrap_or(usize::MAX);
        place(one).cmp(&place(other)).then_with(|| one.id.cmp(&other.id))
    });
    let unnamed: HashSet<String> = pieces
        .iter()
        .filter_map(|piece| piece.args["file_id"].as_str())
        .filter(|id| !names.contains_key(*id))
        .map(str::to_owned)
        .collect();
    let mut asked = stream::iter(unnamed.into_iter().map(|id| async move { (name(api, &id).await, id) }))
        .buffer_unordered(NAMES_AT_ONCE);
    while let Some((name, id)) = asked.next().await {
        names.insert(id, name?);
    }
    drop(asked);
    Ok(Found { job, batch: Some(batch), pieces, finalize, names })
}

struct Watch<'a> {
    api: &'a Api,
    board: Board,
    names: HashMap<String, String>,
    /// Jobs that the list was asked for and did not have: not worth asking again.
    listed_for: HashSet<String>,
}

impl Watch<'_> {
    async fn follow(&mut self, batch_id: &str, view: &mut View<'_>) -> Result<(), Error> {
        self.learn(batch_id).await?;
        view.count(&self.board);
        let mut events = Events::of(self.api, "batches", batch_id);
        loop {
            match events.next().await? {
                Heard::End => return Ok(()),
                Heard::Broken => view.broken(),
                Heard::Event(event) => {
                    view.event(&event);
                    self.take(batch_id, &event, view).await?;
                }
            }
        }
    }

    async fn take(&mut self, batch_id: &str, event: &Event, view: &mut View<'_>) -> Result<(), Error> {
        if event.event == "reset" {
            self.board.reset();
            self.learn(batch_id).await?;
            view.count(&self.board);
            return Ok(());
        }
        // A batch that is still being filled tells of jobs that were not there when it was listed.
        if let Some(id) = event.data["job_id"].as_str().filter(|id| !self.board.knows(id))
            && self.listed_for.insert(id.to_owned())
        {
            self.learn(batch_id).await?;
        }
        let Some(change) = self.board.apply(event) else { return Ok(()) };
        if let Change::Began(id) | Change::Ended(id) = &change
            && let Some(file_id) = self.board.piece(id).and_then(|piece| piece.file_id.clone())
            && !self.names.contains_key(&file_id)
        {
            let name = name(self.api, &file_id).await?;
            self.names.insert(file_id, name);
        }
        let names = &self.names;
        view.changed(&self.board, &change, |piece| called(piece, names));
        Ok(())
    }

    /// Reads the batch and, newest first, as much of its list as is new.
    async fn learn(&mut self, batch_id: &str) -> Result<(), Error> {
        let batch = batch(self.api, batch_id).await?;
        self.board.set_whole(&batch.state, batch.counts);
        if let Some(id) = finalize_id(&batch) {
            self.board.set_aside(id);
        }
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("batch_id", batch_id), ("limit", "200")];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Page<Job> = patiently(TRIES_SMALL, async || self.api.get(&["jobs"], &query).await).await?;
            let is_known = page.items.iter().all(|job| {
                self.board.knows(&job.id) && self.board.piece(&job.id).is_none_or(|piece| !piece.state.is_empty())
            });
            for job in &page.items {
                if is_finalize(&batch, job) {
                    self.board.set_aside(&job.id);
                } else {
                    self.board.learn(job);
                }
            }
            match page.next_cursor {
                Some(next) if !is_known => cursor = Some(next),
                _ => return Ok(()),
            }
        }
    }
}

async fn follow_job(api: &Api, id: &str, view: &mut View<'_>, until: impl Fn(&Job) -> bool) -> Result<Job, Error> {
    job::follow(api, id, until, |told| match told {
        Told::Broken => view.broken(),
        Told::Job(job) => {
            if let Some(why) = job.waits().filter(|_| child(job).is_none()) {
                view.waits(&format!("waits: {why}"));
            }
        }
        Told::Event(event) => view.event(event),
    })
    .await
}

async fn batch(api: &Api, id: &str) -> Result<Batch, Error> {
    patiently(TRIES_SMALL, async || api.get(&["batches", id], &[]).await).await
}

/// The name of a file; of one that is not there, or not the caller's, its id.
async fn name(api: &Api, id: &str) -> Result<String, Error> {
    match patiently(TRIES_SMALL, async || api.get::<File>(&["files", id], &[]).await).await {
        Ok(file) => Ok(words::plain(&file.name)),
        Err(Error::Refused(_)) => Ok(words::plain(id)),
        Err(error) => Err(error),
    }
}

/// What a reader knows a job by.
fn called(piece: &Piece, names: &HashMap<String, String>) -> String {
    let name = piece.file_id.as_ref().and_then(|id| names.get(id)).filter(|name| !name.is_empty());
    name.cloned().unwrap_or_else(|| words::plain(if piece.task.is_empty() { "a job" } else { &piece.task }))
}

fn child(job: &Job) -> Option<String> {
    job.child_batch_id.clone().filter(|id| !id.is_empty())
}

fn finalize_id(batch: &Batch) -> Option<&str> {
    batch.finalize_job_id.as_deref().filter(|id| !id.is_empty())
}

fn is_finalize(batch: &Batch, job: &Job) -> bool {
    finalize_id(batch) == Some(job.id.as_str())
}
