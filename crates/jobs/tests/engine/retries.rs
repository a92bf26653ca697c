//! What follows from a failed attempt, and what a task may ask for in place of a result.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kit::clock::from_timestamp;
use proto::jobs::{Backoff, Job, JobSpec, JobState, RetryOn};

use crate::house::{House, cancelled, retry_after, snoozed, spec};

fn fixed(seconds: f64) -> Backoff {
    Backoff { kind: "fixed".into(), seconds: vec![seconds], ..Backoff::default() }
}

fn rule(error_kind: &str, retry: bool, backoff: Option<Backoff>) -> RetryOn {
    RetryOn { error_kind: error_kind.to_owned(), retry, backoff }
}

fn run_at(job: &Job) -> DateTime<Utc> {
    from_timestamp(job.run_at.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn a_rule_for_the_kind_goes_before_what_the_task_says() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let retry_on = vec![
        rule("timeout", false, None),
        rule("invalid_input", true, None),
        rule("provider", true, Some(fixed(77.0))),
    ];
    let job = JobSpec { retry_on, backoff: Some(fixed(5.0)), ..spec("work", "{}") };
    let mut worker = house.worker(4).await;
    for (kind, says_retry, then) in [
        ("timeout", true, None),
        ("invalid_input", false, Some(5)),
        ("provider", true, Some(77)),
        ("other", false, None),
    ] {
        let id = user.submit(job.clone()).await;
        let assigned = worker.next_assigned().await;
        assert!(worker.fail(&assigned, kind, says_retry).await);
        let job = user.job(&id).await;
        match then {
            None => assert_eq!(job.state(), JobState::Failed, "{kind}"),
            Some(seconds) => {
                assert_eq!(job.state(), JobState::Scheduled, "{kind}");
                assert_eq!(run_at(&job), house.clock.now() + TimeDelta::seconds(seconds), "{kind}");
            }
        }
    }
}

#[tokio::test]
async fn a_rule_grants_no_more_attempts_than_there_are() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let retry_on = vec![rule("invalid_input", true, None)];
    let id = user.submit(JobSpec { retry_on, max_attempts: Some(1), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "invalid_input", false).await);
    assert_eq!(user.state(&id).await, JobState::Failed);
}

#[tokio::test]
async fn rules_that_cannot_be_taken_are_told_at_their_pointers() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let retry_on = vec![rule("Not A Kind", true, None), rule("provider", true, Some(fixed(-1.0)))];
    let job = JobSpec { retry_on, queue_timeout_s: Some(0.0), deadline_s: Some(f64::NAN), ..spec("work", "{}") };
    let fail = user.submit_all(vec![job], None).await.unwrap_err();
    let pointers: Vec<&str> = fail.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    let expected =
        ["/jobs/0/queue_timeout_s", "/jobs/0/deadline_s", "/jobs/0/retry_on", "/jobs/0/retry_on/provider/seconds"];
    assert_eq!(pointers, expected);
}

#[tokio::test]
async fn a_task_may_say_when_it_is_to_be_tried_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { backoff: Some(fixed(5.0)), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.tell(vec![(&assigned, retry_after(90.0))]).await[0]);
    let job = user.job(&id).await;
    assert_eq!((job.state(), run_at(&job)), (JobState::Scheduled, house.clock.now() + TimeDelta::seconds(90)));
    assert_eq!(user.attempts(&id).await, ["failed"]);
}

#[tokio::test]
async fn a_snooze_spends_no_attempt() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(5).await;
    let id = user.submit(JobSpec { max_attempts: Some(2), ..spec("work", "{}") }).await;
    for number in 1..=3 {
        let assigned = worker.next_assigned().await;
        assert_eq!(assigned.number, number);
        assert!(worker.tell(vec![(&assigned, snoozed(20.0))]).await[0]);
        let job = user.job(&id).await;
        assert_eq!((job.state(), job.error), (JobState::Scheduled, None));
        assert_eq!(run_at(&user.job(&id).await), house.clock.now() + TimeDelta::seconds(20));
        house.clock.advance(Duration::from_secs(20));
        worker.heartbeat(Vec::new(), number.into(), number.into()).await;
    }
    // The first that counts, of two.
    let failing = worker.next_assigned().await;
    assert!(worker.fail(&failing, "provider", true).await);
    assert_eq!(user.state(&id).await, JobState::Scheduled);
    assert_eq!(user.attempts(&id).await, ["snoozed", "snoozed", "snoozed", "failed"]);
}

#[tokio::test]
async fn a_task_may_cancel_its_own_job() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.tell(vec![(&assigned, cancelled("The order was withdrawn."))]).await[0]);
    let job = user.job(&id).await;
    let error = job.error.clone().unwrap();
    assert_eq!((job.state(), error.kind.as_str()), (JobState::Cancelled, "cancelled"));
    assert_eq!(error.message, "The order was withdrawn.");
}

#[tokio::test]
async fn a_job_that_loses_its_worker_three_times_is_left_alone() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let id = user.submit(JobSpec { max_attempts: Some(50), backoff: Some(fixed(0.0)), ..spec("work", "{}") }).await;
    for _ in 1..=3 {
        let mut worker = house.worker(1).await;
        assert_eq!(worker.next_assigned().await.attempt.unwrap().job_id, id);
        drop(worker);
        house.clock.advance(Duration::from_secs(31));
    }
    user.wait_for(&id, "failed").await;
    let error = user.job(&id).await.error.unwrap();
    assert_eq!((error.kind.as_str(), error.retryable), ("worker_crashed", false));
    assert_eq!(user.attempts(&id).await, ["failed"; 3]);
}

#[tokio::test]
async fn failures_of_other_kinds_do_not_count_as_crashes() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(5).await;
    let id = user.submit(JobSpec { max_attempts: Some(5), backoff: Some(fixed(0.0)), ..spec("work", "{}") }).await;
    for kind in ["worker_crashed", "provider", "worker_crashed", "timeout"] {
        let assigned = worker.next_assigned().await;
        assert!(worker.fail(&assigned, kind, true).await);
        assert_ne!(user.state(&id).await, JobState::Failed, "{kind}");
    }
    let last = worker.next_assigned().await;
    assert!(worker.succeed(&last, "{}").await);
}
