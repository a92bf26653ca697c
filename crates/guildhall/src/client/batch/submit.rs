//! Uploads pictures and submits the job that makes a model of each.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::watch::Target;
use crate::client::{
    api::{Api, TRIES_LARGE, patiently},
    args::Params,
    error::Error,
    file::{self, Upload},
    job::Job,
    live::Live,
    screen::Screen,
    words,
};

/// The most that one `process_batch` takes.
const PICTURES_MAX: usize = 10_000;

/// What is asked for beside the pictures.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) provider: Option<String>,
    pub(super) params: Map<String, Value>,
    pub(super) priority: Option<u32>,
    pub(super) tags: Vec<String>,
}

/// Uploads and submits. Gives what to watch and the names of the files by their ids.
///
/// # Errors
/// [`Error::Usage`] for more pictures than a batch takes; those of the requests.
pub(super) async fn submit(
    api: &Api,
    uploads: &[Upload],
    wish: &Wish,
    (screen, live): (&Screen, &Live),
) -> Result<(Target, HashMap<String, String>), Error> {
    if uploads.len() > PICTURES_MAX {
        return Err(Error::Usage(format!("A batch takes at most {} pictures.", words::thousands(PICTURES_MAX as u64))));
    }
    // Asked before the first byte is sent, so that a session that has ended is told at once.
    api.get::<Value>(&["me"], &[]).await?;
    let total: u64 = uploads.iter().map(|upload| upload.size_bytes).sum();
    if !live.is_live() {
        screen.note(&format!("Uploading {}, {}.", words::counted(uploads.len() as u64, "file"), words::bytes(total)));
    }
    let bar = live.bytes(file::uploading(uploads), total);
    let files = file::upload(api, uploads, &bar).await;
    live.remove(&bar);
    let files = files?;

    let ids: Vec<&str> = files.iter().map(|file| file.id.as_str()).collect();
    let mut args = json!({ "file_ids": ids });
    if let Some(provider) = &wish.provider {
        args["provider"] = json!(provider);
    }
    if !wish.params.is_empty() {
        args["params"] = json!(wish.params);
    }
    let mut body = json!({ "task": "process_batch", "args": args });
    if let Some(priority) = wish.priority {
        body["priority"] = json!(priority);
    }
    if !wish.tags.is_empty() {
        body["tags"] = json!(wish.tags);
    }
    let key = api.clock().new_id().to_string();
    let job: Job = patiently(TRIES_LARGE, async || api.post(&["jobs"], &body, Some(&key)).await).await?;
    let names = files.iter().zip(uploads).map(|(file, upload)| (file.id.clone(), words::plain(&upload.name)));
    Ok((Target::job(job.id), names.collect()))
}

/// The parameters as the provider takes them.
///
/// # Errors
/// [`Error::Usage`] for a `--param` without `=`, or for one that is given twice.
pub(super) fn parameters(given: &Params) -> Result<Map<String, Value>, Error> {
    let flags = [
        ("size_mm", given.size_mm.map(|number| json!(number))),
        ("depth_mm", given.depth_mm.map(|number| json!(number))),
        ("base_mm", given.base_mm.map(|number| json!(number))),
        ("samples", given.samples.map(|number| json!(number))),
        ("smoothing", given.smoothing.map(|number| json!(number))),
        ("invert", given.invert.then_some(Value::Bool(true))),
    ];
    let mut params: Map<_, _> = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    for pair in &given.others {
        let (name, value) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Error::Usage(format!("`--param {pair}` is not of the form NAME=VALUE.")))?;
        // Numbers, true and false are what they look like; anything else is text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        if params.insert(name.to_owned(), value).is_some() {
            return Err(Error::Usage(format!("The parameter {name} is given twice.")));
        }
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_kind_and_are_given_once() {
        let mut given = Params { size_mm: Some(80.0), invert: true, ..Params::default() };
        given.others = ["seed=7", "prompt=a cat", "exact=false"].map(str::to_owned).into();
        let params = parameters(&given).unwrap();
        assert_eq!(
            Value::Object(params),
            json!({ "size_mm": 80.0, "invert": true, "seed": 7, "prompt": "a cat", "exact": false })
        );
        for wrong in ["seed", "=7", "size_mm=3"] {
            given.others = vec![wrong.to_owned()];
            assert_eq!(parameters(&given).unwrap_err().exit_code(), 64, "{wrong}");
        }
    }
}
