//! The states of a job and every move between them, in one table. The database repeats the set as CHECK constraints.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use proto::jobs::JobState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Waits for the end of other jobs.
    Waiting,
    /// Waits for its `run_at`; a retry waits here too.
    Scheduled,
    /// May start as soon as a worker has a slot.
    Queued,
    /// An attempt holds it.
    Running,
    /// Waits for its child batch, and holds no worker.
    Suspended,
    /// Was asked to stop, or its deadline is over, and it has not answered, or its child batch has not.
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
    /// Its time in the queue or its deadline was over.
    Expired,
}

use State::{Cancelled, Cancelling, Expired, Failed, Queued, Running, Scheduled, Succeeded, Suspended, Waiting};

/// Every move there is, with what makes it.
pub(crate) const MOVES: &[(State, State, &str)] = &[
    (Waiting, Queued, "the jobs that it runs after have ended as they have to"),
    (Waiting, Scheduled, "the same, and its `run_at` is later"),
    (Waiting, Cancelled, "cancelled, or a job that it runs after did not end as it has to"),
    (Scheduled, Queued, "its time has come"),
    (Scheduled, Cancelled, "cancelled"),
    (Scheduled, Expired, "its deadline is over"),
    (Queued, Running, "claimed for a worker"),
    (Queued, Cancelled, "cancelled"),
    (Queued, Expired, "its time in the queue or its deadline is over"),
    (Running, Succeeded, "the attempt succeeded"),
    (Running, Failed, "the attempt failed and no retry is left, or none can help"),
    (
        Running,
        Scheduled,
        "the attempt failed and is retried after its backoff, or asked for a later one, which does not count",
    ),
    (Running, Expired, "the attempt failed, or asked for a later one, and its deadline comes first"),
    (Running, Cancelled, "the attempt found that there is nothing to be done"),
    (Running, Queued, "the attempt was interrupted, which does not count"),
    (Running, Suspended, "the attempt waits for its child batch"),
    (Running, Cancelling, "cancelled, or its deadline is over: the attempt was asked to stop"),
    (Suspended, Succeeded, "the finalize of its child batch succeeded"),
    (Suspended, Failed, "the finalize of its child batch failed, or too few of its jobs succeeded for one"),
    (Suspended, Cancelling, "cancelled, or its deadline is over: its child batch is being cancelled"),
    (Suspended, Cancelled, "its child batch was cancelled"),
    (Cancelling, Cancelled, "the attempt or the child batch has ended, or its lease has"),
    (Cancelling, Expired, "the same, where it was its deadline that ended it"),
    (Cancelling, Succeeded, "the attempt succeeded before it heard of the cancel"),
    (Failed, Queued, "retried by hand"),
    (Cancelled, Queued, "retried by hand"),
    (Expired, Queued, "retried by hand"),
    (Failed, Waiting, "retried by hand, and a job that it runs after has not ended as it has to"),
    (Cancelled, Waiting, "the same"),
    (Expired, Waiting, "the same"),
];

impl State {
    pub(crate) const ALL: [Self; 10] =
        [Waiting, Scheduled, Queued, Running, Suspended, Cancelling, Succeeded, Failed, Cancelled, Expired];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Waiting => "waiting",
            Scheduled => "scheduled",
            Queued => "queued",
            Running => "running",
            Suspended => "suspended",
            Cancelling => "cancelling",
            Succeeded => "succeeded",
            Failed => "failed",
            Cancelled => "cancelled",
            Expired => "expired",
        }
    }

    pub(crate) const fn is_final(self) -> bool {
        matches!(self, Succeeded | Failed | Cancelled | Expired)
    }

    pub(crate) fn may_become(self, next: Self) -> bool {
        MOVES.iter().any(|(from, to, _)| (*from, *to) == (self, next))
    }

    pub(crate) const fn to_proto(self) -> JobState {
        match self {
            Waiting => JobState::Waiting,
            Scheduled => JobState::Scheduled,
            Queued => JobState::Queued,
            Running => JobState::Running,
            Suspended => JobState::Suspended,
            Cancelling => JobState::Cancelling,
            Succeeded => JobState::Succeeded,
            Failed => JobState::Failed,
            Cancelled => JobState::Cancelled,
            Expired => JobState::Expired,
        }
    }

    pub(crate) const fn from_proto(state: JobState) -> Option<Self> {
        Some(match state {
            JobState::Unspecified => return None,
            JobState::Waiting => Waiting,
            JobState::Scheduled => Scheduled,
            JobState::Queued => Queued,
            JobState::Running => Running,
            JobState::Suspended => Suspended,
            JobState::Cancelling => Cancelling,
            JobState::Succeeded => Succeeded,
            JobState::Failed => Failed,
            JobState::Cancelled => Cancelled,
            JobState::Expired => Expired,
        })
    }
}

/// Every move as a table in Markdown, for the reference.
pub(crate) fn markdown() -> String {
    let mut page = String::from("| from | to | when |\n|---|---|---|\n");
    for (from, to, when) in MOVES {
        // Writing into a String does not fail.
        let _ = writeln!(page, "| `{from}` | `{to}` | {when} |");
    }
    page
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// From the database, whose CHECK constraint knows the same words.
impl FromStr for State {
    type Err = kit::Fail;
    fn from_str(word: &str) -> Result<Self, kit::Fail> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| kit::Fail::internal(format!("`{word}` is not a state")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_is_left_only_by_a_retry() {
        for (from, to, _) in MOVES {
            assert!(!from.is_final() || matches!(to, Queued | Waiting), "{from} -> {to}");
        }
        assert!(!Succeeded.may_become(Queued));
    }

    #[test]
    fn every_state_can_be_reached_and_every_live_one_left() {
        for state in State::ALL {
            let is_first = matches!(state, Waiting | Scheduled | Queued);
            assert!(is_first || MOVES.iter().any(|(_, to, _)| *to == state), "{state} cannot be reached");
            assert!(state.is_final() || MOVES.iter().any(|(from, _, _)| *from == state), "{state} cannot be left");
        }
    }
}
