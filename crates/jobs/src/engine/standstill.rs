//! Whether this process itself stood still, as one that is stopped or whose machine is suspended does: then leases have run
//! out that nobody could renew. The clock is looked at all the time, also by a replica that does not lead, as it may take
//! the lead the moment it goes on.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use kit::Clock;

/// A process that has not looked for longer stood still.
const STOOD_STILL: TimeDelta = TimeDelta::seconds(5);

/// When this process last went on after standing still.
#[derive(Debug)]
pub(super) struct Standstill {
    wall: Clock,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: DateTime<Utc>,
    /// When it went on after its last standstill, until that was heard.
    woke_at: Option<DateTime<Utc>>,
}

impl Standstill {
    pub(super) fn new(wall: Clock) -> Self {
        let looked = Mutex::new(Looked { at: wall.now(), woke_at: None });
        Self { wall, looked }
    }

    /// Looks at the clock.
    pub(super) fn look(&self) {
        let now = self.wall.now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if now - std::mem::replace(&mut looked.at, now) > STOOD_STILL {
            looked.woke_at = Some(now);
        }
    }

    /// Whether it has just gone on. Answered with yes once a standstill, and no more when it is long ago: then somebody
    /// else has watched the leases.
    pub(super) fn has_just_ended(&self) -> bool {
        self.look();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = looked.at;
        looked.woke_at.take().is_some_and(|woke_at| now - woke_at <= STOOD_STILL)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_standstill_is_heard_of_once_and_only_while_it_is_news() {
        let wall = Clock::frozen(DateTime::from_timestamp(1_790_000_000, 0).expect("a time"));
        let standstill = Standstill::new(wall.clone());
        wall.advance(Duration::from_secs(5));
        assert!(!standstill.has_just_ended());
        wall.advance(Duration::from_secs(6));
        // Noticed by a beat, before the leases are looked at.
        standstill.look();
        wall.advance(Duration::from_secs(1));
        assert!(standstill.has_just_ended());
        assert!(!standstill.has_just_ended());
        wall.advance(Duration::from_secs(6));
        for _ in 0..2 {
            standstill.look();
            wall.advance(Duration::from_secs(4));
        }
        assert!(!standstill.has_just_ended());
    }
}
