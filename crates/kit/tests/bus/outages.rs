//! What RabbitMQ may do, or have done to it, while events are on their way: afterwards all of them have arrived, in order
//! per subject, and each had its effect once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use kit::{
    bus::{Consumer, State},
    outbox,
    tasks::Tasks,
};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicQosOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::FieldTable,
};

use crate::{
    broker::{self, broker},
    house::{DONE, House, Over, TELL, THINGS, assert_in_order, patiently, rabbitmq},
};

/// Another client of the same broker.
pub(crate) struct Raw {
    _connection: Connection,
    channel: Channel,
}

impl Raw {
    pub(crate) async fn connect(vhost: &str) -> Self {
        let url = broker().await.amqp_url_of(vhost);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        Self { _connection: connection, channel }
    }

    pub(crate) async fn bind_foreign(&self, queue: &str, key: &str) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("a queue");
        let events = "guildhall.events".into();
        let options = QueueBindOptions::default();
        self.channel
            .queue_bind(queue.into(), events, key.into(), options, FieldTable::default())
            .await
            .expect("a binding");
    }

    pub(crate) async fn messages_in(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.expect("a queue").message_count()
    }

    async fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("a queue");
    }
}

/// Events of five subjects are told and heard before, during and after `outage`.
async fn through(outage: impl AsyncFnOnce(&House)) {
    const BEFORE: u32 = 40;
    const AFTER: u32 = 40;
    let house = House::new(Over::RabbitMq).await;
    house.hear(THINGS);
    let subjects = ["a", "b", "c", "d", "e"];
    let tell = async |numbers: std::ops::Range<u32>| {
        futures::future::join_all(subjects.map(|subject| house.tell(DONE, subject, numbers.clone()))).await;
    };
    tell(0..BEFORE).await;
    house.until_heard(THINGS, 20).await;
    let mut next = BEFORE;
    {
        let mut outage = std::pin::pin!(outage(&house));
        // One of each in a while, so that an outage that lasts does not make the test last.
        while futures::poll!(outage.as_mut()).is_pending() {
            tell(next..next + 1).await;
            next += 1;
            tokio::select! { biased; () = &mut outage => break, () = tokio::time::sleep(Duration::from_millis(50)) => {} }
        }
    }
    tell(next..next + AFTER).await;
    let each = i64::from(next + AFTER);
    house.until_heard(THINGS, each * 5).await;
    house.until_published().await;
    assert_in_order(&house.heard(THINGS).await, subjects.len(), each);
    assert!(house.parked.borrow().is_empty());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_loses_nothing() {
    let _calm = broker::calm().await;
    through(async |house| Raw::connect(&house.vhost).await.delete_queue("guildhall.things").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_loses_nothing() {
    let _calm = broker::calm().await;
    through(async |house| {
        let raw = Raw::connect(&house.vhost).await;
        let options = ExchangeDeleteOptions::default();
        raw.channel.exchange_delete("guildhall.events".into(), options).await.expect("an exchange");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_is_removed_loses_nothing() {
    let _calm = broker::calm().await;
    through(async |house| {
        let raw = Raw::connect(&house.vhost).await;
        let (queue, events, key) = ("guildhall.things".into(), "guildhall.events".into(), "tell.thing.*".into());
        raw.channel.queue_unbind(queue, events, key, FieldTable::default()).await.expect("a binding");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_broker_closes_are_made_again() {
    let _storm = broker::storm().await;
    through(async |house| {
        let vhost = &house.vhost;
        let closed = broker().await.ctl(&["close_all_connections", "--vhost", vhost, "test"]).await;
        closed.expect("closed connections");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_is_waited_for_and_the_lag_is_told() {
    let _storm = broker::storm().await;
    through(async |house| {
        broker::save_elections().await;
        let broker = broker().await;
        broker.ctl(&["stop_app"]).await.expect("it stops");
        let mut state = house.bus.state();
        patiently("its absence", state.wait_for(|state| matches!(state, State::Away(_)))).await.expect("a state");
        house.until("select count(*) > 0 from tell.outbox where published_at is null").await;
        let lag = outbox::lag(&house.pool, TELL, house.clock.now()).await.expect("a lag");
        assert!(lag.unpublished > 0, "{lag:?}");
        broker.ctl(&["start_app"]).await.expect("it starts");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_loses_nothing() {
    let _storm = broker::storm().await;
    through(async |_| {
        broker::save_elections().await;
        let broker = broker().await;
        broker.kill().await;
        broker.ready().await.expect("it comes back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_is_left() {
    let _storm = broker::storm().await;
    through(async |house| {
        let broker = broker().await;
        broker.pause();
        let mut state = house.bus.state();
        patiently("the silence", state.wait_for(|state| matches!(state, State::Away(_)))).await.expect("a state");
        broker.resume();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks_is_noticed_and_waited_for() {
    let _storm = broker::storm().await;
    through(async |house| {
        let broker = broker().await;
        broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await.expect("an alarm");
        let mut state = house.bus.state();
        patiently("a block", state.wait_for(|state| matches!(state, State::Blocked(_)))).await.expect("a state");
        broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await.expect("no alarm");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_after_a_loss_survives_the_consumer() {
    let _calm = broker::calm().await;
    let house = House::new(Over::RabbitMq).await;
    house.tell(DONE, "a", 0..10).await;
    // A life of the consumer that is told of the loss, and ends before the producer has answered.
    let life = Tasks::new();
    let (asked, mut was_asked) = tokio::sync::watch::channel(false);
    let deaf = kit::inbox::Producer::new("tell", move |_| {
        asked.send_replace(true);
        Box::pin(std::future::pending())
    });
    house.hear_from(THINGS, &house.bus, &life, deaf, |_, _| Ok(()));
    patiently("the question", was_asked.wait_for(|is| *is)).await.expect("a question");
    life.abort().await;
    house.until_published().await;
    // The next life finds the queue, and in it nothing of what came before it was bound.
    house.hear(THINGS);
    house.tell(DONE, "a", 10..20).await;
    house.until_heard(THINGS, 20).await;
    assert_in_order(&house.heard(THINGS).await, 1, 20);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_queue_for_longer_than_its_producer_keeps_it_is_handled() {
    /// The same consumer in its next version: what it wants more of has it ask for a repeat.
    const MORE_THINGS: Consumer = Consumer { name: THINGS.name, types: &["tell.thing.*", "tell.other.*"] };
    let _calm = broker::calm().await;
    let house = House::new(Over::RabbitMq).await;
    let life = Tasks::new();
    house.hear_on(THINGS, &house.bus, &life, |_, _| Ok(()));
    house.tell(DONE, "a", 0..1).await;
    house.until_heard(THINGS, 1).await;
    assert!(life.join(Duration::from_secs(10)).await);
    house.tell(DONE, "a", 1..6).await;
    house.until_published().await;
    let pruned = "delete from tell.outbox where seq <= 4";
    sqlx::query(pruned).execute(&house.pool).await.unwrap();
    house.hear(MORE_THINGS);
    house.until_heard(THINGS, 6).await;
    assert_in_order(&house.heard(THINGS).await, 1, 6);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kills_its_consumer_is_parked_in_the_end() {
    let _calm = broker::calm().await;
    let house = House::new(Over::RabbitMq).await;
    // The consumer makes its queue, and ends.
    let life = Tasks::new();
    house.hear_on(THINGS, &house.bus, &life, |_, _| Ok(()));
    house.tell(DONE, "a", 0..1).await;
    house.until_heard(THINGS, 1).await;
    assert!(life.join(Duration::from_secs(10)).await);
    house.tell(DONE, "a", 1..3).await;
    house.until_published().await;
    // One that dies each time with the event in hand, and never with the one behind it.
    let has_it = Arc::new(AtomicBool::new(true));
    let raw = Raw::connect(&house.vhost).await;
    while has_it.load(Ordering::SeqCst) {
        let channel = raw._connection.create_channel().await.expect("a channel");
        channel.basic_qos(1, BasicQosOptions::default()).await.expect("a bound");
        let options = BasicConsumeOptions::default();
        let mut deliveries =
            channel.basic_consume("guildhall.things".into(), "".into(), options, FieldTable::default()).await.unwrap();
        let delivery = patiently("a delivery", deliveries.next()).await.expect("an open channel").expect("a delivery");
        let event = kit::bus::Event::from_bytes(&delivery.data).expect("an event");
        let n = event.message::<proto::events::JobChanged>().expect("its data").attempt;
        has_it.store(n == 1, Ordering::SeqCst);
        channel.close(200, "dead".into()).await.expect("a closed channel");
    }
    let parked = house.until_parked(1).await;
    assert_eq!((parked[0].consumer.as_str(), parked[0].kind.as_str()), ("things", DONE));
    assert!(parked[0].reason.starts_with("event.delivery_limit"), "{}", parked[0].reason);
    house.hear(THINGS);
    house.until_heard(THINGS, 2).await;
    house.bus.send_to("things", parked[0].event.clone()).await.expect("a second chance");
    house.until_heard(THINGS, 3).await;
    assert_eq!(house.heard(THINGS).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [0, 2, 1]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_of_a_consumer_keep_the_order() {
    let _calm = broker::calm().await;
    let house = House::new(Over::RabbitMq).await;
    let (other, first) = (Tasks::new(), Tasks::new());
    let bus = rabbitmq(&house.vhost, &other).await;
    house.hear_on(THINGS, &house.bus, &first, |_, _| Ok(()));
    house.hear_on(THINGS, &bus, &other, |_, _| Ok(()));
    let told = futures::future::join_all(["a", "b"].map(|subject| house.tell(DONE, subject, 0..200)));
    let dies = async {
        house.until_heard(THINGS, 60).await;
        first.abort().await;
    };
    futures::join!(told, dies);
    house.until_heard(THINGS, 400).await;
    assert_in_order(&house.heard(THINGS).await, 2, 200);
    assert!(other.join(Duration::from_secs(10)).await);
    house.close().await;
}
