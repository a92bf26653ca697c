//! `guildhall migrate`: brings the schemas to this version and ends. Without `database_url` that is the private server of
//! the data directory, started for the moment.

use std::process::ExitCode;

use kit::Fail;

use crate::{
    database::Database,
    exit,
    roles::Roles,
    say,
    settings::{File, Settings},
};

pub(crate) fn run(file: &File) -> ExitCode {
    let settings = match file.settle(&Roles::up()) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let outcome =
        tokio::runtime::Runtime::new().map_err(Fail::internal).and_then(|runtime| runtime.block_on(migrate(&settings)));
    match outcome {
        Ok(()) => {
            say::line("The database is at this version.");
            exit::DONE
        }
        Err(fail) => {
            say::error(fail);
            exit::FAILED
        }
    }
}

async fn migrate(settings: &Settings) -> Result<(), Fail> {
    let database = Database::open(settings).await?;
    let outcome = database.migrate().await;
    database.close().await;
    outcome
}
