//! The bus: what happened in one service, on its way to the others. Two implementations, one for many processes over
//! RabbitMQ and one within a process, behind one suite of tests (`crates/kit/tests/bus`).
//!
//! What both promise: an event that was published arrives at every consumer that wants its type at least once, and for
//! one subject in the order it was written in. What a consumer cannot handle is parked with the reason, and never dropped.
//! Effects happen once because a consumer keeps the ids of what it has handled ([`crate::inbox`]); nothing is lost on
//! the way in because a producer keeps what it has not seen confirmed ([`crate::outbox`]). The bus itself stores nothing
//! in a database, and knows no event by name.

mod event;
mod local;
mod rabbitmq;
mod types;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{Fail, Secret, inbox::Inbox, tasks::Tasks};

pub use event::Event;
pub use types::{matches, sql_pattern};

/// Who wants which events. A constant of the service that consumes; the door lists all of an installation's, so that
/// every process knows which events someone must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// Its queue is `guildhall.<name>`: lower case letters, digits, dots and dashes. It is never changed.
    pub name: &'static str,
    /// Types as in a topic binding: `*` stands for one word, `#` for any number of them. A type may be added; one that
    /// is taken away stays bound, and what comes of it is parked until an operator removes the binding.
    pub types: &'static [&'static str],
}

impl Consumer {
    /// Whether it asked for events of the type `kind`.
    pub fn wants(&self, kind: &str) -> bool {
        self.types.iter().any(|pattern| matches(pattern, kind))
    }
}

/// One event ready for the bus, as the outbox hands it over.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: Uuid,
    pub kind: String,
    /// Events of one subject are sent one after another.
    pub subject: String,
    /// The encoded CloudEvent.
    pub body: Bytes,
    /// How often the producer had been asked to send again when this was read; see [`crate::inbox`].
    pub generation: i64,
}

/// What came of publishing some messages.
#[derive(Debug)]
pub struct Published {
    /// For each message, in order, whether whoever must get it has it. After one that is not confirmed, no later one of
    /// its subject is: it was not even sent.
    pub confirmed: Vec<bool>,
    /// Why one was not, when one was not.
    pub fail: Option<Fail>,
}

/// An event that its consumer could not handle.
#[derive(Debug, Clone)]
pub struct Parked {
    pub consumer: String,
    /// What the consumer said, or that it died too often.
    pub reason: String,
    pub kind: String,
    /// As it was published: [`Event::from_bytes`] reads it, unless that is what could not be done.
    pub event: Bytes,
}

/// What is done with what was parked: an `Ok` says that it is kept durably. Anything else holds it, to be given again.
/// The same parking may be told twice.
pub type OnParked = Arc<dyn Fn(Parked) -> BoxFuture<'static, Result<(), Fail>> + Send + Sync>;

/// How the way to the bus is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Connected,
    /// The broker takes nothing for now, and says why: out of memory or disk.
    Blocked(String),
    /// Not connected, and why.
    Away(String),
}

/// The bus. Cheap to clone; clones are the same bus.
#[derive(Clone)]
pub struct Bus(Kind);

#[derive(Clone)]
enum Kind {
    Local(Arc<local::Local>),
    RabbitMq(Arc<rabbitmq::RabbitMq>),
}

impl Bus {
    /// A bus within this process: publishing runs the consumers' handlers, and is done when they are.
    pub fn in_process() -> Self {
        Self(Kind::Local(Arc::default()))
    }

    /// A bus over RabbitMQ 3.10 or newer at `url` (`amqp://` or `amqps://`). Returns at once: connections are made in the
    /// background, and made again whenever they are lost. `consumers` are all that the installation has.
    ///
    /// # Errors
    /// `config.amqp_url` for a URL that does not parse.
    pub fn rabbitmq(url: &Secret, consumers: &[Consumer], tasks: &Tasks) -> Result<Self, Fail> {
        Ok(Self(Kind::RabbitMq(rabbitmq::RabbitMq::start(url, consumers, tasks)?)))
    }

