//! The child process of one slot: the built-in tasks, at the end of the pipe that its worker holds.

use std::process::ExitCode;

pub(crate) fn run() -> ExitCode {
    // A child offers every task: what it may run was decided where the job was taken.
    worker::slot::main(&tasks::registry(true))
}
