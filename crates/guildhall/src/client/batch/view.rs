//! How a batch looks while it runs: on a terminal a line for each model at work and one for the whole, elsewhere a line
//! for each model that has ended, or its events as JSON.

use std::collections::HashMap;

use console::Term;
use indicatif::ProgressBar;

use super::board::{Board, Change, Counts, Piece};
use crate::client::{
    events::Event,
    live::Live,
    screen::{Manner, Screen, Tone},
    table::shorten,
    words,
};

/// More lines than this say nothing that the whole does not.
const LINES_MAX: usize = 12;
/// Rows left for the whole, the prompt and what was said last.
const ROWS_FREE: usize = 6;

/// The view of one batch.
#[derive(Debug)]
pub(super) struct View<'a> {
    screen: &'a Screen,
    live: &'a Live,
    /// Whether a program reads each event, rather than the summary alone.
    tells_events: bool,
    whole: ProgressBar,
    lines: HashMap<String, ProgressBar>,
    /// At work, but without a line for want of room.
    unseen: Vec<String>,
    lines_max: usize,
    name_columns: usize,
}

impl<'a> View<'a> {
    pub(super) fn new(screen: &'a Screen, live: &'a Live, tells_events: bool) -> Self {
        let (rows, columns) = Term::stderr().size();
        Self {
            screen,
            live,
            tells_events,
            whole: live.whole("models"),
            lines: HashMap::new(),
            unseen: Vec::new(),
            lines_max: usize::from(rows).saturating_sub(ROWS_FREE).clamp(1, LINES_MAX),
            name_columns: (usize::from(columns) * 3 / 10).clamp(12, 44),
        }
    }

    /// Words where there is nothing to count yet.
    pub(super) fn waits(&self, why: &str) {
        if self.live.is_live() {
            self.whole.set_message(why.to_owned());
        } else {
            self.screen.note(why);
        }
    }

    pub(super) fn broken(&self) {
        self.waits("the connection broke; opening it again");
    }

    pub(super) fn event(&self, event: &Event) {
        if self.tells_events && self.screen.manner == Manner::Json {
            self.screen.print_json_line(event);
        }
    }

    /// Draws what has changed. `name` is the picture's name.
    pub(super) fn changed(&mut self, board: &Board, change: &Change, name: impl Fn(&Piece) -> String) {
        match change {
            Change::Began(id) => self.begin(board, id, name),
            Change::Progressed(id) => {
                if let Some((line, piece)) = self.lines.get(id).zip(board.piece(id)) {
                    draw(line, piece, &name(piece));
                } else if !self.unseen.contains(id) {
                    self.begin(board, id, name);
                }
            }
            Change::Ended(id) => {
                if let Some(piece) = board.piece(id) {
                    self.tell_end(board, piece, &name(piece));
                }
                self.leave(board, id, name);
            }
            Change::Left(id) => self.leave(board, id, name),
            Change::Whole => {}
        }
        self.count(board);
    }

    pub(super) fn count(&self, board: &Board) {
        let Counts { total, failed, expired, cancelled, .. } = board.counts();
        if total > 0 {
            self.live.count(&self.whole);
        }
        self.whole.set_length(total);
        self.whole.set_position(board.ended());
        let mut told = Vec::new();
        for (count, word, tone) in [(failed + expired, "failed", Tone::Bad), (cancelled, "cancelled", Tone::Odd)] {
            if count > 0 {
                told.push(self.screen.tone_err(tone).apply_to(format!("{count} {word}")).to_string());
            }
        }
        match self.lines.len() + self.unseen.len() {
            _ if board.state == "finalizing" => told.push("making the archive".into()),
            0 => {}
            count => told.push(format!("{count} at work")),
        }
        self.whole.set_message(told.join(" · "));
    }

    /// Takes everything off the terminal.
    pub(super) fn close(&self) {
        self.lines.values().for_each(|line| self.live.remove(line));
        self.live.remove(&self.whole);
    }

    fn begin(&mut self, board: &Board, id: &str, name: impl Fn(&Piece) -> String) {
        let Some(piece) = board.piece(id) else { return };
        if !self.live.is_live() {
            return;
        }
        if let Some(line) = self.lines.get(id) {
            return draw(line, piece, &name(piece));
        }
        if self.lines.len() >= self.lines_max {
            if !self.unseen.iter().any(|unseen| unseen == id) {
                self.unseen.push(id.to_owned());
            }
            return;
        }
        let (name, columns) = (name(piece), self.name_columns);
        let padded = console::pad_str(&shorten(&name, columns), columns, console::Alignment::Left, None).into_owned();
        let line = self.live.piece(&self.whole, padded);
        draw(&line, piece, &name);
        self.lines.insert(id.to_owned(), line);
    }

    fn leave(&mut self, board: &Board, id: &str, name: impl Fn(&Piece) -> String) {
        self.unseen.retain(|unseen| unseen != id);
        if let Some(line) = self.lines.remove(id) {
            self.live.remove(&line);
            if !self.unseen.is_empty() {
                let next = self.unseen.remove(0);
                self.begin(board, &next, name);
            }
        }
    }

    fn tell_end(&self, board: &Board, piece: &Piece, name: &str) {
        let has_failed = matches!(piece.state.as_str(), "failed" | "expired");
        if self.live.is_live() {
            // What succeeded stands in the table; what did not should be seen when it happens, but for what was cancelled.
            if has_failed {
                let state = self.screen.tone_err(Tone::of_state(&piece.state)).apply_to(words::plain(&piece.state));
                self.live.say(&self.screen.wrap_err(&format!("{state} {name}{}", why(piece))));
            }
            return;
        }
        let (ended, total) = (board.ended(), board.counts().total);
        let width = total.to_string().len();
        self.screen.note(&format!("[{ended:width$}/{total}] {} {name}{}", words::plain(&piece.state), why(piece)));
    }
}

fn draw(line: &ProgressBar, piece: &Piece, name: &str) {
    line.set_position(piece.progress.percent.clamp(0.0, 100.0) as u64);
    line.set_message(match &piece.progress {
        _ if piece.state == "cancelling" => "cancelling".into(),
        // A task that says whose model it makes says what the line begins with.
        progress if progress.message == name => words::plain(&progress.stage),
        progress => progress.words(),
    });
}

fn why(piece: &Piece) -> String {
    let Some(error) = &piece.error else { return String::new() };
    format!(": {}: {}", words::plain(&error.kind), words::plain(&error.message))
}
