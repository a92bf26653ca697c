//! The end of a batch: an archive of its models, a manifest of everything, and one picture to look at. It runs once
//! whatever became of the children, and nothing about them makes it fail.
//!
//! Children are read page by page, twice: once to know how many there are, once to gather. One model at a time lies in
//! the scratch folder beside the archive.

use std::{
    fs::{self, File},
    io::BufWriter,
};

use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use worker::{CHILDREN_PAGE_MAX, Child, Context, Ending, Failure, Place, Task, kind};

use crate::{
    archive::Archive,
    args::{parse, schema_of},
    contact_sheet::{CELLS_MAX, ContactSheet},
    generate_3d_model::Made,
    manifest::{Counts, FailureEntry, Manifest, ModelEntry},
};

/// The name by which jobs ask for it.
pub(crate) const NAME: &str = "finalize_batch";
/// Failures that the result lists; the manifest lists all.
const FAILURES_MAX: usize = 100;

/// The task.
#[derive(Debug)]
pub(crate) struct FinalizeBatch;

/// It takes no arguments: what there is to gather is the batch it ends.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {}

/// The result of the job, and so of the `process_batch` above it.
#[derive(Debug, Serialize)]
struct Gathered {
    manifest_file_id: String,
    archive_file_id: String,
    contact_sheet_file_id: String,
    #[serde(flatten)]
    counts: Counts,
    failures: Vec<ListedFailure>,
    /// Whether there are more failures than are listed.
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct ListedFailure {
    job_id: Uuid,
    file_id: Option<Uuid>,
    kind: String,
    message: String,
}

impl Task for FinalizeBatch {
    fn name(&self) -> &'static str {
        NAME
    }
    fn queue(&self) -> &'static str {
        "batch_processing"
    }
    fn description(&self) -> &'static str {
        "Gathers the models of a finished batch into an archive, a manifest and a contact sheet."
    }
    fn schema(&self) -> Value {
        schema_of::<Args>()
    }
    /// It decodes previews and packs megabytes.
    fn place(&self) -> Place {
        Place::Child
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let Args {} = parse(args)?;
            if !context.is_finalize() {
                return Err(Failure::invalid_input("`finalize_batch` runs at the end of a batch, and not by itself."));
            }
            let gathered = gather(context).await?;
            Ok(Ending::Done(serde_json::to_value(gathered).map_err(Failure::internal)?))
        })
    }
}

async fn gather(context: &Context) -> Result<Gathered, Failure> {
    context.progress(0.0, "count", "");
    let (counts, batch_id) = count(context).await?;
    let total = counts.succeeded + counts.failed + counts.cancelled + counts.expired;
    let mut gathering = Gathering::begin(context, counts, batch_id, total)?;
    let mut after = None;
    loop {
        let page = context.children(after, CHILDREN_PAGE_MAX).await?;
        after = page.items.last().map(|child| child.ordinal);
        for child in page.items {
            context.check()?;
            gathering.add(child).await?;
        }
        if !page.more {
            break;
        }
    }
    gathering.finish().await
}

async fn count(context: &Context) -> Result<(Counts, Uuid), Failure> {
    let mut counts = Counts::default();
    let mut after = None;
    loop {
        let page = context.children(after, CHILDREN_PAGE_MAX).await?;
        after = page.items.last().map(|child| child.ordinal);
        for child in &page.items {
            match child.state.as_str() {
                "succeeded" => counts.succeeded += 1,
                "cancelled" => counts.cancelled += 1,
                "expired" => counts.expired += 1,
                _ => counts.failed += 1,
            }
        }
        if !page.more {
            return Ok((counts, page.batch_id.parse().map_err(Failure::internal)?));
        }
    }
}

/// What has been gathered so far.
struct Gathering<'a> {
    context: &'a Context,
    archive: Archive<BufWriter<File>>,
    sheet: ContactSheet,
    manifest: Manifest,
    done: u64,
    total: u64,
}

impl<'a> Gathering<'a> {
    fn begin(context: &'a Context, counts: Counts, batch_id: Uuid, total: u64) -> Result<Self, Failure> {
        let archive = Archive::new(BufWriter::new(File::create(context.scratch().join("models.zip"))?));
        let heading = heading(&counts);
        let sheet = ContactSheet::new(&heading, usize::try_from(total).unwrap_or(usize::MAX));
        let manifest = Manifest { batch_id, counts, models: Vec::new(), failures: Vec::new() };
        Ok(Self { context, archive, sheet, manifest, done: 0, total })
    }

