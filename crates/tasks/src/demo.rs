//! Tasks to try the house with: one that answers, one that waits, one that fails, one that makes more of its kind, and two
//! that misbehave.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use worker::{ChildJob, Context, Ending, Failure, Place, Task};

use crate::args::{parse, schema_of};

const QUEUE: &str = "default";
/// How often `demo_sleep` tells how far it is.
const TICK: Duration = Duration::from_millis(500);

/// Answers with what it was given.
#[derive(Debug)]
pub(crate) struct Echo;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EchoArgs {
    /// Anything; it becomes the result.
    value: Value,
}

impl Task for Echo {
    fn name(&self) -> &'static str {
        "demo_echo"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Succeeds with the value it was given."
    }
    fn schema(&self) -> Value {
        schema_of::<EchoArgs>()
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, _context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move { Ok(Ending::Done(json!({ "value": parse::<EchoArgs>(args)?.value }))) })
    }
}

/// Waits, and ends early when it is asked to.
#[derive(Debug)]
pub(crate) struct Sleep;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SecondsArgs {
    /// How long it takes, in seconds.
    #[schemars(range(min = 0.0, max = 86_400.0))]
    seconds: f64,
}

impl SecondsArgs {
    fn duration(&self) -> Result<Duration, Failure> {
        Duration::try_from_secs_f64(self.seconds)
            .map_err(|error| Failure::invalid_input(format!("The seconds are no duration: {error}.")))
    }
}

impl Task for Sleep {
    fn name(&self) -> &'static str {
        "demo_sleep"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Waits for some seconds, telling its progress; stops at once when it is asked to."
    }
    fn schema(&self) -> Value {
        schema_of::<SecondsArgs>()
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let args = parse::<SecondsArgs>(args)?;
            let (length, started) = (args.duration()?, tokio::time::Instant::now());
            let mut ticks = tokio::time::interval(TICK);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(started + length) => break,
                    () = context.stopping() => return Err(Failure::Stopped),
                    _ = ticks.tick() => {
                        let share = started.elapsed().as_secs_f64() / length.as_secs_f64().max(f64::MIN_POSITIVE);
                        context.progress(100.0 * share, "sleep", "");
                    }
                }
            }
            Ok(Ending::Done(json!({ "seconds": args.seconds })))
        })
    }
}

/// Fails its first attempts, to show retries.
#[derive(Debug)]
pub(crate) struct Fail;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FailArgs {
    /// How many attempts fail before one succeeds.
    #[schemars(range(max = 1_000))]
    times: u32,
    /// The kind of its failures.
    #[serde(default = "demo_kind")]
    #[schemars(regex(pattern = "^[a-z][a-z0-9_]{0,31}$"))]
    kind: String,
    /// What its failures say.
    #[serde(default = "demo_message")]
    #[schemars(length(max = 500))]
    message: String,
    /// What its failures ask for.
    #[serde(default)]
    then: Then,
    /// How long `retry_after` and `snooze` wait, in seconds.
    #[serde(default = "demo_seconds")]
    #[schemars(range(min = 0.0, max = 86_400.0))]
    seconds: f64,
}

/// What a task may ask for in place of a result.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Then {
    /// Another attempt after the job's backoff.
    #[default]
    Retry,
    /// Another attempt after `seconds`.
    RetryAfter,
    /// Another attempt after `seconds`, which does not count.
    Snooze,
    /// Nothing more: the job fails for good.
    GiveUp,
    /// The end as `cancelled`.
    Cancel,
}

const fn demo_seconds() -> f64 {
    1.0
}

fn demo_kind() -> String {
    "demo".to_owned()
}
fn demo_message() -> String {
    "It failed as it was asked to.".to_owned()
}

