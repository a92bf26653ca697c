//! What became of a batch, for a reader and for a program.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use super::{board::Counts, watch::Found};
use crate::client::{
    job::{Job, JobError},
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// How a batch ended and where what it made is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// The job that made the batch, when that was watched.
    pub(crate) job_id: Option<String>,
    /// None when the job ended without having made one.
    pub(crate) batch_id: Option<String>,
    /// The batch's state, or the job's where there is no batch.
    pub(crate) state: String,
    pub(crate) counts: Counts,
    /// From the making of the batch to its end.
    pub(crate) seconds: Option<f64>,
    /// Why nothing was finalized, where too few jobs succeeded for it.
    pub(crate) finalize_skipped: Option<String>,
    /// Why there is no manifest, when making it failed.
    pub(crate) error: Option<JobError>,
    pub(crate) manifest_file_id: Option<String>,
    pub(crate) archive_file_id: Option<String>,
    pub(crate) contact_sheet_file_id: Option<String>,
    pub(crate) models: Vec<Model>,
    /// Where everything was downloaded to.
    pub(crate) directory: Option<PathBuf>,
}

/// One picture and what was made of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Model {
    /// 1 for the first picture.
    pub(crate) number: usize,
    /// The picture's name, or the task's where there is no picture.
    pub(crate) name: String,
    pub(crate) job_id: String,
    pub(crate) state: String,
    pub(crate) seconds: Option<f64>,
    pub(crate) triangles: Option<u64>,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) model_file_id: Option<String>,
    pub(crate) preview_file_id: Option<String>,
    pub(crate) error: Option<JobError>,
}

impl Summary {
    pub(super) fn of(found: Found) -> Self {
        let Found { job, batch, pieces, finalize, names } = found;
        let result = finalize.as_ref().or(job.as_ref()).and_then(|job| job.result.as_ref());
        let file = |name: &str| text(result, name);
        let ended_badly = |job: &&Job| job.state != "succeeded" && job.error.is_some();
        let failed = finalize.as_ref().filter(ended_badly).or(job.as_ref().filter(ended_badly));
        Self {
            job_id: job.as_ref().map(|job| job.id.clone()),
            batch_id: batch.as_ref().map(|batch| batch.id.clone()),
            state: batch
                .as_ref()
                .map(|batch| &batch.state)
                .or(job.as_ref().map(|job| &job.state))
                .cloned()
                .unwrap_or_default(),
            counts: batch.as_ref().map(|batch| batch.counts).unwrap_or_default(),
            seconds: batch.as_ref().and_then(|batch| Some((batch.finished_at? - batch.created_at?).as_seconds_f64())),
            finalize_skipped: batch.as_ref().and_then(|batch| batch.finalize_skipped.clone()),
            error: failed.and_then(|job| job.error.clone()),
            manifest_file_id: file("manifest_file_id"),
            archive_file_id: file("archive_file_id"),
            contact_sheet_file_id: file("contact_sheet_file_id"),
            models: pieces.iter().enumerate().map(|(place, piece)| Model::of(place + 1, piece, &names)).collect(),
            directory: None,
        }
    }

    /// Whether every model was made, and the manifest with them.
    pub(crate) fn is_whole(&self) -> bool {
        self.error.is_none()
            && self.finalize_skipped.is_none()
            && self.batch_id.is_some()
            && self.counts.succeeded == self.counts.total
    }

    /// The batch's id, or its job's.
    pub(super) fn id(&self) -> &str {
        self.batch_id.as_deref().or(self.job_id.as_deref()).unwrap_or_default()
    }

    /// Tells it to the end: the table and where things are on stdout, in the screen's manner.
    pub(super) fn tell(&self, screen: &Screen) {
        match screen.manner {
            Manner::Json => screen.print_json(self),
            Manner::Quiet => {
                screen.print(&words::plain(self.id()));
                self.tell_faults(screen);
            }
            Manner::Told => {
                if !self.models.is_empty() {
                    screen.print(&self.table().render(screen));
                    screen.print("");
                }
                screen.print(&self.headline(screen));
                if let Some(reason) = &self.finalize_skipped {
                    screen.print_wrapped(&format!("It was not finalized: {}", words::plain(reason)));
                }
                self.tell_faults(screen);
                self.tell_places(screen);
            }
        }
    }

