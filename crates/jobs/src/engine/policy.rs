//! Whether a complete batch is finalized: a rule that its maker gave it, held against what became of its jobs. It is looked
//! at once, when the last of them has ended: before that any of them may be retried.

use kit::{Fail, fail::Violation};
use proto::jobs::BatchPolicy;

/// When the finalize runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Whatever became of the jobs.
    #[default]
    Always,
    /// If every job succeeded; so it did in an empty batch.
    All,
    /// If one did.
    Any,
    /// If so many did, at least 1.
    Threshold(i32),
}

impl Policy {
    /// What a caller asks for of a batch that holds at most `jobs_max`; faults are told at pointers below `at`.
    ///
    /// # Errors
    /// The fault.
    pub(crate) fn parse(asked: &BatchPolicy, jobs_max: i32, at: &str) -> Result<Self, Violation> {
        let fault = |pointer: &str, code: &str, message: String| {
            Err(Violation { pointer: format!("{at}{pointer}"), code: code.to_owned(), message })
        };
        match (asked.kind.as_str(), asked.at_least) {
            ("always" | "all" | "any", Some(_)) => {
                fault("/at_least", "forbidden", "goes with the kind `threshold` alone".to_owned())
            }
            ("always", None) => Ok(Self::Always),
            ("all", None) => Ok(Self::All),
            ("any", None) => Ok(Self::Any),
            ("threshold", Some(number)) => match i32::try_from(number) {
                Ok(number) if (1..=jobs_max).contains(&number) => Ok(Self::Threshold(number)),
                _ => fault("/at_least", "range", format!("must be between 1 and the number of jobs, {jobs_max} here")),
            },
            ("threshold", None) => fault("/at_least", "required", "`threshold` needs it".to_owned()),
            _ => fault("/kind", "enum", "must be `always`, `all`, `any` or `threshold`".to_owned()),
        }
    }

    /// From the columns of a batch.
    ///
    /// # Errors
    /// `internal` for a word that this version does not know.
    pub(crate) fn read(kind: &str, at_least: Option<i32>) -> Result<Self, Fail> {
        Ok(match (kind, at_least) {
            ("always", _) => Self::Always,
            ("all", _) => Self::All,
            ("any", _) => Self::Any,
            ("threshold", Some(number)) => Self::Threshold(number),
            _ => return Err(Fail::internal(format!("`{kind}` is not a policy"))),
        })
    }

    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::All => "all",
            Self::Any => "any",
            Self::Threshold(_) => "threshold",
        }
    }

    pub(crate) const fn at_least(self) -> Option<i32> {
        match self {
            Self::Threshold(number) => Some(number),
            Self::Always | Self::All | Self::Any => None,
        }
    }

    /// Why a complete batch is not finalized; `None` where it is.
    pub(super) fn unmet(self, succeeded: i32, total: i32) -> Option<String> {
        let asked = match self {
            Self::Always => return None,
            Self::All if succeeded == total => return None,
            Self::All => "all".to_owned(),
            Self::Any if succeeded > 0 => return None,
            Self::Any => "1".to_owned(),
            Self::Threshold(number) if succeeded >= number => return None,
            Self::Threshold(number) => number.to_string(),
        };
        let were = if asked == "1" { "was" } else { "were" };
        Some(format!("{succeeded} of {total} succeeded, {asked} {were} asked for."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_lets_a_finalize_start_or_says_why_not() {
        for (policy, succeeded, total, unmet) in [
            (Policy::Always, 0, 5, None),
            (Policy::All, 5, 5, None),
            (Policy::All, 0, 0, None),
            (Policy::All, 4, 5, Some("4 of 5 succeeded, all were asked for.")),
            (Policy::Any, 1, 5, None),
            (Policy::Any, 0, 5, Some("0 of 5 succeeded, 1 was asked for.")),
            (Policy::Any, 0, 0, Some("0 of 0 succeeded, 1 was asked for.")),
            (Policy::Threshold(4), 4, 5, None),
            (Policy::Threshold(4), 3, 5, Some("3 of 5 succeeded, 4 were asked for.")),
        ] {
            assert_eq!(policy.unmet(succeeded, total).as_deref(), unmet, "{policy:?}");
        }
    }

    #[test]
    fn a_policy_is_read_back_as_it_was_written_and_a_faulty_one_refused_where_it_is() {
        let asked = |kind: &str, at_least| BatchPolicy { kind: kind.to_owned(), at_least };
        for (kind, at_least) in [("always", None), ("all", None), ("any", None), ("threshold", Some(5))] {
            let policy = Policy::parse(&asked(kind, at_least), 5, "/policy").expect("it is one");
            assert_eq!(Policy::read(policy.kind(), policy.at_least()).expect("it is one"), policy);
        }
        for (kind, at_least, pointer) in [
            ("most", None, "/policy/kind"),
            ("all", Some(1), "/policy/at_least"),
            ("threshold", None, "/policy/at_least"),
            ("threshold", Some(0), "/policy/at_least"),
            ("threshold", Some(6), "/policy/at_least"),
        ] {
            assert_eq!(Policy::parse(&asked(kind, at_least), 5, "/policy").expect_err(kind).pointer, pointer);
        }
    }
}
