//! Publishing with confirms: many messages in flight, and of each subject one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use uuid::Uuid;

use super::{
    link::{Link, Live, lost},
    topology,
};
use crate::{
    Fail,
    bus::{Consumer, Message, Published, State, unavailable},
};

pub(super) const EVENT_CONTENT_TYPE: &str = "application/cloudevents+protobuf";
/// The header that says in which generation of its outbox an event was read.
pub(super) const GENERATION: &str = "guildhall-generation";

/// Messages that are sent and not yet confirmed.
const IN_FLIGHT_MAX: usize = 512;
/// How long publishing waits for a broker that is away or takes nothing, before it says so and is tried again.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// A broker that is there, takes messages and confirms none for so long is left, and the messages are sent again.
const CONFIRM_WITHIN: Duration = Duration::from_secs(30);

/// A channel in confirm mode, opened when it is needed and again when it was lost.
#[derive(Debug)]
pub(super) struct Door {
    link: Arc<Link>,
    consumers: Arc<[Consumer]>,
    open: Option<(Arc<Live>, Channel)>,
}

impl Door {
    pub(super) fn new(link: Arc<Link>, consumers: Arc<[Consumer]>) -> Self {
        Self { link, consumers, open: None }
    }

    /// The channel, when the broker takes messages within `within`. A new one has declared the topology again first.
    pub(super) async fn open(&mut self, within: Duration) -> Result<Channel, Fail> {
        let mut state = self.link.state();
        let is_open = state.wait_for(|state| *state == State::Connected);
        if tokio::time::timeout(within, is_open).await.is_err() {
            return Err(self.link.away());
        }
        if let Some((_, channel)) = &self.open
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let (live, channel) = self.link.channel(within).await?;
        topology::declare_common(&channel).await?;
        bind_again(&self.link, &channel, &self.consumers).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(lost)?;
        self.open = Some((live, channel.clone()));
        Ok(channel)
    }

    /// The next opening makes a new channel.
    pub(super) fn shut(&mut self) {
        self.open = None;
    }
}

/// Binds the queues that are there, and says which consumers have one.
async fn bind_again<'a>(link: &Link, channel: &Channel, consumers: &'a [Consumer]) -> Result<Vec<&'a Consumer>, Fail> {
    let mut bound = Vec::new();
    for consumer in consumers {
        if topology::has_queue(link, consumer).await? {
            topology::bind_consumer(channel, consumer).await?;
            bound.push(consumer);
        }
    }
    Ok(bound)
}

#[derive(Debug)]
pub(in super::super) struct Publisher {
    door: Door,
}

impl Publisher {
    pub(super) fn new(door: Door) -> Self {
        Self { door }
    }

    pub(in super::super) async fn publish(&mut self, messages: &[Message]) -> Published {
        let mut confirmed = vec![false; messages.len()];
        let fail = self.send(messages, &mut confirmed).await.err();
        if fail.is_some() {
            self.door.shut();
        }
        Published { confirmed, fail }
    }

    /// Sends the first message of each subject, and with each confirm the next of its subject.
    async fn send(&mut self, messages: &[Message], confirmed: &mut [bool]) -> Result<(), Fail> {
        let channel = self.door.open(OPEN_WITHIN).await?;
        let (mut ready, next) = chains(messages);
        let mut in_flight = FuturesUnordered::new();
        let (mut returned, mut refused) = (HashSet::new(), Ok(()));
        loop {
            while in_flight.len() < IN_FLIGHT_MAX
                && let Some(place) = ready.pop_front()
            {
                let message = &messages[place];
                in_flight.push(send_one(&channel, message, self.is_wanted(message)).map(move |answer| (place, answer)));
            }
            let Some(first) = self.next_of(&mut in_flight).await? else { break };
            // A message comes back before it is confirmed, and the library hands it out with whatever confirm it meets
            // next. So all that is there is looked through for what came back before any confirm is believed.
            let mut answers = vec![first];
            while let Some(Some(more)) = in_flight.next().now_or_never() {
                answers.push(more);
            }
            let mut acknowledged = Vec::with_capacity(answers.len());
            let mut lost = Ok(());
            for (place, answer) in answers {
                match answer {
                    Ok(confirmation) => {
                        match confirmation.is_ack() {
                            true => acknowledged.push(place),
                            false => refused = Err(unavailable("RabbitMQ refused an event.")),
                        }
                        returned.extend(confirmation.take_message().and_then(|back| id_of(&back)));
                    }
                    Err(fail) => lost = Err(fail),
                }
            }
            for place in acknowledged {
                if !returned.contains(&messages[place].id) {
                    confirmed[place] = true;
                    ready.extend(next[place]);
                }
            }
            lost?;
        }
        if !returned.is_empty() {
            self.settle(&channel, messages, &returned, confirmed).await?;
        }
        refused
    }

