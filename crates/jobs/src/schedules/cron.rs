//! Cron expressions: five fields, or six with the seconds first. What they mean is cron's own practice (crontab(5) of
//! Vixie's cron); what the clock of a zone does to them is [`super::occurrences`].
//!
//! Each field is a list of `*`, `a`, `a-b`, and of these with a step, as `*/5`, `10-40/10` or `5/15`, which is `5` and every
//! 15th after it. Months and weekdays have their English names of three letters; Sunday is 0 and 7; `L` is a month's last
//! day. Where both the day of the month and the weekday are restricted, that is, do not begin with `*`, either is enough.

use chrono::{Datelike as _, Days, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _};

/// Longest expression, in bytes.
const BYTES_MAX: usize = 200;
/// How far a next match is looked for. The rarest there is, a 29 February on one weekday, comes within 40 years, also where
/// a century has no leap day.
const YEARS_MAX: i32 = 41;

/// A parsed expression. Each field is a set of bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cron {
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    /// `L`.
    has_last_day: bool,
    months: u64,
    weekdays: u64,
    /// Whether a day that fits one of the two is enough.
    is_either_day: bool,
    /// See [`Self::repeats_in_the_day`].
    repeats: bool,
}

struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// Of the values from `least` on.
    names: &'static [&'static str],
}

