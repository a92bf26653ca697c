//! What a worker holds: attempts that run, what they told, and outcomes that no receipt has named yet. It outlives every
//! connection; the stream only carries its content over.
//!
//! Fencing is removal: an attempt that is not in the ledger any more cannot tell or report anything, however long its
//! code takes to die.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prost::Message as _;
use proto::worker::{AttemptRef, LogEntry, Outcome, ProgressUpdate, Receipt, Report, outcome::End};
use tokio::sync::{Notify, watch};

/// Log lines kept while they cannot be sent; over it, lines are counted and dropped.
const LOGS_MAX: usize = 4_096;
/// Stages whose progress is kept for one attempt between two reports; over it, the oldest goes.
const STAGES_MAX: usize = 16;
/// One report stays well below what a server takes in one message.
const REPORT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why an attempt is to end, the weaker first: a stronger order takes the place of a weaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// The worker is stopping: give the attempt back.
    Drain,
    /// Its time is over.
    Timeout,
    /// Somebody asked.
    Cancel,
    /// It does not count any more.
    Fenced,
}

/// An order to end an attempt: ask, wait for `grace`, kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) why: Why,
    pub(crate) grace: Duration,
}

pub(crate) type Orders = watch::Receiver<Option<Order>>;

/// The ledger of one worker. Cheap to clone; clones are the same ledger.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// For the stream: there is something to send, or nothing is left.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<AttemptRef, watch::Sender<Option<Order>>>,
    /// The last of each stage, by attempt, in the order in which they came.
    progress: HashMap<AttemptRef, VecDeque<ProgressUpdate>>,
    logs: VecDeque<LogEntry>,
    logs_dropped: u64,
    outcomes: HashMap<AttemptRef, Outcome>,
    /// Keys of `outcomes` that were not sent on the present stream.
    unsent: VecDeque<AttemptRef>,
}

/// How a ledger stands at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) has_running: bool,
    /// Outcomes that were not sent on the present stream.
    pub(crate) has_outcomes_to_send: bool,
    /// Progress or log lines.
    pub(crate) has_told: bool,
    /// Outcomes that no receipt has named yet.
    pub(crate) unreceipted: usize,
}

impl Ledger {
    /// Enters an attempt; its orders, or `None` when it runs here already.
    pub(crate) fn begin(&self, attempt: &AttemptRef) -> Option<Orders> {
        let mut state = self.0.state.lock();
        if state.running.contains_key(attempt) || state.outcomes.contains_key(attempt) {
            return None;
        }
        let (sender, orders) = watch::channel(None);
        state.running.insert(attempt.clone(), sender);
        Some(orders)
    }

