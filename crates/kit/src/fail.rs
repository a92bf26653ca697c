//! One value for everything that can go wrong. A [`Fail`] is made where the fault is understood, travels over gRPC
//! without loss, and is turned into a problem document, an exit code or a retry decision at the edge.
//!
//! What a person may read is `message` and `violations`; `source` stays in the process and reaches only the log.

use std::{error::Error as StdError, fmt, time::Duration};

use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// What kind of fault it is; decides the gRPC and HTTP status and whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The input does not parse (400).
    Malformed,
    /// The input parses and breaks a rule or schema (422).
    Invalid,
    /// Nobody is signed in, or the credential is wrong (401).
    Unauthenticated,
    /// The caller may not do this kind of thing (403).
    Forbidden,
    /// Not there, or not the caller's (404).
    NotFound,
    /// Taken, or in the wrong state (409).
    Conflict,
    /// Larger than allowed (413).
    TooLarge,
    /// Too much at once (429).
    Limited,
    /// A dependency is away for now (503).
    Unavailable,
    /// It took too long (504).
    Timeout,
    /// Our fault (500).
    Internal,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::TooLarge,
        Self::Limited,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
    ];

    /// The word that stands for the kind on the wire and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Limited => "limited",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    const fn grpc(self) -> tonic::Code {
        match self {
            Self::Malformed | Self::Invalid => tonic::Code::InvalidArgument,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::Forbidden => tonic::Code::PermissionDenied,
            Self::NotFound => tonic::Code::NotFound,
            Self::Conflict => tonic::Code::FailedPrecondition,
            Self::TooLarge => tonic::Code::OutOfRange,
            Self::Limited => tonic::Code::ResourceExhausted,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Timeout => tonic::Code::DeadlineExceeded,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// For a status that another implementation made, without our details.
    const fn from_grpc(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument => Self::Invalid,
            tonic::Code::OutOfRange => Self::TooLarge,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::PermissionDenied => Self::Forbidden,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::FailedPrecondition | tonic::Code::AlreadyExists | tonic::Code::Aborted => Self::Conflict,
            tonic::Code::ResourceExhausted => Self::Limited,
            tonic::Code::Unavailable | tonic::Code::Cancelled => Self::Unavailable,
            tonic::Code::DeadlineExceeded => Self::Timeout,
            _ => Self::Internal,
        }
    }
}

/// One fault in the input, at a JSON pointer (RFC 6901) into the request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub pointer: String,
    /// Stable and lower case, such as `required` or `maximum`.
    pub code: String,
    pub message: String,
}

/// A fault: its kind, a stable code such as `auth.email_taken`, a public sentence, and what is behind it.
pub struct Fail(Box<Inner>);

struct Inner {
    kind: Kind,
    code: String,
    message: String,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Longest list of violations that is carried; a body with more faults is told about the first ones.
const VIOLATIONS_MAX: usize = 50;
const DOMAIN: &str = "guildhall";

impl Fail {
    /// A fault of `kind` with its stable `code` and a sentence that anyone may read.
    pub fn new(kind: Kind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            code: code.into(),
            message: message.into(),
            violations: Vec::new(),
            retry_after: None,
            source: None,
        }))
    }

    pub fn malformed(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, code, message)
    }
    pub fn invalid(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, code, message)
    }
    pub fn unauthenticated(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Unauthenticated, code, message)
    }
    pub fn forbidden(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, code, message)
    }
    pub fn not_found(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, code, message)
    }
    pub fn conflict(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, message)
    }
    pub fn too_large(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::TooLarge, code, message)
    }
    pub fn limited(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Limited, code, message)
    }
    pub fn unavailable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, code, message)
    }
    /// Our own fault: the cause is logged, the caller only learns that it happened.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, "internal", "Something went wrong on our side.").caused_by(source)
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds one fault of the input.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        if self.0.violations.len() < VIOLATIONS_MAX {
            self.0.violations.push(Violation { pointer: pointer.into(), code: code.into(), message: message.into() });
        }
        self
    }

    /// Adds faults of the input.
    #[must_use]
    pub fn with_violations(mut self, violations: impl IntoIterator<Item = Violation>) -> Self {
        self.0.violations.extend(violations);
        self.0.violations.truncate(VIOLATIONS_MAX);
        self
    }

    /// Rewrites where the faults of the input lie, for a caller whose body had another shape.
    #[must_use]
    pub fn map_pointers(mut self, rewrite: impl Fn(&str) -> String) -> Self {
        for violation in &mut self.0.violations {
            violation.pointer = rewrite(&violation.pointer);
        }
        self
    }

    /// Tells when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    pub fn code(&self) -> &str {
        &self.0.code
    }
    pub fn message(&self) -> &str {
        &self.0.message
    }
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }
    pub fn retry_after_hint(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same call can succeed later without a change by the caller.
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, Kind::Limited | Kind::Unavailable | Kind::Timeout | Kind::Internal)
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.message, self.0.code)?;
        let mut cause: Option<&(dyn StdError + 'static)> = self.0.source.as_deref().map(|s| s as _);
        let mut said = String::new();
        while let Some(error) = cause {
            // Some errors end in the words of their own cause, which need not be read twice.
            let words = error.to_string();
            if !said.ends_with(&words) {
                write!(f, ": {words}")?;
            }
            said = words;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fail({}: {self})", self.0.kind.as_str())?;
        if !self.0.violations.is_empty() {
            write!(f, " {:?}", self.0.violations)?;
        }
        Ok(())
    }
}

