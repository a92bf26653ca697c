//! Tables that fit: columns as wide as what stands in them, some of them giving way when the terminal is narrow.

use console::{measure_text_width, pad_str, truncate_str};

use super::{
    screen::{Screen, Tone},
    words,
};

const GAP: &str = "  ";
/// A column that gives way keeps this many characters, even when the table then overflows.
const FLEXIBLE_MIN: usize = 12;

/// One column's title and manners.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    title: &'static str,
    is_right: bool,
    is_flexible: bool,
}

impl Column {
    pub(super) const fn left(title: &'static str) -> Self {
        Self { title, is_right: false, is_flexible: false }
    }
    /// For numbers.
    pub(super) const fn right(title: &'static str) -> Self {
        Self { title, is_right: true, is_flexible: false }
    }
    /// Shortened in its middle when the terminal is narrow.
    pub(super) const fn flexible(title: &'static str) -> Self {
        Self { title, is_right: false, is_flexible: true }
    }
}

/// What stands in one place of a table.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell(pub(super) String, pub(super) Tone);

impl Cell {
    pub(super) fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self(words::plain(text.as_ref()), tone)
    }
    pub(super) fn state(state: &str) -> Self {
        Self::new(state, Tone::of_state(state))
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// Rows under titles.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    /// The whole table, without a last line break.
    pub(super) fn render(&self, screen: &Screen) -> String {
        let widths = self.widths(screen.width);
        let titles = self.columns.iter().map(|column| Cell::new(column.title, Tone::Dim)).collect();
        let lines = std::iter::once(&titles).chain(&self.rows).map(|row: &Vec<Cell>| {
            let cells = self.columns.iter().zip(&widths).zip(row).map(|((column, width), Cell(text, tone))| {
                let text = shorten(text, *width);
                let side = if column.is_right { console::Alignment::Right } else { console::Alignment::Left };
                screen.tone(*tone).apply_to(pad_str(&text, *width, side, None)).to_string()
            });
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn widths(&self, terminal: Option<usize>) -> Vec<usize> {
        let widest = |(place, column): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| row.get(place)).map(|Cell(text, _)| measure_text_width(text));
            cells.max().unwrap_or(0).max(column.title.len())
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(widest).collect();
        if let Some(terminal) = terminal {
            let whole = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
            for _ in 0..whole.saturating_sub(terminal) {
                // The widest gives way first, so that all that are cut are cut alike.
                let flexible = (0..widths.len()).filter(|place| self.columns[*place].is_flexible);
                match flexible.filter(|place| widths[*place] > FLEXIBLE_MIN).max_by_key(|place| widths[*place]) {
                    Some(place) => widths[place] -= 1,
                    None => break,
                }
            }
        }
        widths
    }
}

/// The text in at most `width` columns, with its middle left out: both ends of a file's name tell it from its neighbours.
pub(super) fn shorten(text: &str, width: usize) -> String {
    if measure_text_width(text) <= width {
        return text.to_owned();
    }
    if width < 5 {
        return truncate_str(text, width, "").into_owned();
    }
    let tail_columns = (width - 1) / 2;
    let mut tail = String::new();
    for character in text.chars().rev() {
        let longer = format!("{character}{tail}");
        if measure_text_width(&longer) > tail_columns {
            break;
        }
        tail = longer;
    }
    format!("{}…{tail}", truncate_str(text, width - 1 - measure_text_width(&tail), ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::screen::Manner;

    fn sample(width: Option<usize>) -> String {
        let mut table = Table::new([Column::flexible("name"), Column::left("state"), Column::right("bytes")]);
        table.row(["a-rather-long-name-of-a-picture-0001.jpeg".into(), Cell::state("succeeded"), "1,234,567".into()]);
        table.row(["b.png".into(), Cell::state("failed"), "".into()]);
        let mut screen = Screen::of_process(false, false);
        screen.manner = Manner::Told;
        screen.width = width;
        table.render(&screen)
    }

    #[test]
    fn a_table_fits_its_terminal_and_keeps_both_ends_of_a_name() {
        for width in [40, 60, 80] {
            let table = sample(Some(width));
            assert!(table.lines().all(|line| measure_text_width(line) <= width), "{table}");
            assert!(table.contains("a-rat") && table.contains("jpeg"), "{table}");
        }
    }

    #[test]
    fn columns_that_give_way_are_cut_alike() {
        let mut table = Table::new([Column::flexible("by"), Column::left("is"), Column::flexible("on")]);
        table.row(["0123456789012345678901234567890123456789".into(), "done".into(), "01234567890123456789".into()]);
        assert_eq!(table.widths(Some(40)), [16, 4, 16]);
        assert_eq!(table.widths(Some(60)), [32, 4, 20]);
        assert_eq!(table.widths(Some(20)), [12, 4, 12]);
    }

    #[test]
    fn nothing_is_cut_where_there_is_no_terminal() {
        assert!(sample(None).contains("a-rather-long-name-of-a-picture-0001.jpeg"));
    }

    #[test]
    fn wide_characters_count_as_what_they_take() {
        assert_eq!(shorten("ab", 2), "ab");
        assert!(measure_text_width(&shorten("写真写真写真写真写真.png", 11)) <= 11);
        assert_eq!(shorten("abcdefghij", 7), "abc…hij");
    }
}
