//! What both kinds of bus promise.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use kit::{
    Fail,
    bus::{Event, Message},
};

use crate::{
    broker,
    house::{DONE, EVERYTHING, House, OTHER, Over, THINGS, assert_in_order},
};

macro_rules! on_both {
    ($($promise:ident)*) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                super::$promise(super::Over::InProcess).await;
            })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let _calm = super::broker::calm().await;
                super::$promise(super::Over::RabbitMq).await;
            })*
        }
    };
}

on_both! {
    events_of_a_subject_arrive_in_order_and_once
    a_consumer_gets_the_types_it_asked_for
    what_fails_for_now_is_held_and_its_half_effect_is_undone
    what_fails_for_good_is_parked_with_its_reason_and_does_not_stop_the_others
    a_parked_event_is_handed_to_its_consumer_alone
    what_does_not_decode_is_parked
    an_event_sent_twice_has_one_effect
    a_new_consumer_gets_everything_that_is_kept_in_order
    a_replay_amid_the_stream_keeps_the_order
}

async fn events_of_a_subject_arrive_in_order_and_once(over: Over) {
    let house = House::new(over).await;
    house.hear(THINGS);
    futures::join!(house.tell(DONE, "a", 0..40), house.tell(DONE, "b", 0..40), house.tell(DONE, "c", 0..40));
    house.until_heard(THINGS, 120).await;
    house.until_published().await;
    assert_in_order(&house.heard(THINGS).await, 3, 40);
    house.close().await;
}

async fn a_consumer_gets_the_types_it_asked_for(over: Over) {
    let house = House::new(over).await;
    house.hear(THINGS);
    house.hear(EVERYTHING);
    house.tell(OTHER, "x", 0..1).await;
    house.tell(DONE, "x", 1..2).await;
    house.until_heard(EVERYTHING, 2).await;
    house.until_heard(THINGS, 1).await;
    assert_eq!(house.heard(THINGS).await, [("x".to_owned(), 1)]);
    assert_eq!(house.heard(EVERYTHING).await, [("x".to_owned(), 0), ("x".to_owned(), 1)]);
    house.close().await;
}

async fn what_fails_for_now_is_held_and_its_half_effect_is_undone(over: Over) {
    let house = House::new(over).await;
    let left = AtomicU32::new(3);
    house.hear_with(THINGS, move |_, n| {
        let is_hindered = n == 1 && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if is_hindered { Err(Fail::unavailable("test", "Not now.")) } else { Ok(()) }
    });
    house.tell(DONE, "a", 0..3).await;
    house.until_heard(THINGS, 3).await;
    assert_in_order(&house.heard(THINGS).await, 1, 3);
    assert!(house.parked.borrow().is_empty());
    house.close().await;
}

async fn what_fails_for_good_is_parked_with_its_reason_and_does_not_stop_the_others(over: Over) {
    let house = House::new(over).await;
    house.hear_with(THINGS, |_, n| match n {
        1 => Err(Fail::invalid("test.bad", "It is bad.").caused_by("a secret")),
        _ => Ok(()),
    });
    house.tell(DONE, "a", 0..3).await;
    house.until_heard(THINGS, 2).await;
    assert_eq!(house.heard(THINGS).await, [("a".to_owned(), 0), ("a".to_owned(), 2)]);
    let parked = house.until_parked(1).await;
    assert_eq!((parked[0].consumer.as_str(), parked[0].kind.as_str()), ("things", DONE));
    assert_eq!(parked[0].reason, "test.bad: It is bad.");
    assert_eq!(Event::from_bytes(&parked[0].event).unwrap().subject, "a");
    house.close().await;
}

async fn a_parked_event_is_handed_to_its_consumer_alone(over: Over) {
    let house = House::new(over).await;
    let refuses = Arc::new(AtomicU32::new(1));
    let judge = Arc::clone(&refuses);
    house.hear_with(THINGS, move |_, _| match judge.load(Ordering::SeqCst) {
        1 => Err(Fail::invalid("test.bad", "It is bad.")),
        _ => Ok(()),
    });
    house.hear(EVERYTHING);
    house.tell(DONE, "a", 0..1).await;
    let parked = house.until_parked(1).await;
    house.bus.send_to("things", parked[0].event.clone()).await.unwrap();
    assert_eq!(house.until_parked(2).await[1].reason, "test.bad: It is bad.", "it failed once more");
    refuses.store(0, Ordering::SeqCst);
    house.bus.send_to("things", parked[0].event.clone()).await.unwrap();
    house.until_heard(THINGS, 1).await;
    house.until_heard(EVERYTHING, 1).await;
    assert_eq!(house.heard(EVERYTHING).await.len(), 1);
    let fail = house.bus.send_to("nobody", parked[0].event.clone()).await.unwrap_err();
    assert_eq!(fail.code(), "bus.unavailable");
    house.close().await;
}

async fn what_does_not_decode_is_parked(over: Over) {
    let house = House::new(over).await;
    house.hear(THINGS);
    house.tell(DONE, "a", 0..1).await;
    house.until_heard(THINGS, 1).await;
    let garbage = Message {
        id: house.clock.new_id(),
        kind: DONE.to_owned(),
        subject: "a".to_owned(),
        body: (&b"\xff\xff\xff"[..]).into(),
        generation: i64::MAX,
    };
    let published = house.bus.publisher().publish(&[garbage]).await;
    assert_eq!(published.confirmed, [true]);
    let parked = house.until_parked(1).await;
    assert_eq!((parked[0].kind.as_str(), &parked[0].event[..]), (DONE, &b"\xff\xff\xff"[..]));
    assert!(parked[0].reason.starts_with("event.undecodable"), "{}", parked[0].reason);
    house.close().await;
}

async fn an_event_sent_twice_has_one_effect(over: Over) {
    let house = House::new(over).await;
    house.hear(THINGS);
    house.tell(DONE, "a", 0..20).await;
    house.until_heard(THINGS, 20).await;
    house.until_published().await;
    // As after a crash between publishing and marking.
    sqlx::query("update tell.outbox set published_at = null").execute(&house.pool).await.unwrap();
    house.until_published().await;
    house.tell(DONE, "a", 20..21).await;
    house.until_heard(THINGS, 21).await;
    assert_in_order(&house.heard(THINGS).await, 1, 21);
    house.close().await;
}

async fn a_new_consumer_gets_everything_that_is_kept_in_order(over: Over) {
    let house = House::new(over).await;
    house.tell(DONE, "a", 0..30).await;
    house.until_published().await;
    house.hear(THINGS);
    house.tell(DONE, "a", 30..60).await;
    house.until_heard(THINGS, 60).await;
    assert_in_order(&house.heard(THINGS).await, 1, 60);
    house.close().await;
}

async fn a_replay_amid_the_stream_keeps_the_order(over: Over) {
    let house = House::new(over).await;
    house.hear(EVERYTHING);
    let service = kit::outbox::Service::new(house.pool.clone(), crate::house::TELL);
    let replays = async {
        for n in 0..5 {
            house.until_heard(EVERYTHING, n * 20).await;
            service.replay(&["tell.#".to_owned()], None).await.unwrap();
        }
    };
    futures::join!(house.tell(DONE, "a", 0..100), house.tell(OTHER, "b", 0..100), replays);
    // One that begins in the middle of all that.
    house.hear(THINGS);
    house.until_heard(EVERYTHING, 200).await;
    house.until_heard(THINGS, 100).await;
    house.until_published().await;
    assert_in_order(&house.heard(EVERYTHING).await, 2, 100);
    assert_in_order(&house.heard(THINGS).await, 1, 100);
    house.close().await;
}
