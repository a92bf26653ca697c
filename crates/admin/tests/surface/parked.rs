//! Events that a consumer could not handle: kept, listed, and handed back once somebody asks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kit::{
    Fail, Kind,
    bus::Consumer,
    grpc::Call,
    inbox::{Inbox, Setup},
};
use proto::admin::{ListAuditRequest, ListParkedEventsRequest, ParkedEvent, ReplayParkedEventRequest};
use tokio::sync::mpsc;

use crate::support::{House, answer, code, message, someone, soon};

/// A consumer that refuses what it hears for as long as it is told to, and says what it took.
struct Listener {
    refuses: Arc<AtomicBool>,
    took: mpsc::UnboundedReceiver<String>,
}

impl Listener {
    fn start(house: &House, name: &'static str, types: &'static [&'static str]) -> Self {
        let refuses = Arc::new(AtomicBool::new(false));
        let (sender, took) = mpsc::unbounded_channel();
        let setup = Setup {
            consumer: Consumer { name, types },
            schema: admin::SCHEMA,
            pool: house.pool().clone(),
            clock: house.clock.clone(),
            producers: Vec::new(),
        };
        let is_refusing = Arc::clone(&refuses);
        Inbox::start(setup, &house.bus, &house.tasks, move |event, _| {
            let (is_refused, sender, subject) =
                (is_refusing.load(Ordering::SeqCst), sender.clone(), event.subject.clone());
            Box::pin(async move {
                if is_refused {
                    return Err(Fail::invalid("tests.broken", "It makes no sense.").caused_by("a secret"));
                }
                sender.send(subject).map_err(Fail::internal)
            })
        });
        Self { refuses, took }
    }

    fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }
}

async fn parked(house: &House, with_replayed: bool) -> Vec<ParkedEvent> {
    let asked = ListParkedEventsRequest { with_replayed, ..ListParkedEventsRequest::default() };
    answer(house.parked().list(someone("admin").request(asked)).await).expect("a page").items
}

async fn replay(house: &House, call: &Call, id: &str) -> Result<ParkedEvent, Fail> {
    answer(house.parked().replay(call.request(ReplayParkedEventRequest { id: id.to_owned() })).await)
}

