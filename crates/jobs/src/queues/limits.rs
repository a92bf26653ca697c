//! What a queue allows: reading it from what is asked, and setting it so that it holds from the answer on.

use std::collections::{BTreeMap, HashMap};

use kit::{
    Fail,
    audit::{Act, Fact},
    fail::Violation,
    grpc::Call,
    telemetry::span,
};
use proto::jobs::{Queue, QueueLimits, Rate, UpdateQueueRequest};

use super::{Row, depths, not_found, read};
use crate::{Core, acts, engine, tasks::is_name};

/// Attempts, starts and bursts that can be asked for.
const COUNT_MAX: u32 = 1_000_000;
/// Seconds of a rate: a month.
const SECONDS_MAX: f64 = 31.0 * 24.0 * 60.0 * 60.0;
const WEIGHTS_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 200;

impl Row {
    pub(super) fn limits(&self) -> QueueLimits {
        QueueLimits {
            concurrency: self.concurrency.map(i32::unsigned_abs),
            key_concurrency: self.key_concurrency.map(i32::unsigned_abs),
            rate: rate_to_proto(self.rate_starts, self.rate_seconds, self.rate_burst),
            key_rate: rate_to_proto(self.key_rate_starts, self.key_rate_seconds, self.key_rate_burst),
            share: self.share.clone(),
            weights: serde_json::from_str(&self.weights).unwrap_or_default(),
        }
    }

