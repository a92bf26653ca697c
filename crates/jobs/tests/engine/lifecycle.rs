//! A job's life: run, fail, retry, die, come back.

use std::time::Duration;

use proto::{
    jobs::{Backoff, JobSpec, JobState, RetryJobRequest},
    worker::{ProgressUpdate, Report, from_worker},
};

use crate::house::{House, failed, interrupted, spec, succeeded};

#[tokio::test]
async fn a_job_runs_once_and_tells_all_of_it_in_order() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", r#"{"n": 1}"#)).await;

    let assigned = worker.next_assigned().await;
    assert_eq!(assigned.args_json, r#"{"n": 1}"#);
    assert_eq!(user.job(&id).await.worker_id, worker.id);
    let progress = ProgressUpdate {
        attempt: assigned.attempt.clone(),
        percent: 40.0,
        stage: "half".into(),
        message: String::new(),
    };
    worker.send(from_worker::Message::Report(Report { progress: vec![progress], ..Report::default() })).await;
    assert!(worker.succeed(&assigned, r#"{"done":true}"#).await);

    let job = user.job(&id).await;
    assert_eq!((job.state(), job.result_json.as_str(), job.attempt), (JobState::Succeeded, r#"{"done":true}"#, 1));
    assert_eq!(user.attempts(&id).await, ["succeeded"]);
    let events = user.events(&id, 0).await;
    let told: Vec<&str> = events.iter().map(|(_, event, data)| data["state"].as_str().unwrap_or(event)).collect();
    assert_eq!(told, ["queued", "running", "progress", "succeeded", "end"]);
    assert_eq!(events.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [1, 2, 3, 4, 4]);
}

#[tokio::test]
async fn a_failed_attempt_waits_its_backoff_and_the_last_one_leaves_a_dead_letter() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let backoff = Backoff { kind: "fixed".into(), seconds: vec![60.0], ..Backoff::default() };
    let id = user.submit(JobSpec { max_attempts: Some(2), backoff: Some(backoff), ..spec("work", "{}") }).await;

    let first = worker.next_assigned().await;
    assert!(worker.fail(&first, "provider", true).await);
    assert_eq!(user.state(&id).await, JobState::Scheduled);
    house.clock.advance(Duration::from_secs(60));
    let mut worker = house.worker(1).await;
    let second = worker.next_assigned().await;
    assert_eq!(second.number, 2);
    assert!(second.attempt.as_ref().unwrap().token > first.attempt.as_ref().unwrap().token);
    assert!(worker.fail(&second, "provider", true).await);

    let job = user.job(&id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(job.error.unwrap().kind, "provider");
    assert_eq!(user.attempts(&id).await, ["failed", "failed"]);
}

#[tokio::test]
async fn a_fault_that_no_retry_can_mend_is_final_at_once() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.fail(&assigned, "invalid_input", false).await;
    assert_eq!(user.state(&id).await, JobState::Failed);
}

#[tokio::test]
async fn a_retried_dead_letter_keeps_its_id_and_counts_its_attempts_on() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { max_attempts: Some(1), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    worker.fail(&assigned, "provider", true).await;

    let retried = user.jobs().retry(user.call.request(RetryJobRequest { id: id.clone() })).await.unwrap().into_inner();
    assert_eq!((retried.id.as_str(), retried.state()), (id.as_str(), JobState::Queued));
    worker.credit(1).await;
    let assigned = worker.next_assigned().await;
    assert_eq!(assigned.number, 2);
    assert!(worker.succeed(&assigned, "{}").await);
    assert_eq!(user.attempts(&id).await, ["failed", "succeeded"]);

    let again = user.jobs().retry(user.call.request(RetryJobRequest { id })).await.unwrap_err();
    assert_eq!(kit::Fail::from(again).code(), "jobs.already_succeeded");
}

#[tokio::test]
async fn an_interrupted_attempt_is_not_a_failed_one() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { max_attempts: Some(1), ..spec("work", "{}") }).await;
    for _ in 0..3 {
        let assigned = worker.next_assigned().await;
        assert_eq!(worker.tell(vec![(&assigned, interrupted())]).await, [true]);
        worker.credit(1).await;
    }
    let assigned = worker.next_assigned().await;
    assert!(worker.succeed(&assigned, "{}").await);
    assert_eq!(user.attempts(&id).await, ["interrupted", "interrupted", "interrupted", "succeeded"]);
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_a_long_wait_outweighs_it() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let old = user.submit(JobSpec { priority: Some(50), ..spec_offered(&house).await }).await;
    house.clock.advance(Duration::from_secs(50));
    let urgent = user.submit(JobSpec { priority: Some(60), ..spec("work", "{}") }).await;
    house.clock.advance(Duration::from_secs(60));
    let late = user.submit(JobSpec { priority: Some(60), ..spec("work", "{}") }).await;
    let mut worker = house.worker(3).await;
    let order: Vec<String> =
        worker.assigned(3).await.into_iter().map(|assigned| assigned.attempt.unwrap().job_id).collect();
    // 60 is worth 100 s more than 50: the one queued 50 s later goes before the old one, the one 110 s later after it.
    assert_eq!(order, [urgent, old, late]);
}

/// Makes the task known first: nobody can submit what no worker ever offered.
async fn spec_offered(house: &House) -> JobSpec {
    drop(house.stranger_worker("").await);
    spec("work", "{}")
}

#[tokio::test]
async fn a_group_of_outcomes_is_answered_one_by_one() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(3).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(user.submit(spec("work", "{}")).await);
    }
    let assigned = worker.assigned(3).await;
    // One names a file that its attempt never made: it fails alone.
    let foreign = proto::worker::WrittenFile {
        file_id: uuid::Uuid::nil().to_string(),
        content_type: "text/plain".into(),
        size_bytes: 1,
        sha256: "00".repeat(32),
    };
    let with_file = proto::worker::outcome::End::Succeeded(proto::worker::Succeeded {
        result_json: "{}".into(),
        files: vec![foreign],
    });
    let told =
        vec![(&assigned[0], succeeded("{}")), (&assigned[1], with_file), (&assigned[2], failed("provider", false))];
    assert_eq!(worker.tell(told).await, [true, true, true]);
    let mut states = Vec::new();
    for assigned in &assigned {
        states.push(user.state(&assigned.attempt.as_ref().unwrap().job_id).await);
    }
    assert_eq!(states, [JobState::Succeeded, JobState::Failed, JobState::Failed]);
}
