//! `guildhall`: every role, the operator's commands and the client in one binary. It wires and it prints; what the
//! product does is in the crates it wires.

mod check_config;
mod client;
mod database;
mod doctor;
mod exit;
mod house;
mod life;
mod migrate;
mod roles;
mod say;
mod seen;
mod serve;
mod settings;
mod signals;
mod slot;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A durable job engine behind one gateway; at its heart, pictures become 3D models.
#[derive(Debug, Parser)]
#[command(name = "guildhall", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every role in this process until Ctrl-C
    Up(up::Args),
    /// Run some roles in this process, beside others elsewhere, until Ctrl-C
    Serve(serve::Args),
    /// Bring the database's schemas to this version
    Migrate(settings::File),
    /// Tell every fault of the configuration at once, or what is in effect
    CheckConfig(check_config::Args),
    /// Check each thing that Guildhall needs, and say what to do
    Doctor(doctor::Args),
    /// A worker's child process; only a worker starts it
    #[command(hide = true)]
    RunSlot,
    #[command(flatten)]
    Client(Box<client::ClientCommand>),
}

fn main() -> ExitCode {
    // Before any TLS: two crates could bring a provider each, and rustls would choose none.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing ran before this line");
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Migrate(file) => migrate::run(&file),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::RunSlot => slot::run(),
        Command::Client(command) => ask(*command),
    }
}

/// A command that asks a running Guildhall, over its public API.
fn ask(command: client::ClientCommand) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(client::run(command)),
        Err(error) => {
            say::error(format_args!("the runtime does not start: {error}"));
            exit::FAILED
        }
    }
}

/// Help and version were asked for; everything else is wrong usage.
fn explain(error: &clap::Error) -> ExitCode {
    // Standard output may be gone, and then nobody reads it.
    let _unread = error.print();
    if error.use_stderr() { exit::usage() } else { exit::DONE }
}
