//! Taking jobs in: all or nothing, every fault at its place, once per idempotency key.

use kit::Kind;
use proto::jobs::{JobSpec, JobState};

use crate::house::{House, eventually, spec};

#[tokio::test]
async fn every_fault_is_told_at_its_pointer_and_nothing_is_taken_in() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let jobs = vec![
        spec("work", r#"{"n": 1}"#),
        spec("nobody_knows", "{}"),
        spec("work", r#"{"n": "one"}"#),
        JobSpec { priority: Some(101), max_attempts: Some(0), ..spec("work", "{}") },
        JobSpec { queue: Some("nowhere".into()), ..spec("work", "{}") },
        JobSpec { tags: vec!["a\0b".into()], ..spec("work", "{}") },
    ];
    let fail = user.submit_all(jobs, None).await.unwrap_err();
    assert_eq!((fail.kind(), fail.code()), (Kind::Invalid, "jobs.invalid"));
    let pointers: Vec<&str> = fail.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    assert_eq!(
        pointers,
        ["/jobs/1/task", "/jobs/2/args/n", "/jobs/3/priority", "/jobs/3/max_attempts", "/jobs/4/queue", "/jobs/5/tags"]
    );
    let count: i64 =
        sqlx::query_scalar("select count(*) from jobs.any_job").fetch_one(house.database.pool()).await.unwrap();
    assert_eq!(count, 0);
}

#[tokio::test]
async fn what_the_callers_roles_do_not_allow_is_forbidden() {
    let house = House::new().await;
    let operator = house.user(&["operator"]);
    let customer = house.customer();
    drop(house.stranger_worker("").await);
    let fail = customer.submit_all(vec![spec("work", "{}")], None).await.unwrap_err();
    assert_eq!((fail.kind(), fail.violations()[0].pointer.as_str()), (Kind::Forbidden, "/jobs/0/task"));
    assert!(
        operator.submit_all(vec![JobSpec { queue: Some("priority".into()), ..spec("work", "{}") }], None).await.is_ok()
    );
}

#[tokio::test]
async fn a_repeat_with_the_same_key_gets_the_first_answer_and_makes_no_second_job() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    let first = user.submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap();
    let again = user.submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap();
    assert_eq!((first.replayed, again.replayed), (false, true));
    assert_eq!(first.items, again.items);
    let other_body = user.submit_all(vec![spec("work", "{}")], Some(("k", 2))).await.unwrap_err();
    assert_eq!(other_body.code(), "idempotency.mismatch");
    // Another's key of the same name is another key.
    let other = house.user(&["operator"]).submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap();
    assert!(!other.replayed);
    assert_eq!(worker.assigned(2).await.len(), 2);
}

#[tokio::test]
async fn a_key_is_good_for_a_day_whether_its_row_is_gone_by_then_or_not() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let submit = async || user.submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap();
    let age = async |by: &'static str| {
        sqlx::raw_sql(by).execute(house.database.pool()).await.unwrap();
    };
    let first = submit().await;
    age("update jobs.idempotency_key set created_at = created_at - interval '23 hours 59 minutes'").await;
    assert_eq!(submit().await.items, first.items);

    age("update jobs.idempotency_key set created_at = created_at - interval '1 minute'").await;

    let anew = submit().await;
    assert!(!anew.replayed);
    assert_ne!(anew.items, first.items);
    assert_eq!(submit().await.items, anew.items, "it is a key as any other again");
}

#[tokio::test]
async fn twins_with_one_key_at_once_make_one_job() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let twins = (0..20).map(|_| user.submit_all(vec![spec("work", "{}")], Some(("twin", 1))));
    let answers = futures::future::join_all(twins).await;
    let fresh = answers.iter().filter(|answer| answer.as_ref().is_ok_and(|answer| !answer.replayed)).count();
    assert_eq!(fresh, 1);
    for answer in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(answer.code(), "idempotency.in_flight");
    }
    let count: i64 =
        sqlx::query_scalar("select count(*) from jobs.job").fetch_one(house.database.pool()).await.unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_refusal_is_kept_under_its_key_even_when_the_same_would_now_be_taken() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let refused = user.submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap_err();
    assert_eq!(refused.code(), "jobs.invalid");
    drop(house.stranger_worker("").await);
    let again = user.submit_all(vec![spec("work", "{}")], Some(("k", 1))).await.unwrap_err();
    assert_eq!((again.code(), again.violations()), (refused.code(), refused.violations()));
}

#[tokio::test]
async fn many_callers_at_once_are_each_answered_with_their_own_jobs() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let calls = (0..50).map(|n| user.submit_all(vec![spec("work", &format!(r#"{{"n": {n}}}"#))], None));
    for (n, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        let job = answer.unwrap().job.unwrap();
        assert_eq!((job.args_json, job.state), (format!(r#"{{"n": {n}}}"#), JobState::Queued.into()));
    }
}

#[tokio::test]
async fn postgres_hears_soon_of_a_table_that_grows_from_nothing_to_much() {
    let house = House::new().await;
    // It looks by itself, too, once a minute.
    sqlx::raw_sql("alter table jobs.job set (autovacuum_enabled = off); analyze jobs.job")
        .execute(house.database.pool())
        .await
        .unwrap();

    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    for _ in 0..12 {
        user.submit_all(vec![spec("work", "{}"); 1_000], None).await.unwrap();
    }

    // What it goes by when it plans.
    let heard = "select reltuples > 10000 from pg_class, pg_sleep(0.02) where oid = 'jobs.job'::regclass";
    eventually(house.database.pool(), heard).await;
}

#[tokio::test]
async fn what_happened_stands_in_the_outbox_with_the_change() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.succeed(&assigned, "{}").await;
    let kinds: Vec<String> =
        sqlx::query_scalar("select type from jobs.outbox order by id").fetch_all(house.database.pool()).await.unwrap();
    assert_eq!(kinds, ["jobs.job.submitted", "jobs.job.started", "jobs.job.succeeded"]);
}
