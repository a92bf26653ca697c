//! How numbers, times and other people's text are written for a reader. Pure functions; nothing here knows the terminal.

use chrono::{DateTime, Utc};

/// Text of somebody else, safe to print: control characters, with which a name could move the cursor or repaint the
/// screen, are left out; line breaks and tabs become one space.
pub(super) fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' if !safe.ends_with(' ') => safe.push(' '),
            other if other.is_control() || turns_writing(other) => {}
            other => safe.push(other),
        }
    }
    safe
}

/// JSON for a reader. What JSON lets stand in a string and a terminal would act on is written as an escape, so that it is
/// still the same JSON.
pub(super) fn json(value: &serde_json::Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '\n' && (character.is_control() || turns_writing(character)) {
            // All of them are of the basic plane, so one escape writes each.
            safe.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Bidirectional overrides reorder what stands after them.
fn turns_writing(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Breaks lines between words so that they fit `width` columns; what is broken off stands two further in than its line
/// began. A word that is wider stays whole. Escapes of colour take no room.
pub(super) fn wrap(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let lines = text.split('\n').map(|line| {
        let indent = line.len() - line.trim_start_matches(' ').len();
        let (mut wrapped, mut column) = (String::new(), 0);
        for word in line[indent..].split(' ') {
            let word_width = console::measure_text_width(word);
            if wrapped.is_empty() {
                wrapped.push_str(&line[..indent]);
                column = indent;
            } else if column + 1 + word_width > width {
                wrapped.push('\n');
                wrapped.push_str(&" ".repeat(indent + 2));
                column = indent + 2;
            } else {
                wrapped.push(' ');
                column += 1;
            }
            wrapped.push_str(word);
            column += word_width;
        }
        wrapped
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `512 B`, `3.4 MB`: decimal units, as file managers and network tools write them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 999.95 would be rounded up to "1000.0".
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `12,345`.
pub(super) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `0.4 s`, `12.0 s`, `4 min 05 s`, `2 h 03 min`.
pub(super) fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `just now`, `5 min ago`, `3 days ago`; `in 5 min` for what is to come.
pub(super) fn age(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let passed = (now - at).num_seconds();
    let (size, unit) = match passed.unsigned_abs() {
        0..5 => return "just now".into(),
        s @ 5..60 => (s, "s"),
        s @ 60..3600 => (s / 60, "min"),
        s @ 3600..86_400 => (s / 3600, "h"),
        s @ 86_400..172_800 => (s / 86_400, "day"),
        s => (s / 86_400, "days"),
    };
    if passed > 0 { format!("{size} {unit} ago") } else { format!("in {size} {unit}") }
}

/// `1 model`, `2 models`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// A name that is safe to make a file of in any directory: letters, digits, `.`, `-` and `_`, no dot at its start, at
/// most 80 characters. Never empty, never a path.
pub(super) fn file_name(name: &str, otherwise: &str) -> String {
    let mut safe = String::new();
    for character in name.chars() {
        let character =
            if character.is_alphanumeric() || matches!(character, '.' | '-' | '_') { character } else { '-' };
        if !(character == '-' && safe.ends_with('-')) {
            safe.push(character);
        }
    }
    let safe: String = safe.trim_matches(['.', '-']).chars().take(80).collect();
    if safe.is_empty() { otherwise.to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_a_reader_is_the_same_json_and_moves_no_cursor() {
        let value = serde_json::json!({ "a\u{202e}": ["\u{1b}[31m", "\u{9b}31m", "line\nbreak", "ä"] });
        let shown = json(&value);
        assert!(shown.lines().all(|line| !line.chars().any(|c| c.is_control() || turns_writing(c))), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
        assert!(shown.contains('ä') && shown.lines().count() > 4, "{shown}");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(
            [0, 999, 1000, 999_949, 999_950, 3_400_000].map(bytes).join(" "),
            "0 B 999 B 1.0 kB 999.9 kB 1.0 MB 3.4 MB"
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands).join(" "), "0 999 1,000 1,234,567");
        assert_eq!(
            [0.04, 59.4, 60.0, 65.0, 7380.0].map(seconds).join(", "),
            "0.0 s, 59.4 s, 1 min 00 s, 1 min 05 s, 2 h 03 min"
        );
    }

    #[test]
    fn a_long_line_is_broken_between_words_and_goes_on_further_in() {
        assert_eq!(
            wrap("one two three\n  four five six\n\nx", Some(9)),
            "one two\n  three\n  four\n    five\n    six\n\nx"
        );
        assert_eq!(wrap("\u{1b}[31mone\u{1b}[0m two", Some(7)), "\u{1b}[31mone\u{1b}[0m two");
        assert_eq!(wrap("one two three", Some(6)), "one\n  two\n  three");
        assert_eq!(wrap("anything at all", None), "anything at all");
        assert_eq!(wrap("one  two", Some(20)), "one  two");
    }

    #[test]
    fn a_time_is_told_from_now() {
        let now = DateTime::UNIX_EPOCH + chrono::Duration::days(30);
        let ago = |s| age(now - chrono::Duration::seconds(s), now);
        assert_eq!(
            [1, 59, 61, 7200, 90_000, 864_000, -90].map(ago).join(", "),
            "just now, 59 s ago, 1 min ago, 2 h ago, 1 day ago, 10 days ago, in 1 min"
        );
    }

    #[test]
    fn no_name_leaves_its_directory_or_moves_the_cursor() {
        for name in ["../../etc/passwd", "/etc/passwd", "..", ".hidden", "a\0b", "C:\\x", "a\u{1b}[2Jb", "", "---"] {
            let safe = file_name(name, "model");
            assert!(!safe.is_empty() && !safe.starts_with('.'), "{name:?} became {safe:?}");
            assert!(safe.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c)), "{name:?} became {safe:?}");
        }
        assert_eq!(file_name("Schöne Katze (2)", "model"), "Schöne-Katze-2");
        assert_eq!(file_name("../..", "model"), "model");
        assert_eq!(plain("a\u{1b}[31mb\nc\u{202e}"), "a[31mb c");
    }
}