    /// For the audit log: 0 for what is not limited.
    fn facts(&self) -> [(&'static str, Fact); 7] {
        let count = |count: Option<i32>| Fact::Count(count.map_or(0, |count| u64::from(count.unsigned_abs())));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a month, and above 0")]
        let milliseconds = |seconds: Option<f64>| Fact::Count(seconds.map_or(0, |seconds| (seconds * 1_000.0) as u64));
        let share = match self.share.as_str() {
            "owner" => "owner",
            "key" => "key",
            _ => "none",
        };
        [
            ("concurrency", count(self.concurrency)),
            ("key_concurrency", count(self.key_concurrency)),
            ("rate_starts", count(self.rate_starts)),
            ("rate_milliseconds", milliseconds(self.rate_seconds)),
            ("key_rate_starts", count(self.key_rate_starts)),
            ("key_rate_milliseconds", milliseconds(self.key_rate_seconds)),
            ("share", share.into()),
        ]
    }

    /// With the fields that are asked for.
    ///
    /// # Errors
    /// `jobs.invalid` with every fault at its pointer.
    fn changed(mut self, asked: &QueueLimits, fields: &[String]) -> Result<Self, Fail> {
        let mut faults = Vec::new();
        for field in fields {
            match field.as_str() {
                "concurrency" => self.concurrency = count(asked.concurrency, "/concurrency", &mut faults),
                "key_concurrency" => {
                    self.key_concurrency = count(asked.key_concurrency, "/key_concurrency", &mut faults);
                }
                "rate" => {
                    (self.rate_starts, self.rate_seconds, self.rate_burst) =
                        rate(asked.rate.as_ref(), "/rate", &mut faults);
                }
                "key_rate" => {
                    (self.key_rate_starts, self.key_rate_seconds, self.key_rate_burst) =
                        rate(asked.key_rate.as_ref(), "/key_rate", &mut faults);
                }
                "share" => match asked.share.as_str() {
                    share @ ("none" | "owner" | "key") => share.clone_into(&mut self.share),
                    _ => faults.push(fault("/share", "enum", "must be `none`, `owner` or `key`".to_owned())),
                },
                "weights" => self.weights = weights(&asked.weights, &mut faults)?,
                other => faults.push(fault("", "field", format!("there is no limit `{other}`"))),
            }
        }
        if faults.is_empty() {
            return Ok(self);
        }
        Err(Fail::invalid("jobs.invalid", "The limits cannot be set as they are.").with_violations(faults))
    }
}

fn rate_to_proto(starts: Option<i32>, seconds: Option<f64>, burst: Option<i32>) -> Option<Rate> {
    Some(Rate { starts: starts?.unsigned_abs(), seconds: seconds?, burst: burst.map(i32::unsigned_abs) })
}

fn fault(pointer: &str, code: &str, message: String) -> Violation {
    Violation { pointer: pointer.to_owned(), code: code.to_owned(), message }
}

fn count(asked: Option<u32>, pointer: &str, faults: &mut Vec<Violation>) -> Option<i32> {
    let asked = asked?;
    if !(1..=COUNT_MAX).contains(&asked) {
        faults.push(fault(pointer, "minimum", format!("must be between 1 and {COUNT_MAX}, or null for no limit")));
    }
    i32::try_from(asked).ok()
}

fn rate(asked: Option<&Rate>, pointer: &str, faults: &mut Vec<Violation>) -> (Option<i32>, Option<f64>, Option<i32>) {
    let Some(asked) = asked else { return (None, None, None) };
    let starts = count(Some(asked.starts), &format!("{pointer}/starts"), faults);
    let burst = count(Some(asked.burst.unwrap_or(asked.starts)), &format!("{pointer}/burst"), faults);
    if !(0.001..=SECONDS_MAX).contains(&asked.seconds) {
        let message = format!("must be between 0.001 and {SECONDS_MAX}");
        faults.push(fault(&format!("{pointer}/seconds"), "maximum", message));
    }
    (starts, Some(asked.seconds), burst)
}

fn weights(asked: &HashMap<String, f64>, faults: &mut Vec<Violation>) -> Result<String, Fail> {
    let is_name = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0');
    if asked.len() > WEIGHTS_MAX || !asked.keys().all(is_name) {
        let message = format!("must name at most {WEIGHTS_MAX} owners or keys of 1 to {NAME_BYTES_MAX} bytes");
        faults.push(fault("/weights", "max_properties", message));
    }
    if !asked.values().all(|weight| (0.001..=1_000.0).contains(weight)) {
        faults.push(fault("/weights", "maximum", "a weight must be between 0.001 and 1000".to_owned()));
    }
    let sorted: BTreeMap<_, _> = asked.iter().collect();
    serde_json::to_string(&sorted).map_err(Fail::internal)
}

/// Sets what is asked for and leaves the rest. It holds from the answer on: no claim is under way when it is written, and
/// what runs is counted under it.
pub(super) async fn update(core: &Core, call: &Call, asked: UpdateQueueRequest) -> Result<Queue, Fail> {
    if !is_name(&asked.name) {
        return Err(not_found());
    }
    let _told = span::transaction("jobs.limit_queue");
    let mut transaction = core.pool.begin().await?;
    engine::admit_alone(&mut transaction).await?;
    let was = read(&mut transaction, &asked.name).await?.ok_or_else(not_found)?;
    let now = core.clock.now();
    let is = was.clone().changed(&asked.limits.unwrap_or_default(), &asked.fields)?;
    if is == was {
        // Before anything else asks for a connection: others wait for this one's lock with theirs.
        transaction.rollback().await?;
        return shown(core, call, is).await;
    }
    sqlx::query!(
        "update jobs.queue
         set concurrency = $2, key_concurrency = $3, rate_starts = $4, rate_seconds = $5, rate_burst = $6,
           key_rate_starts = $7, key_rate_seconds = $8, key_rate_burst = $9, share = $10, weights = $11,
           limits_changed_at = $12
         where name = $1",
        asked.name,
        is.concurrency,
        is.key_concurrency,
        is.rate_starts,
        is.rate_seconds,
        is.rate_burst,
        is.key_rate_starts,
        is.key_rate_seconds,
        is.key_rate_burst,
        is.share,
        is.weights,
        now,
    )
    .execute(&mut *transaction)
    .await?;
    // A bucket that was filled at another rate says nothing of this one.
    let rate = |row: &Row| (row.rate_starts, row.rate_seconds.map(f64::to_bits), row.rate_burst);
    let key_rate = |row: &Row| (row.key_rate_starts, row.key_rate_seconds.map(f64::to_bits), row.key_rate_burst);
    sqlx::query!(
        "delete from jobs.bucket where queue = $1 and (key = '' and $2 or key <> '' and $3)",
        asked.name,
        rate(&was) != rate(&is),
        key_rate(&was) != key_rate(&is),
    )
    .execute(&mut *transaction)
    .await?;
    engine::lane_running(&mut transaction, Some(&asked.name)).await?;
    let mut act = Act::of(call, &acts::LIMIT_QUEUE, &asked.name);
    for ((field, was), (_, is)) in was.facts().into_iter().zip(is.facts()) {
        act = act.before(field, was).after(field, is);
    }
    core.engine.ground.audit.record(&mut transaction, act).await?;
    transaction.commit().await?;
    core.engine.limits_changed();
    shown(core, call, is).await
}

async fn shown(core: &Core, call: &Call, row: Row) -> Result<Queue, Fail> {
    let mut depths = depths(core, call.caller()?.narrowed_to("queues:read")).await?;
    let depth = depths.remove(&row.name).unwrap_or_default();
    Ok(row.into_proto(&depth))
}
