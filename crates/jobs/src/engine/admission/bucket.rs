//! Token buckets: so many starts in so many seconds, and no more than a burst of them at once.

use chrono::{DateTime, Utc};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// Tokens a second; above 0.
    pub(super) per_second: f64,
    /// Tokens that it holds; 1 at least.
    pub(super) burst: f64,
}

/// A bucket as it stands at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    pub(super) tokens: f64,
    pub(super) at: DateTime<Utc>,
}

/// A token that is there but for what dividing has lost is there.
const WHOLE: f64 = 1.0 - 1e-6;

impl Bucket {
    pub(super) const fn full(rate: Rate, now: DateTime<Utc>) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// As it stands at `now`. A clock that was set back takes nothing away and gives nothing.
    pub(super) fn filled(self, rate: Rate, now: DateTime<Utc>) -> Self {
        let seconds = (now - self.at).as_seconds_f64().max(0.0);
        Self { tokens: (self.tokens + seconds * rate.per_second).min(rate.burst), at: self.at.max(now) }
    }

    pub(super) fn has_token(&self) -> bool {
        self.tokens >= WHOLE
    }

    pub(super) fn take(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }

    /// Seconds until it has a token.
    pub(super) fn token_in(&self, rate: Rate) -> f64 {
        ((1.0 - self.tokens) / rate.per_second).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn it_gives_a_burst_and_then_what_flows_in() {
        let rate = Rate { per_second: 2.0, burst: 3.0 };
        let start = DateTime::from_timestamp(1_790_000_000, 0).expect("a time");
        let mut bucket = Bucket::full(rate, start);
        let mut starts = Vec::new();
        for tenth in 0..30 {
            bucket = bucket.filled(rate, start + TimeDelta::milliseconds(tenth * 100));
            let mut count = 0;
            while bucket.has_token() {
                bucket.take();
                count += 1;
            }
            starts.push(count);
        }
        assert_eq!(starts.iter().sum::<i32>(), 3 + 2 * 29 / 10);
        assert_eq!(starts[..11], [3, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn it_holds_no_more_than_its_burst_and_survives_a_clock_set_back() {
        let rate = Rate { per_second: 1.0, burst: 2.0 };
        let now = DateTime::from_timestamp(1_790_000_000, 0).expect("a time");
        let old = Bucket { tokens: 0.0, at: now - TimeDelta::days(9) }.filled(rate, now);
        assert_eq!(old.tokens.to_bits(), 2.0_f64.to_bits());
        let set_back = Bucket { tokens: 0.5, at: now }.filled(rate, now - TimeDelta::hours(1));
        assert_eq!(set_back, Bucket { tokens: 0.5, at: now });
    }
}
