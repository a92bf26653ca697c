//! `guildhall login` and `guildhall logout`. It asks for what it needs and keeps the session; the password is never kept
//! and never shown.

use std::io::{IsTerminal as _, stdin};

use kit::{Clock, Secret};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Outcome,
    api::{self, Api},
    args::{LoginArgs, LogoutArgs},
    error::Error,
    interrupt::Interrupts,
    screen::{Manner, Screen},
    session::SessionFile,
};

pub(super) async fn login(args: &LoginArgs, screen: &Screen) -> Result<Outcome, Error> {
    let address = api::normal(&args.common.url)?;
    let clock = Clock::system();
    let file = SessionFile::of_user(&address)?;
    let mut interrupts = Interrupts::listen()?;
    let email = match &args.email {
        Some(email) => email.clone(),
        None if stdin().is_terminal() => interrupts.end("Not signed in.", asked(screen, "Email:", Echo::On)).await?,
        None => {
            return Err(Error::Usage("Say who you are with --email; the password is read from standard input.".into()));
        }
    };
    let password = match super::environment("GUILDHALL_PASSWORD") {
        Some(password) => password,
        None => interrupts.end("Not signed in.", asked(screen, "Password:", Echo::Off)).await?,
    };
    let signing = async {
        let (session, roles) = api::sign_in(&address, email.trim(), &Secret::new(password), &clock).await?;
        let held = file.lock().await?;
        file.store(session.clone(), &held)?;
        Ok((session.email, roles))
    };
    let (email, roles) = interrupts.end("Not signed in.", signing).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&json!({ "url": address, "email": email, "roles": roles })),
        Manner::Told => screen.print(&format!("Signed in at {address} as {email} ({}).", roles.join(", "))),
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

pub(super) async fn logout(args: &LogoutArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let file = SessionFile::of_user(&api.address())?;
    let ended = Interrupts::listen()?
        .end("Still signed in.", api.post::<serde_json::Value>(&["auth", "logout"], &json!({}), None))
        .await;
    let was_signed_in = match ended {
        Ok(_) => true,
        // The session has ended already, or there was none: what is kept of it is of no use.
        Err(Error::NotSignedIn { .. }) => false,
        Err(error) => return Err(error),
    };
    file.forget(&file.lock().await?)?;
    match screen.manner {
        Manner::Json => screen.print_json(&json!({ "url": api.address(), "signed_out": was_signed_in })),
        Manner::Told if was_signed_in => screen.print(&format!("Signed out at {}.", api.address())),
        Manner::Told => screen.print(&format!("You were not signed in at {}.", api.address())),
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// One line of stdin; on a terminal after a question, and unseen when it is a password.
async fn asked(screen: &Screen, question: &str, echo: Echo) -> Result<String, Error> {
    let is_terminal = stdin().is_terminal();
    // Before the question, since whoever answers it may be quick. Put back when dropped: at the answer, and at Ctrl-C,
    // when this future is dropped before it.
    let hidden = (is_terminal && echo == Echo::Off).then(Hidden::begin).flatten();
    if is_terminal {
        screen.ask(question);
    }
    let (answer, heard) = oneshot::channel();
    // A thread that nobody waits for: a read of a terminal cannot be called off.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = stdin().read_line(&mut line).map(|_| line);
        // Nobody waits any more after Ctrl-C.
        let _unheard = answer.send(read);
    });
    let line = heard.await.unwrap_or_else(|_| Ok(String::new())).map_err(Error::local("standard input"))?;
    if hidden.is_some() {
        drop(hidden);
        // The line break that ended the password was not shown either.
        screen.warn("");
    }
    let line = line.trim_end_matches(['\r', '\n']);
    if line.is_empty() {
        return Err(Error::Usage("Nothing was given. Signing in needs --email, and a password at the prompt, on standard input or in GUILDHALL_PASSWORD.".into()));
    }
    Ok(line.to_owned())
}

/// A terminal that does not show what is typed.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin(), SetArg::TCSAFLUSH, &unseen).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that has gone away has nothing to put back.
        let _gone = tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
    }
}
