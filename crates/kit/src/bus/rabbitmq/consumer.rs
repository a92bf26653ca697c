//! One consumer's queue: made, bound, caught up with, and taken from. Everything that can happen to it ends the round and
//! begins another: a lost connection, a closed channel, a queue that was deleted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use lapin::{
    BasicProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    RabbitMq,
    link::{CONNECT_WITHIN, lost},
    parked,
    publisher::GENERATION,
    topology,
};
use crate::{
    Fail,
    bus::unavailable,
    crash_point,
    inbox::{Inbox, Taken},
};

/// One message at a time: what the broker counts against an event when its consumer dies is then counted against the one
/// that was in hand, and not against those that had come along.
const PREFETCH: u16 = 1;
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Takes until the process stops.
///
/// # Errors
/// None: what fails is logged, and done again.
pub(super) async fn run(bus: Arc<RabbitMq>, inbox: Arc<Inbox>, stopping: CancellationToken) -> Result<(), Fail> {
    let mut wait = AGAIN_FIRST;
    while bus.consuming.connected(&stopping).await {
        let began = tokio::time::Instant::now();
        let Err(fail) = consume(&bus, &inbox, &stopping).await else { return Ok(()) };
        if began.elapsed() > AGAIN_MAX {
            wait = AGAIN_FIRST;
        }
        warn!(consumer = inbox.consumer().name, error = %fail, "a consumer begins again");
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN_MAX),
        }
    }
    Ok(())
}

/// One round; `Ok` when the process stops.
async fn consume(bus: &RabbitMq, inbox: &Inbox, stopping: &CancellationToken) -> Result<(), Fail> {
    let consumer = inbox.consumer();
    inbox.enroll(!topology::has_queue(&bus.consuming, &consumer).await?).await?;
    let (_live, channel) = bus.consuming.channel(CONNECT_WITHIN).await?;
    topology::declare_common(&channel).await?;
    topology::declare_consumer(&channel, &consumer).await?;
    topology::bind_consumer(&channel, &consumer).await?;
    if !inbox.catch_up(stopping).await? {
        return Ok(());
    }
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(lost)?;
    let queue = topology::queue_of(consumer.name);
    let options = BasicConsumeOptions::default();
    let mut deliveries =
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.map_err(lost)?;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stopping.cancelled() => return Ok(()),
        };
        let Delivery { properties, data, acker, routing_key, .. } = delivery
            .ok_or_else(|| unavailable("RabbitMQ has ended the consumer: its queue is gone."))?
            .map_err(lost)?;
        let body = Bytes::from(data);
        match inbox.take(&body, generation_of(&properties), stopping).await {
            Taken::Done => {}
            Taken::Stopped => return Ok(()),
            Taken::Never(reason) => {
                let parked =
                    parked::Note { consumer: consumer.name, reason: &reason, routing_key: routing_key.as_str() };
                parked::park(bus, parked, &properties, &body).await?;
            }
        }
        crash_point("inbox-committed-not-acked");
        acker.ack(BasicAckOptions::default()).await.map_err(lost)?;
    }
}

fn generation_of(properties: &BasicProperties) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(GENERATION)? {
        AMQPValue::LongLongInt(generation) => Some(*generation),
        _ => None,
    }
}
