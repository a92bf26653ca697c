//! Unique jobs: one holds the key, and what becomes of the others is what they asked for.

mod holds;

use kit::{Fail, Kind};
use proto::jobs::{CancelJobRequest, CreateBatchRequest, JobSpec, JobState, RetryJobRequest, SubmittedJob, Unique};

use crate::house::{House, User, spec};

/// A job that asks for `key`, in the way that is said.
fn keyed(key: &str, how: Unique) -> JobSpec {
    JobSpec { unique_key: Some(key.to_owned()), unique: Some(how), ..spec("work", "{}") }
}

fn plain(key: &str) -> JobSpec {
    JobSpec { unique_key: Some(key.to_owned()), ..spec("work", "{}") }
}

fn on_conflict(what: &str) -> Unique {
    Unique { on_conflict: what.to_owned(), ..Unique::default() }
}

fn hold(how: &str) -> Unique {
    Unique { hold: how.to_owned(), ..Unique::default() }
}

async fn submit(user: &User, spec: JobSpec) -> Result<SubmittedJob, Fail> {
    Ok(user.submit_all(vec![spec], None).await?.items.remove(0))
}

/// The id of a job that must be a new one.
async fn fresh(user: &User, spec: JobSpec) -> String {
    let item = submit(user, spec).await.unwrap();
    assert!(!item.existing, "the key is held by {}", item.id);
    item.id
}

/// The id of the job that is there already.
async fn there(user: &User, spec: JobSpec) -> String {
    let item = submit(user, spec).await.unwrap();
    assert!(item.existing, "{} was made", item.id);
    item.id
}

async fn cancel(user: &User, id: &str) {
    let asked = CancelJobRequest { id: id.to_owned(), reason: String::new() };
    user.jobs().cancel(user.call.request(asked)).await.unwrap();
}

async fn retry(user: &User, id: &str) -> Result<(), Fail> {
    user.jobs().retry(user.call.request(RetryJobRequest { id: id.to_owned() })).await?;
    Ok(())
}

async fn count(house: &House, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(house.database.pool()).await.unwrap()
}

async fn keys(house: &House) -> i64 {
    count(house, "select count(*) from jobs.unique_key").await
}

/// A house whose tasks are known, and no worker is there to start anything.
async fn house() -> (House, User) {
    let house = House::new().await;
    drop(house.stranger_worker("").await);
    let user = house.user(&["operator"]);
    (house, user)
}

#[tokio::test]
async fn a_key_is_one_owners_for_one_task() {
    let (house, user) = house().await;
    let first = fresh(&user, plain("k")).await;
    assert_eq!(there(&user, plain("k")).await, first);
    assert_eq!(user.job(&first).await.unique_key, "k");
    let answer = user.submit_all(vec![plain("k")], None).await.unwrap();
    assert_eq!(answer.job.unwrap().id, first, "the job that is there is shown");
    // Others have keys of the same name.
    fresh(&user, plain("K")).await;
    fresh(&user, JobSpec { unique_key: Some("k".into()), ..spec("process", "{}") }).await;
    fresh(&house.user(&["operator"]), plain("k")).await;
    fresh(&user, spec("work", "{}")).await;
    fresh(&user, spec("work", "{}")).await;
}

#[tokio::test]
async fn a_key_for_all_is_one_among_everyones_jobs_and_not_everyones_to_ask_for() {
    let (house, user) = house().await;
    let for_all = |what: &str| keyed("k", Unique { for_all: true, ..on_conflict(what) });
    let own = fresh(&user, plain("k")).await;
    let first = fresh(&user, for_all("return")).await;
    assert_ne!(own, first);
    let other = house.user(&["operator"]);
    assert_eq!(there(&other, for_all("return")).await, first);
    // Another's job is not replaced.
    assert_eq!(there(&other, for_all("replace")).await, first);
    assert_eq!(user.state(&first).await, JobState::Queued);
    assert_ne!(fresh(&user, for_all("replace")).await, first);
    let fail = submit(&house.customer(), for_all("return")).await.unwrap_err();
    assert_eq!((fail.kind(), fail.code()), (Kind::Forbidden, "jobs.forbidden"));
    assert!(fail.violations().iter().any(|violation| violation.pointer == "/jobs/0/unique/for_all"));
}

#[tokio::test]
async fn of_forty_at_once_one_job_is_made_and_all_are_told_of_it() {
    let (house, _) = house().await;
    let beside = house.beside().await;
    let (here, there) = house.user_at_both(&beside);
    let calls = (0..40).map(|n| submit(if n % 2 == 0 { &here } else { &there }, plain("k")));
    let items: Vec<SubmittedJob> =
        futures::future::join_all(calls).await.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(items.iter().filter(|item| !item.existing).count(), 1);
    assert!(items.iter().all(|item| item.id == items[0].id));
    assert_eq!(count(&house, "select count(*) from jobs.any_job").await, 1);
}

