//! Cancel: at once for what waits, asked and answered for what runs, and always the same twice.

use std::time::Duration;

use proto::jobs::{CancelJobRequest, JobSpec, JobState};

use crate::house::{House, User, spec, stopped, suspended};

async fn cancel(user: &User, id: &str) -> Result<JobState, kit::Fail> {
    let asked = CancelJobRequest { id: id.to_owned(), reason: "no longer needed".to_owned() };
    Ok(user.jobs().cancel(user.call.request(asked)).await?.into_inner().state())
}

#[tokio::test]
async fn a_queued_and_a_scheduled_job_are_cancelled_at_once() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let queued = user.submit(spec("work", "{}")).await;
    let later = kit::clock::to_timestamp(house.clock.now() + chrono::TimeDelta::hours(1));
    let scheduled = user.submit(JobSpec { run_at: Some(later), ..spec("work", "{}") }).await;
    assert_eq!(user.state(&scheduled).await, JobState::Scheduled);
    for id in [queued, scheduled] {
        assert_eq!(cancel(&user, &id).await.unwrap(), JobState::Cancelled);
        assert_eq!(user.job(&id).await.error.unwrap().message, "no longer needed");
        assert_eq!(cancel(&user, &id).await.unwrap_err().code(), "jobs.already_final");
    }
}

#[tokio::test]
async fn a_running_job_is_asked_and_is_cancelled_when_its_attempt_answers() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    assert_eq!(cancel(&user, &id).await.unwrap(), JobState::Cancelling);
    assert_eq!(cancel(&user, &id).await.unwrap(), JobState::Cancelling, "asking twice is the same as once");
    assert_eq!(worker.stop_of(&id).await, "cancel");
    worker.tell(vec![(&assigned, stopped())]).await;
    assert_eq!(user.state(&id).await, JobState::Cancelled);
    let states: Vec<String> = user
        .events(&id, 0)
        .await
        .into_iter()
        .filter_map(|(_, _, data)| data["state"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(states, ["queued", "running", "cancelling", "cancelled"], "one event each");
}

#[tokio::test]
async fn an_attempt_that_answers_a_stop_with_what_cannot_be_has_stopped() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    cancel(&user, &id).await.unwrap();
    let nobodys_batch = house.clock.new_id().to_string();
    assert_eq!(worker.tell(vec![(&assigned, suspended(&nobodys_batch))]).await, [true]);
    assert_eq!(user.state(&id).await, JobState::Cancelled);
    assert_eq!(user.attempts(&id).await, ["failed"]);
}

#[tokio::test]
async fn an_attempt_that_succeeds_before_it_hears_of_the_cancel_has_succeeded() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    cancel(&user, &id).await.unwrap();
    assert!(worker.succeed(&assigned, "{}").await);
    assert_eq!(user.state(&id).await, JobState::Succeeded);
}

#[tokio::test]
async fn a_cancel_that_nobody_answers_ends_with_the_lease() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    worker.next_assigned().await;
    cancel(&user, &id).await.unwrap();
    house.clock.advance(Duration::from_secs(31));
    user.wait_for(&id, "cancelled").await;
    let error = user.job(&id).await.error.unwrap();
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("cancelled", "no longer needed"));
    assert_eq!(user.attempts(&id).await, ["failed"]);
}

#[tokio::test]
async fn a_reason_that_cannot_be_kept_is_refused_and_cancels_nothing() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let id = user.submit(spec("work", "{}")).await;
    for reason in ["x".repeat(1_001), "a\0b".to_owned()] {
        let asked = CancelJobRequest { id: id.clone(), reason };
        let refused = kit::Fail::from(user.jobs().cancel(user.call.request(asked)).await.unwrap_err());
        assert_eq!((refused.code(), refused.violations()[0].pointer.as_str()), ("jobs.invalid", "/reason"));
    }
    assert_eq!(user.state(&id).await, JobState::Queued);
}

#[tokio::test]
async fn a_strangers_job_cannot_be_seen_stopped_or_retried() {
    let house = House::new().await;
    let owner = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let id = owner.submit(spec("work", "{}")).await;
    let stranger = house.customer();
    assert_eq!(cancel(&stranger, &id).await.unwrap_err().code(), "jobs.job_not_found");
    let retry = proto::jobs::RetryJobRequest { id: id.clone() };
    let refused = stranger.jobs().retry(stranger.call.request(retry)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.job_not_found");
    let watch = proto::jobs::WatchRequest { id: id.clone(), after_offset: 0 };
    let refused = stranger.jobs().watch(stranger.call.request(watch)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.job_not_found");
    assert_eq!(owner.state(&id).await, JobState::Queued);
}
