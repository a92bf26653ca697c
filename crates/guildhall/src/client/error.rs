//! What can go wrong for somebody at a terminal, each in one sentence that says what to do, and the exit code it ends with.

use std::{fmt, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::words;

/// Why a client command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// There is no session for this address, or it has ended.
    #[error("You are not signed in at {address}. Sign in with `guildhall login`.")]
    NotSignedIn { address: String },
    /// Nobody listens, or no connection could be made.
    #[error("Nothing answers at {address} ({cause}). {hint}")]
    Unreachable { address: String, cause: String, hint: &'static str },
    /// The connection was there and broke, or the answer could not be read.
    #[error("{address} did not finish its answer: {cause}.")]
    Broken { address: String, cause: String },
    /// The server said no, and why.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// A file or directory of this machine.
    #[error("{}: {source}.", path.display())]
    Local { path: PathBuf, source: io::Error },
    /// The work itself failed.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C. The sentence says what goes on without us and how to come back to it.
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    pub(super) fn local(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Local { path, source }
    }

    /// The exit code of the contract: 1 failed, 64 wrong usage, 130 interrupted.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Interrupted(_) => 130,
            _ => 1,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Refused(problem) => matches!(problem.status, 429 | 502..=504),
            _ => false,
        }
    }

    /// Whether the server refused with this HTTP status.
    pub(super) fn is_status(&self, status: u16) -> bool {
        matches!(self, Self::Refused(problem) if problem.status == status)
    }

    /// The error for a program to read.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Refused(problem) => serde_json::json!({ "error": problem }),
            other => serde_json::json!({ "error": { "message": other.to_string() } }),
        }
    }
}

/// An `application/problem+json` answer (RFC 9457) as the contract shapes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// The HTTP status, once more in the body.
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) detail: Option<String>,
    /// Stable, for programs: `auth.invalid_credentials`.
    pub(crate) code: String,
    pub(crate) request_id: Option<String>,
    /// One entry for each fault of the input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<FieldError>,
}

/// One fault of the input, and where it stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FieldError {
    /// A JSON Pointer (RFC 6901) into the request's body.
    pub(crate) pointer: String,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = self.detail.as_deref().filter(|detail| !detail.is_empty()).unwrap_or(&self.title);
        f.write_str(&words::plain(sentence))?;
        for error in &self.errors {
            let pointer = if error.pointer.is_empty() { "/" } else { &error.pointer };
            write!(f, "\n  {}: {}", words::plain(pointer), words::plain(&error.message))?;
        }
        let mut marks = Vec::new();
        if !self.code.is_empty() {
            marks.push(words::plain(&self.code));
        }
        if let Some(id) = &self.request_id {
            marks.push(format!("request {}", words::plain(id)));
        }
        if !marks.is_empty() {
            write!(f, "{}({})", if self.errors.is_empty() { " " } else { "\n  " }, marks.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_one_sentence_with_its_pointers_and_request() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "type": "about:blank", "title": "Unprocessable", "status": 422, "detail": "The arguments do not fit.",
            "code": "jobs.invalid_args", "request_id": "r-1",
            "errors": [{"pointer": "/args/file_ids", "code": "min_items", "message": "Must not be empty."}]
        }))
        .unwrap();
        assert_eq!(
            problem.to_string(),
            "The arguments do not fit.\n  /args/file_ids: Must not be empty.\n  (jobs.invalid_args, request r-1)"
        );
    }

    #[test]
    fn what_the_server_says_cannot_move_the_cursor() {
        let problem = Problem { detail: Some("\u{1b}[2Jgone\r\n".into()), ..Problem::default() };
        assert_eq!(problem.to_string(), "[2Jgone ");
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let refused = |status| Error::Refused(Box::new(Problem { status, ..Problem::default() }));
        assert!(refused(503).is_passing() && refused(429).is_passing());
        assert!(!refused(404).is_passing() && !refused(422).is_passing() && !refused(500).is_passing());
    }
}
