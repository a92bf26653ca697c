//! How an attempt fails: a kind from the contract (or the task's own), a sentence for the job's owner, and whether trying
//! again can help. Nothing private belongs in the sentence; what is behind it goes to the worker's log.

use std::{error::Error, fmt, io, time::Duration};

use kit::Fail;
use serde::{Deserialize, Serialize};

/// The kinds that every task shares. A task's own kind is a lower-case word beside these.
pub mod kind {
    pub const INVALID_INPUT: &str = "invalid_input";
    pub const NOT_FOUND: &str = "not_found";
    pub const TIMEOUT: &str = "timeout";
    pub const WORKER_CRASHED: &str = "worker_crashed";
    pub const MEMORY_EXCEEDED: &str = "memory_exceeded";
    pub const PROVIDER: &str = "provider";
    pub const INTERNAL: &str = "internal";

    /// The kinds that a worker reports, apart from a task's own.
    pub const SHARED: [&str; 7] =
        [INVALID_INPUT, NOT_FOUND, TIMEOUT, WORKER_CRASHED, MEMORY_EXCEEDED, PROVIDER, INTERNAL];
}

/// Longest sentence that is reported, in bytes.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// Why a task ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    Failed {
        kind: String,
        message: String,
        retryable: bool,
        /// What is behind it, for our log alone.
        cause: Option<String>,
        /// Time until the next attempt, in place of the job's backoff.
        retry_after: Option<Duration>,
    },
    /// There is nothing to work on yet: another attempt after this time, which does not count. Unlike a failure it may be
    /// said as often as it is so; the job's deadline bounds it.
    Snoozed(Duration),
    /// There is nothing to be done: the job ends `cancelled`, for this reason.
    Cancelled(String),
    /// The task was asked to stop, and did.
    Stopped,
}

impl Failure {
    /// A failure that the same input will meet again: it is not retried.
    pub fn permanent(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed {
            kind: kind.into(),
            message: clipped(message.into()),
            retryable: false,
            cause: None,
            retry_after: None,
        }
    }

    /// A failure that may pass: it is retried while the job has attempts left.
    pub fn passing(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed {
            kind: kind.into(),
            message: clipped(message.into()),
            retryable: true,
            cause: None,
            retry_after: None,
        }
    }

    /// The input is at fault.
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::permanent(kind::INVALID_INPUT, message)
    }

    /// Our fault: the cause is logged by the worker, the owner learns that it happened.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::Failed {
            kind: kind::INTERNAL.to_owned(),
            message: "Something went wrong on our side.".to_owned(),
            retryable: true,
            cause: Some(cause.to_string()),
            retry_after: None,
        }
    }

    /// There is nothing to be done, and that is no failure: the job ends `cancelled`.
    pub fn cancelled(reason: impl Into<String>) -> Self {
        Self::Cancelled(clipped(reason.into()))
    }

    /// With the delay that an outside service asks for before the next attempt, in place of the job's backoff; at most a
    /// week. What is no failure stays as it is.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        if let Self::Failed { retry_after, .. } = &mut self {
            *retry_after = Some(delay);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { kind, message, .. } => write!(f, "{message} ({kind})"),
            Self::Snoozed(after) => write!(f, "the task asks for another attempt after {} s", after.as_secs_f64()),
            Self::Cancelled(reason) => write!(f, "{reason} (cancelled)"),
            Self::Stopped => f.write_str("the task stopped as it was asked to"),
        }
    }
}

impl Error for Failure {}

/// What another role refused. What is not there or not fitting stays so; anything else may pass.
impl From<Fail> for Failure {
    fn from(fail: Fail) -> Self {
        match fail.kind() {
            kit::Kind::NotFound => Self::permanent(kind::NOT_FOUND, fail.message()),
            kit::Kind::Invalid | kit::Kind::Malformed | kit::Kind::TooLarge => {
                Self::permanent(kind::INVALID_INPUT, fail.message())
            }
            kit::Kind::Limited | kit::Kind::Unavailable | kit::Kind::Timeout => {
                Self::passing(kind::INTERNAL, fail.message())
            }
            _ => Self::internal(fail),
        }
    }
}

/// The worker's own disk or memory, never the input: a task that reads its input maps that itself.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::OutOfMemory {
            return Self::permanent(kind::MEMORY_EXCEEDED, "The task needed more memory than its slot may use.");
        }
        Self::internal(error)
    }
}

fn clipped(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_clipped_between_characters() {
        let Failure::Failed { message, .. } = Failure::invalid_input("ä".repeat(MESSAGE_BYTES_MAX)) else {
            panic!("it failed")
        };
        assert!(message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
    }

    #[test]
    fn a_missing_file_is_not_tried_again() {
        let failure = Failure::from(Fail::not_found("jobs.file_not_found", "There is no such file."));
        assert_eq!(failure, Failure::permanent("not_found", "There is no such file."));
    }
}
