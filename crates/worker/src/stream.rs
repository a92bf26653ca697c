//! The stream to `jobs`, and what happens when it breaks. One loop owns the free slots and says everything the worker has
//! to say: hello, heartbeats, reports, credits. What it would say stands in the ledger, so that a broken stream loses
//! nothing but time; the lease decides for how long that is good enough.

use std::{sync::Arc, time::Duration};

use kit::{Fail, Kind, grpc::MESSAGE_BYTES_MAX, tasks::Tasks};
use proto::worker::{
    Assignment, Credit, FromWorker, Heartbeat, Hello, Interrupted, StopAttempt, ToWorker, Welcome, from_worker,
    outcome::End, to_worker, workers_client::WorkersClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{
    attempt::Bench,
    lease::{Heartbeats, Lease},
    ledger::{Order, Standing, Why},
    settings::SLOTS_MAX,
    slot::Slot,
};

/// How long `jobs` may take to open a stream and to welcome.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// What is told goes out at most this often.
const TOLD_EVERY: Duration = Duration::from_millis(50);
/// How long an outcome waits for others, while something else runs: short attempts end by the hundred, and what is reported
/// together is written, and their slots filled again, together. The last one to run waits for nothing.
const GATHER: Duration = Duration::from_millis(1);
/// Outcomes without a receipt at which a worker asks for no more work: `jobs` is behind, and must not be left further behind.
const UNRECEIPTED_MAX: usize = 1_000;
/// Messages that wait in the transport; what else there is to say stays in the ledger, where it is coalesced.
const OUTGOING_MAX: usize = 4;
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// Short against a lease, so that one failed try does not cost the attempts.
const DELAY_MAX: Duration = Duration::from_secs(3);

/// The worker's end of the stream.
pub(crate) struct Stream {
    pub(crate) bench: Arc<Bench>,
    pub(crate) hello: Hello,
    pub(crate) lease: Lease,
    pub(crate) tasks: Tasks,
    /// No more work is taken.
    pub(crate) draining: CancellationToken,
    /// Not even a receipt is waited for any more.
    pub(crate) give_up: CancellationToken,
    pub(crate) is_connected: watch::Sender<bool>,
    pub(crate) free: Vec<Slot>,
    pub(crate) freed: (mpsc::Sender<Slot>, mpsc::Receiver<Slot>),
    pub(crate) heartbeats: Heartbeats,
}

/// What is true of one connection alone.
struct Connection {
    lease_length: Duration,
    is_heartbeat_due: bool,
    has_said_draining: bool,
    credit: u32,
    assignments_read: u64,
    told_at: Instant,
    /// Until when the outcomes at hand wait for others; none while there are none.
    gathers_until: Option<Instant>,
}

impl Connection {
    /// Until when the outcomes at hand wait for more; none when they are to be sent, or there are none.
    fn gathers_until(&mut self, standing: Standing, now: Instant) -> Option<Instant> {
        if !standing.has_outcomes_to_send {
            self.gathers_until = None;
            return None;
        }
        let until = *self.gathers_until.get_or_insert(now + GATHER);
        (standing.has_running && now < until).then_some(until)
    }

    fn asks_for_work(&self, standing: Standing, draining: &CancellationToken) -> bool {
        self.credit > 0 && standing.unreceipted < UNRECEIPTED_MAX && !draining.is_cancelled()
    }
}

impl Stream {
    /// Keeps a stream open until the worker has drained.
    pub(crate) async fn run(mut self) {
        let mut delay = DELAY_FIRST;
        while !self.is_finished() {
            let was_welcomed = match self.serve().await {
                Ok(()) => continue,
                Err(fail) => {
                    let was_welcomed = self.is_connected.send_replace(false);
                    if fail.kind() == Kind::Unauthenticated {
                        self.bench.credential.forget().await;
                    }
                    tracing::warn!(error = %fail, "the stream to jobs is broken and opened again");
                    was_welcomed
                }
            };
            delay = if was_welcomed { DELAY_FIRST } else { (delay * 2).min(DELAY_MAX) };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = no_longer_needed(&self.draining, &self.give_up, self.bench.ledger.is_empty()) => {}
            }
        }
        self.is_connected.send_replace(false);
    }

    fn is_finished(&self) -> bool {
        self.give_up.is_cancelled() || (self.draining.is_cancelled() && self.bench.ledger.is_empty())
    }

    /// One connection; `Ok` when there is nothing left to do on any.
    async fn serve(&mut self) -> Result<(), Fail> {
        let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
        let hello_at = Instant::now();
        drop(sender.try_send(message(from_worker::Message::Hello(self.hello.clone()))));
        // While a role is away a call waits for it, and a worker that has nothing to tell does not.
        let opened = tokio::select! {
            opened = open(&self.bench, receiver) => opened,
            () = no_longer_needed(&self.draining, &self.give_up, self.bench.ledger.is_empty()) => return Ok(()),
        };
        let (welcome, mut incoming) = opened?;

        let lease_length = seconds(welcome.lease_s).ok_or_else(|| lost("jobs named no lease"))?;
        let heartbeat_every = seconds(welcome.heartbeat_s).unwrap_or(lease_length / 3);
        if !self.bench.ledger.has_running() {
            // What runs already is held by its own heartbeat alone.
            self.lease.renew(hello_at, lease_length);
        }
        self.hello.worker_id = welcome.worker_id;
        self.bench.ledger.reconnected();
        while let Ok(slot) = self.freed.1.try_recv() {
            self.free.push(slot);
        }
        self.is_connected.send_replace(true);
        tracing::info!(worker.id = self.hello.worker_id, "connected to jobs");

        let mut connection = Connection {
            lease_length,
            is_heartbeat_due: true,
            has_said_draining: false,
            credit: u32::try_from(self.free.len()).unwrap_or(u32::MAX),
            assignments_read: 0,
            told_at: hello_at,
            gathers_until: None,
        };
        let mut heartbeat = tokio::time::interval_at(Instant::now() + heartbeat_every, heartbeat_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (draining, give_up, lease) = (self.draining.clone(), self.give_up.clone(), self.lease.clone());
        let ledger = self.bench.ledger.clone();
        let (over, given_up) = (lease.over(), give_up.cancelled());
        tokio::pin!(over, given_up);
        while !self.is_finished() {
            let standing = ledger.standing();
            let now = Instant::now();
            let told_next = connection.told_at + TOLD_EVERY;
            let is_told_due = standing.has_told && told_next <= now;
            let gathers_until = connection.gathers_until(standing, now);
            let is_gathering = gathers_until.is_some();
            let is_due = connection.is_heartbeat_due
                || (standing.has_outcomes_to_send && !is_gathering)
                || is_told_due
                || connection.asks_for_work(standing, &draining);
            tokio::select! {
                permit = sender.reserve(), if is_due => {
                    let permit = permit.map_err(|_| lost("jobs stopped listening"))?;
                    let next = next_message(&mut self.heartbeats, &mut connection, &self.bench, &draining);
                    if let Some(next) = next {
                        permit.send(message(next));
                    }
                }
                incoming = incoming.message() => match incoming?.map(|incoming| incoming.message) {
                    Some(Some(incoming)) => self.take(incoming, &mut connection),
                    // A message that a newer jobs knows.
                    Some(None) => {}
                    None => return Err(lost("jobs closed the stream")),
                },
                // While outcomes gather so do their slots.
                freed = self.freed.1.recv_many(&mut self.free, SLOTS_MAX as usize), if !is_gathering => {
                    connection.credit += u32::try_from(freed).unwrap_or(u32::MAX);
                }
                () = ledger.changed() => {}
                () = tokio::time::sleep_until(told_next), if standing.has_told && !is_told_due => {}
                () = tokio::time::sleep_until(gathers_until.unwrap_or(now)), if is_gathering => {}
                _ = heartbeat.tick() => connection.is_heartbeat_due = true,
                () = draining.cancelled(), if !connection.has_said_draining => {
                    connection.has_said_draining = true;
                    connection.is_heartbeat_due = true;
                }
                () = &mut over => return Err(lost("no heartbeat was answered for a lease")),
                () = &mut given_up => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, incoming: to_worker::Message, connection: &mut Connection) {
        match incoming {
            to_worker::Message::Assign(assign) => {
                for assignment in assign.items {
                    connection.assignments_read += 1;
                    self.assigned(assignment);
                }
            }
            to_worker::Message::Stop(stop) => {
                for stop in stop.items {
                    self.stop(stop);
                }
            }
            to_worker::Message::Receipt(receipt) => self.bench.ledger.receipt(&receipt),
            to_worker::Message::Renewed(renewed) => {
                if let Some(sent_at) = self.heartbeats.answered(renewed.sequence) {
                    self.lease.renew(sent_at, connection.lease_length);
                }
            }
            to_worker::Message::Welcome(_) => tracing::warn!("jobs welcomed the worker twice"),
        }
    }

    fn assigned(&mut self, assignment: Assignment) {
        let Some(attempt) = assignment.attempt.clone() else {
            tracing::warn!("jobs assigned an attempt without saying which");
            return;
        };
        let Some(orders) = self.bench.ledger.begin(&attempt) else { return };
        let slot = if self.draining.is_cancelled() { None } else { self.free.pop() };
        let Some(slot) = slot else {
            // It crossed the word of the drain on its way, or is more than there was credit for.
            self.bench.ledger.end(&attempt, End::Interrupted(Interrupted {}));
            return;
        };
        let (bench, freed) = (self.bench.clone(), self.freed.0.clone());
        // Boxed, as a task's wrappers have room for it twice each.
        let attempt = Box::pin(async move {
            let slot = bench.attempt(assignment, orders, slot).await;
            // Nobody takes it once the worker has ended.
            drop(freed.send(slot).await);
        });
        self.tasks.detach("worker.attempt", attempt);
    }

    fn stop(&self, stop: StopAttempt) {
        let Some(attempt) = stop.attempt else { return };
        let why = match stop.why.as_str() {
            "fenced" => Why::Fenced,
            "timeout" => Why::Timeout,
            _ => Why::Cancel,
        };
        let grace = Duration::try_from_secs_f64(stop.grace_s).unwrap_or(self.bench.grace);
        self.bench.ledger.order(&attempt, Order { why, grace });
    }
}

/// What is to be said next: first that the worker lives, then what has happened, then that there is room.
fn next_message(
    heartbeats: &mut Heartbeats,
    connection: &mut Connection,
    bench: &Bench,
    draining: &CancellationToken,
) -> Option<from_worker::Message> {
    if std::mem::take(&mut connection.is_heartbeat_due) {
        return Some(from_worker::Message::Heartbeat(Heartbeat {
            holding: bench.ledger.holding(),
            draining: draining.is_cancelled(),
            sequence: heartbeats.next(),
            assignments_read: connection.assignments_read,
        }));
    }
    if let Some(report) = bench.ledger.take_report() {
        connection.told_at = Instant::now();
        return Some(from_worker::Message::Report(report));
    }
    let asks = connection.asks_for_work(bench.ledger.standing(), draining);
    asks.then(|| from_worker::Message::Credit(Credit { slots: std::mem::take(&mut connection.credit) }))
}

/// Opens a stream that says `said`, a hello first, and is welcomed.
async fn open(bench: &Bench, said: mpsc::Receiver<FromWorker>) -> Result<(Welcome, Streaming<ToWorker>), Fail> {
    let call = bench.credential.call("worker").await?;
    let mut client = WorkersClient::new(bench.jobs.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut incoming = within(client.work(call.request(ReceiverStream::new(said)))).await??.into_inner();
    match within(incoming.message()).await?? {
        Some(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) }) => Ok((welcome, incoming)),
        _ => Err(lost("jobs did not welcome the worker")),
    }
}

/// Ends when a stream that is not open need not be opened any more. What has to be told keeps until there is one, so that
/// it is looked at once.
async fn no_longer_needed(draining: &CancellationToken, give_up: &CancellationToken, has_nothing_to_tell: bool) {
    tokio::select! {
        () = give_up.cancelled() => {}
        () = draining.cancelled(), if has_nothing_to_tell => {}
    }
}

fn message(message: from_worker::Message) -> FromWorker {
    FromWorker { message: Some(message) }
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|length| !length.is_zero())
}

fn lost(why: &'static str) -> Fail {
    Fail::unavailable("worker.stream_lost", "The stream to jobs is broken.").caused_by(why)
}

async fn within<T>(answer: impl Future<Output = T>) -> Result<T, Fail> {
    tokio::time::timeout(OPEN_WITHIN, answer).await.map_err(|_| lost("jobs did not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Standing =
        Standing { has_running: false, has_outcomes_to_send: false, has_told: false, unreceipted: 0 };

    fn connection(credit: u32) -> Connection {
        Connection {
            lease_length: Duration::from_secs(30),
            is_heartbeat_due: false,
            has_said_draining: false,
            credit,
            assignments_read: 0,
            told_at: Instant::now(),
            gathers_until: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outcome_waits_a_moment_for_others_and_the_last_for_nothing() {
        let mut connection = connection(0);
        let ended = Standing { has_outcomes_to_send: true, ..QUIET };
        let begun = Instant::now();
        assert_eq!(connection.gathers_until(ended, begun), None);
        let others_run = Standing { has_running: true, ..ended };
        assert_eq!(connection.gathers_until(QUIET, begun), None);
        assert_eq!(connection.gathers_until(others_run, begun), Some(begun + GATHER));
        // What joins does not make the first wait longer.
        assert_eq!(connection.gathers_until(others_run, begun + GATHER / 2), Some(begun + GATHER));
        assert_eq!(connection.gathers_until(others_run, begun + GATHER), None);
        // Sent: the next is the first of others.
        assert_eq!(connection.gathers_until(QUIET, begun + GATHER), None);
        assert_eq!(connection.gathers_until(others_run, begun + GATHER), Some(begun + GATHER * 2));
    }

    #[tokio::test]
    async fn a_worker_asks_for_no_more_while_jobs_owes_it_receipts() {
        let draining = CancellationToken::new();
        let behind = Standing { unreceipted: UNRECEIPTED_MAX, ..QUIET };
        assert!(connection(1).asks_for_work(QUIET, &draining));
        assert!(!connection(0).asks_for_work(QUIET, &draining));
        assert!(!connection(1).asks_for_work(behind, &draining));
        assert!(connection(1).asks_for_work(Standing { unreceipted: UNRECEIPTED_MAX - 1, ..QUIET }, &draining));
        draining.cancel();
        assert!(!connection(1).asks_for_work(QUIET, &draining));
    }
}
