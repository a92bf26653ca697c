//! The occurrences of a year, held against a walk that looks at every minute of it, and the days on which clocks are set.

use std::{collections::HashMap, sync::LazyLock};

use chrono::{Datelike as _, NaiveDateTime, Timelike as _};
use proptest::{prelude::*, sample::select};

use super::*;

const ZONES: [&str; 5] =
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Chatham", "Antarctica/Troll"];

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

fn timing(cron: &str, zone: &str) -> Timing {
    let cron = Cron::parse(cron).unwrap_or_else(|why| panic!("{cron} {why}"));
    Timing::Cron(Box::new(cron), Zone::find(zone).expect("a zone"))
}

/// The occurrences of a span, without its end.
fn between(timing: &Timing, from: DateTime<Utc>, until: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    std::iter::successors(timing.from(from), |at| timing.after(*at)).take_while(|at| *at < until).collect()
}

/// Whether a field of an expression, without names, fits a value.
fn fits(field: &str, value: u32, most: u32) -> bool {
    field.split(',').any(|item| {
        let (range, step) = item.split_once('/').unwrap_or((item, "1"));
        let step: u32 = step.parse().expect("a step");
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (first.parse().expect("a number"), last.parse().expect("a number")),
            None if range == "*" => (if most == 31 || most == 12 { 1 } else { 0 }, most),
            None => {
                let first = range.parse().expect("a number");
                (first, if item.contains('/') { most } else { first })
            }
        };
        (first..=last).contains(&value) && (value - first).is_multiple_of(step)
    })
}

/// An expression as the walk reads it: what it says of each value, written out.
struct Oracle {
    by_field: [Vec<bool>; 6],
    is_either_day: bool,
    repeats: bool,
}

impl Oracle {
    /// Of six fields.
    fn read(text: &str) -> Self {
        let fields: Vec<&str> = text.split(' ').collect();
        let most = [59, 59, 23, 31, 12, 6];
        let by_field = std::array::from_fn(|n| (0..=most[n]).map(|value| fits(fields[n], value, most[n])).collect());
        let is_star = |n: usize| fields[n].starts_with('*');
        Self { by_field, is_either_day: !is_star(3) && !is_star(5), repeats: is_star(1) || is_star(2) }
    }

    fn matches(&self, wall: NaiveDateTime) -> bool {
        let has = |n: usize, value: u32| self.by_field[n][value as usize];
        if !(has(2, wall.hour()) && has(1, wall.minute()) && has(0, wall.second()) && has(4, wall.month())) {
            return false;
        }
        let (day, weekday) = (has(3, wall.day()), has(5, wall.weekday().num_days_from_sunday()));
        if self.is_either_day { day || weekday } else { day && weekday }
    }

    /// Walks over what the clock shows, step by step; `walls` begins one step before the first that counts.
    fn walk(&self, walls: &[(DateTime<Utc>, NaiveDateTime)], step: TimeDelta) -> Vec<DateTime<Utc>> {
        let mut found = Vec::new();
        let mut seen = walls[0].1;
        for (at, wall) in &walls[1..] {
            let comes = if self.repeats {
                self.matches(*wall)
            } else {
                // Every time that is shown now for the first time, or was left out just before it.
                let mut comes = false;
                while seen < *wall {
                    seen += step;
                    comes |= self.matches(seen);
                }
                comes
            };
            if comes {
                found.push(*at);
            }
        }
        found
    }
}

/// Instants, and what a clock shows at them.
type Walls = Vec<(DateTime<Utc>, NaiveDateTime)>;

/// What the clocks show at every minute of the year.
static YEARS: LazyLock<HashMap<&str, Walls>> = LazyLock::new(|| {
    let year = |name| {
        let zone = Zone::find(name).expect("a zone");
        (name, walls(zone, utc("2026-01-01T00:00:00Z"), 365 * 24 * 60, TimeDelta::minutes(1)))
    };
    ZONES.into_iter().map(year).collect()
});

fn walls(zone: Zone, from: DateTime<Utc>, steps: i32, step: TimeDelta) -> Walls {
    (-1..steps).map(|n| from + step * n).map(|at| (at, zone.wall(at))).collect()
}

