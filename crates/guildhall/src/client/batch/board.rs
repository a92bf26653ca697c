//! What is known of a batch while it runs: a fold over its events, without a terminal or a network. Whoever draws asks the
//! board; whoever listens tells it.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{
    events::Event,
    job::{Job, JobError, Progress, is_final},
};

/// How many jobs of a batch have ended, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) expired: u64,
}

impl Counts {
    /// `198 succeeded, 2 failed`: what there is none of is not told.
    pub(crate) fn words(&self) -> String {
        let told = [
            (self.succeeded, "succeeded"),
            (self.failed, "failed"),
            (self.cancelled, "cancelled"),
            (self.expired, "expired"),
        ];
        let told: Vec<_> =
            told.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        if told.is_empty() { "none done".into() } else { told.join(", ") }
    }
}

/// One job of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    /// The picture that it is made of.
    pub(super) file_id: Option<String>,
    pub(super) task: String,
    pub(super) state: String,
    pub(super) progress: Progress,
    pub(super) error: Option<JobError>,
}

/// What an event changed that is worth drawing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// A job began to run.
    Began(String),
    Progressed(String),
    /// A job has ended, in whatever way.
    Ended(String),
    /// A job left its worker without ending: for another attempt, or to wait.
    Left(String),
    /// The batch's own state or its size.
    Whole,
}

/// A batch and its jobs.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) state: String,
    total: u64,
    pieces: HashMap<String, Piece>,
    /// Jobs of the batch that are no part of what was asked for: its finalize.
    aside: HashSet<String>,
}

#[derive(Deserialize)]
struct StateData {
    job_id: String,
    state: String,
    error: Option<JobError>,
}

#[derive(Deserialize)]
struct ProgressData {
    job_id: String,
    #[serde(flatten)]
    progress: Progress,
}

#[derive(Deserialize)]
struct BatchData {
    state: String,
    #[serde(default)]
    counts: Counts,
}

impl Board {
    pub(super) fn piece(&self, job_id: &str) -> Option<&Piece> {
        self.pieces.get(job_id)
    }

    /// Leaves a job out of the count.
    pub(super) fn set_aside(&mut self, job_id: &str) {
        self.pieces.remove(job_id);
        self.aside.insert(job_id.to_owned());
    }

    pub(super) fn knows(&self, job_id: &str) -> bool {
        self.aside.contains(job_id) || self.pieces.get(job_id).is_some_and(|piece| !piece.task.is_empty())
    }

    /// A job as the server lists it. What events have told of it since stays.
    pub(super) fn learn(&mut self, job: &Job) {
        if self.aside.contains(&job.id) {
            return;
        }
        let piece = self.pieces.entry(job.id.clone()).or_default();
        piece.task.clone_from(&job.task);
        piece.file_id = job.args["file_id"].as_str().map(str::to_owned);
        if piece.state.is_empty() {
            piece.state.clone_from(&job.state);
            piece.progress = job.progress.clone().unwrap_or_default();
            piece.error.clone_from(&job.error);
        }
    }

    /// Forgets what events have told: the list that follows is newer than any of it.
    pub(super) fn reset(&mut self) {
        for piece in self.pieces.values_mut() {
            *piece = Piece { file_id: piece.file_id.take(), task: std::mem::take(&mut piece.task), ..Piece::default() };
        }
    }

    pub(super) fn set_whole(&mut self, state: &str, counts: Counts) {
        self.state = state.to_owned();
        self.total = self.total.max(counts.total);
    }

    /// Takes an event in. Events of jobs set aside, and those of later versions, change nothing.
    pub(super) fn apply(&mut self, event: &Event) -> Option<Change> {
        match event.event.as_str() {
            "state" => self.apply_state(read(&event.data)?),
            "progress" => {
                let ProgressData { job_id, progress } = read(&event.data)?;
                if self.aside.contains(&job_id) {
                    return None;
                }
                self.pieces.entry(job_id.clone()).or_default().progress = progress;
                Some(Change::Progressed(job_id))
            }
            "batch" => {
                let BatchData { state, counts } = read(&event.data)?;
                self.set_whole(&state, counts);
                Some(Change::Whole)
            }
            _ => None,
        }
    }

    fn apply_state(&mut self, StateData { job_id, state, error }: StateData) -> Option<Change> {
        if self.aside.contains(&job_id) {
            return None;
        }
        let piece = self.pieces.entry(job_id.clone()).or_default();
        let before = std::mem::replace(&mut piece.state, state);
        piece.error = error;
        match piece.state.as_str() {
            state if is_final(state) => (!is_final(&before)).then_some(Change::Ended(job_id)),
            "running" => {
                piece.progress = Progress::default();
                Some(Change::Began(job_id))
            }
            "cancelling" => Some(Change::Progressed(job_id)),
            _ => Some(Change::Left(job_id)),
        }
    }

