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
    ledger::{Order, Why},
    slot::Slot,
};

/// How long `jobs` may take to open a stream and to welcome.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// What is told goes out at most this often; outcomes at once.
const TOLD_EVERY: Duration = Duration::from_millis(50);
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
        };
        let mut heartbeat = tokio::time::interval_at(Instant::now() + heartbeat_every, heartbeat_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (draining, give_up, lease) = (self.draining.clone(), self.give_up.clone(), self.lease.clone());
        let ledger = self.bench.ledger.clone();
        while !self.is_finished() {
            let told_next = connection.told_at + TOLD_EVERY;
            let has_told = ledger.has_told();
            let is_told_due = has_told && told_next <= Instant::now();
            let is_due = connection.is_heartbeat_due
                || ledger.has_outcomes_to_send()
                || is_told_due
                || (connection.credit > 0 && !draining.is_cancelled());
            tokio::select! {
                permit = sender.reserve(), if is_due => {
                    let permit = permit.map_err(|_| lost("jobs stopped listening"))?;
                    if let Some(next) = next_message(&mut self.heartbeats, &mut connection, &self.bench, &draining) {
                        permit.send(message(next));
                    }
                }
                incoming = incoming.message() => match incoming?.map(|incoming| incoming.message) {
                    Some(Some(incoming)) => self.take(incoming, &mut connection),
                    // A message that a newer jobs knows.
                    Some(None) => {}
                    None => return Err(lost("jobs closed the stream")),
                },
                Some(slot) = self.freed.1.recv() => {
                    self.free.push(slot);
                    connection.credit += 1;
                }
                () = ledger.changed() => {}
                () = tokio::time::sleep_until(told_next), if has_told && !is_told_due => {}
                _ = heartbeat.tick() => connection.is_heartbeat_due = true,
                () = draining.cancelled(), if !connection.has_said_draining => {
                    connection.has_said_draining = true;
                    connection.is_heartbeat_due = true;
                }
                () = lease.over() => return Err(lost("no heartbeat was answered for a lease")),
                () = give_up.cancelled() => {}
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
        self.tasks.detach("worker.attempt", async move {
            let slot = Box::pin(bench.attempt(assignment, orders, slot)).await;
            // Nobody takes it once the worker has ended.
            drop(freed.send(slot).await);
        });
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
    match std::mem::take(&mut connection.credit) {
        0 => None,
        _ if draining.is_cancelled() => None,
        slots => Some(from_worker::Message::Credit(Credit { slots })),
    }
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
