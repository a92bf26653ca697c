//! Many pictures become models: one child job a picture, and one job at the end that gathers them. The job itself waits
//! meanwhile, without a worker.

use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use worker::{ChildJob, Context, Ending, Failure, Finalize, Place, Policy, Task};

use crate::{
    args::{FileId, parse, schema_of},
    finalize_batch, generate_3d_model,
    providers::{Provider, relief::Params},
};

/// Children in one call: well below what `jobs` takes at once, so that each call is short.
const PAGE: usize = 250;

/// The task.
#[derive(Debug)]
pub(crate) struct ProcessBatch;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The pictures, files of the caller's own, 1 to 10,000.
    #[schemars(length(min = 1, max = 10_000))]
    file_ids: Vec<FileId>,
    /// Who makes the models.
    #[serde(default)]
    provider: Provider,
    /// How the provider makes them.
    #[serde(default)]
    params: Params,
}

impl Task for ProcessBatch {
    fn name(&self) -> &'static str {
        "process_batch"
    }
    fn queue(&self) -> &'static str {
        "batch_processing"
    }
    fn description(&self) -> &'static str {
        "Makes a 3D model of each picture, then an archive, a manifest and a contact sheet of all."
    }
    fn schema(&self) -> Value {
        schema_of::<Args>()
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move { fan_out(context, &parse(args)?).await.map(Ending::AwaitBatch) })
    }
}

async fn fan_out(context: &Context, args: &Args) -> Result<String, Failure> {
    let finalize = Finalize { task: finalize_batch::NAME.to_owned(), args: json!({}), policy: Policy::Always };
    let total = args.file_ids.len();
    let mut batch_id = None;
    for (page, file_ids) in args.file_ids.chunks(PAGE).enumerate() {
        context.check()?;
        let first = page * PAGE;
        context.progress(100.0 * first as f64 / total as f64, "fan_out", format!("{first} of {total}"));
        let jobs = file_ids.iter().zip(first..).map(|(file_id, ordinal)| child(args, *file_id, ordinal));
        batch_id = Some(context.fan_out(jobs.collect::<Result<_, _>>()?, &finalize).await?);
    }
    context.progress(100.0, "fan_out", format!("{total} of {total}"));
    batch_id.ok_or_else(|| Failure::invalid_input("A batch needs at least one picture."))
}

fn child(args: &Args, file_id: FileId, ordinal: usize) -> Result<ChildJob, Failure> {
    let child = generate_3d_model::Args { file_id, provider: args.provider, params: args.params.clone() };
    Ok(ChildJob {
        ordinal: u32::try_from(ordinal).map_err(Failure::internal)?,
        task: generate_3d_model::NAME.to_owned(),
        args: serde_json::to_value(child).map_err(Failure::internal)?,
        after: Vec::new(),
    })
}
