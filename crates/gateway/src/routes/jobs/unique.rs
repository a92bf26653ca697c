//! Unique jobs as JSON asks for them, and the answer to one that may be there already.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shapes::Job;
use crate::route::AcceptedOrThere;

/// How a job with a `unique_key` is unique.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unique {
    /// How long the job itself holds its key; `live` unless said.
    #[serde(default)]
    hold: Option<Hold>,
    /// Seconds from its submission for which the key is held, whatever becomes of the job.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    window_s: Option<f64>,
    /// What becomes of this job while another holds the key; `return` unless said.
    #[serde(default)]
    on_conflict: Option<OnConflict>,
    /// Among the jobs of all owners; for those who may read any job.
    #[serde(default)]
    for_all: bool,
}

/// `waiting`: until it starts; `live`: until it is over; `dead_letter`: until it is over, and while it is a dead letter.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Hold {
    Waiting,
    Live,
    DeadLetter,
}

/// `return`: the other is answered; `replace`: it takes the place of one that waits, which is cancelled; `refuse`: 409.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnConflict {
    Return,
    Replace,
    Refuse,
}

/// The job that was submitted, or the one that holds its unique key.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Submitted {
    #[serde(flatten)]
    job: Job,
    /// Whether it was there before.
    existing: bool,
}

impl Unique {
    pub(super) fn write(self) -> rpc::Unique {
        let hold = self.hold.map_or("", |hold| match hold {
            Hold::Waiting => "waiting",
            Hold::Live => "live",
            Hold::DeadLetter => "dead_letter",
        });
        let on_conflict = self.on_conflict.map_or("", |on_conflict| match on_conflict {
            OnConflict::Return => "return",
            OnConflict::Replace => "replace",
            OnConflict::Refuse => "refuse",
        });
        rpc::Unique {
            hold: hold.into(),
            window_s: self.window_s,
            on_conflict: on_conflict.into(),
            for_all: self.for_all,
        }
    }
}

impl Submitted {
    pub(super) fn reply(answer: rpc::SubmitJobsResponse) -> Result<AcceptedOrThere<Self>, Fail> {
        let job = answer.job.ok_or_else(|| Fail::internal("jobs accepted one job and did not show it"))?;
        let existing = answer.items.first().is_some_and(|item| item.existing);
        Ok(AcceptedOrThere::new(Self { job: Job::read(job)?, existing }, existing).replayed(answer.replayed))
    }
}
