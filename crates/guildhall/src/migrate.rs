//! `guildhall migrate`: brings the schemas of the database that `database_url` names to this version, and ends. The private
//! server of `up` needs no such command: `up` migrates it by itself.

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
    if settings.process.database_url.is_none() {
        say::faults(
            &["database_url must be said for `migrate`; `up` migrates its private server by itself".to_owned()],
        );
        return exit::usage();
    }
    let outcome =
        tokio::runtime::Runtime::new().map_err(Fail::internal).and_then(|runtime| runtime.block_on(migrate(&settings)));
    match outcome {
        Ok(0) => {
            say::line("The database was at this version already.");
            exit::DONE
        }
        Ok(_) => {
            say::line("The database is at this version.");
            exit::DONE
        }
        Err(fail) => {
            say::error(fail);
            exit::FAILED
        }
    }
}

async fn migrate(settings: &Settings) -> Result<usize, Fail> {
    let database = Database::open(settings).await?;
    let outcome = database.migrate().await;
    database.close().await;
    outcome
}