const SECOND: Field = Field { name: "second", least: 0, most: 59, names: &[] };
const MINUTE: Field = Field { name: "minute", least: 0, most: 59, names: &[] };
const HOUR: Field = Field { name: "hour", least: 0, most: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", least: 1, most: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
};
const WEEKDAY: Field =
    Field { name: "weekday", least: 0, most: 7, names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"] };

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with "The expression".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("is longer than {BYTES_MAX} bytes"));
        }
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return Err("begins with `@` and is none of @yearly, @monthly, @weekly, @daily and @hourly".to_owned());
            }
            other => other,
        };
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let (second, rest) = match fields.as_slice() {
            rest if rest.len() == 5 => ("0", rest),
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            _ => return Err(format!("has {} fields and not 5, or 6 with the seconds first", fields.len())),
        };
        let &[minute, hour, day, month, weekday] = rest else { return Err("has no 5 fields".to_owned()) };
        let has_last_day = day.split(',').any(|item| item.eq_ignore_ascii_case("L"));
        let days: Vec<&str> = day.split(',').filter(|item| !item.eq_ignore_ascii_case("L")).collect();
        let weekdays = WEEKDAY.parse(weekday)?;
        let cron = Self {
            seconds: SECOND.parse(second)?,
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: if days.is_empty() { 0 } else { DAY.parse(&days.join(","))? },
            has_last_day,
            months: MONTH.parse(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            is_either_day: !day.starts_with('*') && !weekday.starts_with('*'),
            repeats: minute.starts_with('*') || hour.starts_with('*'),
        };
        let from = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap_or_default().and_time(NaiveTime::MIN);
        cron.at_or_after(from).map(|_| cron).ok_or_else(|| "names a day that no such month has".to_owned())
    }

    /// Whether it says how often within a day, and not at which time of it: its minute or its hour begins with `*`, as
    /// cron itself tells the two apart.
    pub(crate) const fn repeats_in_the_day(&self) -> bool {
        self.repeats
    }

    /// The first time on a wall's clock, in whole seconds, that it matches, at `from` or later. None within 41 years.
    pub(crate) fn at_or_after(&self, from: NaiveDateTime) -> Option<NaiveDateTime> {
        let mut date = from.date();
        if self.fits(date)
            && let Some(time) = self.time_at_or_after(from.time())
        {
            return Some(date.and_time(time));
        }
        let first = self.time_at_or_after(NaiveTime::MIN)?;
        let year_max = date.year() + YEARS_MAX;
        while date.year() <= year_max {
            date = if has(self.months, date.month()) {
                date.checked_add_days(Days::new(1))?
            } else {
                let (year, month) = (date.year() + i32::from(date.month() == 12), date.month() % 12 + 1);
                NaiveDate::from_ymd_opt(year, month, 1)?
            };
            if self.fits(date) {
                return Some(date.and_time(first));
            }
        }
        None
    }

    fn fits(&self, date: NaiveDate) -> bool {
        let is_last = || date.checked_add_days(Days::new(1)).is_some_and(|next| next.month() != date.month());
        let by_day = has(self.days, date.day()) || (self.has_last_day && is_last());
        let by_weekday = has(self.weekdays, date.weekday().num_days_from_sunday());
        let by_either = if self.is_either_day { by_day || by_weekday } else { by_day && by_weekday };
        has(self.months, date.month()) && by_either
    }

    fn time_at_or_after(&self, time: NaiveTime) -> Option<NaiveTime> {
        let (hour, minute, second) = (time.hour(), time.minute(), time.second());
        let (first_minute, first_second) = (next(self.minutes, 0)?, next(self.seconds, 0)?);
        if has(self.hours, hour) {
            if has(self.minutes, minute)
                && let Some(second) = next(self.seconds, second)
            {
                return NaiveTime::from_hms_opt(hour, minute, second);
            }
            if let Some(minute) = next(self.minutes, minute + 1) {
                return NaiveTime::from_hms_opt(hour, minute, first_second);
            }
        }
        NaiveTime::from_hms_opt(next(self.hours, hour + 1)?, first_minute, first_second)
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<u64, String> {
        let mut bits = 0;
        for item in text.split(',') {
            bits |= self.item(item).map_err(|why| format!("has a {} `{item}` that {why}", self.name))?;
        }
        Ok(bits)
    }

    fn item(&self, item: &str) -> Result<u64, String> {
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => {
                let steps = step.parse().ok().filter(|steps| (1..=self.most).contains(steps) && is_digits(step));
                (range, Some(steps.ok_or_else(|| format!("has no step of 1 to {}", self.most))?))
            }
        };
        // Sunday as 7 is the day that 0 names.
        let most = if self.most == WEEKDAY.most { 6 } else { self.most };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.least, most),
            Some((first, last)) => {
                let (first, mut end) = (self.value(first)?, self.value(last)?);
                // A week that is told to end on its Sunday does so.
                if self.most == WEEKDAY.most && end == 0 && first > 0 {
                    end = 7;
                }
                (first, end)
            }
            None => {
                let value = self.value(range)?;
                (value, if step.is_some() { most.max(value) } else { value })
            }
        };
        if first > last {
            return Err("ends before it begins".to_owned());
        }
        let steps = usize::try_from(step.unwrap_or(1)).unwrap_or(1);
        Ok((first..=last).step_by(steps).fold(0, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        if let Some(place) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(self.least + u32::try_from(place).unwrap_or(0));
        }
        let value = text.parse().ok().filter(|value| is_digits(text) && (self.least..=self.most).contains(value));
        value.ok_or_else(|| format!("is not of {} to {}", self.least, self.most))
    }
}

/// `u32` would take a sign, too.
fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

const fn has(bits: u64, value: u32) -> bool {
    bits >> value & 1 == 1
}

