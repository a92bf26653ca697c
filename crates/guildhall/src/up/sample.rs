//! The sample of a first start: pictures that Guildhall draws itself go in through the public door as anybody's would,
//! and what comes out lies in `sample` in the data directory.

use std::path::Path;

use kit::{Fail, Secret};

use crate::{client, say};

/// Makes the models and says where they are. A sample that fails is told and ends nothing.
pub(super) async fn show(http: &str, email: &str, password: &Secret, data_dir: &Path) {
    let folder = data_dir.join("sample");
    say::line("Making models of the sample pictures, which Guildhall draws itself.");
    match make(http, email, password, &folder).await {
        Ok(summary) => {
            summary.print();
            say::line(format_args!("\nLook at {}, then try your own:\n", folder.join("contact-sheet.png").display()));
            say::line(format_args!("  guildhall login --email {email} --url {http}"));
            say::line(format_args!("  guildhall batch submit pictures/* --watch --out models/ --url {http}\n"));
        }
        Err(reason) => say::error(format_args!("the sample did not get to its end: {reason} Guildhall stays open.")),
    }
}

async fn make(http: &str, email: &str, password: &Secret, folder: &Path) -> Result<client::batch::Summary, String> {
    let draw = || tasks::samples::draw().map(|sample| (sample.name.to_owned(), sample.bytes.into())).collect();
    let pictures = tokio::task::spawn_blocking(draw).await.map_err(|panic| Fail::internal(panic).to_string())?;
    let api = client::Api::sign_in(http, email, password).await.map_err(|error| error.to_string())?;
    let mut summary = client::batch::make_models(&api, pictures).await.map_err(|error| error.to_string())?;
    summary.save(&api, folder).await.map_err(|error| error.to_string())?;
    Ok(summary)
}