    async fn add(&mut self, child: Child) -> Result<(), Failure> {
        let percent = 5.0 + 85.0 * self.done as f64 / self.total.max(1) as f64;
        self.done += 1;
        self.context.progress(percent, "gather", format!("{} of {}", self.done, self.total));
        let job_id = child.job_id.parse().map_err(Failure::internal)?;
        let source_file_id = child.args.get("file_id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        let source_name = self.name_of(source_file_id).await?;
        let missing = match (child.state.as_str(), source_file_id, serde_json::from_value::<Made>(child.result)) {
            ("succeeded", Some(source_file_id), Ok(made)) => {
                let source = Source { job_id, ordinal: child.ordinal, file_id: source_file_id, name: &source_name };
                match self.add_model(&source, made).await {
                    // Its owner may have removed it since.
                    Err(Failure::Failed { kind, message, .. }) if kind == kind::NOT_FOUND => (kind, message),
                    added => return added,
                }
            }
            // A batch may hold other tasks beside the makers of models: they are counted, and that is all.
            ("succeeded", ..) => return Ok(()),
            (state, ..) => child.error.unwrap_or_else(|| (state.to_owned(), format!("The job was {state}."))),
        };
        let (kind, message) = missing;
        self.sheet.add_failure(source_name.as_deref().unwrap_or("(no picture)"), &message);
        self.manifest.failures.push(FailureEntry { job_id, file_id: source_file_id, source_name, kind, message });
        Ok(())
    }

    /// Fails with `not_found`, and leaves everything as it was, for a model that is not there any more.
    async fn add_model(&mut self, source: &Source<'_>, made: Made) -> Result<(), Failure> {
        let model = self.context.fetch(&made.model_file_id.to_string()).await?;
        let source_name = source.name.clone().unwrap_or_else(|| model.facts.name.clone());
        let name = self.archive.add(source.ordinal + 1, &source_name, File::open(&model.path)?)?;
        fs::remove_file(&model.path)?;
        if self.manifest.models.len() + self.manifest.failures.len() < CELLS_MAX {
            let png = self.preview(made.preview_file_id).await?;
            self.sheet.add_model(&source_name, &png);
        }
        self.manifest.models.push(ModelEntry {
            job_id: source.job_id,
            file_id: made.model_file_id,
            preview_file_id: made.preview_file_id,
            source_file_id: source.file_id,
            source_name,
            name,
            sha256: model.facts.sha256,
            triangles: made.triangles,
            vertices: made.vertices,
            size_bytes: made.size_bytes,
            seconds: made.seconds,
        });
        Ok(())
    }

    /// A preview's bytes; none for one that is not there any more, which the sheet shows as what it is.
    async fn preview(&self, file_id: Uuid) -> Result<Vec<u8>, Failure> {
        let preview = match self.context.fetch(&file_id.to_string()).await {
            Err(Failure::Failed { kind, .. }) if kind == kind::NOT_FOUND => return Ok(Vec::new()),
            fetched => fetched?,
        };
        let png = fs::read(&preview.path)?;
        fs::remove_file(&preview.path)?;
        Ok(png)
    }

    /// How the picture was called, where there is one that is the owner's.
    async fn name_of(&self, file_id: Option<Uuid>) -> Result<Option<String>, Failure> {
        let Some(file_id) = file_id else { return Ok(None) };
        match self.context.describe(&file_id.to_string()).await {
            Ok(facts) => Ok(Some(facts.name)),
            Err(Failure::Failed { kind, .. }) if kind == kind::NOT_FOUND => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn finish(self) -> Result<Gathered, Failure> {
        let Self { context, archive, sheet, manifest, .. } = self;
        let [zip, png, json] = ["models.zip", "contact-sheet.png", "manifest.json"];
        let path = |name: &str| context.scratch().join(name);
        context.progress(90.0, "store", zip);
        archive.finish()?.into_inner().map_err(|error| error.into_error())?;
        let archive_file_id = context.store(&path(zip), zip, "application/zip").await?.file_id;
        fs::remove_file(path(zip))?;

        context.progress(97.0, "store", png);
        fs::write(path(png), sheet.finish()?)?;
        let contact_sheet_file_id = context.store(&path(png), png, "image/png").await?.file_id;

        let mut file = BufWriter::new(File::create(path(json))?);
        manifest.write(&mut file)?;
        file.into_inner().map_err(|error| error.into_error())?;
        let manifest_file_id = context.store(&path(json), json, "application/json").await?.file_id;
        context.progress(100.0, "done", heading(&manifest.counts));

        let truncated = manifest.failures.len() > FAILURES_MAX;
        let listed = manifest.failures.into_iter().take(FAILURES_MAX).map(|failure| ListedFailure {
            job_id: failure.job_id,
            file_id: failure.file_id,
            kind: failure.kind,
            message: failure.message,
        });
        Ok(Gathered {
            manifest_file_id,
            archive_file_id,
            contact_sheet_file_id,
            counts: manifest.counts,
            failures: listed.collect(),
            truncated,
        })
    }
}

/// The picture behind a model.
struct Source<'a> {
    job_id: Uuid,
    ordinal: u32,
    file_id: Uuid,
    name: &'a Option<String>,
}

/// The batch in one line: `3 models, 1 failed`.
fn heading(counts: &Counts) -> String {
    let models = match counts.succeeded {
        0 => "no model".to_owned(),
        1 => "1 model".to_owned(),
        models => format!("{models} models"),
    };
    let others = [(counts.failed, "failed"), (counts.cancelled, "cancelled"), (counts.expired, "expired")];
    let others = others.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!(", {count} {state}"));
    models + &others.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heading_tells_what_became_of_everything() {
        let counts = |succeeded, failed, cancelled| Counts { succeeded, failed, cancelled, expired: 0 };
        assert_eq!(heading(&counts(3, 1, 0)), "3 models, 1 failed");
        assert_eq!(heading(&counts(1, 0, 0)), "1 model");
        assert_eq!(heading(&counts(0, 2, 1)), "no model, 2 failed, 1 cancelled");
    }
}
