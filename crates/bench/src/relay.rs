//! How many events a second go from the rows of an outbox to a quorum queue of RabbitMQ, each confirmed and marked,
//! beside a bare publisher that has the same messages in memory, sends them over one channel with as many in flight, and
//! marks nothing.
//!
//! The relay is the one that every service runs, on the outbox of `jobs`. What it finds was committed at once: three events
//! of each subject, as a job has them, so that a subject's second has to wait for the confirm of its first.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream::FuturesUnordered};
use kit::{
    Clock, Secret,
    bus::{Bus, Consumer},
    db, outbox,
    private_rabbitmq::PrivateRabbitMq,
    tasks::Tasks,
};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use proto::events::JobChanged;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Fault, Options,
    ground::Ground,
    proof::{self, Counters},
    rows::{Report, Row, Spread},
};

const BENCH: &str = "relay";
const KIND: &str = "jobs.job.started";
const CONSUMER: Consumer = Consumer { name: "bench", types: &[KIND] };
const QUEUE: &str = "guildhall.bench";
const EXCHANGE: &str = "guildhall.events";
/// Of one subject.
const EVENTS: u32 = 3;
/// Rows of one statement.
const WRITE: usize = 1_000;
/// Messages not yet confirmed: as many as the bus has at once.
const IN_FLIGHT_MAX: usize = 512;
const PERSISTENT: u8 = 2;
const POLL: Duration = Duration::from_millis(5);
const DONE_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    report.say("relay: starting RabbitMQ");
    let rabbitmq = ground.rabbitmq().await?;
    let measured = rounds(options, ground, &rabbitmq, report).await;
    rabbitmq.stop().await;
    measured
}

async fn rounds(
    options: &Options,
    ground: &Ground,
    rabbitmq: &PrivateRabbitMq,
    report: &mut Report,
) -> Result<(), Fault> {
    let amqp = Secret::new(rabbitmq.amqp_url());
    declare(amqp.expose()).await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        report.say(&format!("relay, round {round} of {}: the relay", options.rounds));
        let url = ground.empty_database("relay").await?;
        let before = Counters::read(&url).await?;
        let tasks = Tasks::new();
        let measured = relay(&url, &amqp, options.events, &tasks).await;
        tasks.join(STOP_WITHIN).await;
        ours.push(measured?);
        report.say(&format!("relay, round {round}: a bare publisher"));
        let (rate, queued) = publisher(amqp.expose(), options.events).await?;
        bare.push(rate);
        if round == 1 {
            report.prove("server", &proof::settings(&url).await?);
            let counted = Counters::read(&url).await?.since(before);
            report.prove("relay", &format!("{}; {counted}", proof::rows(&url).await?));
            report.prove(
                "RabbitMQ",
                &format!("{queued} messages in the quorum queue {QUEUE}, of the relay and of the bare publisher"),
            );
        }
    }
    let row = Row {
        metric: "events",
        value: ours.into_iter().collect(),
        unit: "events/s",
        yardstick: Some(("bare confirmed publisher", bare.into_iter().collect::<Spread>())),
    };
    report.rows(BENCH, vec![row]);
    Ok(())
}

/// Makes the queue, as its consumer would if it were there: the relay makes none.
async fn declare(amqp: &str) -> Result<(), Fault> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, exchange, FieldTable::default()).await?;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), queue, quorum).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(QUEUE.into(), EXCHANGE.into(), KIND.into(), bind, FieldTable::default()).await?;
    Ok(connection.close(200, "done".into()).await?)
}

/// Lets an idle relay find `count` events; how many a second it has published and marked.
async fn relay(url: &str, amqp: &Secret, count: u32, tasks: &Tasks) -> Result<f64, Fault> {
    db::migrate(url, jobs::SCHEMA, &jobs::MIGRATOR).await?;
    let pool = db::connect(url, jobs::SCHEMA, 4).await?;
    let clock = Clock::system();
    let bus = Bus::rabbitmq(amqp, &[CONSUMER], tasks)?;
    outbox::start_relay(&pool, jobs::SCHEMA, &bus, &clock, tasks);
    // One event, so that connections are made and the queue is there before the clock runs.
    let mut transaction = pool.begin().await?;
    outbox::write(&mut transaction, jobs::SCHEMA, &events(1), &clock, None).await?;
    transaction.commit().await?;
    published(&pool).await?;

    let events = events(count);
    let mut transaction = pool.begin().await?;
    for some in events.chunks(WRITE) {
        outbox::write(&mut transaction, jobs::SCHEMA, some, &clock, None).await?;
    }
    let started = Instant::now();
    transaction.commit().await?;
    published(&pool).await?;
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// Waits until nothing is left to be published.
async fn published(pool: &PgPool) -> Result<(), Fault> {
    let done = async {
        let is_left = "select exists (select from jobs.outbox where published_at is null)";
        while sqlx::query_scalar(is_left).fetch_one(pool).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok::<_, sqlx::Error>(())
    };
    tokio::time::timeout(DONE_WITHIN, done).await.map_err(|_| "the relay does not get to its end")??;
    Ok(())
}

/// Events as a claim writes them; a subject's follow one another at a distance.
fn events(count: u32) -> Vec<outbox::Event> {
    let clock = Clock::system();
    let subjects: Vec<Uuid> = (0..count.div_ceil(EVENTS)).map(|_| clock.new_id()).collect();
    let event = |id: &Uuid| outbox::Event::new(KIND, id, &change(id));
    subjects.iter().cycle().take(count as usize).map(event).collect()
}

fn change(id: &Uuid) -> JobChanged {
    JobChanged {
        job_id: id.to_string(),
        owner_id: id.to_string(),
        task: "demo_echo".to_owned(),
        queue: "default".to_owned(),
        state: "running".to_owned(),
        attempt: 1,
        ..JobChanged::default()
    }
}

/// Publishes `count` messages like those of the relay; how many a second, and how many lie in the queue then.
async fn publisher(amqp: &str, count: u32) -> Result<(f64, u32), Fault> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let clock = Clock::system();
    let event = kit::bus::Event {
        id: clock.new_id(),
        kind: KIND.to_owned(),
        source: "/guildhall/jobs".to_owned(),
        subject: clock.new_id().to_string(),
        at: clock.now(),
        traceparent: None,
        data: prost::Message::encode_to_vec(&change(&clock.new_id())).into(),
    };
    let body = event.to_bytes();
    let started = Instant::now();
    let mut in_flight = FuturesUnordered::new();
    for _ in 0..count {
        if in_flight.len() == IN_FLIGHT_MAX {
            acknowledged(in_flight.next().await)?;
        }
        let (channel, body) = (&channel, &body);
        in_flight.push(async move { send(channel, body).await });
    }
    while let Some(confirmed) = in_flight.next().await {
        acknowledged(Some(confirmed))?;
    }
    let rate = f64::from(count) / started.elapsed().as_secs_f64();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await?;
    let queued = queue.message_count();
    connection.close(200, "done".into()).await?;
    Ok((rate, queued))
}

async fn send(channel: &Channel, body: &[u8]) -> Result<Confirmation, lapin::Error> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    channel.basic_publish(EXCHANGE.into(), KIND.into(), options, body, properties).await?.await
}

fn acknowledged(confirmed: Option<Result<Confirmation, lapin::Error>>) -> Result<(), Fault> {
    match confirmed {
        Some(Ok(Confirmation::Ack(None))) => Ok(()),
        other => Err(format!("RabbitMQ did not take a message: {other:?}").into()),
    }
}