/// The least value of a set that is `from` or more.
fn next(bits: u64, from: u32) -> Option<u32> {
    let rest = bits.checked_shr(from)?;
    (rest != 0).then(|| from + rest.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").expect("a time")
    }

    fn following(cron: &str, from: &str, count: usize) -> Vec<String> {
        let cron = Cron::parse(cron).unwrap_or_else(|why| panic!("{cron} {why}"));
        let mut wall = at(from);
        let mut found = Vec::new();
        while found.len() < count {
            wall = cron.at_or_after(wall).expect("one follows");
            found.push(wall.format("%Y-%m-%d %H:%M:%S").to_string());
            wall += chrono::TimeDelta::seconds(1);
        }
        found
    }

    #[test]
    fn fields_are_lists_ranges_steps_and_names() {
        let from = "2026-11-27 12:34:56";
        assert_eq!(following("*/20 * * * *", from, 2), ["2026-11-27 12:40:00", "2026-11-27 13:00:00"]);
        assert_eq!(following("5/25 8 * * *", from, 2), ["2026-11-28 08:05:00", "2026-11-28 08:30:00"]);
        assert_eq!(following("30,0 9-17/4 * * mon-FRI", from, 2), ["2026-11-27 13:00:00", "2026-11-27 13:30:00"]);
        assert_eq!(following("0 0 1 jan,Jul *", from, 2), ["2027-01-01 00:00:00", "2027-07-01 00:00:00"]);
        assert_eq!(following("*/30 5 4 3 2 *", from, 2), ["2027-02-03 04:05:00", "2027-02-03 04:05:30"]);
        assert_eq!(
            following("0 0 L * *", from, 4)[..3],
            ["2026-11-30", "2026-12-31", "2027-01-31"].map(|d| format!("{d} 00:00:00"))
        );
        assert_eq!(following("0 0 29 2 *", "2096-03-01 00:00:00", 1), ["2104-02-29 00:00:00"]);
        assert_eq!(following("@hourly", from, 1), ["2026-11-27 13:00:00"]);
        assert_eq!(following("@weekly", from, 1), ["2026-11-29 00:00:00"]);
    }

    #[test]
    fn sunday_is_0_and_7_and_may_end_a_week() {
        let sundays = ["0 0 * * 0", "0 0 * * 7", "0 0 * * SUN"].map(|text| Cron::parse(text).expect("it is one"));
        assert!(sundays.iter().all(|cron| *cron == sundays[0]));
        assert_eq!(Cron::parse("0 0 * * FRI-SUN"), Cron::parse("0 0 * * 0,5,6"));
        assert_eq!(Cron::parse("0 0 * * 5/1"), Cron::parse("0 0 * * 5,6"));
        assert_eq!(Cron::parse("0 0 * * *").map(|cron| cron.weekdays), Ok(0x7f));
    }

    #[test]
    fn of_two_restricted_days_either_is_enough_and_with_a_star_both_must_fit() {
        let from = "2026-11-01 00:00:00";
        assert_eq!(following("0 0 13 * 5", from, 2), ["2026-11-06 00:00:00", "2026-11-13 00:00:00"]);
        assert_eq!(following("0 0 */13 * 5", from, 2), ["2026-11-27 00:00:00", "2027-01-01 00:00:00"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        for (text, why) in [
            ("0 0 30 2 *", "names a day that no such month has"),
            ("0 0 31 4,6,9,11 *", "names a day that no such month has"),
            ("* * * *", "has 4 fields and not 5, or 6 with the seconds first"),
            ("* * * * * * *", "has 7 fields and not 5, or 6 with the seconds first"),
            ("60 * * * *", "has a minute `60` that is not of 0 to 59"),
            ("+5 * * * *", "has a minute `+5` that is not of 0 to 59"),
            ("5-1 * * * *", "has a minute `5-1` that ends before it begins"),
            ("*/0 * * * *", "has a minute `*/0` that has no step of 1 to 59"),
            ("0 0 ? * *", "has a day of the month `?` that is not of 1 to 31"),
            ("0 0 * * 5L", "has a weekday `5L` that is not of 0 to 7"),
            ("0 0 * * ,", "has a weekday `` that is not of 0 to 7"),
            ("@reboot", "begins with `@` and is none of @yearly, @monthly, @weekly, @daily and @hourly"),
        ] {
            assert_eq!(Cron::parse(text), Err(why.to_owned()), "{text}");
        }
        assert!(Cron::parse(&"1,".repeat(200)).is_err());
    }

    #[test]
    fn what_repeats_in_the_day_begins_with_a_star_there() {
        let repeats = |text: &str| Cron::parse(text).expect("it is one").repeats_in_the_day();
        assert!(["0 * * * *", "*/5 2 * * *", "0 */2 * * *", "0 0 * * * *", "@hourly"].into_iter().all(repeats));
        assert!(!["0 2 * * *", "* 30 2 * * *", "0 0-23 * * *", "@daily", "0 1,2,3 * * *"].into_iter().any(repeats));
    }
}
