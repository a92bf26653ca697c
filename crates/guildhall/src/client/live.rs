//! The moving part of the terminal: bars on stderr, drawn together and taken away together. It knows how a bar looks, and
//! not what it stands for.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::screen::Screen;

/// Thin bars: the same in any font, and readable without colour, where the rest of the bar is dotted.
const BAR: &str = "━╸┄";
const TICK: Duration = Duration::from_millis(120);

/// The bars of one command. Clones draw on the same lines.
#[derive(Debug, Clone)]
pub(super) struct Live {
    lines: MultiProgress,
    is_live: bool,
}

impl Live {
    /// Draws on the terminal, or nothing at all where there is none.
    pub(super) fn on(screen: &Screen) -> Self {
        let target = if screen.is_live { ProgressDrawTarget::stderr_with_hz(15) } else { ProgressDrawTarget::hidden() };
        Self { lines: MultiProgress::with_draw_target(target), is_live: screen.is_live }
    }

    /// Whether there is anybody to draw for.
    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// A bar over bytes, with its speed.
    pub(super) fn bytes(&self, what: String, total: u64) -> ProgressBar {
        let template = "{spinner:.cyan} {prefix} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes}  \
                        {decimal_bytes_per_sec:.dim}";
        self.add(ProgressBar::new(total).with_style(style(template)).with_prefix(what))
    }

    /// The line at the bottom that stands for all the work: words, until there is something to [`count`](Self::count).
    pub(super) fn whole(&self, what: &str) -> ProgressBar {
        let bar = ProgressBar::new(0).with_style(style("{spinner:.cyan} {prefix} {wide_msg:.dim}"));
        self.add(bar.with_prefix(what.to_owned()).with_message("waiting to start"))
    }

    /// Makes the line of the whole a bar.
    pub(super) fn count(&self, whole: &ProgressBar) {
        whole.set_style(style("{spinner:.cyan} {prefix} {wide_bar:.cyan/dim} {pos}/{len} {msg} {elapsed:.dim}"));
    }

    /// The one line of a command that follows one piece of work, of 100 parts.
    pub(super) fn alone(&self, name: &str) -> ProgressBar {
        let template = "{spinner:.cyan} {prefix} {bar:24.cyan/dim} {percent:>3} % {wide_msg:.dim}";
        self.add(ProgressBar::new(100).with_style(style(template)).with_prefix(name.to_owned()))
    }

    /// A line above `below` for one piece of work, of 100 parts.
    pub(super) fn piece(&self, below: &ProgressBar, name: String) -> ProgressBar {
        let bar =
            ProgressBar::new(100).with_style(style("  {prefix} {bar:16.cyan/dim} {percent:>3} % {wide_msg:.dim}"));
        self.lines.insert_before(below, bar.with_prefix(name))
    }

    /// A line that stays, above the bars.
    pub(super) fn say(&self, line: &str) {
        // Drawing is a courtesy: a terminal that has gone away must not stop the work.
        let _gone = self.lines.println(line);
    }

    pub(super) fn remove(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.lines.remove(bar);
    }

    /// Takes the bars off the terminal, for a question or because it is over.
    pub(super) fn pause(&self) {
        let _gone = self.lines.clear();
        self.lines.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Draws again what [`pause`](Self::pause) took away.
    pub(super) fn resume(&self) {
        if self.is_live {
            self.lines.set_draw_target(ProgressDrawTarget::stderr_with_hz(15));
        }
    }

    fn add(&self, bar: ProgressBar) -> ProgressBar {
        let bar = self.lines.add(bar);
        if self.is_live {
            bar.enable_steady_tick(TICK);
        }
        bar
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are constants, drawn in a test");
    style.progress_chars(BAR).tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_can_be_drawn() {
        let live = Live::on(&Screen::of_process(true, false));
        let whole = live.whole("models");
        live.count(&whole);
        for bar in [live.bytes("uploading".into(), 10), live.alone("job"), live.piece(&whole, "a.png".into())] {
            bar.inc(1);
            live.remove(&bar);
        }
    }
}
