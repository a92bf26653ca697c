//! What the operator's commands print, in one voice: results to standard output, faults to standard error, colour only
//! where a terminal shows it.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
};

use anstyle::{AnsiColor, Style};

/// Prints a line of the result.
pub(crate) fn line(text: impl fmt::Display) {
    // Whoever read may have gone (`| head`), and then there is nobody to tell.
    let _unread = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints what ended the command.
pub(crate) fn error(text: impl fmt::Display) {
    let style = styled(std::io::stderr().is_terminal(), AnsiColor::Red);
    let _unread = writeln!(std::io::stderr().lock(), "{style}error:{style:#} {text}");
}

/// Prints every fault of the configuration.
pub(crate) fn faults(faults: &[String]) {
    error(match faults.len() {
        1 => "the configuration has a fault".to_owned(),
        count => format!("the configuration has {count} faults"),
    });
    for fault in faults {
        let _unread = writeln!(std::io::stderr().lock(), "  {fault}");
    }
}

/// The style of something good, on standard output.
pub(crate) fn good() -> Style {
    styled(std::io::stdout().is_terminal(), AnsiColor::Green)
}

/// The style of something bad, on standard output.
pub(crate) fn bad() -> Style {
    styled(std::io::stdout().is_terminal(), AnsiColor::Red)
}

/// The style of what stands beside the point, on standard output.
pub(crate) fn dim() -> Style {
    if std::io::stdout().is_terminal() { Style::new().dimmed() } else { Style::new() }
}

/// The style of what matters, on standard output.
pub(crate) fn strong() -> Style {
    if std::io::stdout().is_terminal() { Style::new().bold() } else { Style::new() }
}

fn styled(is_terminal: bool, colour: AnsiColor) -> Style {
    if is_terminal { Style::new().bold().fg_color(Some(colour.into())) } else { Style::new() }
}
