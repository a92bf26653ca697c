//! What is said of limits.

use std::str::FromStr;

use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct QueueLimit {
    pub(crate) name: String,
    /// Jobs that run at once
    #[arg(long, value_name = "COUNT")]
    pub(crate) concurrency: Option<Bound<u32>>,
    /// Jobs of one key that run at once; a job's key is its --concurrency-key, or else its owner
    #[arg(long, value_name = "COUNT")]
    pub(crate) key_concurrency: Option<Bound<u32>>,
    /// Jobs that start in a span of time, and at most at once, like 100/60 or 100/60/10
    #[arg(long, value_name = "STARTS/SECONDS[/BURST]")]
    pub(crate) rate: Option<Bound<Rate>>,
    /// The same of one key
    #[arg(long, value_name = "STARTS/SECONDS[/BURST]")]
    pub(crate) key_rate: Option<Bound<Rate>>,
    /// Between whom its places are shared fairly
    #[arg(long, value_parser = ["none", "owner", "key"])]
    pub(crate) share: Option<String>,
    /// How many times as much an owner gets, by its id, or a key, by OWNER:KEY or, where it is everyone's, by KEY; may be
    /// repeated, and replaces all that was set
    #[arg(long, value_name = "NAME=WEIGHT", value_parser = weight)]
    pub(crate) weight: Vec<(String, f64)>,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
pub(crate) struct Bound<T>(pub(crate) Option<T>);

impl<T: FromStr> FromStr for Bound<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

/// Starts in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Rate {
    starts: u32,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        let starts = parts.next().and_then(|starts| starts.parse().ok());
        let seconds = parts.next().and_then(|seconds| seconds.parse().ok());
        let burst = parts.next().map(str::parse).transpose();
        match (starts, seconds, burst, parts.next()) {
            (Some(starts), Some(seconds), Ok(burst), None) => Ok(Self { starts, seconds, burst }),
            _ => Err("a rate is STARTS/SECONDS or STARTS/SECONDS/BURST, like 100/60"),
        }
    }
}

fn weight(text: &str) -> Result<(String, f64), &'static str> {
    let parts = text.rsplit_once('=').and_then(|(name, weight)| Some((name.to_owned(), weight.parse().ok()?)));
    parts.ok_or("a weight is NAME=NUMBER")
}
