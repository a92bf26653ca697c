//! One picture becomes one model: the file is fetched, a provider computes, and model and preview are stored.

use std::{fs, io, time::Instant};

use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use worker::{Context, Ending, Failure, Place, Task, kind};

use crate::{
    args::{FileId, parse, schema_of},
    providers::{
        Provider,
        relief::{self, Fault, Params},
    },
};

/// The name by which jobs ask for it.
pub(crate) const NAME: &str = "generate_3d_model";
/// Longest stem of the names of what is made, in characters; the picture's own name may be as long as it likes.
const STEM_CHARS_MAX: usize = 120;

/// The task.
#[derive(Debug)]
pub(crate) struct Generate3dModel;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Args {
    /// The picture, a file of the caller's own.
    pub(crate) file_id: FileId,
    /// Who makes the model.
    #[serde(default)]
    pub(crate) provider: Provider,
    /// How the provider makes it.
    #[serde(default)]
    pub(crate) params: Params,
}

/// The result of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) model_file_id: Uuid,
    pub(crate) preview_file_id: Uuid,
    pub(crate) triangles: u64,
    pub(crate) vertices: u64,
    /// Of the model, without its preview.
    pub(crate) size_bytes: u64,
    /// How long the attempt took.
    pub(crate) seconds: f64,
}

impl Task for Generate3dModel {
    fn name(&self) -> &'static str {
        NAME
    }
    fn queue(&self) -> &'static str {
        "model_generation"
    }
    fn description(&self) -> &'static str {
        "Makes a 3D model (binary glTF) and a preview of one picture."
    }
    fn schema(&self) -> Value {
        schema_of::<Args>()
    }
    /// It decodes what strangers sent and burns a core.
    fn place(&self) -> Place {
        Place::Child
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let made = make(context, &parse(args)?).await?;
            Ok(Ending::Done(serde_json::to_value(made).map_err(Failure::internal)?))
        })
    }
}

async fn make(context: &Context, args: &Args) -> Result<Made, Failure> {
    let started = Instant::now();
    context.progress(0.0, "fetch", "");
    let input = context.fetch(&args.file_id.to_string()).await?;
    context.check()?;

    let mut stage = "";
    let mut told = |percent: u8, at: &'static str| {
        // Of a hundred percent, the first 5 went to the file and the last 10 are for what is stored.
        if at != stage || percent.is_multiple_of(5) {
            stage = at;
            context.progress(5.0 + f64::from(percent) * 0.85, at, input.facts.name.clone());
        }
    };
    let model = match args.provider {
        Provider::Relief => relief::make(&input.path, &args.params, &mut told).map_err(failure)?,
    };
    context.check()?;

    context.progress(90.0, "store", input.facts.name.clone());
    let stem = stem(&input.facts.name);
    let (glb, png) = (context.scratch().join("model.glb"), context.scratch().join("preview.png"));
    fs::write(&glb, &model.glb)?;
    fs::write(&png, &model.preview_png)?;
    let preview = context.store(&png, &format!("{stem}-preview.png"), "image/png").await?;
    context.progress(95.0, "store", input.facts.name.clone());
    let stored = context.store(&glb, &format!("{stem}.glb"), "model/gltf-binary").await?;
    context.progress(100.0, "done", format!("{} triangles", model.triangles));
    Ok(Made {
        model_file_id: id(&stored.file_id)?,
        preview_file_id: id(&preview.file_id)?,
        triangles: model.triangles,
        vertices: model.vertices,
        size_bytes: stored.size_bytes,
        seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// What is wrong with a picture stays wrong; what was wrong with our disk may pass.
fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => error.into(),
        fault if fault.kind() == kind::INVALID_INPUT => Failure::permanent(kind::INVALID_INPUT, sentence(&fault)),
        fault => Failure::internal(fault),
    }
}

/// A fault as a sentence of its own.
fn sentence(fault: &Fault) -> String {
    let text = fault.to_string();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", characters.as_str())
}

/// A file's name without its ending.
fn stem(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let stem = if stem.is_empty() { "model" } else { stem };
    stem.chars().take(STEM_CHARS_MAX).collect()
}

fn id(file_id: &str) -> Result<Uuid, Failure> {
    file_id.parse().map_err(Failure::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_named_after_the_picture() {
        assert_eq!(stem("holiday.jpeg"), "holiday");
        assert_eq!(stem("no ending"), "no ending");
        assert_eq!(stem(".png"), "model");
        assert_eq!(stem(&"ä".repeat(300)).chars().count(), STEM_CHARS_MAX);
    }

    #[test]
    fn a_fault_of_the_picture_is_told_as_a_sentence_and_not_tried_again() {
        assert_eq!(failure(Fault::Empty), Failure::invalid_input("The file is empty (0 bytes)."));
    }

    #[test]
    fn the_schema_refuses_what_is_no_file_and_knows_one_provider() {
        let schema = schema_of::<Args>().to_string();
        for needed in [r#""relief""#, "additionalProperties", "pattern", "2020-12"] {
            assert!(schema.contains(needed), "{needed} is missing in {schema}");
        }
        assert!(!schema.contains(r#""fal""#));
    }
}