#[tokio::test]
async fn many_that_ask_for_many_keys_in_any_order_all_come_to_an_end() {
    let (house, _) = house().await;
    let beside = house.beside().await;
    let (here, there) = house.user_at_both(&beside);
    let calls = (0..40).map(|n| {
        let mut jobs: Vec<JobSpec> = (0..200).map(|key| plain(&format!("k{key}"))).collect();
        if n % 3 == 0 {
            jobs.reverse();
        }
        // One that replaces is written alone, so that there are many transactions.
        jobs.push(keyed("last", on_conflict("replace")));
        let user = if n % 2 == 0 { &here } else { &there };
        user.submit_all(jobs, None)
    });
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap().items.len(), 201);
    }
    assert_eq!((count(&house, "select count(*) from jobs.job").await, keys(&house).await), (201, 201));
}

#[tokio::test]
async fn who_waits_for_a_key_holds_none_that_comes_after_it() {
    let (house, _) = house().await;
    let beside = house.beside().await;
    let (here, elsewhere) = house.user_at_both(&beside);
    let first = here.submit_all(vec![plain("b"), plain("c")], None).await.unwrap().items;
    let pool = house.database.pool();
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("select from jobs.unique_key where key = 'b' for update").execute(&mut *holding).await.unwrap();
    let waiting = here.submit_all(vec![plain("c"), plain("b")], None);
    let passing = async {
        kit::testing::something_waits(pool).await;
        assert_eq!(there(&elsewhere, plain("c")).await, first[1].id);
        holding.rollback().await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, passing);
    assert!(waited.unwrap().items.iter().all(|item| item.existing));
}

#[tokio::test]
async fn two_of_one_call_are_one_job() {
    let (house, user) = house().await;
    let jobs = vec![plain("k"), spec("work", "{}"), plain("k"), keyed("k", on_conflict("replace"))];
    let items = user.submit_all(jobs, None).await.unwrap().items;
    let existing: Vec<bool> = items.iter().map(|item| item.existing).collect();
    assert_eq!(existing, [false, false, true, true]);
    assert!([2, 3].into_iter().all(|n| items[n].id == items[0].id));
    assert_eq!(count(&house, "select count(*) from jobs.any_job").await, 2);
}

#[tokio::test]
async fn what_waits_is_replaced_and_says_by_what() {
    let (house, user) = house().await;
    let replace = || keyed("k", on_conflict("replace"));
    let first = fresh(&user, plain("k")).await;
    let second = fresh(&user, replace()).await;
    let replaced = user.job(&first).await;
    assert_eq!(replaced.state(), JobState::Cancelled);
    let error = replaced.error.unwrap();
    assert_eq!(error.kind, "cancelled");
    assert_eq!(error.message, format!("Replaced by the job {second}, which shows the same unique key."));
    assert_eq!(user.events(&first, 0).await.last().unwrap().1, "end");
    // So is what is to run later; the window of the new one counts.
    let later = kit::clock::to_timestamp(house.clock.now() + chrono::TimeDelta::seconds(60));
    let third = fresh(&user, JobSpec { run_at: Some(later), ..replace() }).await;
    let fourth = fresh(&user, replace()).await;
    for id in [&second, &third] {
        assert_eq!(user.state(id).await, JobState::Cancelled);
    }
    assert_eq!(count(&house, "select count(*) from jobs.outbox where type = 'jobs.act.recorded'").await, 3);
    // What has started once is not, even while it waits for its next attempt.
    let mut worker = house.worker(1).await;
    let assigned = worker.next_assigned().await;
    assert_eq!(there(&user, replace()).await, fourth);
    assert!(worker.fail(&assigned, "provider", true).await);
    assert_eq!(user.state(&fourth).await, JobState::Scheduled);
    assert_eq!(there(&user, replace()).await, fourth);
    assert_eq!(keys(&house).await, 1);
}

#[tokio::test]
async fn of_many_that_replace_at_once_each_is_made_and_the_last_is_left() {
    let (house, user) = house().await;
    let calls = (0..10).map(|_| submit(&user, keyed("k", on_conflict("replace"))));
    for item in futures::future::join_all(calls).await {
        assert!(!item.unwrap().existing, "each takes the place of the one before");
    }
    assert_eq!(count(&house, "select count(*) from jobs.job").await, 1);
    assert_eq!(count(&house, "select count(*) from jobs.job_history where state = 'cancelled'").await, 9);
    let held = "select count(*) from jobs.unique_key join jobs.job on job.id = job_id";
    assert_eq!(count(&house, held).await, 1);
}

