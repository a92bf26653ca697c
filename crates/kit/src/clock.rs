//! Time and ids. Nothing else in the workspace reads the wall clock or makes an id, so that tests can hold time still
//! and know the ids that will be made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound as _, Utc};
use uuid::Uuid;

/// A source of the present time and of time-ordered ids. Cheap to clone; clones share a frozen time.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    System,
    Frozen(Arc<Frozen>),
}

#[derive(Debug)]
struct Frozen {
    micros: AtomicI64,
    ids: AtomicU64,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `at` until [`advance`](Self::advance) moves it, and makes the same ids in every run.
    pub fn frozen(at: DateTime<Utc>) -> Self {
        Self(Source::Frozen(Arc::new(Frozen { micros: AtomicI64::new(at.timestamp_micros()), ids: AtomicU64::new(0) })))
    }

    /// The present time, in whole microseconds: what Postgres can store is what the process has seen.
    pub fn now(&self) -> DateTime<Utc> {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
            Source::System => Utc::now().trunc_subsecs(6),
            Source::Frozen(frozen) => {
                DateTime::from_timestamp_micros(frozen.micros.load(Ordering::SeqCst)).unwrap_or(DateTime::UNIX_EPOCH)
            }
        }
    }

    /// Moves a frozen clock on. The machine's clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Frozen(frozen) = &self.0 {
            let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            frozen.micros.fetch_add(micros, Ordering::SeqCst);
        }
    }

    /// A UUIDv7 (RFC 9562): ordered by time, and within one process by the order of the calls.
    pub fn new_id(&self) -> Uuid {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
            Source::System => Uuid::now_v7(),
            Source::Frozen(frozen) => {
                let count = frozen.ids.fetch_add(1, Ordering::SeqCst);
                let millis = u64::try_from(self.now().timestamp_millis()).unwrap_or(0);
                let mut random = [0; 10];
                random[2..].copy_from_slice(&count.to_be_bytes());
                uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
            }
        }
    }
}

/// A time as protobuf carries it.
pub fn to_timestamp(at: DateTime<Utc>) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(i32::MAX);
    prost_types::Timestamp { seconds: at.timestamp(), nanos }
}

/// The time that a protobuf message carries, in whole microseconds; none for one outside the calendar.
pub fn from_timestamp(at: &prost_types::Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?).map(|at| at.trunc_subsecs(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_clock_moves_only_when_told_and_orders_its_ids() {
        let clock = Clock::frozen(DateTime::UNIX_EPOCH);
        let (first, second) = (clock.new_id(), clock.new_id());
        assert!(first < second);
        clock.clone().advance(Duration::from_millis(1500));
        assert_eq!(clock.now().timestamp_millis(), 1500);
        assert!(second < clock.new_id());
    }

    #[test]
    fn a_time_crosses_protobuf_and_one_outside_the_calendar_is_none() {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time");
        assert_eq!(from_timestamp(&to_timestamp(at)), Some(at));
        assert_eq!(from_timestamp(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
        assert_eq!(from_timestamp(&prost_types::Timestamp { seconds: 0, nanos: -1 }), None);
    }
}
