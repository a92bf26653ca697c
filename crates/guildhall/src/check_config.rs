//! `guildhall check-config`: every fault of the configuration at once, or every setting in effect and where it was said.

use std::process::ExitCode;

use crate::{
    exit,
    roles::{Role, Roles},
    say, settings,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Check for `serve` with these roles; without any, for `up`
    #[arg(value_name = "ROLE")]
    roles: Vec<Role>,
    #[command(flatten)]
    file: settings::File,
    /// Print the commented file of all settings with their defaults, and read nothing
    #[arg(long)]
    print_defaults: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if args.print_defaults {
        say::line(kit::config::default_file(settings::PARTS).trim_end());
        return exit::DONE;
    }
    let roles = Roles::said(&args.roles);
    let effective = match args.file.read(&roles) {
        Ok((_, effective)) => effective,
        Err(faults) => {
            say::faults(&faults);
            return exit::usage();
        }
    };
    let (good, dim) = (say::good(), say::dim());
    say::line(format_args!("{good}The configuration is good.{good:#} In effect are:"));
    let widest = effective.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    for setting in effective {
        let place = setting.place.as_deref().unwrap_or("default");
        let value = if setting.value.is_empty() { "(unset)" } else { &setting.value };
        say::line(format_args!("  {:widest$}  {value}  {dim}{place}{dim:#}", setting.name));
    }
    exit::DONE
}
