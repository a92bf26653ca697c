//! The sample of a first start: pictures that Guildhall draws itself go in through the public door as anybody's would,
//! and what comes out lies in `sample` in the data directory.

use std::path::Path;

use kit::{Fail, Secret};

use crate::{client, say};

/// Where the client looks when it is told nothing.
const CLIENT_URL: &str = "http://127.0.0.1:8080";

/// Makes the models and says where they are. A sample that fails is told and ends nothing.
pub(super) async fn show(http: &str, email: &str, password: &Secret, data_dir: &Path) {
    let folder = data_dir.join("sample");
    say::line("Making models of the sample pictures, which Guildhall draws itself.");
    match make(http, email, password, &folder).await {
        Ok(summary) => {
            summary.print();
            say::line(format_args!("\nLook at {}, then try your own:\n", folder.join("contact-sheet.png").display()));
            for command in next_steps(http, email) {
                say::line(format_args!("  {command}"));
            }
            say::line("");
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

/// What to type in another terminal.
fn next_steps(http: &str, email: &str) -> Vec<String> {
    let mut commands = Vec::new();
    // A binary that was just built is seldom on the path.
    if let Ok(program) = std::env::current_exe() {
        commands.push(format!("alias guildhall={}", program.display()));
    }
    if http != CLIENT_URL {
        commands.push(format!("export GUILDHALL_URL={http}"));
    }
    commands.push(format!("guildhall login --email {email}"));
    commands.push("guildhall batch submit pictures/* --watch --out models/".to_owned());
    commands
}
