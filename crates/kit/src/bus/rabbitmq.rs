//! The bus over RabbitMQ. Two connections, so that a broker that takes no more messages still gets our acknowledgements:
//! what publishes and what consumes. Each is kept up by [`link`]; `topology` says what is declared on the broker and who
//! may declare it, `publisher` and `consumer` are the two ways across.

mod consumer;
mod link;
mod parked;
mod publisher;
mod topology;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use lapin::{BasicProperties, options::BasicPublishOptions, types::ShortString, uri::AMQPUri};
use tokio::sync::{Mutex, watch};

use super::{Consumer, OnParked, State, unavailable};
use crate::{Fail, Secret, inbox::Inbox, tasks::Tasks};

use link::Link;
pub(super) use publisher::Publisher;
use publisher::{Door, EVENT_CONTENT_TYPE};

/// Seconds between heartbeats. A connection on which nothing came for twice as long is dead.
const HEARTBEAT_S: u16 = 5;
/// A caller who waits for an answer is not kept waiting for a broker that is away.
const SEND_TO_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct RabbitMq {
    publishing: Arc<Link>,
    consuming: Arc<Link>,
    consumers: Arc<[Consumer]>,
    /// For single messages: what is parked, and what is handed to one consumer.
    single: Mutex<Door>,
}

impl RabbitMq {
    pub(super) fn start(url: &Secret, consumers: &[Consumer], tasks: &Tasks) -> Result<Arc<Self>, Fail> {
        let fault = || Fail::invalid("config.amqp_url", "The URL of RabbitMQ does not parse.");
        let mut uri: AMQPUri = url.expose().parse().map_err(|_: String| fault())?;
        uri.query.heartbeat =
            Some(uri.query.heartbeat.filter(|seconds| *seconds > 0).map_or(HEARTBEAT_S, |s| s.min(HEARTBEAT_S)));
        let publishing = Link::start("publish", uri.clone(), tasks);
        let consuming = Link::start("consume", uri, tasks);
        let consumers: Arc<[Consumer]> = consumers.into();
        let single = Mutex::new(Door::new(Arc::clone(&publishing), Arc::clone(&consumers)));
        Ok(Arc::new(Self { publishing, consuming, consumers, single }))
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher::new(Door::new(Arc::clone(&self.publishing), Arc::clone(&self.consumers)))
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.publishing.state()
    }

    pub(super) fn attach(self: &Arc<Self>, inbox: Arc<Inbox>, tasks: &Tasks) {
        let (bus, stopping) = (Arc::clone(self), tasks.stopping());
        tasks.spawn_restarting("bus.consume", move || {
            consumer::run(Arc::clone(&bus), Arc::clone(&inbox), stopping.clone())
        });
    }

    pub(super) fn on_parked(self: &Arc<Self>, on_parked: OnParked, tasks: &Tasks) {
        let (bus, stopping) = (Arc::clone(self), tasks.stopping());
        tasks.spawn_restarting("bus.parked", move || {
            parked::run(Arc::clone(&bus), Arc::clone(&on_parked), stopping.clone())
        });
    }

    pub(super) async fn send_to(&self, consumer: &str, event: Bytes) -> Result<(), Fail> {
        let queue = ShortString::try_new(topology::queue_of(consumer))
            .map_err(|error| Fail::invalid("bus.unknown_consumer", "There is no such consumer.").caused_by(error))?;
        let properties = BasicProperties::default()
            .with_content_type(EVENT_CONTENT_TYPE.into())
            .with_delivery_mode(topology::PERSISTENT);
        self.post("".into(), queue, properties, event, SEND_TO_WITHIN).await
    }

    /// Publishes one message and waits until a queue has it.
    async fn post(
        &self,
        exchange: ShortString,
        key: ShortString,
        properties: BasicProperties,
        body: Bytes,
        within: Duration,
    ) -> Result<(), Fail> {
        let mut door = self.single.lock().await;
        let posted = async {
            let channel = door.open(within).await?;
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let confirm = channel.basic_publish(exchange, key, options, &body, properties).await.map_err(link::lost)?;
            confirm.await.map_err(link::lost)
        };
        let outcome = tokio::time::timeout(within, posted)
            .await
            .unwrap_or_else(|_| Err(unavailable("RabbitMQ does not answer.")));
        match outcome {
            // One message is in flight here, so that what came back is this one.
            Ok(lapin::Confirmation::Ack(None)) => Ok(()),
            Ok(lapin::Confirmation::Ack(Some(_))) => Err(unavailable("The consumer has no queue.")),
            Ok(_) => Err(unavailable("RabbitMQ refused a message.")),
            Err(fail) => {
                door.shut();
                Err(fail)
            }
        }
    }
}