    /// The jobs counted from their own states: these move with every event, while the batch's counts come in groups.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { total: self.total.max(self.pieces.len() as u64), ..Counts::default() };
        for piece in self.pieces.values() {
            match piece.state.as_str() {
                "succeeded" => counts.succeeded += 1,
                "failed" => counts.failed += 1,
                "cancelled" => counts.cancelled += 1,
                "expired" => counts.expired += 1,
                _ => {}
            }
        }
        counts
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> u64 {
        let counts = self.counts();
        counts.succeeded + counts.failed + counts.cancelled + counts.expired
    }
}

fn read<'a, T: Deserialize<'a>>(data: &'a Value) -> Option<T> {
    T::deserialize(data).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { id: "1".into(), event: name.into(), data }
    }

    fn job(id: &str, state: &str) -> Job {
        serde_json::from_value(
            json!({ "id": id, "task": "generate_3d_model", "state": state, "args": { "file_id": "f" } }),
        )
        .unwrap()
    }

    #[test]
    fn a_job_begins_progresses_and_ends_once() {
        let mut board = Board::default();
        let state = |state: &str| event("state", json!({ "job_id": "a", "state": state, "attempt": 1 }));
        assert_eq!(board.apply(&state("queued")), Some(Change::Left("a".into())));
        assert_eq!(board.apply(&state("running")), Some(Change::Began("a".into())));
        let progress = event("progress", json!({ "job_id": "a", "percent": 40.0, "stage": "mesh", "message": "" }));
        assert_eq!(board.apply(&progress), Some(Change::Progressed("a".into())));
        assert_eq!(board.piece("a").unwrap().progress.percent, 40.0);
        assert_eq!(board.apply(&state("succeeded")), Some(Change::Ended("a".into())));
        assert_eq!(board.apply(&state("succeeded")), None, "told twice");
        assert_eq!((board.ended(), board.counts().succeeded), (1, 1));
    }

    #[test]
    fn a_retried_job_is_no_longer_counted_as_ended() {
        let mut board = Board::default();
        let failed = event(
            "state",
            json!({ "job_id": "a", "state": "failed", "attempt": 3, "error": { "kind": "provider", "message": "No." } }),
        );
        board.apply(&failed);
        assert_eq!(board.piece("a").unwrap().error.as_ref().unwrap().kind, "provider");
        board.apply(&event("state", json!({ "job_id": "a", "state": "queued", "attempt": 3 })));
        assert_eq!(board.ended(), 0);
        assert_eq!(board.piece("a").unwrap().error, None);
    }

    #[test]
    fn the_finalize_is_not_counted() {
        let mut board = Board::default();
        board.learn(&job("a", "queued"));
        board.learn(&job("finalize", "queued"));
        board.set_aside("finalize");
        assert_eq!(
            board.apply(&event("state", json!({ "job_id": "finalize", "state": "running", "attempt": 1 }))),
            None
        );
        board.learn(&job("finalize", "running"));
        assert_eq!(board.counts().total, 1);
    }

    #[test]
    fn a_list_does_not_undo_what_an_event_has_told() {
        let mut board = Board::default();
        board.apply(&event("state", json!({ "job_id": "a", "state": "succeeded", "attempt": 1 })));
        board.learn(&job("a", "running"));
        assert_eq!(board.piece("a").unwrap().state, "succeeded");
        assert_eq!(board.piece("a").unwrap().file_id.as_deref(), Some("f"));
        board.reset();
        board.learn(&job("a", "running"));
        assert_eq!(board.piece("a").unwrap().state, "running");
    }

    #[test]
    fn the_size_of_a_batch_is_known_before_its_jobs_are() {
        let mut board = Board::default();
        board.apply(&event("batch", json!({ "batch_id": "b", "state": "running", "counts": { "total": 200 } })));
        assert_eq!((board.counts().total, board.state.as_str()), (200, "running"));
    }

    #[test]
    fn events_of_a_later_version_change_nothing() {
        let mut board = Board::default();
        assert_eq!(board.apply(&event("weather", json!({ "job_id": "a" }))), None);
        assert_eq!(board.apply(&event("state", json!({ "job_id": 7 }))), None);
        assert_eq!(board.counts(), Counts::default());
    }
}
