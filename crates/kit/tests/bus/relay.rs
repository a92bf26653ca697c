//! What the outbox and its relay promise by themselves.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{
    Fail,
    bus::{Bus, Event, Message},
    outbox,
    tasks::Tasks,
};
use sqlx::postgres::PgPoolOptions;

use crate::{
    broker,
    house::{DONE, EVERYTHING, House, OTHER, Over, TELL, THINGS, assert_in_order, event, patiently},
    line::Line,
};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_marked_before_the_consumer_is_done_with_it() {
    let house = House::new(Over::InProcess).await;
    let may_pass = Arc::new(AtomicBool::new(false));
    let (gate, (met, mut was_met)) = (Arc::clone(&may_pass), tokio::sync::watch::channel(0));
    house.hear_with(THINGS, move |_, _| {
        met.send_modify(|count| *count += 1);
        if gate.load(Ordering::SeqCst) { Ok(()) } else { Err(Fail::unavailable("test", "Not now.")) }
    });
    house.tell(DONE, "a", 0..1).await;
    patiently("a second try", was_met.wait_for(|count| *count >= 2)).await.unwrap();
    let lag = outbox::lag(&house.pool, TELL, house.clock.now()).await.unwrap();
    assert_eq!(lag.unpublished, 1);
    may_pass.store(true, Ordering::SeqCst);
    house.until_published().await;
    assert_eq!(house.heard(THINGS).await.len(), 1);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_one_publishes_and_the_other_takes_over() {
    let house = House::new(Over::InProcess).await;
    house.hear(THINGS);
    house.tell(DONE, "a", 0..20).await;
    house.until_published().await;
    outbox::start_relay(&house.pool, TELL, &house.bus, &house.clock, &house.tasks);
    const LEADERS: &str = "select count(*) = 1 from pg_locks where locktype = 'advisory' and granted
                           and database = (select oid from pg_database where datname = current_database())";
    house.until(LEADERS).await;
    let leader: i32 = sqlx::query_scalar(
        "select pid from pg_locks where locktype = 'advisory' and granted
         and database = (select oid from pg_database where datname = current_database())",
    )
    .fetch_one(&house.pool)
    .await
    .unwrap();
    let told = house.tell(DONE, "a", 20..200);
    let kills = async {
        house.until_heard(THINGS, 60).await;
        sqlx::query("select pg_terminate_backend($1)").bind(leader).execute(&house.pool).await.unwrap();
    };
    futures::join!(told, kills);
    house.until_heard(THINGS, 200).await;
    house.until_published().await;
    house.until(LEADERS).await;
    assert_in_order(&house.heard(THINGS).await, 1, 200);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_connection_is_dead_and_not_closed_leaves_it() {
    let house = House::without_relay(Over::InProcess).await;
    house.hear(THINGS);
    let line = Line::to(&house.url).await;
    let pool = PgPoolOptions::new().max_connections(2).connect(line.url()).await.unwrap();
    outbox::start_relay(&pool, TELL, &house.bus, &house.clock, &house.tasks);
    house.tell(DONE, "a", 0..1).await;
    house.until_heard(THINGS, 1).await;
    house.until_published().await;
    line.cut();
    house.tell(DONE, "a", 1..3).await;
    house.until_heard(THINGS, 3).await;
    assert_in_order(&house.heard(THINGS).await, 1, 3);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_effect_hangs_is_tried_again() {
    let house = House::new(Over::InProcess).await;
    house.hear_while(THINGS, |tries| async move {
        if tries == 1 {
            std::future::pending::<()>().await;
        }
    });
    house.tell(DONE, "a", 0..2).await;
    house.until_heard(THINGS, 2).await;
    assert_in_order(&house.heard(THINGS).await, 1, 2);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_long_ago_is_pruned_up_to_the_first_that_was_not() {
    let house = House::without_relay(Over::InProcess).await;
    house.tell(DONE, "a", 0..4).await;
    sqlx::query("update tell.outbox set published_at = at where seq <> 3").execute(&house.pool).await.unwrap();
    let before = house.clock.now() + TimeDelta::seconds(1);
    assert_eq!(pruned(&house, before - TimeDelta::days(1), 10).await, 0);
    assert_eq!(pruned(&house, before, 1).await, 1);
    assert_eq!(pruned(&house, before, 10).await, 1);
    assert_eq!(left(&house).await, [3, 4]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waited_long_for_the_bus_is_kept_from_its_publishing_on() {
    let house = House::without_relay(Over::InProcess).await;
    house.tell(DONE, "a", 0..2).await;
    let week_ago = "update tell.outbox set at = at - interval '8 days', published_at = at";
    sqlx::query(week_ago).execute(&house.pool).await.unwrap();
    assert_eq!(pruned(&house, house.clock.now() - TimeDelta::days(7), 10).await, 0);
    assert_eq!(left(&house).await, [1, 2]);
    house.close().await;
}

async fn pruned(house: &House, before: DateTime<Utc>, rows_max: i64) -> u64 {
    outbox::prune(&mut house.pool.acquire().await.unwrap(), TELL, before, rows_max).await.unwrap()
}

async fn left(house: &House) -> Vec<i64> {
    sqlx::query_scalar("select seq from tell.outbox order by seq").fetch_all(&house.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_tells_how_many_wait_and_for_how_long() {
    let house = House::without_relay(Over::InProcess).await;
    let lag = outbox::lag(&house.pool, TELL, house.clock.now()).await.unwrap();
    assert_eq!((lag.unpublished, lag.seconds), (0, 0.0));
    house.tell(DONE, "a", 0..3).await;
    house.tell_at_once(&(3..10).map(|n| event(DONE, "a", n)).collect::<Vec<_>>()).await;
    let lag = outbox::lag(&house.pool, TELL, house.clock.now() + TimeDelta::seconds(60)).await.unwrap();
    assert_eq!(lag.unpublished, 10);
    assert!(lag.seconds >= 60.0, "{lag:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_keeps_a_relay_from_marking_what_it_read_before() {
    let house = House::new(Over::InProcess).await;
    let may_pass = Arc::new(AtomicBool::new(false));
    let (gate, (met, mut was_met)) = (Arc::clone(&may_pass), tokio::sync::watch::channel(false));
    house.hear_with(EVERYTHING, move |_, _| {
        met.send_replace(true);
        if gate.load(Ordering::SeqCst) { Ok(()) } else { Err(Fail::unavailable("test", "Not now.")) }
    });
    house.tell(DONE, "a", 0..1).await;
    patiently("the event", was_met.wait_for(|is| *is)).await.unwrap();
    // On its way to one consumer, the event is asked for by another, to which it is not on its way.
    house.hear(THINGS);
    house.until("select count(*) = 1 from hear.inbox_consumer where name = 'things' and caught_up = losses").await;
    may_pass.store(true, Ordering::SeqCst);
    house.until_heard(THINGS, 1).await;
    house.until_published().await;
    assert_eq!((house.heard(THINGS).await.len(), house.heard(EVERYTHING).await.len()), (1, 1));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_sends_the_asked_types_again_and_no_others() {
    let house = House::new(Over::InProcess).await;
    house.tell(DONE, "a", 0..2).await;
    house.tell_at_once(&(2..5).map(|n| event(OTHER, "a", n)).collect::<Vec<_>>()).await;
    house.until_published().await;
    let service = outbox::Service::new(house.pool.clone(), TELL);
    let replay = async |types: &str| service.replay(&[types.to_owned()], None).await.map(|answer| answer.events);
    assert_eq!(replay("tell.thing.*").await.unwrap(), 2);
    house.until_published().await;
    assert_eq!(replay("*.*.done").await.unwrap(), 5);
    house.until_published().await;
    assert_eq!(replay("tell").await.unwrap(), 0);
    let later = Some(house.clock.now() + TimeDelta::seconds(1));
    assert_eq!(service.replay(&["#".to_owned()], later).await.unwrap().events, 0);
    assert_eq!(replay("tell.(a|b)").await.unwrap_err().code(), "events.invalid_type");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_transaction_tells_shares_a_row_and_arrives_one_by_one() {
    let house = House::new(Over::InProcess).await;
    house.hear(EVERYTHING);
    let kind = |n| if n % 4 == 3 { OTHER } else { DONE };
    let told = (0..100).map(|n| event(kind(n), &format!("s{}", n % 5), n / 5));
    house.tell_at_once(&told.collect::<Vec<_>>()).await;
    house.until_heard(EVERYTHING, 100).await;
    house.until_published().await;
    assert_in_order(&house.heard(EVERYTHING).await, 5, 20);
    let mut connection = house.pool.acquire().await.unwrap();
    let kept = outbox::kept(&mut connection, TELL, 0).await.unwrap();
    assert_eq!(kept.len(), 100);
    assert_eq!(kept.iter().map(|event| event.id).collect::<HashSet<_>>().len(), 100);
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select type, sum(events) from tell.outbox group by 1 order by 1 desc")
            .fetch_all(&house.pool)
            .await
            .unwrap();
    assert_eq!(rows, [(DONE.to_owned(), 75), (OTHER.to_owned(), 25)]);
    assert!(left(&house).await.len() < 50, "{:?}", left(&house).await);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_marked_when_all_of_it_has_arrived() {
    let house = House::new(Over::InProcess).await;
    let may_pass = Arc::new(AtomicBool::new(false));
    let (gate, (met, mut was_met)) = (Arc::clone(&may_pass), tokio::sync::watch::channel(0));
    house.hear_with(THINGS, move |_, n| {
        if n != 2 || gate.load(Ordering::SeqCst) {
            return Ok(());
        }
        met.send_modify(|count| *count += 1);
        Err(Fail::unavailable("test", "Not now."))
    });
    house.tell_at_once(&(0..4).map(|n| event(DONE, "a", n)).collect::<Vec<_>>()).await;
    patiently("a second try", was_met.wait_for(|count| *count >= 2)).await.unwrap();
    let lag = outbox::lag(&house.pool, TELL, house.clock.now()).await.unwrap();
    assert_eq!(lag.unpublished, 4);
    may_pass.store(true, Ordering::SeqCst);
    house.until_heard(THINGS, 4).await;
    house.until_published().await;
    assert_in_order(&house.heard(THINGS).await, 1, 4);
    house.close().await;
}

/// Services tell events before the one that listens has started. It missed nothing that it knows of, and so asks for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn within_a_process_what_a_consumer_wants_waits_until_it_listens() {
    let mut house = House::without_relay(Over::InProcess).await;
    house.hear(THINGS);
    house.bus = Bus::open(None, &[THINGS], &house.tasks).expect("a bus");
    let (id, at) = (house.clock.new_id(), house.clock.now());
    let event = Event {
        id,
        kind: DONE.to_owned(),
        source: "/guildhall/tell".to_owned(),
        subject: "a".to_owned(),
        at,
        traceparent: None,
        data: event(DONE, "a", 0).data,
    };
    let message =
        Message { id, kind: event.kind.clone(), subject: "a".to_owned(), body: event.to_bytes(), generation: 0 };
    let messages = [message];
    let mut publisher = house.bus.publisher();
    let mut publishing = std::pin::pin!(publisher.publish(&messages));
    assert!(futures::poll!(&mut publishing).is_pending());
    house.hear(THINGS);
    let published = patiently("it is taken", publishing).await;
    assert_eq!(published.confirmed, [true]);
    assert_eq!(house.heard(THINGS).await, [("a".to_owned(), 0)]);
    house.close().await;
}

/// Within one process it is known who listens, and events that nobody wants are not even read.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_wanted_is_done_with_until_somebody_does() {
    let house = House::new(Over::InProcess).await;
    house.hear(THINGS);
    // A type that nobody wants, twice: the second time that is known.
    for n in 0..2 {
        house.tell(OTHER, "a", n..n + 1).await;
        house.until_published().await;
    }
    house.hear(EVERYTHING);
    house.until_heard(EVERYTHING, 2).await;
    house.tell(OTHER, "a", 2..3).await;
    house.tell(DONE, "a", 3..4).await;
    house.until_heard(EVERYTHING, 4).await;
    assert_eq!(house.heard(EVERYTHING).await, [0, 1, 2, 3].map(|n| ("a".to_owned(), n)));
    assert_eq!(house.heard(THINGS).await, [("a".to_owned(), 3)]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_version_before_bundles_are_sent_in_their_place() {
    let house = House::without_relay(Over::InProcess).await;
    house.hear(THINGS);
    for n in 0..5 {
        house.tell_at_once(&[event(DONE, "a", n * 3), event(DONE, "a", n * 3 + 1)]).await;
        let data = event(DONE, "a", n * 3 + 2).data;
        // As that version writes it.
        sqlx::query(
            "insert into tell.outbox (id, type, subject, data, traceparent, at) values ($1, $2, 'a', $3, null, $4)",
        )
        .bind(house.clock.new_id())
        .bind(DONE)
        .bind(&data[..])
        .bind(house.clock.now())
        .execute(&house.pool)
        .await
        .unwrap();
    }
    outbox::start_relay(&house.pool, TELL, &house.bus, &house.clock, &house.tasks);
    house.until_heard(THINGS, 15).await;
    assert_in_order(&house.heard(THINGS).await, 1, 15);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_events_drain_with_many_in_flight() {
    let _calm = broker::calm().await;
    let house = House::without_relay(Over::RabbitMq).await;
    for n in 0..10 {
        let events: Vec<_> = (0..1000).map(|i| event(OTHER, &format!("s{}", n * 1000 + i), 0)).collect();
        house.tell_at_once(&events).await;
    }
    let mut state = house.bus.state();
    patiently("a connection", state.wait_for(|state| *state == kit::bus::State::Connected)).await.unwrap();
    // A foreign queue, so that the broker has something to write.
    let raw = crate::outages::Raw::connect(&house.vhost).await;
    raw.bind_foreign("foreign", "tell.#").await;
    let began = Instant::now();
    let relay = Tasks::new();
    outbox::start_relay(&house.pool, TELL, &house.bus, &house.clock, &relay);
    house.until_published().await;
    let seconds = began.elapsed().as_secs_f64();
    println!("10,000 events in {seconds:.2} s: {:.0} a second", 10_000.0 / seconds);
    assert_eq!(raw.messages_in("foreign").await, 10_000);
    assert!(relay.join(Duration::from_secs(10)).await);
    house.close().await;
}
