//! Group commit: callers hand in single pieces of work, one task writes all that have gathered in one transaction, and
//! each caller is answered once it is durable. While one group commits the next gathers, so a lone caller does not wait
//! and a crowd shares a commit.

use std::time::Duration;

use futures::future::BoxFuture;
use kit::{Fail, Kind, tasks::Tasks};
use tokio::sync::{mpsc, oneshot};

/// Pieces that may wait for the next group before callers are turned away.
const WAITING_MAX: usize = 10_000;

/// How long one transaction may take before its callers are told to try again. It is one of milliseconds; a Postgres that
/// has vanished without closing anything never answers, and all that is handed in afterwards would wait behind it.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

type Piece<T, R> = (T, oneshot::Sender<Result<R, Fail>>);

/// A door to a group writer. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Group<T, R>(mpsc::Sender<Piece<T, R>>);

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T, R> Group<T, R>
where
    T: Clone + Send + Sync + 'static,
    R: Send + 'static,
{
    /// Starts a writer that takes up to `pieces_max` at a time. `write` answers each piece in order, or fails as a whole
    /// with nothing done: then every piece is tried alone, so that one that cannot be written fails alone. When the
    /// database is away it is away for all: every piece is turned away at once, and its caller tries again.
    pub(crate) fn start<W>(tasks: &Tasks, name: &'static str, pieces_max: usize, write: W) -> Self
    where
        W: Fn(Vec<T>) -> BoxFuture<'static, Result<Vec<R>, Fail>> + Send + Sync + 'static,
    {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tasks.spawn(name, run(receiver, pieces_max, write));
        Self(sender)
    }

    /// Hands a piece in and waits until it is durable.
    ///
    /// # Errors
    /// `jobs.busy` when too many wait; else what the writer says of this piece.
    pub(crate) async fn write(&self, piece: T) -> Result<R, Fail> {
        self.hand_in(piece).await
    }

    /// Hands a piece in at once, behind all that were handed in before; the answer comes as from [`write`](Self::write).
    pub(crate) fn hand_in(&self, piece: T) -> impl Future<Output = Result<R, Fail>> + Send + use<T, R> {
        let (answer, answered) = oneshot::channel();
        let handed_in = self.0.try_send((piece, answer)).map_err(|_| {
            Fail::unavailable("jobs.busy", "Too much is waiting to be written. Try again shortly.")
                .retry_after(Duration::from_secs(1))
        });
        let door = self.0.clone();
        async move {
            handed_in?;
            tokio::select! {
                biased;
                answer = answered => answer.map_err(|_| stopping())?,
                // What was handed in just as the writer was dropped lies in the channel, and is answered by nobody.
                () = door.closed() => Err(stopping()),
            }
        }
    }
}

/// Ends when the last door is gone, so that what was handed in during a drain is still written.
async fn run<T, R, W>(mut receiver: mpsc::Receiver<Piece<T, R>>, pieces_max: usize, write: W) -> Result<(), Fail>
where
    T: Clone + Send + Sync + 'static,
    R: Send + 'static,
    W: Fn(Vec<T>) -> BoxFuture<'static, Result<Vec<R>, Fail>> + Send + Sync + 'static,
{
    let write = async |pieces| {
        let written = tokio::time::timeout(WRITE_WITHIN, write(pieces)).await;
        written.unwrap_or_else(|_| Err(not_now()))
    };
    let mut gathered = Vec::new();
    while receiver.recv_many(&mut gathered, pieces_max).await > 0 {
        let (pieces, answers): (Vec<T>, Vec<_>) = gathered.drain(..).unzip();
        match write(pieces.clone()).await {
            Ok(results) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    // The caller may have gone away; what it asked for is done all the same.
                    let _gone = answer.send(Ok(result));
                }
            }
            Err(fail) if fail.kind() == Kind::Unavailable => {
                tracing::warn!(error = %fail, pieces = pieces.len(), "a group was not written");
                for answer in answers {
                    let _gone = answer.send(Err(not_now()));
                }
            }
            Err(fail) if pieces.len() == 1 => {
                let _gone = answers.into_iter().next().map(|answer| answer.send(Err(fail)));
            }
            Err(fail) => {
                tracing::debug!(error = %fail, pieces = pieces.len(), "a group failed; each piece is tried alone");
                for (piece, answer) in pieces.into_iter().zip(answers) {
                    let alone = write(vec![piece]).await;
                    let _gone = answer.send(alone.and_then(|mut results| {
                        results.pop().ok_or_else(|| Fail::internal("a group writer gave no answer"))
                    }));
                }
            }
        }
    }
    Ok(())
}

fn stopping() -> Fail {
    Fail::unavailable("jobs.stopping", "The service is stopping.")
}

/// What a caller is told whom the database keeps waiting.
pub(super) fn not_now() -> Fail {
    Fail::unavailable("database_unavailable", "The database is away for the moment.")
        .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_transaction_that_is_never_answered_holds_up_nobody_for_ever() {
        let tasks = Tasks::new();
        let has_vanished = AtomicBool::new(true);
        let group = Group::start(&tasks, "test", 10, move |pieces: Vec<u32>| {
            let is_answered = !has_vanished.swap(false, Ordering::SeqCst);
            Box::pin(async move { if is_answered { Ok(pieces) } else { std::future::pending().await } })
        });
        let both = async { tokio::join!(group.write(1), group.write(2)) };
        let (first, second) = tokio::time::timeout(2 * WRITE_WITHIN, both).await.expect("each has an answer");
        assert_eq!(first.expect_err("it was given up").kind(), Kind::Unavailable);
        assert_eq!(second.expect_err("it was in the same group").kind(), Kind::Unavailable);
        assert_eq!(group.write(3).await.expect("an answer"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_in_the_channel_of_a_writer_that_is_gone_is_answered() {
        let (sender, mut receiver) = mpsc::channel(1);
        let answer = Group::<u32, u32>(sender).hand_in(1);
        // Dropped at that very moment, it would have let the piece lie, as here.
        receiver.close();
        let answer = tokio::time::timeout(WRITE_WITHIN, answer).await.expect("it has an answer");
        assert_eq!(answer.expect_err("nobody writes it").kind(), Kind::Unavailable);
    }
}