impl Task for Fail {
    fn name(&self) -> &'static str {
        "demo_fail"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Fails its first attempts and then succeeds; or asks for a later attempt, gives up, or cancels itself."
    }
    fn schema(&self) -> Value {
        schema_of::<FailArgs>()
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let args = parse::<FailArgs>(args)?;
            if context.attempt() <= args.times {
                let after = Duration::try_from_secs_f64(args.seconds).unwrap_or_default();
                return Err(match args.then {
                    Then::Retry => Failure::passing(args.kind, args.message),
                    Then::RetryAfter => Failure::passing(args.kind, args.message).retry_after(after),
                    Then::Snooze => Failure::Snoozed(after),
                    Then::GiveUp => Failure::permanent(args.kind, args.message),
                    Then::Cancel => Failure::cancelled(args.message),
                });
            }
            Ok(Ending::Done(json!({ "attempt": context.attempt() })))
        })
    }
}

/// Adds more of its kind to its batch, each of which does the same.
#[derive(Debug)]
pub(crate) struct Grow;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GrowArgs {
    /// How many each of them adds.
    #[schemars(range(min = 0, max = 100))]
    width: u32,
    /// How many times over.
    #[schemars(range(min = 0, max = 10))]
    levels: u32,
}

impl Task for Grow {
    fn name(&self) -> &'static str {
        "demo_grow"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Adds jobs of its kind to the batch that it is one of, and those add theirs."
    }
    fn schema(&self) -> Value {
        schema_of::<GrowArgs>()
    }
    fn place(&self) -> Place {
        Place::Worker
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let args = parse::<GrowArgs>(args)?;
            let Some(levels) = args.levels.checked_sub(1) else { return Ok(Ending::Done(json!({ "added": 0 }))) };
            let grown = |ordinal| ChildJob {
                ordinal,
                task: self.name().to_owned(),
                args: json!({ "width": args.width, "levels": levels }),
                after: Vec::new(),
            };
            let added = context.add_siblings((0..args.width).map(grown).collect()).await?;
            Ok(Ending::Done(json!({ "added": added.len() })))
        })
    }
}

/// Burns a core and never looks up: only its end or a kill stops it.
#[derive(Debug)]
pub(crate) struct Spin;

impl Task for Spin {
    fn name(&self) -> &'static str {
        "demo_spin"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Burns a core for some seconds and ignores being asked to stop."
    }
    fn schema(&self) -> Value {
        schema_of::<SecondsArgs>()
    }
    fn place(&self) -> Place {
        Place::Child
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let args = parse::<SecondsArgs>(args)?;
            let (length, started) = (args.duration()?, Instant::now());
            context.progress(0.0, "spin", "");
            let mut turns = 0_u64;
            while started.elapsed() < length {
                turns = black_box(turns + 1);
            }
            Ok(Ending::Done(json!({ "turns": turns })))
        })
    }
}

/// Takes memory and touches it, until it has what it was told to take or meets the bound of its slot.
#[derive(Debug)]
pub(crate) struct Hog;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HogArgs {
    /// How much to take, in MiB.
    #[schemars(range(min = 1, max = 65_536))]
    mib: u32,
}

impl Task for Hog {
    fn name(&self) -> &'static str {
        "demo_hog"
    }
    fn queue(&self) -> &'static str {
        QUEUE
    }
    fn description(&self) -> &'static str {
        "Takes memory, and ends with `memory_exceeded` when that is more than its slot may use."
    }
    fn schema(&self) -> Value {
        schema_of::<HogArgs>()
    }
    fn place(&self) -> Place {
        Place::Child
    }
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
        Box::pin(async move {
            let args = parse::<HogArgs>(args)?;
            let mut held = Vec::new();
            for mib in 0..args.mib {
                context.check()?;
                context.progress(100.0 * f64::from(mib) / f64::from(args.mib), "hog", format!("{mib} MiB"));
                held.push(black_box(vec![0xa5_u8; 1024 * 1024]));
            }
            Ok(Ending::Done(json!({ "mib": held.len() })))
        })
    }
}