    fn headline(&self, screen: &Screen) -> String {
        if self.batch_id.is_none() {
            return format!(
                "The job is {} and has made no batch.",
                screen.tone(Tone::of_state(&self.state)).apply_to(words::plain(&self.state))
            );
        }
        let noun = if self.has_models() { "model" } else { "job" };
        let mut told = vec![screen.tone(Tone::Strong).apply_to(words::counted(self.counts.total, noun)).to_string()];
        let counts = [
            (self.counts.succeeded, "succeeded", Tone::Good),
            (self.counts.failed, "failed", Tone::Bad),
            (self.counts.cancelled, "cancelled", Tone::Odd),
            (self.counts.expired, "expired", Tone::Bad),
        ];
        for (count, word, tone) in counts.into_iter().filter(|(count, ..)| *count > 0) {
            told.push(screen.tone(tone).apply_to(format!("{} {word}", words::thousands(count))).to_string());
        }
        if !matches!(self.state.as_str(), "finished" | "cancelled") {
            told.push(screen.tone(Tone::of_state(&self.state)).apply_to(words::plain(&self.state)).to_string());
        }
        told.extend(self.seconds.map(words::seconds));
        told.join(" · ")
    }

    fn table(&self) -> Table {
        let mut columns = vec![Column::flexible("name"), Column::left("state"), Column::right("seconds")];
        if self.has_models() {
            columns.extend([Column::right("triangles"), Column::right("bytes")]);
        }
        let mut table = Table::new(columns);
        for model in &self.models {
            let seconds = model.seconds.map(|seconds| format!("{seconds:.1}")).unwrap_or_default();
            let number = |number: Option<u64>| number.map(words::thousands).unwrap_or_default().into();
            let mut row: Vec<Cell> = vec![(&model.name).into(), Cell::state(&model.state), seconds.into()];
            row.extend([number(model.triangles), number(model.size_bytes)]);
            table.row(row);
        }
        table
    }

    /// What failed, each with its kind and message; with the table on stdout, else on stderr. What was cancelled has no
    /// more to say than its state.
    fn tell_faults(&self, screen: &Screen) {
        let say =
            |line: &str| if screen.manner == Manner::Quiet { screen.warn(line) } else { screen.print_wrapped(line) };
        let faults = self.models.iter().filter_map(|model| Some((model.name.as_str(), model.error.as_ref()?)));
        let faults = self.error.iter().map(|error| ("the batch", error)).chain(faults);
        let faults: Vec<_> = faults.filter(|(_, error)| error.kind != "cancelled").collect();
        if !faults.is_empty() && screen.manner == Manner::Told {
            say("");
        }
        for (name, JobError { kind, message }) in faults {
            let kind = screen.tone(Tone::Bad).apply_to(words::plain(kind));
            say(&format!("  {}  {kind}: {}", words::plain(name), words::plain(message)));
        }
    }

    fn tell_places(&self, screen: &Screen) {
        let place = |id: &Option<String>, name: &str| {
            let id = id.as_deref()?;
            let command = || format!("guildhall file download {}", words::plain(id));
            Some(self.directory.as_ref().map_or_else(command, |directory| directory.join(name).display().to_string()))
        };
        let archive = self.archive_file_id.as_deref().map(|id| format!("guildhall file download {}", words::plain(id)));
        let directory = self.directory.as_ref().filter(|_| self.counts.succeeded > 0);
        let pairs = [
            ("models", directory.map(|directory| directory.display().to_string())),
            ("manifest", place(&self.manifest_file_id, super::save::MANIFEST)),
            ("contact sheet", place(&self.contact_sheet_file_id, super::save::CONTACT_SHEET)),
            ("archive", archive),
            ("batch", self.batch_id.as_deref().map(|id| format!("guildhall batch show {}", words::plain(id)))),
        ];
        screen.print("");
        screen.print_pairs(&pairs);
    }

    fn has_models(&self) -> bool {
        self.models
            .iter()
            .any(|model| model.triangles.is_some() || model.model_file_id.is_some() || model.name.contains('.'))
    }
}

