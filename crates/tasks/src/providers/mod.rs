//! What makes a model out of a picture: one file or folder for each provider.
//!
//! A provider here is pure: it is given a file and parameters and answers with bytes. It knows no queue, no job and no
//! network of ours; the task that calls it does the rest.

pub mod relief;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The providers there are, by the names that jobs use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// Built in and local: turns brightness into height.
    #[default]
    Relief,
}
