//! Puts what a batch made into a directory of this machine. Names come from the pictures and are made safe, so nothing is
//! ever written outside that directory; each file is there whole or not at all.

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::summary::Summary;
use crate::client::{api::Api, error::Error, file, live::Live, words};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const CONTACT_SHEET: &str = "contact-sheet.png";
const AT_ONCE: usize = 4;

/// Downloads models, previews, contact sheet and manifest. The archive holds the same models once more and stays where it
/// is.
///
/// # Errors
/// Those of the requests; [`Error::Local`]. What has arrived stays.
pub(super) async fn save(api: &Api, summary: &mut Summary, directory: &Path, live: &Live) -> Result<(), Error> {
    tokio::fs::create_dir_all(directory).await.map_err(Error::local(directory))?;
    let wanted = wanted(summary);
    // Only the models' sizes are known beforehand; the bar grows with the rest.
    let what = format!("downloading {}", words::counted(wanted.len() as u64, "file"));
    let bar = live.bytes(what, summary.models.iter().filter_map(|model| model.size_bytes).sum());
    let downloads = stream::iter(wanted).map(|(id, name)| {
        let (to, bar) = (directory.join(name), &bar);
        async move { file::download(api, &id, &to, bar).await.map(drop) }
    });
    let done = downloads.buffer_unordered(AT_ONCE).try_collect::<()>().await;
    live.remove(&bar);
    done?;
    summary.directory = Some(directory.to_owned());
    Ok(())
}

/// File ids, and the names they get.
fn wanted(summary: &Summary) -> Vec<(String, String)> {
    let models = summary.models.iter().flat_map(|model| {
        let file = |id: &Option<String>, extension| Some((id.clone()?, format!("{}.{extension}", model.stem())));
        [file(&model.model_file_id, "glb"), file(&model.preview_file_id, "png")]
    });
    let whole = [(&summary.manifest_file_id, MANIFEST), (&summary.contact_sheet_file_id, CONTACT_SHEET)];
    models.chain(whole.map(|(id, name)| Some((id.clone()?, name.to_owned())))).flatten().collect()
}
