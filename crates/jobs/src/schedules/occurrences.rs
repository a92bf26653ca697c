//! When a schedule comes due: the times of a cron expression in its zone, of an interval, or the one time of a one-off.
//!
//! What a zone's clock does to a cron expression follows cron's own practice:
//!
//! - One that names times of the day (neither its minute nor its hour begins with `*`) comes once for each. A time that the
//!   clock is set past comes at the first instant after that; one that the clock shows twice comes when it is shown first.
//!   Times that fall on one instant are one occurrence.
//! - One that repeats within the day (its minute or its hour begins with `*`) follows the time that passes: it comes
//!   whenever the clock shows what it says, so that hourly stays hourly, through an hour that comes twice and past one that
//!   is left out.

#[cfg(test)]
mod tests;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{cron::Cron, zones::Zone};

/// What makes a schedule come due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Timing {
    Cron(Box<Cron>, Zone),
    /// `anchor`, in whole seconds, and every `seconds` after it.
    Every {
        seconds: u32,
        anchor: DateTime<Utc>,
    },
    Once(DateTime<Utc>),
}

impl Timing {
    /// The first occurrence after `at`.
    pub(crate) fn after(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Cron(cron, zone) if cron.repeats_in_the_day() => repeated(cron, *zone, at.trunc_subsecs(0)),
            Self::Cron(cron, zone) => named(cron, *zone, at.trunc_subsecs(0)),
            Self::Every { anchor, .. } if at < *anchor => Some(*anchor),
            Self::Every { seconds, anchor } => {
                let (seconds, passed) = (i64::from(*seconds), (at - anchor).num_seconds());
                anchor.checked_add_signed(TimeDelta::try_seconds((passed / seconds + 1) * seconds)?)
            }
            Self::Once(once) => (*once > at).then_some(*once),
        }
    }

    /// The first occurrence at `at` or after it.
    pub(crate) fn from(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.after(at - TimeDelta::microseconds(1))
    }
}

/// The next of an expression that names times of the day. Later times on the wall are never reached earlier, so that from
/// what the clock shows now it is enough to look onwards.
fn named(cron: &Cron, zone: Zone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut wall = zone.wall(after);
    loop {
        wall = cron.at_or_after(wall + TimeDelta::seconds(1))?;
        let at = zone.reached(wall)?;
        if at > after {
            return Some(at);
        }
    }
}

/// The next of an expression that repeats within the day: the walk goes from change to change of the clock, between which
/// the wall and the time run alike.
fn repeated(cron: &Cron, zone: Zone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut from = after + TimeDelta::seconds(1);
    loop {
        let offset = TimeDelta::seconds(i64::from(zone.offset_s(from)));
        let next = (cron.at_or_after(zone.wall(from))? - offset).and_utc();
        let seen = next.min(from + TimeDelta::days(1));
        from = match zone.change(from, seen) {
            Some(change) => change,
            None if next <= seen => return Some(next),
            // Nothing matches between what the wall shows now and then, and no clock is set by two days.
            None => seen.max(next - TimeDelta::days(2)),
        };
    }
}
