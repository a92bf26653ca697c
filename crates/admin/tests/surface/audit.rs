//! The audit log: each act once, told to those who may read it.

use std::time::Duration;

use kit::{Kind, clock::to_timestamp};
use proto::{
    admin::{AuditEntry, ListAuditRequest, ListParkedEventsRequest},
    events::ActRecorded,
};

use crate::support::{House, account, answer, code, someone};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn act(action: &str, target_id: &str) -> ActRecorded {
    ActRecorded {
        actor_kind: "user".to_owned(),
        action: action.to_owned(),
        target_kind: action.split('.').next().unwrap_or_default().to_owned(),
        target_id: target_id.to_owned(),
        outcome: "done".to_owned(),
        ..ActRecorded::default()
    }
}

fn everything() -> ListAuditRequest {
    ListAuditRequest::default()
}

fn actions(entries: &[AuditEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.action.as_str()).collect()
}

#[tokio::test]
async fn an_act_that_arrives_twice_is_one_entry() {
    let house = House::open().await;
    let recorded = ActRecorded {
        actor_kind: "user".to_owned(),
        actor_id: "an actor".to_owned(),
        on_behalf_of: "an owner".to_owned(),
        credential: "session:1".to_owned(),
        remote_address: "192.0.2.7".to_owned(),
        user_agent: "a browser".to_owned(),
        action: "job.cancel".to_owned(),
        target_kind: "job".to_owned(),
        target_id: "a job".to_owned(),
        outcome: "done".to_owned(),
        reason: "no need of it".to_owned(),
        before_json: r#"{"state":"queued"}"#.to_owned(),
        after_json: r#"{"state":"cancelled"}"#.to_owned(),
        request_id: "request-9".to_owned(),
        at: None,
    };
    let event = house.act("jobs", recorded.clone());
    house.tell(&[event.clone(), event.clone()]).await;
    // However late the repeat comes: the inbox remembers for a month, the log for as long as it keeps the entry.
    sqlx::query("delete from admin.inbox").execute(house.pool()).await.expect("forgotten");
    house.tell(std::slice::from_ref(&event)).await;

    let entries = house.entries(&someone("admin"), everything()).await.expect("a page");
    let expected = AuditEntry {
        id: event.id.to_string(),
        at: Some(to_timestamp(house.clock.now())),
        service: "jobs".to_owned(),
        actor_kind: recorded.actor_kind,
        actor_id: recorded.actor_id,
        on_behalf_of: recorded.on_behalf_of,
        credential: recorded.credential,
        remote_address: recorded.remote_address,
        user_agent: recorded.user_agent,
        action: recorded.action,
        target_kind: recorded.target_kind,
        target_id: recorded.target_id,
        outcome: recorded.outcome,
        reason: recorded.reason,
        before_json: recorded.before_json,
        after_json: recorded.after_json,
        request_id: recorded.request_id,
    };
    assert_eq!(entries, [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_hear_the_same_acts_at_once_write_each_down_once() {
    let house = House::open().await;
    let other = house.replica().await;
    let events: Vec<_> = (0..50).map(|n| house.act("jobs", act("job.cancel", &n.to_string()))).collect();
    tokio::join!(house.tell(&events), other.tell(&events));
    for replica in [&house, &other] {
        let asked = ListAuditRequest { limit: 200, ..everything() };
        let entries = replica.entries(&someone("admin"), asked).await.expect("a page");
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
        assert_eq!(ids, events.iter().rev().map(|event| event.id.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_operator_reads_what_jobs_recorded_and_a_customer_nothing() {
    let house = House::open().await;
    let told = [
        house.act("auth", act("session.create", "1")),
        house.act("jobs", act("job.cancel", "2")),
        house.act("content", act("content.publish", "3")),
    ];
    house.tell(&told).await;
    let operator = someone("operator");
    let shown = house.entries(&operator, everything()).await.expect("a page");
    assert_eq!(actions(&shown), ["job.cancel"]);
    // A filter narrows further, and leads nowhere else.
    let of_auth = ListAuditRequest { service: "auth".to_owned(), ..everything() };
    assert_eq!(house.entries(&operator, of_auth.clone()).await.expect("a page"), []);
    assert_eq!(actions(&house.entries(&someone("admin"), of_auth).await.expect("a page")), ["session.create"]);
    let refused = house.entries(&someone("customer"), everything()).await.expect_err("not for customers");
    assert_eq!((refused.kind(), refused.code()), (Kind::Forbidden, "forbidden"));
    // Of a service account's scope, as of a role, `own` names no service by itself.
    assert_eq!(house.entries(&account("audit:read"), everything()).await.expect("a page"), []);
    assert_eq!(house.entries(&account("audit:read:any"), everything()).await.expect("a page").len(), 3);
}

#[tokio::test]
async fn each_filter_finds_the_one_entry_that_fits() {
    let house = House::open().await;
    let early = house.clock.now();
    let mut wanted = ActRecorded {
        actor_id: "ada".to_owned(),
        outcome: "refused".to_owned(),
        request_id: "request-7".to_owned(),
        ..act("queue.pause", "pictures")
    };
    wanted.target_kind = "queue".to_owned();
    house.tell(&[house.act("auth", act("user.disable", "1")), house.act("auth", act("user.enable", "1"))]).await;
    house.clock.advance(Duration::from_secs(5));
    house.tell(&[house.act("jobs", wanted)]).await;
    house.clock.advance(Duration::from_secs(5));
    house.tell(&[house.act("auth", act("session.create", "2"))]).await;

    let (admin, at) = (someone("admin"), |seconds| Some(to_timestamp(early + Duration::from_secs(seconds))));
    let filters = [
        ListAuditRequest { service: "jobs".to_owned(), ..everything() },
        ListAuditRequest { actor_id: "ada".to_owned(), ..everything() },
        ListAuditRequest { action: "queue.pause".to_owned(), ..everything() },
        ListAuditRequest { target_kind: "queue".to_owned(), ..everything() },
        ListAuditRequest { target_id: "pictures".to_owned(), ..everything() },
        ListAuditRequest { outcome: "refused".to_owned(), ..everything() },
        ListAuditRequest { request_id: "request-7".to_owned(), ..everything() },
        ListAuditRequest { after: at(0), before: at(10), ..everything() },
    ];
    for filter in filters {
        let found = house.entries(&admin, filter.clone()).await.expect("a page");
        assert_eq!(actions(&found), ["queue.pause"], "{filter:?}");
    }
    for bad in [
        ListAuditRequest { action: "a\0b".to_owned(), ..everything() },
        ListAuditRequest { after: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), ..everything() },
    ] {
        assert_eq!(code(house.entries(&admin, bad).await), "admin.invalid_filter");
    }
    let last = ListAuditRequest {
        // The last time that there is.
        before: Some(prost_types::Timestamp { seconds: 8_210_266_876_799, nanos: 0 }),
        ..everything()
    };
    assert_eq!(house.entries(&admin, last).await.expect("a page").len(), 4);
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_and_a_foreign_cursor_leads_nowhere() {
    let house = House::open().await;
    let events: Vec<_> = (0..5).map(|n| house.act("jobs", act("job.cancel", &n.to_string()))).collect();
    house.tell(&events).await;
    let (admin, mut cursor, mut seen) = (someone("admin"), String::new(), Vec::new());
    loop {
        let asked = ListAuditRequest { limit: 2, cursor, ..everything() };
        let page = answer(house.audit().list(admin.request(asked)).await).expect("a page");
        seen.extend(page.items.into_iter().map(|entry| entry.target_id));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["4", "3", "2", "1", "0"]);
    let asked = ListAuditRequest { cursor: "AAAA".to_owned(), ..everything() };
    assert_eq!(code(house.entries(&admin, asked).await), "invalid_cursor");
}

#[tokio::test]
async fn what_tells_of_no_act_is_parked_and_holds_nothing_up() {
    let house = House::open().await;
    let admin = someone("admin");
    let broken = [
        house.event("jobs.act.recorded", "1", vec![0xff]),
        house.event("jobs.act.recorded", "2", Vec::new()),
        house.act("jobs", ActRecorded { before_json: "[1]".to_owned(), ..act("job.cancel", "3") }),
    ];
    house.tell(&broken).await;
    house.tell(&[house.act("jobs", act("job.retry", "4"))]).await;
    assert_eq!(actions(&house.entries(&admin, everything()).await.expect("a page")), ["job.retry"]);
    let parked = answer(house.parked().list(admin.request(ListParkedEventsRequest::default())).await).expect("a page");
    let reasons: Vec<_> = parked.items.iter().map(|event| event.reason.split(':').next().unwrap_or_default()).collect();
    assert_eq!(reasons, ["admin.invalid_act", "admin.invalid_act", "event.undecodable"]);
    assert!(parked.items.iter().all(|event| event.consumer == "admin" && event.source == "/guildhall/jobs"));
}

#[tokio::test]
async fn words_that_the_database_cannot_hold_keep_no_act_out_of_the_log() {
    let house = House::open().await;
    house.tell(&[house.act("jobs", ActRecorded { reason: "a\0b".to_owned(), ..act("job.cancel", "1") })]).await;
    let entries = house.entries(&someone("admin"), everything()).await.expect("a page");
    assert_eq!(entries[0].reason, "a\u{fffd}b");
}

#[tokio::test]
async fn a_month_of_entries_leaves_whole_once_its_last_day_is_old_enough() {
    let house = House::open().await;
    let admin = someone("admin");
    house.tell(&[house.act("jobs", act("job.cancel", "old"))]).await;
    let months = async || -> Vec<String> {
        let sql = "select inhrelid::regclass::text from pg_inherits where inhparent = 'admin.audit_entry'::regclass
                   order by 1";
        sqlx::query_scalar(sql).fetch_all(house.pool()).await.expect("partitions")
    };
    let first = months().await;
    assert_eq!(first.len(), 4, "three months and what is older: {first:?}");

    // The default retention is a year: until then, no month with a day younger than that may go.
    house.clock.advance(365 * DAY);
    assert!(house.sweep().await.is_empty());
    house.tell(&[house.act("jobs", act("job.retry", "young"))]).await;
    assert_eq!(actions(&house.entries(&admin, everything()).await.expect("a page")), ["job.retry", "job.cancel"]);

    house.clock.advance(32 * DAY);
    assert!(house.sweep().await.is_empty());
    assert_eq!(actions(&house.entries(&admin, everything()).await.expect("a page")), ["job.retry"]);
    assert!(!months().await.contains(&first[0]), "{:?}", months().await);

    // A repeat of what is older than every month there is finds a place, and goes with the next sweep.
    let mut late = house.act("jobs", act("job.cancel", "late"));
    late.id = uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
    house.tell(&[late]).await;
    assert_eq!(house.entries(&admin, everything()).await.expect("a page").len(), 2);
    assert!(house.sweep().await.is_empty());
    assert_eq!(house.entries(&admin, everything()).await.expect("a page").len(), 1);
}
