//! Ends an attempt that does not end by itself: ask, wait for the grace, then let it go. What "ask" and "let go" mean is
//! up to the body: a task in the process is dropped where it awaits, a child is killed by its owner.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Ending, Failure,
    ledger::{Order, Orders, Why},
};

/// How a supervised body came to its end.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    /// What the task said; `None` when it had to be let go.
    pub(crate) said: Option<Result<Ending, Failure>>,
    /// What it had been ordered to end for, if it had.
    pub(crate) why: Option<Why>,
}

/// Runs `body` until it ends, its time is over, or an order ends it. `stop` is how the body is asked.
pub(crate) async fn supervise(
    body: impl Future<Output = Result<Ending, Failure>>,
    stop: &CancellationToken,
    mut orders: Orders,
    timeout: Duration,
    grace: Duration,
) -> Verdict {
    tokio::pin!(body);
    let mut order: Option<Order> = None;
    let mut act_at = Instant::now() + timeout;
    loop {
        tokio::select! {
            biased;
            said = &mut body => return Verdict { said: Some(said), why: order.map(|order| order.why) },
            // The ledger forgets a fenced attempt right after the order, which stays to be read.
            Ok(()) = orders.changed() => {
                let Some(given) = *orders.borrow_and_update() else { continue };
                let kill_at = Instant::now() + given.grace;
                // A second order does not lengthen the grace of the first.
                act_at = if order.is_some() { act_at.min(kill_at) } else { kill_at };
                order = Some(given);
            }
            () = tokio::time::sleep_until(act_at) => {
                match order {
                    Some(order) => return Verdict { said: None, why: Some(order.why) },
                    None => {
                        order = Some(Order { why: Why::Timeout, grace });
                        act_at = Instant::now() + grace;
                    }
                }
            }
        }
        match order {
            Some(Order { why: Why::Fenced, .. }) => return Verdict { said: None, why: Some(Why::Fenced) },
            Some(_) => stop.cancel(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::future::pending;
    use tokio::sync::watch;

    const MINUTE: Duration = Duration::from_secs(60);
    const GRACE: Duration = Duration::from_secs(5);

    fn done() -> Result<Ending, Failure> {
        Ok(Ending::Done(Value::Null))
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_over_its_time_is_asked_and_then_let_go() {
        let (_sender, orders) = watch::channel(None);
        let stop = CancellationToken::new();
        let started = Instant::now();
        let verdict = supervise(pending(), &stop, orders, MINUTE, GRACE).await;
        assert_eq!(verdict, Verdict { said: None, why: Some(Why::Timeout) });
        assert!(stop.is_cancelled());
        assert_eq!(started.elapsed(), MINUTE + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_obeys_ends_within_its_grace() {
        let (sender, orders) = watch::channel(None);
        let stop = CancellationToken::new();
        let body = async {
            stop.cancelled().await;
            Err(Failure::Stopped)
        };
        sender.send_replace(Some(Order { why: Why::Cancel, grace: GRACE }));
        let verdict = supervise(body, &stop, orders, MINUTE, GRACE).await;
        assert_eq!(verdict, Verdict { said: Some(Err(Failure::Stopped)), why: Some(Why::Cancel) });
    }

    #[tokio::test(start_paused = true)]
    async fn a_fenced_task_is_let_go_at_once_even_within_a_grace() {
        let (sender, orders) = watch::channel(Some(Order { why: Why::Cancel, grace: MINUTE }));
        let stop = CancellationToken::new();
        sender.send_replace(Some(Order { why: Why::Fenced, grace: Duration::ZERO }));
        drop(sender);
        let started = Instant::now();
        let verdict = supervise(pending(), &stop, orders, MINUTE, GRACE).await;
        assert_eq!(verdict, Verdict { said: None, why: Some(Why::Fenced) });
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_order_does_not_lengthen_the_grace_of_the_first() {
        let (sender, orders) = watch::channel(None);
        let stop = CancellationToken::new();
        sender.send_replace(Some(Order { why: Why::Drain, grace: GRACE }));
        let started = Instant::now();
        let later = async {
            stop.cancelled().await;
            sender.send_replace(Some(Order { why: Why::Cancel, grace: MINUTE }));
            pending().await
        };
        let verdict = supervise(later, &stop, orders, MINUTE, GRACE).await;
        assert_eq!(verdict, Verdict { said: None, why: Some(Why::Cancel) });
        assert_eq!(started.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_was_ordered_nothing() {
        let (_sender, orders) = watch::channel(None);
        let verdict = supervise(async { done() }, &CancellationToken::new(), orders, MINUTE, GRACE).await;
        assert_eq!(verdict, Verdict { said: Some(done()), why: None });
    }
}
