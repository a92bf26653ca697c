//! Somebody else's program on the bus: an ordinary RabbitMQ client with a queue of its own for every event there is, that
//! writes down what reaches it. It comes back whenever the broker does, and acknowledges what it has written down.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use kit::{db::Schema, outbox, tasks::Tasks};
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use parking_lot::Mutex;
use prost::Message as _;
use proto::cloudevents::{CloudEvent, cloud_event::value::Attr};
use sqlx::{PgConnection, types::Uuid};

use crate::wait::until;

const QUEUE: &str = "somebody-elses";
const EXCHANGE: &str = "guildhall.events";
/// What it has taken and not acknowledged, at most.
const PREFETCH: u16 = 200;
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The schemas that tell events.
pub(crate) const SCHEMAS: [Schema; 3] = [auth::SCHEMA, jobs::SCHEMA, admin::SCHEMA];

/// The program, and what it has seen so far.
pub(crate) struct Foreign {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// The last event that each service had written down when it began to listen.
    before: Vec<(Schema, i64)>,
    tasks: Tasks,
}

/// One delivery.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) body: Vec<u8>,
}

impl Foreign {
    /// Starts listening; its queue is there when this returns.
    pub(crate) async fn listen(amqp_url: &str, database: &mut PgConnection) -> Self {
        let mut foreign = Self { seen: Arc::default(), before: Vec::new(), tasks: Tasks::new() };
        let (seen, url) = (foreign.seen.clone(), amqp_url.to_owned());
        let listening = tokio::sync::watch::Sender::new(false);
        let mut is_listening = listening.subscribe();
        foreign.tasks.detach("a foreign client", async move {
            loop {
                if let Err(error) = take(&url, &seen, &listening).await {
                    println!("the foreign client has lost the broker: {error}");
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
        is_listening.wait_for(|is| *is).await.expect("it goes on");
        for schema in SCHEMAS {
            let sql = format!("select coalesce(max(seq), 0) from {}.outbox", schema.name());
            let last = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *database).await.expect("a number");
            foreign.before.push((schema, last));
        }
        foreign
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Waits until every event that any service has written down since was delivered here, and holds their order: of each
    /// subject, the first deliveries come in the order in which they were written. How many there were.
    pub(crate) async fn has_heard_of_everything(&self, database: &mut PgConnection, limit: Duration) -> usize {
        let mut written: Vec<(Uuid, String)> = Vec::new();
        for (schema, before) in &self.before {
            let kept = outbox::kept(database, *schema, *before).await.expect("events");
            written.extend(kept.into_iter().map(|event| (event.id, event.subject)));
        }
        until("every event to reach the foreign client", limit, async || {
            let heard: HashSet<Uuid> = self.seen.lock().iter().map(|seen| seen.id).collect();
            written.iter().all(|(id, _)| heard.contains(id)).then_some(())
        })
        .await;
        let mut firsts: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
        let mut known = HashSet::new();
        for seen in self.seen() {
            if known.insert(seen.id) {
                firsts.entry(seen.subject).or_default().push(seen.id);
            }
        }
        let mut expected: BTreeMap<&str, Vec<Uuid>> = BTreeMap::new();
        for (id, subject) in &written {
            expected.entry(subject).or_default().push(*id);
        }
        for (subject, ids) in expected {
            let heard: Vec<Uuid> = firsts[subject].iter().filter(|id| ids.contains(id)).copied().collect();
            assert_eq!(heard, ids, "the events of {subject} came out of order");
        }
        written.len()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn take(
    url: &str,
    seen: &Mutex<Vec<Seen>>,
    listening: &tokio::sync::watch::Sender<bool>,
) -> Result<(), lapin::Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let all = QueueBindOptions::default();
    channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "#".into(), all, FieldTable::default()).await?;
    listening.send_replace(true);
    let mut deliveries = channel
        .basic_consume(QUEUE.into(), QUEUE.into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        seen.lock().push(read(&delivery.data));
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

fn read(body: &[u8]) -> Seen {
    let event = CloudEvent::decode(body).expect("what is on the bus is a CloudEvent");
    let subject = event.attributes.get("subject").and_then(|value| value.attr.clone());
    let subject = match subject {
        Some(Attr::CeString(subject)) => subject,
        other => panic!("an event has the subject {other:?}"),
    };
    let id = event.id.parse().expect("an event's id is a UUID");
    Seen { id, kind: event.r#type, subject, body: body.to_vec() }
}
