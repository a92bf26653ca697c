//! What is told: a row for each figure, beside the figure of its yardstick. A table for people, a line of JSON each for
//! programs. What proves the figures goes the other way in the latter case, so that the lines stay alone.

use serde::Serialize;

/// Several measurements of one thing.
#[derive(Debug, Clone)]
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn median(&self) -> f64 {
        let (below, above) = (percentile(&self.0, 0.5), self.0.get(self.0.len() / 2).copied().unwrap_or(0.0));
        f64::midpoint(below, above)
    }

    fn shown(&self) -> String {
        match self.0.as_slice() {
            [] => "-".to_owned(),
            [only] => number(*only),
            [least, .., most] => format!("{} ({}..{})", number(self.median()), number(*least), number(*most)),
        }
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl From<f64> for Spread {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

/// The smallest of sorted values that at least `share` of them do not exceed; 0 of none.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list that fits memory")]
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// One figure.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) metric: &'static str,
    pub(crate) value: Spread,
    pub(crate) unit: &'static str,
    /// What it is held against, and the figure of that in the same unit.
    pub(crate) yardstick: Option<(&'static str, Spread)>,
}

/// As the contract has it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    bench: &'a str,
    metric: &'a str,
    value: f64,
    unit: &'a str,
    yardstick: Option<&'a str>,
    yardstick_value: Option<f64>,
    ratio: Option<f64>,
}

/// Where all of it goes.
#[derive(Debug)]
pub(crate) struct Report {
    is_json: bool,
    /// Cells of the benchmark that is being told.
    table: Vec<[String; 7]>,
    proofs: Vec<String>,
}

impl Report {
    pub(crate) fn new(is_json: bool) -> Self {
        Self { is_json, table: Vec::new(), proofs: Vec::new() }
    }

    /// What is going on, for people who wait.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("bench: {text}");
    }

    /// What makes the figures believable, in the database's own words.
    pub(crate) fn prove(&mut self, of: &str, text: &str) {
        self.proofs.push(format!("  {of}: {text}"));
    }

    /// Figures of one benchmark.
    pub(crate) fn rows(&mut self, bench: &str, rows: Vec<Row>) {
        for row in rows {
            let value = row.value.median();
            let yardstick_value = row.yardstick.as_ref().map(|(_, spread)| spread.median());
            let ratio = yardstick_value.filter(|yardstick| *yardstick != 0.0).map(|yardstick| value / yardstick);
            let yardstick = row.yardstick.as_ref().map(|(name, _)| *name);
            if self.is_json {
                let line = Line {
                    bench,
                    metric: row.metric,
                    value: rounded(value),
                    unit: row.unit,
                    yardstick,
                    yardstick_value: yardstick_value.map(rounded),
                    ratio: ratio.map(rounded),
                };
                match serde_json::to_string(&line) {
                    Ok(line) => println!("{line}"),
                    Err(error) => eprintln!("bench: {error}"),
                }
            }
            self.table.push([
                bench.to_owned(),
                row.metric.to_owned(),
                row.value.shown(),
                row.unit.to_owned(),
                yardstick.unwrap_or("-").to_owned(),
                row.yardstick.as_ref().map_or("-".to_owned(), |(_, spread)| spread.shown()),
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            ]);
        }
    }

    /// Ends a benchmark: the table, and what proves it.
    pub(crate) fn close(&mut self) {
        let heads = ["bench", "metric", "value", "unit", "yardstick", "its value", "ratio"];
        let mut lines = vec![heads.map(str::to_owned)];
        lines.append(&mut self.table);
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        let proofs = std::mem::take(&mut self.proofs);
        if self.is_json {
            proofs.iter().for_each(|proof| eprintln!("{proof}"));
            return;
        }
        println!();
        for line in lines {
            let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", cells.join("  ").trim_end());
        }
        println!("\nwhat the database and the machine say of it:");
        proofs.iter().for_each(|proof| println!("{proof}"));
    }
}

/// Six digits are more than any of these figures is worth.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// For people: digits that mean something, thousands apart.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0..1.0 => 3,
        1.0..100.0 => 2,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_tells_the_median_between_the_least_and_the_most() {
        let spread: Spread = [3000.0, 1000.0, 2000.0].into_iter().collect();
        assert_eq!(spread.shown(), "2,000 (1,000..3,000)");
        assert_eq!([1.0, 2.0].into_iter().collect::<Spread>().median(), 1.5);
        assert_eq!(Spread::from(0.25).shown(), "0.250");
        assert_eq!(number(-1234.0), "-1,234");
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (50.0, 99.0));
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_figure_is_told_with_six_digits() {
        assert_eq!(rounded(1_234_567.0), 1_234_570.0);
        assert_eq!(rounded(0.0), 0.0);
    }
}