#[tokio::test]
async fn a_parked_event_is_listed_with_its_reason_and_reaches_its_consumer_when_it_is_replayed() {
    let house = House::open().await;
    let mut listener = Listener::start(&house, "tests", &["tests.#"]);
    let mut acts = Listener::start(&house, "witness", &["admin.act.recorded"]);
    let event = house.event("tests.thing.done", "a thing", vec![1, 2, 3]);
    listener.refuse(true);
    // Delivered twice, it is parked once.
    house.tell(&[event.clone(), event.clone()]).await;
    let waiting = parked(&house, false).await;
    let [one] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!((one.event_id.as_str(), one.r#type.as_str()), (event.id.to_string().as_str(), "tests.thing.done"));
    assert_eq!((one.source.as_str(), one.subject.as_str()), ("/guildhall/tests", "a thing"));
    assert_eq!((one.consumer.as_str(), one.reason.as_str()), ("tests", "tests.broken: It makes no sense."));
    assert!(one.parked_at.is_some() && one.replayed_at.is_none());

    listener.refuse(false);
    let admin = someone("admin");
    let replayed = replay(&house, &admin, &one.id).await.expect("replayed");
    assert!(replayed.replayed_at.is_some());
    assert_eq!(soon(listener.took.recv()).await.as_deref(), Some("a thing"));
    // Once more does no harm, and nothing more.
    replay(&house, &admin, &one.id).await.expect("replayed again");
    assert!(listener.took.try_recv().is_err(), "the effect has happened twice");
    assert_eq!(parked(&house, false).await, []);
    assert_eq!(parked(&house, true).await.len(), 1);

    // Both replays are acts, told over the bus like any other; whoever hears them after us hears them when they are written
    // down.
    for _ in 0..2 {
        assert_eq!(soon(acts.took.recv()).await.as_deref(), Some(one.id.as_str()));
    }
    let entries = house.entries(&admin, ListAuditRequest::default()).await.expect("a page");
    let told: Vec<_> =
        entries.iter().map(|entry| (entry.service.as_str(), entry.action.as_str(), entry.target_id.as_str())).collect();
    assert_eq!(told, [("admin", "parked_event.replay", one.id.as_str()); 2]);
    assert_eq!(entries[0].request_id, "request-1");
}

#[tokio::test]
async fn one_that_fails_again_waits_again_under_the_same_id() {
    let house = House::open().await;
    let listener = Listener::start(&house, "tests", &["tests.#"]);
    listener.refuse(true);
    house.tell(&[house.event("tests.thing.done", "a thing", Vec::new())]).await;
    let before = parked(&house, false).await;
    house.clock.advance(std::time::Duration::from_secs(1));
    let answered = replay(&house, &someone("admin"), &before[0].id).await.expect("handed over");
    assert_eq!(answered.replayed_at, None, "it was parked again before the answer");
    let after = parked(&house, false).await;
    assert_eq!((after.len(), &after[0].id), (1, &before[0].id));
    assert_ne!(after[0].parked_at, before[0].parked_at);
}

#[tokio::test]
async fn what_is_no_event_at_all_is_kept_byte_for_byte() {
    let house = House::open().await;
    let _listener = Listener::start(&house, "tests", &["tests.#"]);
    let event = house.event("tests.thing.done", "a thing", Vec::new());
    house.publish(&[message(&event, bytes::Bytes::from_static(b"\xff\x00nonsense"))]).await;
    let waiting = parked(&house, false).await;
    assert_eq!((waiting[0].r#type.as_str(), waiting[0].subject.as_str()), ("tests.thing.done", ""));
    assert!(waiting[0].event_id.starts_with("sha256:"), "{}", waiting[0].event_id);
    assert!(waiting[0].reason.starts_with("event.undecodable"), "{}", waiting[0].reason);
    let kept: Vec<u8> =
        sqlx::query_scalar("select event from admin.parked_event").fetch_one(house.pool()).await.expect("a row");
    assert_eq!(kept, b"\xff\x00nonsense");
}

#[tokio::test]
async fn parked_events_are_paged_newest_first_and_found_by_consumer_and_type() {
    let house = House::open().await;
    let one = Listener::start(&house, "one", &["tests.#"]);
    let two = Listener::start(&house, "two", &["tests.thing.done"]);
    one.refuse(true);
    two.refuse(true);
    let events = [("tests.thing.done", "1"), ("tests.thing.undone", "2"), ("tests.thing.undone", "3")];
    for (kind, subject) in events {
        house.tell(&[house.event(kind, subject, Vec::new())]).await;
    }
    let admin = someone("admin");
    let list = async |asked: ListParkedEventsRequest| answer(house.parked().list(admin.request(asked)).await);
    let found = async |consumer: &str, kind: &str| {
        let (consumer, kind) = (consumer.to_owned(), kind.to_owned());
        let asked = ListParkedEventsRequest { consumer, r#type: kind, ..ListParkedEventsRequest::default() };
        list(asked).await.expect("a page").items.into_iter().map(|event| event.subject).collect::<Vec<_>>()
    };
    assert_eq!(found("one", "").await, ["3", "2", "1"]);
    assert_eq!(found("two", "").await, ["1"]);
    assert_eq!(found("", "tests.thing.undone").await, ["3", "2"]);
    let first = list(ListParkedEventsRequest { limit: 3, ..ListParkedEventsRequest::default() }).await.expect("a page");
    let cursor = first.next_cursor.clone();
    let rest = list(ListParkedEventsRequest { cursor, ..ListParkedEventsRequest::default() }).await.expect("a page");
    assert_eq!((first.items.len(), rest.items.len(), rest.next_cursor.as_str()), (3, 1, ""));
    let bad = ListParkedEventsRequest { consumer: "a\0b".to_owned(), ..ListParkedEventsRequest::default() };
    assert_eq!(code(list(bad).await), "admin.invalid_filter");
}

#[tokio::test]
async fn who_may_not_replay_is_refused_and_an_id_of_nothing_is_not_there() {
    let house = House::open().await;
    for role in ["customer", "operator", "service"] {
        let refused = replay(&house, &someone(role), "0190a000-0000-7000-8000-000000000001").await.expect_err(role);
        assert_eq!(refused.kind(), Kind::Forbidden, "{role}");
    }
    for id in ["0190a000-0000-7000-8000-000000000001", "nonsense", ""] {
        let refused = replay(&house, &someone("admin"), id).await.expect_err("there is none");
        assert_eq!((refused.kind(), refused.code()), (Kind::NotFound, "admin.parked_event_not_found"));
    }
}

#[tokio::test]
async fn a_replayed_event_is_forgotten_after_its_days_and_one_that_waits_never() {
    let house = House::open().await;
    let listener = Listener::start(&house, "tests", &["tests.#"]);
    listener.refuse(true);
    for subject in ["1", "2"] {
        house.tell(&[house.event("tests.thing.done", subject, Vec::new())]).await;
    }
    listener.refuse(false);
    let waiting = parked(&house, false).await;
    replay(&house, &someone("admin"), &waiting[0].id).await.expect("replayed");
    house.clock.advance(std::time::Duration::from_secs(31 * 24 * 60 * 60));
    assert!(house.sweep().await.is_empty());
    let left: Vec<_> = parked(&house, true).await.into_iter().map(|event| event.id).collect();
    assert_eq!(left, [waiting[1].id.clone()]);
}
