//! What the process tells its parent, the same for every command.

use std::process::ExitCode;

/// It was done.
pub(crate) const DONE: ExitCode = ExitCode::SUCCESS;

/// It failed; standard error says why.
pub(crate) const FAILED: ExitCode = ExitCode::FAILURE;

/// Wrong usage or configuration (`EX_USAGE` of sysexits.h): nothing was begun.
pub(crate) fn usage() -> ExitCode {
    ExitCode::from(64)
}

/// A second signal cut it short (128 and SIGINT).
pub(crate) fn interrupted() -> ExitCode {
    ExitCode::from(130)
}
