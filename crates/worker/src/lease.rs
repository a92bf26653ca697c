//! The worker's own view of its lease. It counts from the moment at which the worker sent the heartbeat that `jobs` made
//! durable, so that the worker's lease always ends before the one in the database, and acts a margin before that.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::ledger::{Ledger, Order, Why};

/// Heartbeats that may be unanswered at a time; older ones can no longer renew anything worth having.
const SENT_MAX: usize = 64;
/// The share of a lease that is left for ending attempts.
const MARGIN: u32 = 6;

/// Knows when the worker must have ended its attempts. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lease(watch::Sender<Option<Instant>>);

impl Default for Lease {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Lease {
    /// The lease holds for `length` from `since`. It is never shortened.
    pub(crate) fn renew(&self, since: Instant, length: Duration) {
        let ends = since + (length - length / MARGIN);
        self.0.send_if_modified(|present| {
            let is_later = present.is_none_or(|present| ends > present);
            if is_later {
                *present = Some(ends);
            }
            is_later
        });
    }

    /// Waits until the lease is over; for ever while there has been none.
    pub(crate) async fn over(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let ends = *changes.borrow_and_update();
            let over = async {
                match ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender is `self`, so a change is the only way this ends.
                _ = changes.changed() => {}
            }
        }
    }

    /// Ends every attempt whenever the lease is over, for as long as it is polled. Apart from the stream, so that a
    /// stream that hangs cannot hold it up.
    pub(crate) async fn guard(self, ledger: Ledger) {
        let mut changes = self.0.subscribe();
        loop {
            self.over().await;
            changes.mark_unchanged();
            if ledger.has_running() {
                tracing::warn!("no heartbeat was answered for a lease: every running attempt is ended");
                ledger.order_all(Order { why: Why::Fenced, grace: Duration::ZERO });
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Heartbeats on their way, and when they left.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    last: u64,
    sent: VecDeque<(u64, Instant)>,
}

impl Heartbeats {
    /// The sequence of a heartbeat that is sent now.
    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last, Instant::now()));
        self.last
    }

    /// When the heartbeat with this sequence was sent; it and the ones before it are forgotten.
    pub(crate) fn answered(&mut self, sequence: u64) -> Option<Instant> {
        let mut found = None;
        while let Some(&(earlier, at)) = self.sent.front()
            && earlier <= sequence
        {
            self.sent.pop_front();
            found = (earlier == sequence).then_some(at);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::worker::AttemptRef;

    const LENGTH: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn attempts_end_before_the_lease_that_counts_from_the_answered_heartbeat() {
        let (lease, ledger) = (Lease::default(), Ledger::default());
        let attempt = AttemptRef { job_id: "job".to_owned(), token: 1 };
        let mut orders = ledger.begin(&attempt).expect("it is new");
        let mut heartbeats = Heartbeats::default();
        let guard = lease.clone().guard(ledger.clone());
        tokio::pin!(guard);

        let sent_at = Instant::now();
        let sequence = heartbeats.next();
        // The answer is slow; that does not lengthen the lease.
        tokio::time::advance(Duration::from_secs(10)).await;
        lease.renew(heartbeats.answered(sequence).expect("it was sent"), LENGTH);
        tokio::select! {
            () = &mut guard => panic!("it guards for ever"),
            ended = orders.wait_for(Option::is_some) => assert!(ended.is_ok()),
        }
        assert!(sent_at.elapsed() >= LENGTH - LENGTH / 5 && sent_at.elapsed() < LENGTH);
        assert!(ledger.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answered_heartbeat_holds_the_attempts_on() {
        let (lease, ledger) = (Lease::default(), Ledger::default());
        let _orders = ledger.begin(&AttemptRef::default());
        lease.renew(Instant::now(), LENGTH);
        let beats = async {
            for _ in 0..10 {
                tokio::time::sleep(LENGTH / 3).await;
                lease.renew(Instant::now(), LENGTH);
            }
        };
        tokio::select! {
            () = lease.clone().guard(ledger.clone()) => {}
            () = beats => {}
        }
        assert!(ledger.has_running());
    }

    #[test]
    fn only_a_heartbeat_that_was_sent_can_be_answered() {
        let mut heartbeats = Heartbeats::default();
        let (first, second) = (heartbeats.next(), heartbeats.next());
        assert_eq!(heartbeats.answered(second + 5), None);
        let (third, _) = (heartbeats.next(), first);
        assert!(heartbeats.answered(third).is_some());
        assert_eq!(heartbeats.answered(third), None);
    }
}