    /// Orders a running attempt to end. `Fenced` also takes it out of the ledger.
    pub(crate) fn order(&self, attempt: &AttemptRef, order: Order) {
        let mut state = self.0.state.lock();
        state.give(attempt, order);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Orders every running attempt to end.
    pub(crate) fn order_all(&self, order: Order) {
        let mut state = self.0.state.lock();
        for attempt in state.running.keys().cloned().collect::<Vec<_>>() {
            state.give(&attempt, order);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Ends an attempt. Whether its outcome was taken: that of a fenced attempt is not.
    pub(crate) fn end(&self, attempt: &AttemptRef, end: End) -> bool {
        let mut state = self.0.state.lock();
        let is_held = state.running.remove(attempt).is_some();
        if is_held {
            let outcome = Outcome { attempt: Some(attempt.clone()), end: Some(end) };
            state.outcomes.insert(attempt.clone(), outcome);
            state.unsent.push_back(attempt.clone());
        }
        // Those in between go with the first, which the stream knows of, or with the last, which it waits for.
        let is_news = state.unsent.len() <= 1 || state.running.is_empty();
        drop(state);
        if is_news {
            self.0.changed.notify_one();
        }
        is_held
    }

    pub(crate) fn progress(&self, attempt: &AttemptRef, percent: f64, stage: String, message: String) {
        let mut state = self.0.state.lock();
        if !state.running.contains_key(attempt) {
            return;
        }
        let kept = state.progress.entry(attempt.clone()).or_default();
        match kept.back_mut() {
            Some(last) if last.stage == stage => {
                last.percent = percent;
                last.message = message;
            }
            _ => {
                if kept.len() == STAGES_MAX {
                    kept.pop_front();
                }
                kept.push_back(ProgressUpdate { attempt: Some(attempt.clone()), percent, stage, message });
            }
        }
        drop(state);
        self.0.changed.notify_one();
    }

    pub(crate) fn log(&self, attempt: &AttemptRef, entry: LogEntry) {
        let mut state = self.0.state.lock();
        if !state.running.contains_key(attempt) {
            return;
        }
        if state.logs.len() == LOGS_MAX {
            state.logs_dropped += 1;
        } else {
            state.logs.push_back(entry);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Forgets outcomes that a receipt names. The refused ones.
    pub(crate) fn receipt(&self, receipt: &Receipt) {
        let mut state = self.0.state.lock();
        for attempt in receipt.accepted.iter().chain(&receipt.refused) {
            state.outcomes.remove(attempt);
        }
        drop(state);
        for attempt in &receipt.refused {
            tracing::warn!(job.id = attempt.job_id, job.token = attempt.token, "a late outcome was refused");
        }
        self.0.changed.notify_one();
    }

    /// A new stream stands: what the last one carried and nobody confirmed goes out again.
    pub(crate) fn reconnected(&self) {
        let mut state = self.0.state.lock();
        state.unsent = state.outcomes.keys().cloned().collect();
    }

    /// Every attempt the worker answers for: running, or ended and not receipted.
    pub(crate) fn holding(&self) -> Vec<AttemptRef> {
        let state = self.0.state.lock();
        state.running.keys().chain(state.outcomes.keys()).cloned().collect()
    }

    pub(crate) fn has_running(&self) -> bool {
        !self.0.state.lock().running.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.0.state.lock();
        state.running.is_empty() && state.outcomes.is_empty()
    }

    /// What there is to send, and what is still to come.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.0.state.lock();
        Standing {
            has_running: !state.running.is_empty(),
            has_outcomes_to_send: !state.unsent.is_empty(),
            has_told: !state.progress.is_empty() || !state.logs.is_empty(),
            unreceipted: state.outcomes.len(),
        }
    }

    /// What is to be sent, up to one message's worth; `None` when nothing is. What an attempt told goes before its outcome.
    pub(crate) fn take_report(&self) -> Option<Report> {
        let mut state = self.0.state.lock();
        let mut report = Report::default();
        let mut bytes = 0;
        report.progress.extend(state.progress.drain().flat_map(|(_, updates)| updates));
        if state.logs_dropped > 0
            && let Some(last) = state.logs.back().cloned()
        {
            let message = format!("{} lines were dropped: too many at once", state.logs_dropped);
            state.logs.push_back(LogEntry { level: "warn".to_owned(), message, ..last });
            state.logs_dropped = 0;
        }
        while bytes < REPORT_BYTES_MAX
            && let Some(entry) = state.logs.pop_front()
        {
            bytes += entry.encoded_len();
            report.logs.push(entry);
        }
        while bytes < REPORT_BYTES_MAX
            && let Some(attempt) = state.unsent.pop_front()
        {
            if let Some(outcome) = state.outcomes.get(&attempt) {
                bytes += outcome.encoded_len();
                report.outcomes.push(outcome.clone());
            }
        }
        (report != Report::default()).then_some(report)
    }

    /// Waits until something has changed since the last call.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl State {
    fn give(&mut self, attempt: &AttemptRef, order: Order) {
        if let Some(sender) = self.running.get(attempt) {
            sender.send_if_modified(|present| {
                let is_stronger = present.is_none_or(|present| order.why > present.why);
                if is_stronger {
                    *present = Some(order);
                }
                is_stronger
            });
        }
        if order.why == Why::Fenced {
            self.running.remove(attempt);
            self.outcomes.remove(attempt);
            self.progress.remove(attempt);
            self.logs.retain(|entry| entry.attempt.as_ref() != Some(attempt));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proto::worker::Stopped;

    use super::*;

    fn attempt(token: u64) -> AttemptRef {
        AttemptRef { job_id: "job".to_owned(), token }
    }

    const FENCED: Order = Order { why: Why::Fenced, grace: Duration::ZERO };
    const CANCEL: Order = Order { why: Why::Cancel, grace: Duration::from_secs(1) };
    const DRAIN: Order = Order { why: Why::Drain, grace: Duration::from_secs(2) };

    #[test]
    fn an_outcome_goes_out_again_on_every_stream_until_a_receipt_names_it() {
        let ledger = Ledger::default();
        let _orders = ledger.begin(&attempt(1));
        assert!(ledger.end(&attempt(1), End::Stopped(Stopped {})));
        assert_eq!(ledger.take_report().expect("an outcome").outcomes.len(), 1);
        assert_eq!(ledger.take_report(), None);
        ledger.reconnected();
        assert_eq!(ledger.take_report().expect("it again").outcomes.len(), 1);
        assert_eq!(ledger.holding(), [attempt(1)]);
        ledger.receipt(&Receipt { accepted: vec![attempt(1)], refused: vec![] });
        ledger.reconnected();
        assert_eq!(ledger.take_report(), None);
        assert!(ledger.is_empty());
    }

    #[test]
    fn the_stream_is_woken_for_the_first_outcome_and_when_nothing_runs_any_more() {
        let ledger = Ledger::default();
        let orders: Vec<_> = (1..=4).map(|token| ledger.begin(&attempt(token))).collect();
        let ends = |token| {
            assert!(ledger.end(&attempt(token), End::Stopped(Stopped {})));
            ledger.changed().now_or_never().is_some()
        };
        assert_eq!([1, 2, 3, 4].map(ends), [true, false, false, true]);
        assert_eq!(ledger.take_report().expect("outcomes").outcomes.len(), 4);
        drop(orders);
    }

    #[test]
    fn a_fenced_attempt_can_neither_tell_nor_report() {
        let ledger = Ledger::default();
        let orders = ledger.begin(&attempt(1)).expect("it is new");
        ledger.progress(&attempt(1), 5.0, "decode".to_owned(), String::new());
        ledger.order(&attempt(1), FENCED);
        assert_eq!(*orders.borrow(), Some(FENCED));
        ledger.progress(&attempt(1), 6.0, "decode".to_owned(), String::new());
        assert!(!ledger.end(&attempt(1), End::Stopped(Stopped {})));
        assert_eq!(ledger.take_report(), None);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_stronger_order_takes_the_place_of_a_weaker_and_never_the_other_way() {
        let ledger = Ledger::default();
        let orders = ledger.begin(&attempt(1)).expect("it is new");
        ledger.order_all(DRAIN);
        ledger.order(&attempt(1), CANCEL);
        assert_eq!(*orders.borrow(), Some(CANCEL));
        ledger.order_all(DRAIN);
        assert_eq!(*orders.borrow(), Some(CANCEL));
    }

    #[test]
    fn progress_keeps_the_last_of_each_stage_in_order() {
        let ledger = Ledger::default();
        let _orders = ledger.begin(&attempt(1));
        for (percent, stage) in [(1.0, "decode"), (2.0, "decode"), (3.0, "mesh"), (4.0, "mesh")] {
            ledger.progress(&attempt(1), percent, stage.to_owned(), String::new());
        }
        let sent = ledger.take_report().expect("progress").progress;
        let sent: Vec<_> = sent.iter().map(|update| (update.percent, update.stage.as_str())).collect();
        assert_eq!(sent, [(2.0, "decode"), (4.0, "mesh")]);
    }

    #[test]
    fn a_flood_of_log_lines_is_bounded_and_says_what_it_lost() {
        let ledger = Ledger::default();
        let _orders = ledger.begin(&attempt(1));
        for _ in 0..LOGS_MAX + 7 {
            ledger.log(&attempt(1), LogEntry { attempt: Some(attempt(1)), ..LogEntry::default() });
        }
        let logs = ledger.take_report().expect("logs").logs;
        assert_eq!(logs.len(), LOGS_MAX + 1);
        assert!(logs[LOGS_MAX].message.starts_with("7 lines"));
    }
}
