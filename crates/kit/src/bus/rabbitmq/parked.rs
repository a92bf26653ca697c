//! What consumers could not handle: put into `guildhall.parked` by them or, when they died too often, by the broker; and
//! taken from there by whoever keeps it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use lapin::{
    BasicProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    RabbitMq,
    link::{CONNECT_WITHIN, lost},
    topology::{self, PARKED},
};
use crate::{
    Fail,
    bus::{OnParked, Parked, unavailable},
};

const CONSUMER: &str = "guildhall-consumer";
const REASON: &str = "guildhall-reason";
const TYPE: &str = "guildhall-type";
/// What the broker says of a message that it dead-lettered.
const DEATH_QUEUE: &str = "x-first-death-queue";
const DEATH_REASON: &str = "x-first-death-reason";

const PREFETCH: u16 = 16;
const POST_WITHIN: Duration = Duration::from_secs(30);
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Who parks, and why.
pub(super) struct Note<'a> {
    pub(super) consumer: &'a str,
    pub(super) reason: &'a str,
    /// The type that the event came under; for one that does not decode, the only word of it.
    pub(super) routing_key: &'a str,
}

/// Parks a message: it may be acknowledged once this is done.
pub(super) async fn park(bus: &RabbitMq, note: Note<'_>, of: &BasicProperties, body: &Bytes) -> Result<(), Fail> {
    let kind = crate::bus::Event::from_bytes(body).map_or_else(|_| note.routing_key.to_owned(), |event| event.kind);
    let mut headers = FieldTable::default();
    for (name, value) in [(CONSUMER, note.consumer), (REASON, note.reason), (TYPE, &kind)] {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    let properties = of.clone().with_delivery_mode(topology::PERSISTENT).with_headers(headers);
    bus.post(PARKED.into(), "".into(), properties, body.clone(), POST_WITHIN).await
}

/// Gives everything that is parked to `keep`, until the process stops.
///
/// # Errors
/// None: what fails is logged, and done again.
pub(super) async fn run(bus: Arc<RabbitMq>, keep: OnParked, stopping: CancellationToken) -> Result<(), Fail> {
    let mut wait = AGAIN_FIRST;
    while bus.consuming.connected(&stopping).await {
        let began = tokio::time::Instant::now();
        let Err(fail) = take(&bus, &keep, &stopping).await else { return Ok(()) };
        if began.elapsed() > AGAIN_MAX {
            wait = AGAIN_FIRST;
        }
        warn!(error = %fail, "parked events wait");
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN_MAX),
        }
    }
    Ok(())
}

async fn take(bus: &RabbitMq, keep: &OnParked, stopping: &CancellationToken) -> Result<(), Fail> {
    let (_live, channel) = bus.consuming.channel(CONNECT_WITHIN).await?;
    topology::declare_common(&channel).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(lost)?;
    let options = BasicConsumeOptions::default();
    let mut deliveries =
        channel.basic_consume(PARKED.into(), "".into(), options, FieldTable::default()).await.map_err(lost)?;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stopping.cancelled() => return Ok(()),
        };
        let delivery = delivery.ok_or_else(|| unavailable("The queue of what is parked is gone."))?.map_err(lost)?;
        let Delivery { properties, data, acker, routing_key, .. } = delivery;
        keep(read(&properties, routing_key.as_str(), data)).await?;
        acker.ack(BasicAckOptions::default()).await.map_err(lost)?;
    }
}

fn read(properties: &BasicProperties, routing_key: &str, body: Vec<u8>) -> Parked {
    let header = |name: &str| match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    let (consumer, reason) = match (header(CONSUMER), header(REASON)) {
        (Some(consumer), Some(reason)) => (consumer, reason),
        _ => {
            let queue = header(DEATH_QUEUE).unwrap_or_default();
            let why = header(DEATH_REASON).unwrap_or_else(|| "unknown".to_owned());
            let reason = format!("event.{why}: The consumer ended too often while it had this event.");
            (topology::consumer_of(&queue).to_owned(), reason)
        }
    };
    let kind = header(TYPE).unwrap_or_else(|| routing_key.to_owned());
    Parked { consumer, reason, kind, event: body.into() }
}
