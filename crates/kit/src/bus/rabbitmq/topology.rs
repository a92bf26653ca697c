//! What is declared on the broker, and by whom.
//!
//! | name | what | declared by |
//! |---|---|---|
//! | `guildhall.events` | durable topic exchange | everyone |
//! | `guildhall.parked` | durable fanout exchange, and the quorum queue on it | everyone |
//! | `guildhall.<consumer>` | quorum queue with a delivery limit, dead-lettering to `guildhall.parked` | its consumer alone |
//!
//! A consumer's queue is made by nobody else, because its absence is how the consumer learns that it has lost something.
//! Bindings of a queue that is there are made again by everyone: what was published without them is still in its outbox.
//! Everything used here is in RabbitMQ 3.10 and in 4.

use lapin::{
    Channel, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};

use super::link::{Link, lost};
use crate::{Fail, bus::Consumer};

pub(super) const EVENTS: &str = "guildhall.events";
pub(super) const PARKED: &str = "guildhall.parked";
const QUEUE_PREFIX: &str = "guildhall.";
/// Delivery mode of a message that the broker writes to its disk.
pub(super) const PERSISTENT: u8 = 2;

/// How often an event may be given to a consumer that ends without an answer, before it is parked. A broker that restarts
/// counts too: far more than happen while one event is in hand.
const DELIVERIES_MAX: i64 = 20;
/// Parked messages are not given up. A number, since 3.10 knows no other way to say so and 4 has a limit of its own.
const PARKED_DELIVERIES_MAX: i64 = 1_000_000_000;

const SOFT_NOT_FOUND: u16 = 404;
const SOFT_PRECONDITION_FAILED: u16 = 406;

pub(super) fn queue_of(consumer: &str) -> String {
    format!("{QUEUE_PREFIX}{consumer}")
}

/// The consumer that a queue belongs to.
pub(super) fn consumer_of(queue: &str) -> &str {
    queue.strip_prefix(QUEUE_PREFIX).unwrap_or(queue)
}

/// Declares what everyone may declare.
pub(super) async fn declare_common(channel: &Channel) -> Result<(), Fail> {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for (name, kind) in [(EVENTS, ExchangeKind::Topic), (PARKED, ExchangeKind::Fanout)] {
        let declared = channel.exchange_declare(name.into(), kind, durable, FieldTable::default()).await;
        declared.map_err(|error| refused("exchange", name, error))?;
    }
    let arguments =
        table([("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(PARKED_DELIVERIES_MAX))]);
    declare_queue(channel, PARKED, arguments).await?;
    bind(channel, PARKED, PARKED, "").await
}

/// Whether the consumer's queue is there. On a channel of its own: asking for what is missing closes it.
pub(super) async fn has_queue(link: &Link, consumer: &Consumer) -> Result<bool, Fail> {
    let (_live, channel) = link.channel(super::link::CONNECT_WITHIN).await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let asked = channel.queue_declare(queue_of(consumer.name).into(), passive, FieldTable::default()).await;
    match asked {
        Ok(_) => Ok(true),
        Err(error) if code_of(&error) == Some(SOFT_NOT_FOUND) => Ok(false),
        Err(error) => Err(lost(error)),
    }
}

/// Declares the consumer's queue, or finds it as it would have declared it.
///
/// # Errors
/// `bus.topology` for one that is there with other arguments.
pub(super) async fn declare_consumer(channel: &Channel, consumer: &Consumer) -> Result<(), Fail> {
    let arguments = table([
        ("x-queue-type", text("quorum")),
        // One replica of the consumer at a time, or two would handle events of one subject side by side.
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERIES_MAX)),
        ("x-dead-letter-exchange", text(PARKED)),
        // What is dead-lettered leaves the queue once it is in the other one; that takes this overflow, which never
        // happens in a queue without a length.
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]);
    declare_queue(channel, &queue_of(consumer.name), arguments).await
}

/// Binds the consumer's queue to its types; what is bound already stays so.
pub(super) async fn bind_consumer(channel: &Channel, consumer: &Consumer) -> Result<(), Fail> {
    for kind in consumer.types {
        bind(channel, &queue_of(consumer.name), EVENTS, kind).await?;
    }
    Ok(())
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), Fail> {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(name.into(), durable, arguments).await;
    declared.map(|_| ()).map_err(|error| refused("queue", name, error))
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), Fail> {
    let bound = channel
        .queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default())
        .await;
    bound.map_err(lost)
}

/// A declaration that the broker refuses is an operator's matter: somebody else made that name, or another version did.
fn refused(what: &str, name: &str, error: lapin::Error) -> Fail {
    if code_of(&error) == Some(SOFT_PRECONDITION_FAILED) {
        let sentence =
            format!("The {what} `{name}` is on the broker with other arguments than Guildhall's: remove it there.");
        return Fail::conflict("bus.topology", sentence).caused_by(error);
    }
    lost(error)
}

fn code_of(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(ShortString::from(name), value);
    }
    table
}