/// One field: `*`, a step, a value, a list or a range, most often among the hours in which clocks are set.
fn field(least: u32, most: u32, early: u32) -> impl Strategy<Value = String> {
    let value = prop_oneof![3 => least..=early, 1 => least..=most];
    prop_oneof![
        3 => Just("*".to_owned()),
        2 => (1..=most.min(20)).prop_map(|step| format!("*/{step}")),
        4 => value.clone().prop_map(|value| value.to_string()),
        2 => prop::collection::vec(value.clone(), 2..4)
            .prop_map(|values| values.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        2 => (value.clone(), value, 1..5u32)
            .prop_map(|(one, other, step)| format!("{}-{}/{step}", one.min(other), one.max(other))),
        1 => (least..=early, 1..=most.min(20)).prop_map(|(first, step)| format!("{first}/{step}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_year_of_any_expression_is_that_of_a_walk_from_minute_to_minute(
        minute in field(0, 59, 59), hour in field(0, 23, 3), day in field(1, 28, 10), month in field(1, 12, 12),
        weekday in field(0, 6, 6), zone in select(ZONES.as_slice()),
    ) {
        let text = format!("{minute} {hour} {day} {month} {weekday}");
        let oracle = Oracle::read(&format!("0 {text}"));
        let minute = TimeDelta::minutes(1);
        let (from, until) = (utc("2026-01-01T00:00:00Z"), utc("2027-01-01T00:00:00Z"));
        let expected = oracle.walk(&YEARS[zone], minute);
        prop_assert_eq!(between(&timing(&text, zone), from, until), expected, "{} in {}", text, zone);
    }

    #[test]
    fn the_days_of_change_are_those_of_a_walk_from_second_to_second(
        second in field(0, 59, 59), minute in field(0, 59, 59), hour in field(0, 4, 4),
        zone in select(ZONES.as_slice()), is_forward in any::<bool>(),
    ) {
        let text = format!("{second} {minute} {hour} * * *");
        let zone_at = Zone::find(zone).expect("a zone");
        let from = change(zone_at, is_forward) - TimeDelta::hours(9);
        let walls = walls(zone_at, from, 18 * 3600, TimeDelta::seconds(1));
        let expected = Oracle::read(&text).walk(&walls, TimeDelta::seconds(1));
        let found = between(&timing(&text, zone), from, from + TimeDelta::hours(18));
        prop_assert_eq!(found, expected, "{} in {}, set forward: {}", text, zone, is_forward);
    }
}

/// Each row is a row of the table in docs/schedules.md: what comes on a day on which the clock goes forward, and on one on
/// which it goes back.
#[test]
fn clocks_are_set_as_the_documented_table_says() {
    let rows = [
        // A time that is left out comes with the change; one that comes twice comes at its first.
        ("Europe/Berlin", "30 2 * * *", "03:00+02:00", "02:30+02:00"),
        ("America/New_York", "30 1,2 * * *", "01:30-05:00 03:00-04:00", "01:30-04:00 02:30-05:00"),
        ("Australia/Lord_Howe", "15 2 * * *", "02:30+11:00", "02:15+10:30"),
        ("Australia/Lord_Howe", "45 1 * * *", "01:45+10:30", "01:45+11:00"),
        ("Pacific/Chatham", "0 3 * * *", "03:45+13:45", "03:00+13:45"),
        ("Antarctica/Troll", "30 1 * * *", "03:00+02:00", "01:30+02:00"),
        // Hourly stays hourly: through the hour that comes twice, and past the one that is left out.
        ("Europe/Berlin", "0 * * * *", "01:00+01:00 03:00+02:00 04:00+02:00", "02:00+02:00 02:00+01:00 03:00+01:00"),
        ("America/New_York", "0 * * * *", "01:00-05:00 03:00-04:00 04:00-04:00", "01:00-04:00 01:00-05:00 02:00-05:00"),
        (
            "Australia/Lord_Howe",
            "0 * * * *",
            "01:00+10:30 03:00+11:00 04:00+11:00",
            "01:00+11:00 02:00+10:30 03:00+10:30",
        ),
        ("Pacific/Chatham", "0 * * * *", "02:00+12:45 04:00+13:45 05:00+13:45", "03:00+13:45 03:00+12:45 04:00+12:45"),
        ("Antarctica/Troll", "0 * * * *", "00:00+00:00 03:00+02:00 04:00+02:00", "02:00+02:00 01:00+00:00 02:00+00:00"),
        // Every second hour, too, goes by the clock: on the day that lacks one of its hours it comes once less.
        ("Europe/Berlin", "0 */2 * * *", "04:00+02:00 06:00+02:00", "02:00+02:00 02:00+01:00 04:00+01:00"),
    ];
    for (name, cron, forward, back) in rows {
        let zone = Zone::find(name).expect("a zone");
        let [set_forward, set_back] = [true, false].map(|is_forward| change(zone, is_forward));
        assert_eq!(shown(cron, zone, set_forward, count(forward)), forward, "{cron} in {name}");
        assert_eq!(shown(cron, zone, set_back, count(back)), back, "{cron} in {name}");
    }
}

fn count(list: &str) -> usize {
    list.split(' ').count()
}

/// When the clock is set forward, or back, in 2026.
fn change(zone: Zone, is_forward: bool) -> DateTime<Utc> {
    let days = (0..365).map(|day| utc("2026-01-01T00:00:00Z") + TimeDelta::days(day));
    let mut changes = days.filter_map(|from| zone.change(from, from + TimeDelta::days(1)));
    let is_wanted =
        |at: &DateTime<Utc>| (zone.offset_s(*at) > zone.offset_s(*at - TimeDelta::seconds(1))) == is_forward;
    changes.find(is_wanted).expect("the clock is set twice a year")
}

/// What the clock shows at the occurrences from 90 minutes before a change on, with its offset.
fn shown(cron: &str, zone: Zone, change: DateTime<Utc>, count: usize) -> String {
    let timing = timing(cron, &zone.to_string());
    let first = timing.from(change - TimeDelta::minutes(90));
    let all = std::iter::successors(first, |at| timing.after(*at)).take(count);
    all.map(|at| zone.rfc3339(at)).map(|at| format!("{}{}", &at[11..16], &at[19..])).collect::<Vec<_>>().join(" ")
}

#[test]
fn times_that_fall_on_one_instant_are_one_occurrence() {
    let found = |cron: &str, zone: &str, from: &str, until: &str| {
        let zone = Zone::find(zone).expect("a zone");
        let found = between(&timing(cron, &zone.to_string()), utc(from), utc(until));
        found.into_iter().map(|at| zone.wall(at).format("%H:%M").to_string()).collect::<Vec<_>>().join(" ")
    };
    let (from, until) = ("2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z");
    assert_eq!(found("0,15,30,45 2,3 * * *", "Europe/Berlin", from, until), "03:00 03:15 03:30 03:45");
    assert_eq!(found("0,30 1-3 * * *", "Antarctica/Troll", from, until), "03:00 03:30");
}

#[test]
fn an_interval_counts_from_its_anchor_and_a_one_off_comes_once() {
    let anchor = utc("2026-01-01T00:00:07Z");
    let every = Timing::Every { seconds: 90, anchor };
    assert_eq!(every.after(utc("2025-01-01T00:00:00Z")), Some(anchor));
    assert_eq!(every.from(anchor), Some(anchor));
    assert_eq!(every.after(anchor), Some(utc("2026-01-01T00:01:37Z")));
    assert_eq!(every.after(utc("2026-01-01T00:01:36.999999Z")), Some(utc("2026-01-01T00:01:37Z")));
    assert_eq!(every.after(utc("2026-01-01T00:01:37Z")), Some(utc("2026-01-01T00:03:07Z")));
    let once = Timing::Once(anchor);
    assert_eq!((once.from(anchor), once.after(anchor)), (Some(anchor), None));
    let seconds = timing("*/30 * * * * *", "UTC");
    assert_eq!(between(&Timing::Once(anchor), utc("2025-01-01T00:00:00Z"), utc("2027-01-01T00:00:00Z")), [anchor]);
    assert_eq!(seconds.after(utc("2026-01-01T00:00:00.5Z")), Some(utc("2026-01-01T00:00:30Z")));
}

#[test]
fn a_rare_time_is_found_beyond_changes_of_the_clock() {
    let leap = timing("*/30 2 29 2 *", "Europe/Berlin");
    assert_eq!(leap.after(utc("2026-03-29T00:30:00Z")), Some(utc("2028-02-29T01:00:00Z")));
    // Past the hour shown first, the hour that comes twice comes again before next year's.
    let twice = timing("* 2 25 10 *", "Europe/Berlin");
    assert_eq!(twice.after(utc("2026-10-25T00:59:00Z")), Some(utc("2026-10-25T01:00:00Z")));
    assert_eq!(twice.after(utc("2026-10-25T01:59:00Z")), Some(utc("2027-10-25T00:00:00Z")));
}
