//! What a person at a terminal sees and is asked.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{run::Person, server::Server};

/// A command on a terminal of 80 columns.
struct Terminal {
    screen: File,
    child: Child,
    seen: String,
}

impl Terminal {
    fn run(mut command: Command) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let side = |of: &OwnedFd| of.try_clone().unwrap();
        command.stdin(side(&pty.slave)).stdout(side(&pty.slave)).stderr(side(&pty.slave));
        let child = command.spawn().unwrap();
        // The command holds copies of its own; with these dropped, its end ends the terminal.
        drop((command, pty.slave));
        Self { screen: pty.master.into(), child, seen: String::new() }
    }

    /// Reads until `text` has been shown.
    fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.read(), "{text:?} never came:\n{}", self.seen);
        }
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // A terminal without a process on it answers with an error and not with an end.
        let count = self.screen.read(&mut bytes).unwrap_or(0);
        self.seen += &String::from_utf8_lossy(&bytes[..count]);
        count > 0
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).unwrap();
    }

    fn type_in(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    fn end(mut self) -> (i32, String) {
        while self.read() {}
        (self.child.wait().unwrap().code().unwrap_or(-1), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed on the way leaves nothing running; one that came to its end has nothing left to stop.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A batch that stays at its first model, watched on a terminal up to its line.
fn at_work(server: &Server) -> Terminal {
    server.script().holds = true;
    let person = Person::signed_in(server);
    person.pictures(&["cat.png", "dog.png"]);
    let mut terminal = Terminal::run(person.command(&["batch", "submit", "cat.png", "dog.png", "--watch"]));
    terminal.until("mesh: walls");
    terminal
}

#[test]
fn a_terminal_shows_a_line_for_the_model_at_work_and_one_for_the_whole() {
    let server = Server::start();
    let mut terminal = at_work(&server);
    terminal.until("0/2");
    assert!(terminal.seen.contains("cat.png") && terminal.seen.contains("━"), "{}", terminal.seen);
    terminal.interrupt();
    terminal.until("Cancel the batch? [y/N]");
    terminal.type_in("\n");
    terminal.end();
}

#[test]
fn ctrl_c_and_yes_cancels_and_watches_the_batch_end() {
    let server = Server::start();
    let mut terminal = at_work(&server);
    terminal.interrupt();
    terminal.until("Cancel the batch? [y/N]");
    terminal.type_in("y\n");
    let (code, seen) = terminal.end();
    assert_eq!(code, 130, "{seen}");
    assert_eq!(server.script().cancelled, ["batch-1"]);
    assert!(seen.contains("2 cancelled"), "{seen}");
}

#[test]
fn ctrl_c_and_enter_leaves_it_running_and_says_how_to_come_back() {
    let server = Server::start();
    let mut terminal = at_work(&server);
    terminal.interrupt();
    terminal.until("Cancel the batch? [y/N]");
    terminal.type_in("\n");
    let (code, seen) = terminal.end();
    assert_eq!(code, 130, "{seen}");
    assert!(seen.contains("guildhall batch watch job-1"), "{seen}");
    assert!(server.script().cancelled.is_empty());
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let server = Server::start();
    let mut terminal = at_work(&server);
    terminal.interrupt();
    terminal.until("Cancel the batch? [y/N]");
    terminal.interrupt();
    let (code, seen) = terminal.end();
    assert_eq!(code, 130, "{seen}");
    assert!(server.script().cancelled.is_empty());
}

#[test]
fn a_terminal_without_colour_gets_none() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png", "broken.png"]);
    let args = ["batch", "submit", "cat.png", "broken.png", "--watch"];
    let has_colour =
        |seen: &str| ["\u{1b}[31m", "\u{1b}[32m", "\u{1b}[36m", "\u{1b}[2m"].iter().any(|code| seen.contains(code));
    let mut plain = person.command(&args);
    plain.env("NO_COLOR", "1");
    let (code, seen) = Terminal::run(plain).end();
    assert!(code == 1 && seen.contains("cat.png") && !has_colour(&seen), "{seen}");
    let (_, seen) = Terminal::run(person.command(&args)).end();
    assert!(has_colour(&seen), "{seen}");
}

#[test]
fn a_password_is_not_shown_and_the_terminal_shows_again_afterwards() {
    let server = Server::start();
    let person = Person::at(&server.url());
    let mut terminal = Terminal::run(person.command(&["login"]));
    terminal.until("Email:");
    terminal.type_in(&format!("{}\n", crate::server::EMAIL));
    terminal.until("Password:");
    terminal.type_in(&format!("{}\n", crate::server::PASSWORD));
    terminal.until("Signed in at");
    let flags = nix::sys::termios::tcgetattr(&terminal.screen).unwrap().local_flags;
    assert!(flags.contains(nix::sys::termios::LocalFlags::ECHO));
    let (code, seen) = terminal.end();
    assert!(code == 0 && !seen.contains(crate::server::PASSWORD), "{seen}");
}
