//! The terminal: whether there is one, how wide it is, whether it has colour, and the only writes to stdout and stderr of
//! the client. Results go to stdout; what happens on the way to them goes to stderr, so that a result can be piped.

use std::io::{IsTerminal as _, Write as _, stderr, stdin, stdout};

use console::{Style, Term};
use serde::Serialize;

use super::{error::Error, words};

/// How a command speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Tables and sentences; bars when stderr is a terminal, else a line for each thing that ended.
    Told,
    /// Ids alone on stdout, and only what failed on stderr.
    Quiet,
    /// JSON on stdout, and errors as JSON on stderr.
    Json,
}

/// Where a command speaks to.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    pub(super) manner: Manner,
    /// Columns of stdout; None when it is not a terminal, and then nothing is cut.
    pub(super) width: Option<usize>,
    /// Columns of stderr; None when it is not a terminal.
    width_err: Option<usize>,
    /// Whether bars may be drawn on stderr.
    pub(super) is_live: bool,
    has_colour: bool,
    has_colour_err: bool,
}

impl Screen {
    /// The terminal of this process. `NO_COLOR`, `CLICOLOR` and a dumb terminal are heeded.
    pub(super) fn of_process(json: bool, quiet: bool) -> Self {
        let manner = match (json, quiet) {
            (true, _) => Manner::Json,
            (_, true) => Manner::Quiet,
            _ => Manner::Told,
        };
        let is_dumb = super::environment("TERM").is_none_or(|term| term == "dumb");
        Self {
            manner,
            width: stdout().is_terminal().then(|| Term::stdout().size().1.into()),
            width_err: stderr().is_terminal().then(|| Term::stderr().size().1.into()),
            is_live: manner == Manner::Told && stderr().is_terminal() && !is_dumb,
            has_colour: console::colors_enabled(),
            has_colour_err: console::colors_enabled_stderr(),
        }
    }

    /// Whether a question asked on stderr can be answered on stdin.
    pub(super) fn can_ask(&self) -> bool {
        self.manner != Manner::Json && stderr().is_terminal() && stdin().is_terminal()
    }

    /// A result, to stdout.
    pub(super) fn print(&self, text: &str) {
        // Whoever reads may have gone (`| head`): there is nobody left to tell.
        let _gone = writeln!(stdout().lock(), "{text}");
    }

    /// A result in sentences, to stdout.
    pub(super) fn print_wrapped(&self, text: &str) {
        self.print(&words::wrap(text, self.width));
    }

    /// A result for a program, to stdout.
    pub(super) fn print_json(&self, value: &impl Serialize) {
        self.print(&serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// One line of a stream for a program, to stdout.
    pub(super) fn print_json_line(&self, value: &impl Serialize) {
        self.print(&serde_json::to_string(value).unwrap_or_default());
    }

    /// A step on the way, to stderr; only when told to tell.
    pub(super) fn note(&self, text: &str) {
        if self.manner == Manner::Told {
            self.warn(text);
        }
    }

    /// What must be seen in any manner but JSON's, to stderr.
    pub(super) fn warn(&self, text: &str) {
        if self.manner != Manner::Json {
            let _gone = writeln!(stderr().lock(), "{}", self.wrap_err(text));
        }
    }

    /// Lines that fit stderr.
    pub(super) fn wrap_err(&self, text: &str) -> String {
        words::wrap(text, self.width_err)
    }

    /// A question, to stderr, with the cursor left behind it.
    pub(super) fn ask(&self, question: &str) {
        let mut terminal = stderr().lock();
        let _gone = write!(terminal, "{question} ").and_then(|()| terminal.flush());
    }

    /// What ended the command.
    pub(super) fn fail(&self, error: &Error) {
        let text = if self.manner == Manner::Json {
            error.to_json().to_string()
        } else if matches!(error, Error::Interrupted(_)) {
            self.wrap_err(&error.to_string())
        } else {
            self.wrap_err(&format!("{} {error}", self.tone_err(Tone::Bad).apply_to("error:")))
        };
        let _gone = writeln!(stderr().lock(), "{text}");
    }

    pub(super) fn tone(&self, tone: Tone) -> Style {
        tone.style().force_styling(self.has_colour)
    }

    pub(super) fn tone_err(&self, tone: Tone) -> Style {
        tone.style().force_styling(self.has_colour_err)
    }

    /// Names and values in two columns, one pair a line; pairs without a value are left out.
    pub(super) fn print_pairs(&self, pairs: &[(&str, Option<String>)]) {
        let widest = pairs.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in pairs {
            if let Some(value) = value {
                let name = self.tone(Tone::Dim).apply_to(format!("{name:widest$}"));
                self.print(&format!("{name}  {}", words::plain(value)));
            }
        }
    }
}

/// What a colour says, so that the same thing has the same colour everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Odd,
    Busy,
    Dim,
    Strong,
}

impl Tone {
    /// The tone of a job's or batch's state.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "succeeded" | "finished" => Self::Good,
            "failed" | "expired" => Self::Bad,
            "cancelled" | "cancelling" => Self::Odd,
            "running" | "finalizing" => Self::Busy,
            _ => Self::Dim,
        }
    }

    fn style(self) -> Style {
        let style = Style::new();
        match self {
            Self::Plain => style,
            Self::Good => style.green(),
            Self::Bad => style.red(),
            Self::Odd => style.yellow(),
            Self::Busy => style.cyan(),
            Self::Dim => style.dim(),
            Self::Strong => style.bold(),
        }
    }
}
