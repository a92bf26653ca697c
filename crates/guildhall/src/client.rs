//! The client: the commands that ask a running Guildhall for something, over the public HTTP API, as any other program
//! would. It owns what a person sees on the terminal and the session file; it never opens the database, never speaks
//! gRPC, and knows nothing that the contract does not tell everybody.
//!
//! - the way there: `api` (requests, refusals), `tokens` and `session` (who we are), `events` (live streams)
//! - the nouns: `sign_in`, `job`, `batch`, `file`, `schedule`, `user`, `audit`, `parked`, `health`, and the small ones in `lists`
//! - the terminal: `screen`, `live` (bars), `table`, `words`, `interrupt` (Ctrl-C)

mod api;
mod args;
mod audit;
pub(crate) mod batch;
mod error;
mod events;
mod file;
mod health;
mod interrupt;
mod job;
mod limits;
mod lists;
mod live;
mod parked;
mod schedule;
mod screen;
mod session;
mod sign_in;
mod table;
mod tokens;
mod user;
mod words;

use std::process::ExitCode;

pub(crate) use api::Api;
pub(crate) use args::ClientCommand;
pub(crate) use error::Error;

use args::Common;
use screen::Screen;

/// How a command that did not fail has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Exit code 0.
    Done,
    /// It was told to the end, and it did not go well: a watched job failed, a model of a batch did, a process is not
    /// well. Exit code 1.
    WentBadly,
    /// It was cancelled at Ctrl-C and watched to its end. Exit code 130.
    CalledOff,
}

/// Runs one client command to its end. A TLS provider must be installed before.
pub(crate) async fn run(command: ClientCommand) -> ExitCode {
    let Common { json, quiet, .. } = *common(&command);
    let screen = Screen::of_process(json, quiet);
    match dispatch(command, &screen).await {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::WentBadly) => ExitCode::from(1),
        Ok(Outcome::CalledOff) => ExitCode::from(130),
        Err(error) => {
            screen.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn common(command: &ClientCommand) -> &Common {
    match command {
        ClientCommand::Login(args) => &args.common,
        ClientCommand::Logout(args) => &args.common,
        ClientCommand::Job(args) => &args.common,
        ClientCommand::Batch(args) => &args.common,
        ClientCommand::File(args) => &args.common,
        ClientCommand::Task(args) => &args.common,
        ClientCommand::Queue(args) => &args.common,
        ClientCommand::Schedule(args) => &args.common,
        ClientCommand::Worker(args) => &args.common,
        ClientCommand::User(args) => &args.common,
        ClientCommand::Audit(args) => &args.common,
        ClientCommand::Event(args) => &args.common,
        ClientCommand::Health(args) => &args.common,
    }
}

async fn dispatch(command: ClientCommand, screen: &Screen) -> Result<Outcome, Error> {
    match command {
        ClientCommand::Login(args) => sign_in::login(&args, screen).await,
        ClientCommand::Logout(args) => sign_in::logout(&args, screen).await,
        ClientCommand::Job(args) => job::run(&args, screen).await,
        ClientCommand::Batch(args) => batch::run(args, screen).await,
        ClientCommand::File(args) => file::run(args, screen).await,
        ClientCommand::Task(args) => lists::tasks(&args, screen).await,
        ClientCommand::Queue(args) => lists::queues(&args, screen).await,
        ClientCommand::Schedule(args) => schedule::run(&args, screen).await,
        ClientCommand::Worker(args) => lists::workers(&args, screen).await,
        ClientCommand::User(args) => user::run(&args, screen).await,
        ClientCommand::Audit(args) => audit::run(&args, screen).await,
        ClientCommand::Event(args) => parked::run(&args, screen).await,
        ClientCommand::Health(args) => health::run(&args, screen).await,
    }
}

/// A variable of the process that only the client reads; the settings of the roles are `kit::config`'s.
#[expect(clippy::disallowed_methods, reason = "the one place of the client that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
