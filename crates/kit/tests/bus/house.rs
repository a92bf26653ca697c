//! Two services in one database: `tell`, which writes events, and `hear`, which keeps what it heard in the order in which
//! it heard it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use kit::{
    Clock, Fail, Secret,
    bus::{Bus, Consumer, Event, Parked},
    db::Schema,
    inbox::{Inbox, Producer, Setup},
    outbox,
    tasks::Tasks,
    testing,
};
use proto::events::JobChanged;
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::sync::watch;

use crate::broker::{broker, vhost};

pub(crate) const TELL: Schema = Schema::new("tell");
pub(crate) const HEAR: Schema = Schema::new("hear");

pub(crate) const DONE: &str = "tell.thing.done";
pub(crate) const OTHER: &str = "tell.other.done";

pub(crate) const THINGS: Consumer = Consumer { name: "things", types: &["tell.thing.*"] };
pub(crate) const EVERYTHING: Consumer = Consumer { name: "everything", types: &["tell.#"] };

/// The tables as `kit::outbox` and `kit::inbox` describe them.
const TABLES: &str = "
    create schema tell;
    create table tell.outbox (
      seq bigint generated always as identity primary key,
      id uuid, type text not null, subject text, events integer not null default 1, data bytea not null,
      traceparent text, at timestamptz not null, published_at timestamptz
    );
    create index outbox_unpublished on tell.outbox (seq) where published_at is null;
    create table tell.outbox_replay (generation bigint not null);
    insert into tell.outbox_replay values (0);
    create schema hear;
    create table hear.inbox (
      consumer text not null, id uuid not null, at timestamptz not null, primary key (consumer, id)
    );
    create index inbox_at on hear.inbox (at);
    create table hear.inbox_consumer (
      name text primary key, types text[] not null, losses bigint not null, caught_up bigint not null
    );
    create table hear.inbox_source (
      consumer text not null, source text not null, generation bigint not null, kept_from timestamptz not null,
      primary key (consumer, source)
    );
    create table hear.effect (seq bigserial, consumer text not null, subject text not null, n bigint not null);";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Over {
    InProcess,
    RabbitMq,
}

pub(crate) struct House {
    /// Of the database.
    pub(crate) url: String,
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) bus: Bus,
    /// Of the bus over RabbitMQ.
    pub(crate) vhost: String,
    pub(crate) parked: watch::Receiver<Vec<Parked>>,
}

impl House {
    /// A house whose relay runs; nobody listens yet.
    pub(crate) async fn new(over: Over) -> Self {
        let house = Self::without_relay(over).await;
        outbox::start_relay(&house.pool, TELL, &house.bus, &house.clock, &house.tasks);
        house
    }

    pub(crate) async fn without_relay(over: Over) -> Self {
        let database = testing::database("bus").await;
        let pool = PgPoolOptions::new().max_connections(12).connect(database.url()).await.expect("a pool");
        sqlx::raw_sql(TABLES).execute(&pool).await.expect("tables");
        let (tasks, vhost) = (Tasks::new(), vhost());
        let bus = match over {
            Over::InProcess => Bus::in_process(),
            Over::RabbitMq => rabbitmq(&vhost, &tasks).await,
        };
        let (keep, parked) = watch::channel(Vec::new());
        bus.on_parked(
            move |one| {
                keep.send_modify(|all: &mut Vec<Parked>| all.push(one));
                Box::pin(async { Ok(()) })
            },
            &tasks,
        );
        Self { url: database.url().to_owned(), pool, clock: Clock::system(), tasks, bus, vhost, parked }
    }

    /// Writes the events `numbers` about `subject`, each in a transaction of its own.
    pub(crate) async fn tell(&self, kind: &'static str, subject: &str, numbers: std::ops::Range<u32>) {
        for n in numbers {
            let mut transaction = self.pool.begin().await.expect("a transaction");
            let events = [event(kind, subject, n)];
            outbox::write(&mut transaction, TELL, &events, &self.clock, None).await.expect("an event");
            transaction.commit().await.expect("a commit");
        }
    }

    /// Writes events in one transaction.
    pub(crate) async fn tell_at_once(&self, events: &[outbox::Event]) {
        let mut transaction = self.pool.begin().await.expect("a transaction");
        outbox::write(&mut transaction, TELL, events, &self.clock, None).await.expect("events");
        transaction.commit().await.expect("a commit");
    }

    /// Lets `consumer` keep what it hears.
    pub(crate) fn hear(&self, consumer: Consumer) {
        self.hear_with(consumer, |_, _| Ok(()));
    }

    /// As [`hear`](Self::hear); what `judge` says comes after the effect and decides on it.
    pub(crate) fn hear_with(
        &self,
        consumer: Consumer,
        judge: impl Fn(&str, u32) -> Result<(), Fail> + Send + Sync + 'static,
    ) {
        self.hear_on(consumer, &self.bus, &self.tasks, judge);
    }

