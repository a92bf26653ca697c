//! `guildhall up`: every role in this process, on this machine alone, with the embedded defaults. It shows the sample at the
//! first start.

mod sample;

use std::process::ExitCode;

use crate::{house::Banner, life, roles::Roles, settings};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: settings::File,
    /// Do not make models of the sample pictures at the first start
    #[arg(long)]
    no_sample: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let roles = Roles::up();
    let settings = match args.file.settle(&roles) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    life::run(&settings, &roles, async |opened, data_dir, took| {
        Banner { settings: &settings, roles: &roles, opened, data_dir: data_dir.path(), took }.print();
        let administrator = opened.administrator.as_ref();
        let new = administrator.and_then(|admin| Some((&admin.email, admin.new_password.as_ref()?)));
        if let (Some((email, password)), Some(http), false) = (new, &opened.http, args.no_sample) {
            sample::show(http, email, password, data_dir.path()).await;
        }
    })
}
