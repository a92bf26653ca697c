//! `guildhall serve <role>...`: some roles in this process, the others elsewhere. It takes nothing for granted that `up`
//! makes by itself: the database is migrated already, storage and keys are said, other roles are where the settings say.

use std::process::ExitCode;

use crate::{
    house::Banner,
    life,
    roles::{Role, Roles},
    settings,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What this process is
    #[arg(required = true, value_name = "ROLE")]
    roles: Vec<Role>,
    #[command(flatten)]
    file: settings::File,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let roles = Roles::serve(&args.roles);
    let settings = match args.file.settle(&roles) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    life::run(&settings, &roles, async |opened, data_dir, took| {
        Banner { settings: &settings, roles: &roles, opened, data_dir: data_dir.path(), took }.print();
    })
}