    /// What came back although someone wants it: either a queue has lost its binding, then it is bound and the event is
    /// sent again; or the queue is not there, then its consumer will ask for everything once it has made it.
    async fn settle(
        &self,
        channel: &Channel,
        messages: &[Message],
        returned: &HashSet<Uuid>,
        confirmed: &mut [bool],
    ) -> Result<(), Fail> {
        let bound = bind_again(&self.door.link, channel, &self.door.consumers).await?;
        let mut settled = Ok(());
        for (message, is_confirmed) in messages.iter().zip(confirmed) {
            if returned.contains(&message.id) {
                *is_confirmed = !bound.iter().any(|consumer| consumer.wants(&message.kind));
                if *is_confirmed {
                    metrics::counter!("guildhall_events_unroutable_total", "type" => message.kind.clone()).increment(1);
                } else {
                    settled = Err(unavailable("A queue had lost its binding, and has it again."));
                }
            }
        }
        settled
    }

    /// Only what a consumer of ours must get is to come back when it finds no queue.
    fn is_wanted(&self, message: &Message) -> bool {
        self.door.consumers.iter().any(|consumer| consumer.wants(&message.kind))
    }

    /// The next answer; none when nothing is in flight. While the broker blocks, it is waited for; one that is just
    /// silent is left.
    async fn next_of<F: Future<Output = T>, T>(&self, in_flight: &mut FuturesUnordered<F>) -> Result<Option<T>, Fail> {
        loop {
            if let Ok(answer) = tokio::time::timeout(CONFIRM_WITHIN, in_flight.next()).await {
                return Ok(answer);
            }
            if !self.door.link.is_blocked() {
                if let Some((live, _)) = &self.door.open {
                    live.give_up();
                }
                return Err(unavailable("RabbitMQ confirms nothing."));
            }
        }
    }
}

/// Where each subject begins, and what follows each message of it.
fn chains(messages: &[Message]) -> (VecDeque<usize>, Vec<Option<usize>>) {
    let (mut first, mut next) = (VecDeque::new(), vec![None; messages.len()]);
    let mut last_of: HashMap<&str, usize> = HashMap::with_capacity(messages.len());
    for (place, message) in messages.iter().enumerate() {
        match last_of.insert(&message.subject, place) {
            Some(before) => next[before] = Some(place),
            None => first.push_back(place),
        }
    }
    (first, next)
}

/// Which of our messages came back.
fn id_of(back: &BasicReturnMessage) -> Option<Uuid> {
    back.properties.message_id().as_ref()?.as_str().parse().ok()
}

async fn send_one(channel: &Channel, message: &Message, mandatory: bool) -> Result<Confirmation, Fail> {
    let mut headers = FieldTable::default();
    headers.insert(GENERATION.into(), AMQPValue::LongLongInt(message.generation));
    let properties = BasicProperties::default()
        .with_content_type(EVENT_CONTENT_TYPE.into())
        .with_delivery_mode(topology::PERSISTENT)
        .with_message_id(message.id.to_string().into())
        .with_headers(headers);
    let key = ShortString::try_new(message.kind.as_str()).map_err(Fail::internal)?;
    let options = BasicPublishOptions { mandatory, ..Default::default() };
    let confirm = channel.basic_publish(topology::EVENTS.into(), key, options, &message.body, properties).await;
    confirm.map_err(lost)?.await.map_err(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_is_one_chain_in_order() {
        let message = |subject: &str| Message {
            id: Uuid::nil(),
            kind: String::new(),
            subject: subject.to_owned(),
            body: bytes::Bytes::new(),
            generation: 0,
        };
        let (first, next) = chains(&["a", "b", "a", "a", "b"].map(message));
        assert_eq!(first, [0, 1]);
        assert_eq!(next, [Some(2), Some(4), Some(3), None, None]);
    }
}