#[tokio::test]
async fn a_job_that_somebody_holds_is_not_waited_for() {
    let (house, user) = house().await;
    let first = fresh(&user, plain("k")).await;
    let mut holding = house.database.pool().begin().await.unwrap();
    sqlx::query("select from jobs.job for update").execute(&mut *holding).await.unwrap();
    assert_eq!(there(&user, keyed("k", on_conflict("replace"))).await, first);
    holding.rollback().await.unwrap();
    assert_ne!(fresh(&user, keyed("k", on_conflict("replace"))).await, first);
}

#[tokio::test]
async fn a_refusal_names_its_place_and_is_kept_under_its_idempotency_key() {
    let (house, user) = house().await;
    let first = fresh(&user, plain("k")).await;
    let jobs = || vec![spec("work", "{}"), keyed("other", hold("live")), keyed("k", on_conflict("refuse"))];
    let refused = user.submit_all(jobs(), Some(("idempotent", 1))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Conflict, "jobs.unique_key_held"));
    let violation = &refused.violations()[0];
    assert_eq!((violation.pointer.as_str(), violation.code.as_str()), ("/jobs/2/unique_key", "unique"));
    assert!(violation.message.contains(&first));
    // Nothing was taken in, and no key.
    assert_eq!((count(&house, "select count(*) from jobs.any_job").await, keys(&house).await), (1, 1));
    cancel(&user, &first).await;
    let again = user.submit_all(jobs(), Some(("idempotent", 1))).await.unwrap_err();
    assert_eq!((again.code(), again.violations()), (refused.code(), refused.violations()));
    fresh(&user, keyed("k", on_conflict("refuse"))).await;
}

#[tokio::test]
async fn a_refusal_harms_nobody_who_is_written_beside_it() {
    let (house, user) = house().await;
    fresh(&user, plain("k")).await;
    let calls = (0..30).map(|n| {
        let bulk = vec![plain(&format!("b{}", n % 5)), keyed("k", on_conflict("refuse"))];
        user.submit_all(if n % 2 == 0 { bulk } else { vec![plain(&format!("b{}", n % 5))] }, None)
    });
    for (n, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.is_err(), n % 2 == 0);
    }
    // Those that were taken in hold keys, and those that were refused none.
    let held = "select count(*) from jobs.unique_key join jobs.job on job.id = job_id";
    assert_eq!((count(&house, held).await, keys(&house).await), (6, 6));
}

#[tokio::test]
async fn a_key_is_answered_again_as_it_was_under_an_idempotency_key() {
    let (_house, user) = house().await;
    let first = fresh(&user, plain("k")).await;
    let there = user.submit_all(vec![plain("k")], Some(("idempotent", 1))).await.unwrap();
    cancel(&user, &first).await;
    let again = user.submit_all(vec![plain("k")], Some(("idempotent", 1))).await.unwrap();
    assert!(again.replayed);
    assert_eq!(there.items, again.items);
    assert!(again.items[0].existing && again.items[0].id == first);
}

#[tokio::test]
async fn what_is_rolled_back_leaves_no_key() {
    let (house, user) = house().await;
    let pool = house.database.pool();
    sqlx::query("alter table jobs.job add constraint refuses check (tags = '{}')").execute(pool).await.unwrap();
    let fail = submit(&user, JobSpec { tags: vec!["a".into()], ..plain("k") }).await.unwrap_err();
    assert_eq!(fail.kind(), Kind::Internal);
    assert_eq!(keys(&house).await, 0);
    fresh(&user, plain("k")).await;
}

#[tokio::test]
async fn what_cannot_be_unique_so_is_told_at_its_place() {
    let (_house, user) = house().await;
    let wrong = vec![
        plain(""),
        plain(&"x".repeat(201)),
        plain("a\0b"),
        JobSpec { unique_key: None, ..keyed("k", hold("live")) },
        keyed("k", hold("for ever")),
        keyed("k", on_conflict("fight")),
        keyed("k", Unique { window_s: Some(31.0 * 24.0 * 3600.0), ..Unique::default() }),
    ];
    let fail = user.submit_all(wrong, None).await.unwrap_err();
    let pointers: Vec<&str> = fail.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    let at = ["0/unique_key", "1/unique_key", "2/unique_key", "3/unique_key", "4/unique/hold", "5/unique/on_conflict"];
    let mut expected: Vec<String> = at.iter().map(|at| format!("/jobs/{at}")).collect();
    expected.push("/jobs/6/unique/window_s".to_owned());
    assert_eq!(pointers, expected);
    let batch = CreateBatchRequest { jobs: vec![plain("k")], ..CreateBatchRequest::default() };
    let fail = Fail::from(user.batches().create(user.call.request(batch)).await.unwrap_err());
    assert_eq!((fail.code(), fail.violations()[0].pointer.as_str()), ("jobs.invalid", "/jobs/0/unique_key"));
}