    /// RabbitMQ where there is a URL, and otherwise within the process, in which `consumers` are going to listen: what one of
    /// them wants waits until it does.
    ///
    /// # Errors
    /// As [`rabbitmq`](Self::rabbitmq).
    pub fn open(url: Option<&Secret>, consumers: &[Consumer], tasks: &Tasks) -> Result<Self, Fail> {
        match url {
            Some(url) => Self::rabbitmq(url, consumers, tasks),
            None => Ok(Self(Kind::Local(Arc::new(local::Local::awaiting(consumers))))),
        }
    }

    /// One way in. A relay has one of its own, since a publisher waits for what it sent.
    pub fn publisher(&self) -> Publisher {
        match &self.0 {
            Kind::Local(bus) => Publisher(Way::Local(Arc::clone(bus))),
            Kind::RabbitMq(bus) => Publisher(Way::RabbitMq(Box::new(bus.publisher()))),
        }
    }

    /// Hands an event to one consumer alone, as it was parked. A consumer that fails again parks it again.
    ///
    /// # Errors
    /// `bus.unavailable` when it could not be handed over; it may have been all the same.
    pub async fn send_to(&self, consumer: &str, event: Bytes) -> Result<(), Fail> {
        match &self.0 {
            Kind::Local(bus) => bus.send_to(consumer, &event).await,
            Kind::RabbitMq(bus) => bus.send_to(consumer, event).await,
        }
    }

    /// Gives `on_parked` everything that any consumer parks, until the process stops.
    pub fn on_parked<H>(&self, on_parked: H, tasks: &Tasks)
    where
        H: Fn(Parked) -> BoxFuture<'static, Result<(), Fail>> + Send + Sync + 'static,
    {
        match &self.0 {
            Kind::Local(bus) => bus.on_parked(Arc::new(on_parked)),
            Kind::RabbitMq(bus) => bus.on_parked(Arc::new(on_parked), tasks),
        }
    }

    /// Whether an event of the type `kind` may have a consumer. Within one process it is known who listens; a broker's queues
    /// are the broker's.
    pub(crate) fn may_be_taken(&self, kind: &str) -> bool {
        match &self.0 {
            Kind::Local(bus) => bus.may_be_taken(kind),
            Kind::RabbitMq(_) => true,
        }
    }

    /// How the way in is, now and as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        match &self.0 {
            Kind::Local(bus) => bus.state(),
            Kind::RabbitMq(bus) => bus.state(),
        }
    }

    /// Lets an inbox take what comes for it, until the process stops. What [`Inbox::start`] calls.
    pub(crate) fn attach(&self, inbox: Arc<Inbox>, tasks: &Tasks) {
        match &self.0 {
            Kind::Local(bus) => bus.attach(inbox, tasks),
            Kind::RabbitMq(bus) => bus.attach(inbox, tasks),
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Local(_) => "Bus(in process)",
            Kind::RabbitMq(_) => "Bus(RabbitMQ)",
        })
    }
}

/// A way into the bus.
#[derive(Debug)]
pub struct Publisher(Way);

#[derive(Debug)]
enum Way {
    Local(Arc<local::Local>),
    RabbitMq(Box<rabbitmq::Publisher>),
}

impl Publisher {
    /// Publishes messages and waits until each is confirmed, or until it is clear that one will not be. Messages of one
    /// subject go one after another, those of different ones side by side. Dropping the future loses no message that was
    /// not confirmed: it was sent or it was not.
    pub async fn publish(&mut self, messages: &[Message]) -> Published {
        let published = match &mut self.0 {
            Way::Local(bus) => bus.publish(messages).await,
            Way::RabbitMq(publisher) => publisher.publish(messages).await,
        };
        for (message, _) in messages.iter().zip(&published.confirmed).filter(|(_, is_confirmed)| **is_confirmed) {
            count_published(&message.kind, 1);
        }
        published
    }
}

/// Counts events of a type that whoever must get them has, be it nobody.
pub(crate) fn count_published(kind: &str, count: u64) {
    metrics::counter!("guildhall_events_published_total", "type" => kind.to_owned()).increment(count);
}

/// What cannot be reached now.
fn unavailable(message: &'static str) -> Fail {
    Fail::unavailable("bus.unavailable", message).retry_after(std::time::Duration::from_secs(1))
}
