//! A slot: room for one attempt, with a scratch folder and, for tasks that compute, a child process of its own.
//!
//! A child is started when a slot first needs one, serves one attempt after another, and is replaced when it dies or has
//! to be killed. It is given no environment, no credential and no open file but its pipes, bounds its own memory, and
//! ends with its worker: by end of file on its input, and by the kernel's signal should even that not reach it.

mod child;
mod frames;
mod launcher;

use std::{os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitStatus, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, ChildStdin, ChildStdout},
};
use tokio_util::{
    codec::{FramedRead, FramedWrite, LengthDelimitedCodec},
    sync::CancellationToken,
};

pub use child::main;
pub(crate) use frames::RunFrame;
use frames::{Down, Up};
pub(crate) use launcher::Launcher;
pub use launcher::SlotCommand;

use crate::{Ending, Failure, context::Host, failure::kind};

/// How much of what a child writes to its standard error is kept to understand its death.
const TAIL_BYTES: usize = 8 * 1024;
/// How long the end of a child that has closed its pipe may take.
const DEATH_WITHIN: Duration = Duration::from_secs(5);
/// What the allocator's last words begin with; a child that says so and aborts has met its bound.
const OUT_OF_MEMORY: &str = "memory allocation of ";
const SIGABRT: i32 = 6;

/// Room for one attempt.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) scratch: PathBuf,
    /// Whether `scratch` is there and empty.
    pub(crate) is_clean: bool,
    launcher: Launcher,
    bytes_max: u64,
    /// Boxed, since most slots have none, and every attempt carries its slot along.
    child: Option<Box<Child>>,
    /// An attempt was given to the child, and no end of it was read.
    is_busy: bool,
}

#[derive(Debug)]
struct Child {
    process: tokio::process::Child,
    down: FramedWrite<ChildStdin, LengthDelimitedCodec>,
    up: FramedRead<ChildStdout, LengthDelimitedCodec>,
    errors: Option<ChildStderr>,
    tail: Vec<u8>,
}

/// The child closed its pipe or wrote what cannot be read.
#[derive(Debug)]
struct Gone;

impl Slot {
    /// `scratch` is there and empty.
    pub(crate) fn new(scratch: PathBuf, launcher: Launcher, bytes_max: u64) -> Self {
        Self { scratch, is_clean: true, launcher, bytes_max, child: None, is_busy: false }
    }

    /// Runs a task in the slot's child. When this is dropped before its end, [`reset`](Self::reset) must follow.
    pub(crate) async fn run(
        &mut self,
        run: RunFrame,
        host: &dyn Host,
        stop: &CancellationToken,
    ) -> Result<Ending, Failure> {
        if self.child.as_mut().is_some_and(|child| child.is_dead()) {
            self.child = None;
        }
        if self.child.is_none() {
            self.child = Some(Box::new(Child::start(&self.launcher, self.bytes_max).await?));
        }
        let Some(child) = self.child.as_mut() else { return Err(Failure::internal("a slot lost its child")) };
        self.is_busy = true;
        let ended = child.serve(run, host, stop).await;
        self.is_busy = false;
        match ended {
            Ok((said, is_last)) => {
                if is_last && let Some(child) = self.child.take() {
                    // Its last words, a panic's among them, are logged there.
                    child.cause_of_death(self.bytes_max).await;
                }
                said
            }
            Err(Gone) => match self.child.take() {
                Some(child) => Err(child.cause_of_death(self.bytes_max).await),
                None => Err(Failure::internal("a slot lost its child")),
            },
        }
    }

    /// Kills and reaps a child that is in the middle of an attempt nobody waits for any more.
    pub(crate) async fn reset(&mut self) {
        if self.is_busy
            && let Some(mut child) = self.child.take()
            && let Err(error) = Box::pin(child.process.kill()).await
        {
            tracing::warn!(%error, "a slot's child could not be killed");
        }
        self.is_busy = false;
    }
}

