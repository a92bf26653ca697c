//! The signals that end the process: the first asks, the second insists. Ctrl-C (SIGINT), SIGTERM and the end of the
//! terminal (SIGHUP) mean the same.

use kit::Fail;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from its making on, so that no signal between two waits is lost.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// # Errors
    /// `internal` where the system lets no handler be set.
    pub(crate) fn listen() -> Result<Self, Fail> {
        let listen = |kind| signal(kind).map_err(Fail::internal);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next signal's name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
