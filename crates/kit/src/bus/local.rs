//! The bus within one process. Publishing an event runs the handler of every consumer that wants it, in the consumer's own
//! transaction, and the event is confirmed when all of them are done: what a crash interrupts is still in the outbox.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Consumer, Event, Message, OnParked, Parked, Published, State, unavailable};
use crate::{
    Fail,
    inbox::{Inbox, Refused, Taken},
    tasks::Tasks,
};

#[derive(Debug)]
pub(super) struct Local {
    listeners: RwLock<Listeners>,
    /// Told when one has come.
    attached: watch::Sender<()>,
    keeper: watch::Sender<Option<Keeper>>,
    state: watch::Sender<State>,
    /// Set when the first consumer was asked to stop: from then on nothing is taken any more.
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Listeners {
    /// Those that are to come: what one of them wants waits for it.
    awaited: Vec<Consumer>,
    here: Vec<Arc<Subscription>>,
}

impl Listeners {
    fn is_awaited(&self, kind: &str) -> bool {
        self.awaited.iter().any(|consumer| consumer.wants(kind))
    }
}

/// Whoever keeps what is parked.
#[derive(Clone)]
struct Keeper(OnParked);

#[derive(Debug)]
struct Subscription {
    inbox: Arc<Inbox>,
    /// What is published before the consumer has caught up waits for it.
    has_caught_up: watch::Sender<bool>,
    /// Held while the consumer takes an event: one at a time, as from a queue.
    turn: Mutex<()>,
    stopping: CancellationToken,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            listeners: RwLock::default(),
            attached: watch::Sender::new(()),
            keeper: watch::Sender::new(None),
            state: watch::Sender::new(State::Connected),
            closed: CancellationToken::new(),
        }
    }
}

impl Local {
    /// A bus on which these are going to listen.
    pub(super) fn awaiting(consumers: &[Consumer]) -> Self {
        let listeners = Listeners { awaited: consumers.to_vec(), here: Vec::new() };
        Self { listeners: RwLock::new(listeners), ..Self::default() }
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn on_parked(&self, on_parked: OnParked) {
        self.keeper.send_replace(Some(Keeper(on_parked)));
    }

    pub(super) fn attach(self: &Arc<Self>, inbox: Arc<Inbox>, tasks: &Tasks) {
        let subscription = Arc::new(Subscription {
            inbox,
            has_caught_up: watch::Sender::new(false),
            turn: Mutex::default(),
            stopping: tasks.stopping(),
        });
        {
            let mut listeners = self.listeners.write();
            listeners.awaited.retain(|consumer| consumer.name != subscription.inbox.consumer().name);
            listeners.here.push(Arc::clone(&subscription));
        }
        self.attached.send_replace(());
        let (bus, stopping) = (Arc::clone(self), tasks.stopping());
        tasks.detach("bus.close", async move {
            stopping.cancelled().await;
            bus.close();
        });
        tasks.spawn_restarting("bus.catch_up", move || {
            let subscription = Arc::clone(&subscription);
            async move {
                subscription.inbox.enroll(false).await?;
                if subscription.inbox.catch_up(&subscription.stopping).await? {
                    subscription.has_caught_up.send_replace(true);
                }
                Ok(())
            }
        });
    }

    /// Lets go of everybody who listens. They hold services, which may hold the bus, and those end only once nobody holds
    /// them any more.
    fn close(&self) {
        self.closed.cancel();
        *self.listeners.write() = Listeners::default();
        self.keeper.send_replace(None);
    }

    pub(super) fn may_be_taken(&self, kind: &str) -> bool {
        let listeners = self.listeners.read();
        let is_wanted = || listeners.here.iter().any(|subscription| subscription.inbox.consumer().wants(kind));
        // With nobody left it is not known any more, and publishing will say so.
        self.closed.is_cancelled() || listeners.is_awaited(kind) || is_wanted()
    }

    /// One after the other. A consumer that cannot take an event now holds everything behind it, as a queue would.
    pub(super) async fn publish(&self, messages: &[Message]) -> Published {
        let mut confirmed = vec![false; messages.len()];
        for (message, is_confirmed) in messages.iter().zip(&mut confirmed) {
            if let Err(fail) = self.deliver(message).await {
                return Published { confirmed, fail: Some(fail) };
            }
            *is_confirmed = true;
        }
        Published { confirmed, fail: None }
    }

    async fn deliver(&self, message: &Message) -> Result<(), Fail> {
        for subscription in self.wanting(&message.kind).await? {
            let mut has_caught_up = subscription.has_caught_up.subscribe();
            tokio::select! {
                _ = has_caught_up.wait_for(|is| *is) => {}
                () = subscription.stopping.cancelled() => return Err(stopped()),
            }
            let _turn = subscription.turn.lock().await;
            match subscription.inbox.take(&message.body, Some(message.generation), &subscription.stopping).await {
                Taken::Done => {}
                Taken::Stopped => return Err(stopped()),
                Taken::Never(reason) => self.park(&subscription, &message.kind, &message.body, reason).await?,
            }
        }
        Ok(())
    }

    /// Who wants events of this type, once everybody who is to come and does is here.
    async fn wanting(&self, kind: &str) -> Result<Vec<Arc<Subscription>>, Fail> {
        let mut attached = self.attached.subscribe();
        loop {
            {
                let listeners = self.listeners.read();
                // Looked at under the lock: with nobody left to take it, an event would pass for taken by all.
                if self.closed.is_cancelled() {
                    return Err(stopped());
                }
                if !listeners.is_awaited(kind) {
                    let wants = |subscription: &&Arc<Subscription>| subscription.inbox.consumer().wants(kind);
                    return Ok(listeners.here.iter().filter(wants).cloned().collect());
                }
            }
            tokio::select! {
                _ = attached.changed() => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    pub(super) async fn send_to(&self, consumer: &str, event: &Bytes) -> Result<(), Fail> {
        let found = self.listeners.read().here.iter().find(|s| s.inbox.consumer().name == consumer).cloned();
        let subscription = found.ok_or_else(|| unavailable("The consumer is not there."))?;
        let _turn = subscription.turn.lock().await;
        match subscription.inbox.take_once(event, None).await {
            Ok(()) => Ok(()),
            Err(Refused::Later(fail)) => Err(unavailable("The consumer cannot take it now.").caused_by(fail)),
            Err(Refused::Never(reason)) => {
                let kind = Event::from_bytes(event).map(|event| event.kind).unwrap_or_default();
                self.park(&subscription, &kind, event, reason).await
            }
        }
    }

    /// Parked is what someone keeps: until then the event is not done.
    async fn park(&self, from: &Subscription, kind: &str, event: &Bytes, reason: String) -> Result<(), Fail> {
        let parked = Parked {
            consumer: from.inbox.consumer().name.to_owned(),
            reason,
            kind: kind.to_owned(),
            event: event.clone(),
        };
        let mut keeper = self.keeper.subscribe();
        let keeper = tokio::select! {
            keeper = keeper.wait_for(Option::is_some) => keeper.ok().and_then(|keeper| keeper.clone()),
            () = from.stopping.cancelled() => None,
        };
        let Some(Keeper(keep)) = keeper else { return Err(stopped()) };
        keep(parked).await.inspect_err(|fail| warn!(error = %fail, "a parked event could not be kept"))
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

fn stopped() -> Fail {
    unavailable("The process stops.")
}