impl StdError for Fail {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// Over gRPC: the status code, the public sentence, and `google.rpc` details for the rest. The cause stays here.
impl From<Fail> for tonic::Status {
    fn from(fail: Fail) -> Self {
        if matches!(fail.kind(), Kind::Internal) {
            tracing::error!(error = %fail, "a call failed on our side");
        }
        let inner = *fail.0;
        let mut details = ErrorDetails::new();
        details.set_error_info(
            inner.code,
            DOMAIN,
            std::collections::HashMap::from([("kind".to_owned(), inner.kind.as_str().to_owned())]),
        );
        if !inner.violations.is_empty() {
            let violations = inner.violations.into_iter().map(|v| FieldViolation {
                field: v.pointer,
                description: v.message,
                reason: v.code,
                localized_message: None,
            });
            details.set_bad_request(violations.collect::<Vec<_>>());
        }
        if let Some(wait) = inner.retry_after {
            details.set_retry_info(Some(wait));
        }
        Self::with_error_details(inner.kind.grpc(), inner.message, details)
    }
}

/// Back from gRPC. A status without our details (a broken transport, a foreign server) keeps its code's kind and says
/// nothing of its text to the outside.
impl From<tonic::Status> for Fail {
    fn from(status: tonic::Status) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) else {
            let kind = Kind::from_grpc(status.code());
            let message = match kind {
                Kind::Unavailable => "A part of the system is away for the moment.",
                Kind::Timeout => "It took too long.",
                _ => "Something went wrong on our side.",
            };
            let kind =
                if matches!(kind, Kind::Unavailable | Kind::Timeout | Kind::Limited) { kind } else { Kind::Internal };
            return Self::new(kind, kind.as_str(), message).caused_by(status);
        };
        let kind = info.metadata.get("kind").and_then(|word| Kind::ALL.into_iter().find(|k| k.as_str() == word));
        let mut fail = Self::new(kind.unwrap_or(Kind::from_grpc(status.code())), info.reason.clone(), status.message());
        if let Some(bad) = details.bad_request() {
            fail = fail.with_violations(bad.field_violations.iter().map(|v| Violation {
                pointer: v.field.clone(),
                code: v.reason.clone(),
                message: v.description.clone(),
            }));
        }
        fail.0.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        fail
    }
}

/// A lost connection or an exhausted pool passes; anything else that the database says is our fault. A constraint that
/// callers may run into is translated where it is expected, with [`on_constraint`].
impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        let is_away = match &error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                true
            }
            // 08: connection lost; 40: a deadlock or conflict that the next try does not meet; 53: out of resources;
            // 57P0x: the server is going down or coming up. 25P03: the transaction stood still for too long.
            sqlx::Error::Database(db) => {
                let passes = ["08", "25P03", "40", "53", "57P"];
                db.code().is_some_and(|code| passes.iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        };
        if is_away {
            Self::unavailable("database_unavailable", "The database is away for the moment.")
                .retry_after(Duration::from_secs(1))
                .caused_by(error)
        } else {
            Self::internal(error)
        }
    }
}

/// Translates the violation of one named constraint, and leaves every other error as it is.
pub fn on_constraint(error: sqlx::Error, name: &str, fail: impl FnOnce() -> Fail) -> Fail {
    match &error {
        sqlx::Error::Database(db) if db.constraint() == Some(name) => fail(),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fail_crosses_grpc_without_loss_and_its_cause_stays_behind() {
        let fail = Fail::invalid("jobs.invalid_args", "The arguments do not fit.")
            .at("/jobs/3/args/file_id", "required", "is required")
            .retry_after(Duration::from_secs(7))
            .caused_by("secret detail");
        let status = tonic::Status::from(fail);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(!format!("{status:?}").contains("secret detail"));

        let back = Fail::from(status);
        assert_eq!(back.kind(), Kind::Invalid);
        assert_eq!(back.code(), "jobs.invalid_args");
        assert_eq!(back.violations()[0].pointer, "/jobs/3/args/file_id");
        assert_eq!(back.violations()[0].code, "required");
        assert_eq!(back.retry_after_hint(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_cause_that_tells_its_own_cause_is_not_told_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("the line broke: {0}")]
        struct Outer(#[source] std::io::Error);
        let fail = Fail::internal(Outer(std::io::Error::other("a hare bit it")));
        assert_eq!(fail.to_string(), "Something went wrong on our side. (internal): the line broke: a hare bit it");
    }

    #[test]
    fn every_kind_survives_the_way_over_grpc() {
        for kind in Kind::ALL {
            let back = Fail::from(tonic::Status::from(Fail::new(kind, "a.code", "A sentence.")));
            assert_eq!(back.kind(), kind);
        }
    }

    #[test]
    fn a_foreign_status_tells_the_outside_nothing_of_its_text() {
        let fail = Fail::from(tonic::Status::unknown("relation \"jobs.job\" does not exist"));
        assert_eq!(fail.kind(), Kind::Internal);
        assert!(!fail.message().contains("relation"));
    }
}
