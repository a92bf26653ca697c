//! What a caller asks of a unique job, checked.

use std::time::Duration;

use chrono::TimeDelta;
use kit::fail::Violation;

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 200;

/// How a job is to be unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unique {
    pub(crate) key: String,
    pub(crate) hold: Hold,
    /// From its submission on, whatever becomes of the job.
    pub(crate) window: Option<TimeDelta>,
    pub(crate) on_conflict: OnConflict,
    /// Among the jobs of all owners.
    pub(crate) is_for_all: bool,
}

/// How long a job itself holds its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Until it starts.
    Waiting,
    /// Until it is over.
    Live,
    /// Until it is over, and while it is a dead letter.
    DeadLetter,
}

/// What becomes of a job whose key another holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConflict {
    /// It is the other that is answered.
    Return,
    /// It takes the other's place while that waits; else as `Return`.
    Replace,
    Refuse,
}

impl Hold {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Live => "live",
            Self::DeadLetter => "dead_letter",
        }
    }
}

impl Unique {
    /// Checks what a caller asks for; faults are told at pointers below `at`. `None` where nothing is asked for. A window is
    /// no longer than `window_max`, for which the job that holds the key is sure to be there.
    ///
    /// # Errors
    /// Every fault.
    pub(crate) fn parse(
        key: Option<&str>,
        asked: Option<&proto::jobs::Unique>,
        at: &str,
        window_max: Duration,
    ) -> Result<Option<Self>, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut fault = |pointer: &str, code: &str, message: String| {
            violations.push(Violation { pointer: format!("{at}{pointer}"), code: code.to_owned(), message });
        };
        let Some(key) = key else {
            if asked.is_none() {
                return Ok(None);
            }
            fault("/unique_key", "required", "must be given with `unique`".to_owned());
            return Err(violations);
        };
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) || key.contains('\0') {
            fault("/unique_key", "max_length", format!("must be 1 to {KEY_BYTES_MAX} bytes of text"));
        }
        let hold = match asked.map_or("", |asked| &asked.hold) {
            "" | "live" => Hold::Live,
            "waiting" => Hold::Waiting,
            "dead_letter" => Hold::DeadLetter,
            _ => {
                fault("/unique/hold", "enum", "must be `waiting`, `live` or `dead_letter`".to_owned());
                Hold::Live
            }
        };
        let on_conflict = match asked.map_or("", |asked| &asked.on_conflict) {
            "" | "return" => OnConflict::Return,
            "replace" => OnConflict::Replace,
            "refuse" => OnConflict::Refuse,
            _ => {
                fault("/unique/on_conflict", "enum", "must be `return`, `replace` or `refuse`".to_owned());
                OnConflict::Return
            }
        };
        let window_s = asked.and_then(|asked| asked.window_s);
        if window_s.is_some_and(|seconds| !(0.001..=window_max.as_secs_f64()).contains(&seconds)) {
            fault("/unique/window_s", "maximum", format!("must be between 0.001 and {}", window_max.as_secs()));
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked above to be at most ten years")]
        let window = window_s.map(|seconds| TimeDelta::milliseconds((seconds * 1000.0) as i64));
        let is_for_all = asked.is_some_and(|asked| asked.for_all);
        Ok(Some(Self { key: key.to_owned(), hold, window, on_conflict, is_for_all }))
    }
}
