//! Ctrl-C. Work that is only watched goes on without its watcher, so the first Ctrl-C asks what was meant, and the second
//! leaves at once. Commands that watch nothing simply end.

use std::{future::Future, pin::pin};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use super::{error::Error, live::Live, screen::Screen};

/// The Ctrl-Cs of this process. From the first one made on, Ctrl-C no longer ends the process by itself.
#[derive(Debug)]
pub(super) struct Interrupts(Signal);

impl Interrupts {
    /// # Errors
    /// [`Error::Failed`] when the system refuses to tell of signals.
    pub(super) fn listen() -> Result<Self, Error> {
        let heard = signal(SignalKind::interrupt());
        heard.map(Self).map_err(|fault| Error::Failed(format!("Ctrl-C cannot be listened for: {fault}.")))
    }

    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Does the work, or ends it with `leaving` at Ctrl-C.
    ///
    /// # Errors
    /// Those of the work, and [`Error::Interrupted`].
    pub(super) async fn end<T>(
        &mut self,
        leaving: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            () = self.next() => Err(Error::Interrupted(leaving.to_owned())),
        }
    }
}

/// What is watched, in words.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    /// `batch` or `job`.
    pub(super) noun: &'static str,
    /// The command that watches it again.
    pub(super) again: &'a str,
}

/// Watches to the end. At Ctrl-C asks whether to `cancel` what is watched: yes cancels it and watches on, anything else
/// leaves it running. Gives what was watched and whether it was cancelled on the way.
///
/// # Errors
/// Those of `watching` and `cancel`; [`Error::Interrupted`] when the person leaves.
pub(super) async fn watch<T>(
    interrupts: &mut Interrupts,
    (screen, live): (&Screen, &Live),
    watched: &Watched<'_>,
    watching: impl Future<Output = Result<T, Error>>,
    cancel: impl AsyncFnOnce() -> Result<(), Error>,
) -> Result<(T, bool), Error> {
    let mut watching = pin!(watching);
    let Watched { noun, again } = watched;
    let leaving = || Error::Interrupted(format!("The {noun} goes on. Watch it again with `{again}`."));

    tokio::select! {
        done = &mut watching => return Ok((done?, false)),
        () = interrupts.next() => {}
    }
    live.pause();
    // The terminal has echoed `^C` where the cursor stood.
    screen.warn("");
    if !screen.can_ask() {
        return Err(leaving());
    }
    screen.ask(&format!("Cancel the {noun}? [y/N]"));
    let is_wanted = tokio::select! {
        biased;
        done = &mut watching => {
            screen.warn("");
            return Ok((done?, false));
        }
        () = interrupts.next() => {
            screen.warn("");
            return Err(leaving());
        }
        answer = line() => matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"),
    };
    if !is_wanted {
        return Err(leaving());
    }

    let gone = || Error::Interrupted(format!("The {noun} is being cancelled. Watch it end with `{again}`."));
    let cancelled = tokio::select! {
        cancelled = cancel() => cancelled,
        () = interrupts.next() => return Err(gone()),
    };
    match cancelled {
        // It ended while the question stood there.
        Err(error) if error.is_status(409) => {}
        cancelled => cancelled?,
    }
    screen.note(&format!("Cancelling the {noun}: what runs is asked to stop."));
    live.resume();
    tokio::select! {
        done = &mut watching => Ok((done?, true)),
        () = interrupts.next() => {
            live.pause();
            Err(gone())
        }
    }
}

/// One line of stdin. Read on a thread of its own, which the end of the process need not wait for: a read of a terminal
/// cannot be called off.
async fn line() -> String {
    let (answer, heard) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok() {
            // Nobody waits any more once the work has ended by itself.
            let _unheard = answer.send(line);
        }
    });
    heard.await.unwrap_or_default()
}