impl Model {
    fn of(number: usize, job: &Job, names: &HashMap<String, String>) -> Self {
        let result = job.result.as_ref();
        let name = job.args["file_id"].as_str().and_then(|id| names.get(id)).filter(|name| !name.is_empty());
        let is_bad = job.state != "succeeded";
        Self {
            number,
            name: name.cloned().unwrap_or_else(|| words::plain(&job.task)),
            job_id: job.id.clone(),
            state: job.state.clone(),
            seconds: result.and_then(|result| result["seconds"].as_f64()).or_else(|| job.seconds()),
            triangles: result.and_then(|result| result["triangles"].as_u64()),
            size_bytes: result.and_then(|result| result["size_bytes"].as_u64()),
            model_file_id: text(result, "model_file_id"),
            preview_file_id: text(result, "preview_file_id"),
            error: job.error.clone().filter(|_| is_bad),
        }
    }

    /// `007-cat`, safe in any directory and different from every other of the batch.
    pub(super) fn stem(&self) -> String {
        let stem = Path::new(&self.name).file_stem().unwrap_or_default().to_string_lossy();
        format!("{:03}-{}", self.number, words::file_name(&stem, "model"))
    }
}

fn text(result: Option<&Value>, name: &str) -> Option<String> {
    result?[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::batch::watch::Batch;

    fn job(value: Value) -> Job {
        serde_json::from_value(value).unwrap()
    }

    fn found() -> Found {
        let batch: Batch = serde_json::from_value(json!({
            "id": "b", "state": "finished", "counts": { "total": 2, "succeeded": 1, "failed": 1 }, "finalize_job_id": "z",
            "created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:01:05Z"
        }))
        .unwrap();
        let good = job(
            json!({ "id": "1", "task": "generate_3d_model", "state": "succeeded", "args": { "file_id": "f1" },
            "result": { "model_file_id": "m1", "preview_file_id": "p1", "triangles": 130050, "size_bytes": 2345678, "seconds": 1.25 } }),
        );
        let bad = job(json!({ "id": "2", "task": "generate_3d_model", "state": "failed", "args": { "file_id": "f2" },
            "error": { "kind": "invalid_input", "message": "The picture ends early.", "retryable": false } }));
        let finalize = job(json!({ "id": "z", "task": "finalize_batch", "state": "succeeded",
            "result": { "manifest_file_id": "mf", "archive_file_id": "ar", "contact_sheet_file_id": null } }));
        let names = [("f1", "../cat.JPG"), ("f2", "broken.jpg")].map(|(id, name)| (id.to_owned(), name.to_owned()));
        Found { job: None, batch: Some(batch), pieces: vec![good, bad], finalize: Some(finalize), names: names.into() }
    }

    #[test]
    fn a_summary_says_what_was_made_what_failed_and_where_things_are() {
        let summary = Summary::of(found());
        assert!(!summary.is_whole());
        assert_eq!(summary.seconds, Some(65.0));
        assert_eq!((summary.manifest_file_id.as_deref(), summary.contact_sheet_file_id.as_deref()), (Some("mf"), None));
        assert_eq!(summary.models[0].triangles, Some(130_050));
        assert_eq!(summary.models[0].stem(), "001-cat");
        assert_eq!(summary.models[1].error.as_ref().unwrap().kind, "invalid_input");
        let mut screen = Screen::of_process(false, false);
        screen.width = Some(80);
        let table = summary.table().render(&screen);
        assert!(table.contains("130,050") && table.contains("2,345,678") && table.contains("broken.jpg"), "{table}");
    }

    #[test]
    fn a_batch_whose_finalize_failed_is_not_whole() {
        let mut found = found();
        found.pieces.pop();
        found.batch.as_mut().unwrap().counts = Counts { total: 1, succeeded: 1, ..Counts::default() };
        assert!(
            Summary::of(Found {
                finalize: None,
                names: HashMap::new(),
                job: None,
                batch: found.batch.clone(),
                pieces: found.pieces.clone()
            })
            .is_whole()
        );
        found.finalize = Some(job(
            json!({ "id": "z", "task": "finalize_batch", "state": "failed", "error": { "kind": "internal", "message": "x" } }),
        ));
        assert!(!Summary::of(found).is_whole());
    }
}
