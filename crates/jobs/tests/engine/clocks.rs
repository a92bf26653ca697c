//! The clocks that end a job: time in the queue, time of an attempt, time between heartbeats, and time over all of it. The
//! second and third fail the attempt (`fencing.rs`); the first and the last end the job `expired`.

use std::time::Duration;

use proto::jobs::{Backoff, BatchState, JobSpec, JobState, RetryJobRequest};

use crate::{
    house::{House, interrupted, spec, stopped, suspended},
    parents::fan_out,
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_job_that_nobody_takes_in_time_expires() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let in_time = user.submit(JobSpec { queue_timeout_s: Some(90.0), ..spec("work", "{}") }).await;
    let late = user.submit(JobSpec { queue_timeout_s: Some(60.0), ..spec("work", "{}") }).await;
    assert!(user.job(&late).await.queue_until.is_some());
    house.clock.advance(seconds(60));
    user.wait_for(&late, "expired").await;
    let error = user.job(&late).await.error.unwrap();
    assert_eq!((error.kind.as_str(), error.retryable), ("expired", false));
    assert!(error.message.contains("queue_timeout_s"), "{}", error.message);
    assert_eq!(user.attempts(&late).await, Vec::<String>::new());
    assert_eq!(user.state(&in_time).await, JobState::Queued);
}

#[tokio::test]
async fn each_stay_in_the_queue_is_counted_anew() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { queue_timeout_s: Some(60.0), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    house.clock.advance(seconds(20));
    // Longer than its stay was allowed to be, and given back: what it ran does not count.
    house.clock.advance(seconds(5));
    worker.drain().await;
    worker.tell(vec![(&assigned, interrupted())]).await;
    house.clock.advance(seconds(50));
    assert_eq!(user.state(&id).await, JobState::Queued);
    house.clock.advance(seconds(10));
    user.wait_for(&id, "expired").await;
}

#[tokio::test]
async fn a_job_past_its_time_that_no_sweep_has_seen_is_not_started() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let held = user.submit(JobSpec { queue_timeout_s: Some(60.0), ..spec("work", "{}") }).await;
    let over = user.submit(JobSpec { queue_timeout_s: Some(60.0), ..spec("work", "{}") }).await;
    // The sweep takes rows in the order of their ids, so that it waits at the first and has not come to the second.
    let mut holder = house.database.pool().begin().await.unwrap();
    let hold = "select from jobs.job where id = $1::uuid for update";
    sqlx::query(hold).bind(&held).execute(&mut *holder).await.unwrap();
    house.clock.advance(seconds(61));
    kit::testing::something_waits(house.database.pool()).await;
    let in_time = user.submit(spec("work", "{}")).await;
    let mut worker = house.worker(3).await;
    assert_eq!(worker.next_assigned().await.attempt.unwrap().job_id, in_time);
    holder.rollback().await.unwrap();
    for id in [held, over] {
        user.wait_for(&id, "expired").await;
        assert_eq!(user.attempts(&id).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_deadline_ends_what_waits_and_what_is_between_two_attempts() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let backoff = Some(Backoff { kind: "fixed".into(), seconds: vec![50.0], ..Backoff::default() });
    let retried = user.submit(JobSpec { deadline_s: Some(60.0), backoff, ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "provider", true).await);
    let queued = user.submit(JobSpec { deadline_s: Some(60.0), ..spec("work", "{}") }).await;
    let later = kit::clock::to_timestamp(house.clock.now() + chrono::TimeDelta::seconds(30));
    let scheduled = user.submit(JobSpec { deadline_s: Some(60.0), run_at: Some(later), ..spec("work", "{}") }).await;
    assert_eq!(user.state(&retried).await, JobState::Scheduled);
    house.clock.advance(seconds(60));
    for id in [&retried, &queued] {
        user.wait_for(id, "expired").await;
        assert_eq!(user.job(id).await.error.unwrap().message, "Its deadline is over.");
    }
    // Counted from when it was to run.
    assert_eq!(user.state(&scheduled).await, JobState::Queued);
}

#[tokio::test]
async fn a_deadline_stops_what_runs_and_the_job_is_expired_when_its_attempt_has_answered() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { deadline_s: Some(20.0), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    house.clock.advance(seconds(20));
    assert_eq!(worker.stop_of(&id).await, "deadline");
    let job = user.job(&id).await;
    let asked = job.cancel_asked.clone().unwrap();
    assert_eq!(job.state(), JobState::Cancelling);
    assert_eq!((asked.by.as_str(), asked.reason.as_str()), ("", "Its deadline is over."));
    assert_eq!(asked.awaits, format!("worker {}", worker.id));
    worker.tell(vec![(&assigned, stopped())]).await;
    let job = user.job(&id).await;
    assert_eq!((job.state(), job.error.unwrap().kind), (JobState::Expired, "expired".to_owned()));
    assert_eq!(user.attempts(&id).await, ["cancelled"]);
    // Retried by hand it has all its time again.
    user.jobs().retry(user.call.request(RetryJobRequest { id: id.clone() })).await.unwrap();
    let again = user.job(&id).await;
    assert_eq!(again.state(), JobState::Queued);
    assert_eq!(
        again.deadline_at.unwrap(),
        kit::clock::to_timestamp(house.clock.now() + chrono::TimeDelta::seconds(20))
    );
}

#[tokio::test]
async fn a_retry_that_would_come_after_the_deadline_does_not_wait_for_it() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let backoff = Some(Backoff { kind: "fixed".into(), seconds: vec![60.0], ..Backoff::default() });
    let id = user.submit(JobSpec { deadline_s: Some(60.0), backoff, ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "provider", true).await);
    let job = user.job(&id).await;
    assert_eq!(job.state(), JobState::Expired);
    assert!(job.error.unwrap().message.contains("It did not work."), "the last error is told with it");
    assert_eq!(user.attempts(&id).await, ["failed"]);
}

#[tokio::test]
async fn a_deadline_ends_a_parent_with_its_children() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(4).await;
    let id = user.submit(JobSpec { deadline_s: Some(20.0), ..spec("work", "{}") }).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..2).await;
    let children = worker.assigned(2).await;
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    house.clock.advance(seconds(20));
    for child in &children {
        assert_eq!(worker.stop_of(&child.attempt.as_ref().unwrap().job_id).await, "cancel");
    }
    assert_eq!(user.job(&id).await.cancel_asked.unwrap().awaits, format!("batch {batch}"));
    worker.tell(children.iter().map(|child| (child, stopped())).collect()).await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    assert!(worker.succeed(&finalize, "{}").await);
    assert_eq!(user.state(&id).await, JobState::Expired);
}

#[tokio::test]
async fn an_expired_child_is_counted_as_such() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let child = JobSpec { queue_timeout_s: Some(20.0), ..spec("work", "{}") };
    let batch = user.batch(vec![child.clone(), child], None, false).await;
    let first = worker.next_assigned().await;
    assert!(worker.fail(&first, "provider", false).await);
    house.clock.advance(seconds(20));
    user.wait_for_batch(&batch.id, |counts| counts["expired"] == 1).await;
    let batch = user.get_batch(&batch.id).await;
    let counts = batch.counts.unwrap();
    assert_eq!((batch.state(), counts.failed, counts.expired), (BatchState::Finished, 1, 1));
}