impl Child {
    async fn start(launcher: &Launcher, bytes_max: u64) -> Result<Self, Failure> {
        let mut process = launcher.launch().await.map_err(Failure::internal)?;
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), errors) = pipes else {
            return Err(Failure::internal("a slot's child was started without pipes"));
        };
        let mut child = Self {
            process,
            down: FramedWrite::new(stdin, frames::codec()),
            up: FramedRead::new(stdout, frames::codec()),
            errors,
            tail: Vec::new(),
        };
        match child.send(&Down::Begin { bytes_max }).await {
            Ok(()) => Ok(child),
            Err(Gone) => Err(child.cause_of_death(bytes_max).await),
        }
    }

    fn is_dead(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// One attempt, and whether the child serves no other after it.
    async fn serve(
        &mut self,
        run: RunFrame,
        host: &dyn Host,
        stop: &CancellationToken,
    ) -> Result<(Result<Ending, Failure>, bool), Gone> {
        self.send(&Down::Run(run)).await?;
        let mut is_asked = false;
        let mut chunk = [0; 1024];
        loop {
            tokio::select! {
                frame = self.up.next() => {
                    let frame = frame.and_then(Result::ok).ok_or(Gone)?;
                    match serde_json::from_slice(&frame).map_err(|_| Gone)? {
                        Up::Told(told) => host.tell(told),
                        Up::Question(question) => {
                            let answer = host.ask(question).await;
                            self.send(&Down::Answer(answer)).await?;
                        }
                        Up::Ended { said, is_last } => return Ok((said, is_last)),
                    }
                }
                read = read_errors(self.errors.as_mut(), &mut chunk) => match read {
                    0 => self.errors = None,
                    read => keep_tail(&mut self.tail, &chunk[..read]),
                },
                () = stop.cancelled(), if !is_asked => {
                    is_asked = true;
                    self.send(&Down::Stop).await?;
                }
            }
        }
    }

    async fn send(&mut self, frame: &Down) -> Result<(), Gone> {
        let bytes = serde_json::to_vec(frame).map_err(|_| Gone)?;
        self.down.send(Bytes::from(bytes)).await.map_err(|_| Gone)
    }

    /// Reaps the child and says why it died, as far as it can be known.
    async fn cause_of_death(mut self, bytes_max: u64) -> Failure {
        // Its input ends here, which is what a child that only closed its output waits for.
        drop(self.down);
        let mut chunk = [0; 1024];
        let end = async {
            while let Some(errors) = self.errors.as_mut() {
                match errors.read(&mut chunk).await {
                    Ok(read @ 1..) => keep_tail(&mut self.tail, &chunk[..read]),
                    _ => self.errors = None,
                }
            }
            self.process.wait().await
        };
        let status = match tokio::time::timeout(DEATH_WITHIN, end).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Failure::internal(error),
            Err(_) => {
                if let Err(error) = self.process.kill().await {
                    tracing::warn!(%error, "a slot's child could not be killed");
                }
                return Failure::passing(kind::WORKER_CRASHED, "The task's process hung and was killed.");
            }
        };
        let tail = String::from_utf8_lossy(&self.tail);
        tracing::warn!(process.status = %status, process.stderr = %tail, "a slot's child died");
        classify(status, &tail, bytes_max)
    }
}

/// Waits for ever where there is nothing left to read, so that a `select!` looks elsewhere; 0 at the end, once.
async fn read_errors(errors: Option<&mut ChildStderr>, chunk: &mut [u8]) -> usize {
    match errors {
        Some(errors) => errors.read(chunk).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn keep_tail(tail: &mut Vec<u8>, chunk: &[u8]) {
    tail.extend_from_slice(chunk);
    let over = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..over);
}

/// A task over its bound is not tried again: the same input would meet the same bound. Any other death may be the
/// machine's, and is.
fn classify(status: ExitStatus, tail: &str, bytes_max: u64) -> Failure {
    if status.signal() == Some(SIGABRT) && tail.contains(OUT_OF_MEMORY) {
        let mib = bytes_max / (1024 * 1024);
        let message = format!("The task needed more than the {mib} MiB of memory that its slot may use.");
        return Failure::permanent(kind::MEMORY_EXCEEDED, message);
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended with code {}", code.unwrap_or_default()),
    };
    Failure::passing(kind::WORKER_CRASHED, format!("The task's process {how}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_counts_as_memory_only_with_the_allocators_last_words() {
        let aborted = ExitStatus::from_raw(SIGABRT);
        let words = "memory allocation of 1048576 bytes failed";
        let kind_of = |failure| match failure {
            Failure::Failed { kind, retryable, .. } => (kind, retryable),
            _ => panic!("it failed"),
        };
        assert_eq!(kind_of(classify(aborted, words, 1)), ("memory_exceeded".to_owned(), false));
        assert_eq!(kind_of(classify(aborted, "assertion", 1)), ("worker_crashed".to_owned(), true));
        assert_eq!(kind_of(classify(ExitStatus::from_raw(9), words, 1)), ("worker_crashed".to_owned(), true));
    }

    #[test]
    fn the_tail_keeps_the_last_words() {
        let mut tail = Vec::new();
        keep_tail(&mut tail, &[b'a'; TAIL_BYTES]);
        keep_tail(&mut tail, b"last words");
        assert_eq!(tail.len(), TAIL_BYTES);
        assert!(tail.ends_with(b"last words"));
    }
}
