//! Time zones: what a wall's clock shows, when it shows it first, and where it is set forward or back. The data are the IANA
//! database's, compiled into this program, so that all replicas agree; [`DATA`] says which edition.

use std::fmt;

use chrono::{DateTime, NaiveDateTime, Offset as _, TimeDelta, TimeZone as _, Utc};
use chrono_tz::{GapInfo, Tz};

/// The edition of the IANA database, as `2025b`.
pub(crate) const DATA: &str = chrono_tz::IANA_TZDB_VERSION;

/// Longest span in which a clock is taken to be set at most once. The shortest between two changes that any zone has seen
/// since 1970 is of weeks.
pub(crate) const ONE_CHANGE: TimeDelta = TimeDelta::hours(25);

/// A zone of the IANA database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zone(Tz);

/// What is odd about the hour in which something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// The clock was set forward, by no less than the time since.
    Forward,
    /// The clock shows this time twice.
    Back,
}

impl Note {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "clock goes forward",
            Self::Back => "clock goes back",
        }
    }
}

impl Zone {
    /// The zone of this name, as `Europe/Berlin`.
    pub(crate) fn find(name: &str) -> Option<Self> {
        name.parse().ok().map(Self)
    }

    /// Seconds that the clock is ahead of UTC.
    pub(crate) fn offset_s(self, at: DateTime<Utc>) -> i32 {
        self.0.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
    }

    /// What the clock shows.
    pub(crate) fn wall(self, at: DateTime<Utc>) -> NaiveDateTime {
        at.with_timezone(&self.0).naive_local()
    }

    /// As RFC 3339 writes it, with the offset from UTC.
    pub(crate) fn rfc3339(self, at: DateTime<Utc>) -> String {
        at.with_timezone(&self.0).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, false)
    }

    /// The first instant at which the clock shows `wall`; where it is set past it, the first one after that.
    pub(crate) fn reached(self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        let at = self.0.from_local_datetime(&wall).earliest();
        let at = at.or_else(|| GapInfo::new(&wall, &self.0).and_then(|gap| gap.end));
        at.map(|at| at.with_timezone(&Utc))
    }

    /// The first instant after `from`, and up to `to`, with another offset than at `from`. They are no further apart than
    /// [`ONE_CHANGE`].
    pub(crate) fn change(self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset_s = self.offset_s(from);
        if self.offset_s(to) == offset_s {
            return None;
        }
        let (mut before, mut after) = (from.timestamp(), to.timestamp());
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            let is_before = DateTime::from_timestamp(middle, 0).is_none_or(|at| self.offset_s(at) == offset_s);
            *(if is_before { &mut before } else { &mut after }) = middle;
        }
        DateTime::from_timestamp(after, 0)
    }

    /// Whether `at` lies in an odd hour.
    pub(crate) fn note(self, at: DateTime<Utc>) -> Option<Note> {
        let (was_s, is_s) = (self.offset_s(at - ONE_CHANGE), self.offset_s(at));
        let shift = TimeDelta::seconds(i64::from(is_s - was_s));
        if shift > TimeDelta::zero() && self.offset_s(at - shift) == was_s {
            return Some(Note::Forward);
        }
        let is_twice = self.0.from_local_datetime(&self.wall(at)).single().is_none();
        is_twice.then_some(Note::Back)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn wall(text: &str) -> NaiveDateTime {
        text.parse().expect("a time")
    }

    /// Zone, a day of change, and the clock before and after it.
    const CHANGES: [(&str, &str, &str, &str); 10] = [
        ("Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00", "2026-03-29T03:00:00"),
        ("Europe/Berlin", "2026-10-25T01:00:00Z", "2026-10-25T03:00:00", "2026-10-25T02:00:00"),
        ("America/New_York", "2026-03-08T07:00:00Z", "2026-03-08T02:00:00", "2026-03-08T03:00:00"),
        ("America/New_York", "2026-11-01T06:00:00Z", "2026-11-01T02:00:00", "2026-11-01T01:00:00"),
        ("Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-05T02:00:00", "2026-04-05T01:30:00"),
        ("Australia/Lord_Howe", "2026-10-03T15:30:00Z", "2026-10-04T02:00:00", "2026-10-04T02:30:00"),
        ("Pacific/Chatham", "2026-04-04T14:00:00Z", "2026-04-05T03:45:00", "2026-04-05T02:45:00"),
        ("Pacific/Chatham", "2026-09-26T14:00:00Z", "2026-09-27T02:45:00", "2026-09-27T03:45:00"),
        ("Antarctica/Troll", "2026-03-29T01:00:00Z", "2026-03-29T01:00:00", "2026-03-29T03:00:00"),
        ("Antarctica/Troll", "2026-10-25T01:00:00Z", "2026-10-25T03:00:00", "2026-10-25T01:00:00"),
    ];

    #[test]
    fn a_change_is_found_to_the_second_and_its_hour_is_noted() {
        for (name, at, before, after) in CHANGES {
            let (zone, at) = (Zone::find(name).expect(name), utc(at));
            let second = TimeDelta::seconds(1);
            assert_eq!(zone.change(at - TimeDelta::hours(20), at + TimeDelta::hours(4)), Some(at), "{name}");
            assert_eq!(zone.change(at, at + TimeDelta::hours(24)), None, "{name}");
            assert_eq!((zone.wall(at - second) + second, zone.wall(at)), (wall(before), wall(after)), "{name}");
            let shift = wall(after) - wall(before);
            if shift > TimeDelta::zero() {
                let noted = [at - second, at, at + shift - second, at + shift].map(|at| zone.note(at));
                assert_eq!(noted, [None, Some(Note::Forward), Some(Note::Forward), None], "{name}");
            } else {
                let noted = [at + shift - second, at + shift, at - shift - second, at - shift].map(|at| zone.note(at));
                assert_eq!(noted, [None, Some(Note::Back), Some(Note::Back), None], "{name}");
            }
        }
    }

    #[test]
    fn a_time_that_is_left_out_is_reached_with_the_change_and_one_that_comes_twice_at_its_first() {
        for (name, at, before, after) in CHANGES {
            let (zone, at, minute) = (Zone::find(name).expect(name), utc(at), TimeDelta::minutes(1));
            let (before, after) = (wall(before), wall(after));
            if after > before {
                assert_eq!([before, before + minute, after].map(|wall| zone.reached(wall)), [Some(at); 3], "{name}");
            } else {
                assert_eq!(zone.reached(after), Some(at - (before - after)), "{name}");
                assert_eq!(zone.reached(before), Some(at + (before - after)), "{name}");
            }
        }
    }

    #[test]
    fn a_zone_is_known_by_its_name_alone() {
        assert!(["UTC", "Europe/Berlin", "America/Argentina/Ushuaia"].iter().all(|name| Zone::find(name).is_some()));
        assert!(
            ["", "Berlin", "europe/berlin", "+02:00", "Mars/Olympus"].iter().all(|name| Zone::find(name).is_none())
        );
        // Decades ahead the rules of today go on.
        let berlin = Zone::find("Europe/Berlin").expect("a zone");
        assert_eq!(
            [utc("2090-07-01T00:00:00Z"), utc("2090-01-01T00:00:00Z")].map(|at| berlin.offset_s(at)),
            [7200, 3600]
        );
    }
}