    /// As [`hear_with`](Self::hear_with), in a life of the consumer that may end before the house.
    pub(crate) fn hear_on(
        &self,
        consumer: Consumer,
        bus: &Bus,
        tasks: &Tasks,
        judge: impl Fn(&str, u32) -> Result<(), Fail> + Send + Sync + 'static,
    ) {
        let service = outbox::Service::new(self.pool.clone(), TELL);
        let producer = Producer::new(TELL.name(), move |request| {
            let service = service.clone();
            Box::pin(async move { service.replay(&request.types, None).await })
        });
        self.hear_from(consumer, bus, tasks, producer, judge);
    }

    pub(crate) fn hear_from(
        &self,
        consumer: Consumer,
        bus: &Bus,
        tasks: &Tasks,
        producer: Producer,
        judge: impl Fn(&str, u32) -> Result<(), Fail> + Send + Sync + 'static,
    ) {
        let setup = Setup {
            consumer,
            schema: HEAR,
            pool: self.pool.clone(),
            clock: self.clock.clone(),
            producers: vec![producer],
        };
        let judge: Arc<Judge> = Arc::new(judge);
        Inbox::start(setup, bus, tasks, move |event, transaction| {
            keep(consumer.name, Arc::clone(&judge), event, transaction)
        });
    }

    /// As [`hear`](Self::hear); each effect is held up by what `hindrance` makes of how many were begun with it.
    pub(crate) fn hear_while<F>(&self, consumer: Consumer, hindrance: impl Fn(u32) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (begun, pool) = (AtomicU32::new(0), self.pool.clone());
        let setup = Setup { consumer, schema: HEAR, pool, clock: self.clock.clone(), producers: Vec::new() };
        Inbox::start(setup, &self.bus, &self.tasks, move |event, transaction| {
            let hindrance = hindrance(begun.fetch_add(1, Ordering::SeqCst) + 1);
            Box::pin(async move {
                hindrance.await;
                keep(consumer.name, Arc::new(|_: &str, _| Ok(())), event, transaction).await
            })
        });
    }

    /// What the consumer has heard of each event, in the order in which it did.
    pub(crate) async fn heard(&self, consumer: Consumer) -> Vec<(String, i64)> {
        sqlx::query_as("select subject, n from hear.effect where consumer = $1 order by seq")
            .bind(consumer.name)
            .fetch_all(&self.pool)
            .await
            .expect("effects")
    }

    /// Waits until the consumer has heard `count` events.
    pub(crate) async fn until_heard(&self, consumer: Consumer, count: i64) {
        self.until(&format!("select count(*) >= {count} from hear.effect where consumer = '{}'", consumer.name)).await;
    }

    /// Waits until nothing waits in the outbox.
    pub(crate) async fn until_published(&self) {
        self.until("select not exists (select from tell.outbox where published_at is null)").await;
    }

    /// Waits until a question to the database is answered with yes.
    pub(crate) async fn until(&self, question: &str) {
        let yes = async {
            while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(question))
                .fetch_one(&self.pool)
                .await
                .expect("an answer")
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        patiently(question, yes).await;
    }

    /// Waits until `count` events are parked.
    pub(crate) async fn until_parked(&self, count: usize) -> Vec<Parked> {
        let mut parked = self.parked.clone();
        let enough = async { parked.wait_for(|all| all.len() >= count).await.expect("a keeper").clone() };
        patiently("parked events", enough).await
    }

    /// Ends everything that this house has begun.
    pub(crate) async fn close(self) {
        assert!(self.tasks.join(Duration::from_secs(10)).await, "everything ends when it is asked to");
    }
}

pub(crate) async fn rabbitmq(vhost: &str, tasks: &Tasks) -> Bus {
    let url = Secret::new(broker().await.amqp_url_of(vhost));
    Bus::rabbitmq(&url, &[THINGS, EVERYTHING], tasks).expect("a bus")
}

pub(crate) fn event(kind: &'static str, subject: &str, n: u32) -> outbox::Event {
    outbox::Event::new(kind, subject, &JobChanged { attempt: n, ..JobChanged::default() })
}

/// Waits for what must come; a test that hangs says for what.
pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// Asserts that each subject was heard once and in order, from 0 on.
pub(crate) fn assert_in_order(heard: &[(String, i64)], subjects: usize, each: i64) {
    let mut next = std::collections::HashMap::new();
    for (subject, n) in heard {
        let expected = next.entry(subject.as_str()).or_insert(0);
        assert_eq!(n, expected, "of {subject}");
        *expected += 1;
    }
    assert_eq!(next.len(), subjects);
    assert!(next.values().all(|count| *count == each), "{next:?}");
}

type Judge = dyn Fn(&str, u32) -> Result<(), Fail> + Send + Sync;

fn keep<'a>(
    consumer: &'static str,
    judge: Arc<Judge>,
    event: &'a Event,
    transaction: &'a mut PgConnection,
) -> BoxFuture<'a, Result<(), Fail>> {
    Box::pin(async move {
        let n = event.message::<JobChanged>()?.attempt;
        sqlx::query("insert into hear.effect (consumer, subject, n) values ($1, $2, $3)")
            .bind(consumer)
            .bind(&event.subject)
            .bind(i64::from(n))
            .execute(transaction)
            .await?;
        judge(&event.subject, n)
    })
}
