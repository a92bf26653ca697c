//! Jobs that fan out: a parent waits without a worker, ends with its batch, and takes it along when it ends before it.

use std::time::Duration;

use proto::{
    jobs::{
        AddBatchJobsRequest, BatchState, CancelBatchRequest, CancelJobRequest, CloseBatchRequest, JobSpec, JobState,
        RetryJobRequest,
    },
    worker::{Assignment, FanOutJob, FanOutRequest},
};

use crate::{
    batches::{counts, ids},
    house::{House, User, Worker, failed, interrupted, spec, stopped, succeeded, suspended},
};

pub(crate) async fn fan_out(worker: &Worker, parent: &Assignment, ordinals: std::ops::Range<u32>) -> String {
    let jobs = ordinals
        .map(|ordinal| FanOutJob {
            ordinal,
            task: "work".into(),
            args_json: format!(r#"{{"n": {ordinal}}}"#),
            after: Vec::new(),
        })
        .collect();
    let asked = FanOutRequest {
        attempt: parent.attempt.clone(),
        jobs,
        finalize_task: "finish".into(),
        finalize_args_json: "{}".into(),
        ..FanOutRequest::default()
    };
    worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id
}

/// A parent that has fanned out and waits, its children assigned.
async fn waiting_parent(user: &User, worker: &mut Worker) -> (String, String, Vec<Assignment>) {
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(worker, &parent, 0..2).await;
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    let children = worker.assigned(2).await;
    (id, batch, children)
}

#[tokio::test]
async fn a_parent_waits_without_a_worker_and_ends_with_its_finalize() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(4).await;
    let (id, batch, children) = waiting_parent(&user, &mut worker).await;
    let parent = user.job(&id).await;
    assert_eq!(
        (parent.state(), parent.child_batch_id.as_str(), parent.worker_id.as_str()),
        (JobState::Suspended, batch.as_str(), "")
    );
    worker.tell(children.iter().map(|child| (child, failed("provider", false))).collect()).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, r#"{"failed":2}"#).await;
    let parent = user.job(&id).await;
    assert_eq!((parent.state(), parent.result_json.as_str()), (JobState::Succeeded, r#"{"failed":2}"#));
}

#[tokio::test]
async fn a_parent_that_fans_out_again_after_a_crash_has_each_child_once() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..3).await;
    assert_eq!(fan_out(&worker, &parent, 1..5).await, batch);
    worker.tell(vec![(&parent, interrupted())]).await;
    let mut assigned = worker.assigned(6).await;
    let at = assigned.iter().position(|assigned| assigned.task == "process").unwrap();
    let parent = assigned.remove(at);
    assert_eq!(fan_out(&worker, &parent, 0..5).await, batch);
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    assert_eq!(user.get_batch(&batch).await.counts.unwrap().total, 5);
    let mut ordinals: Vec<u32> = assigned.iter().map(|child| child.ordinal).collect();
    ordinals.sort_unstable();
    assert_eq!(ordinals, [0, 1, 2, 3, 4]);
    assert_eq!(user.job(&id).await.child_batch_id, batch);
}

#[tokio::test]
async fn cancelling_a_waiting_parent_ends_its_children_and_still_finalizes() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(3).await;
    let (id, batch, children) = waiting_parent(&user, &mut worker).await;
    worker.succeed(&children[0], "{}").await;
    user.jobs().cancel(user.call.request(CancelJobRequest { id: id.clone(), reason: "enough".into() })).await.unwrap();
    assert_eq!(user.state(&id).await, JobState::Cancelling);
    let running = ids(&children[1..]).remove(0);
    assert_eq!(worker.stop_of(&running).await, "cancel");
    worker.tell(vec![(&children[1], stopped())]).await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, r#""what there is""#).await;
    let parent = user.job(&id).await;
    assert_eq!((parent.state(), parent.result_json.as_str()), (JobState::Cancelled, r#""what there is""#));
    let batch = user.get_batch(&batch).await;
    assert_eq!((batch.state(), counts(&batch)), (BatchState::Cancelled, (2, 1, 0, 1)));
}

#[tokio::test]
async fn the_batch_of_a_job_is_filled_and_closed_by_that_job_alone() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..1).await;
    let add = AddBatchJobsRequest { batch_id: batch.clone(), jobs: vec![spec("work", "{}")] };
    let refused = user.batches().add_jobs(user.call.request(add)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.batch_of_a_job");
    let refused = user.batches().close(user.call.request(CloseBatchRequest { id: batch.clone() })).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.batch_of_a_job");
    assert_eq!(fan_out(&worker, &parent, 0..2).await, batch, "the job itself still may");
}

#[tokio::test]
async fn cancelling_the_batch_of_a_job_at_work_cancels_the_job_which_ends_the_batch() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..2).await;
    let asked = CancelBatchRequest { id: batch.clone(), reason: "enough".into() };
    user.batches().cancel(user.call.request(asked)).await.unwrap();
    assert_eq!(worker.stop_of(&id).await, "cancel");
    user.wait_for_batch(&batch, |counts| counts["cancelled"] == 2).await;
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Open, "its job may still add to it");
    assert_eq!(worker.tell(vec![(&parent, suspended(&batch))]).await, [true]);
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "{}").await;
    assert_eq!(user.state(&id).await, JobState::Cancelled);
    assert_eq!(user.job(&id).await.error.unwrap().message, "enough");
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Cancelled);
}

#[tokio::test]
async fn a_parent_that_fails_for_good_takes_its_children_along_and_starts_over_when_retried() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let first = fan_out(&worker, &parent, 0..2).await;
    worker.fail(&parent, "internal", false).await;
    assert_eq!(user.state(&id).await, JobState::Failed);
    user.wait_for_batch(&first, |counts| counts["cancelled"] == 2).await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    user.jobs().retry(user.call.request(RetryJobRequest { id: id.clone() })).await.unwrap();
    worker.credit(1).await;
    let parent = worker.next_assigned().await;
    let second = fan_out(&worker, &parent, 0..1).await;
    assert_ne!(first, second);
    worker.tell(vec![(&parent, suspended(&second))]).await;
    // The end of the first batch is not the end of a parent that waits for the second.
    worker.succeed(&finalize, "1").await;
    assert_eq!(user.get_batch(&first).await.state(), BatchState::Cancelled);
    assert_eq!(user.state(&id).await, JobState::Suspended);
}

#[tokio::test]
async fn a_parent_that_succeeds_before_its_children_takes_them_along() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..2).await;
    assert!(worker.succeed(&parent, r#""enough""#).await);
    user.wait_for_batch(&batch, |counts| counts["cancelled"] == 2).await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "{}").await;
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Cancelled);
    assert_eq!(user.job(&id).await.result_json, r#""enough""#);
}

#[tokio::test]
async fn a_parent_whose_time_in_the_queue_is_over_takes_its_children_along() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { queue_timeout_s: Some(20.0), ..spec("process", "{}") }).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..2).await;
    worker.tell(vec![(&parent, interrupted())]).await;
    assert_eq!(user.state(&id).await, JobState::Queued);
    house.clock.advance(Duration::from_secs(20));
    user.wait_for(&id, "expired").await;
    user.wait_for_batch(&batch, |counts| counts["cancelled"] == 2).await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "{}").await;
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Cancelled);
}

#[tokio::test]
async fn children_with_one_ordinal_are_refused_and_change_nothing() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let child = |ordinal| FanOutJob { ordinal, task: "work".into(), args_json: "{}".into(), after: Vec::new() };
    for jobs in [vec![child(1), child(1)], vec![child(100_000)]] {
        let asked = FanOutRequest { attempt: parent.attempt.clone(), jobs, ..FanOutRequest::default() };
        let refused = worker.attempts().fan_out(worker.request(asked)).await.unwrap_err();
        assert_eq!(kit::Fail::from(refused).code(), "jobs.invalid");
    }
    assert_eq!(user.job(&id).await.child_batch_id, "");
}

#[tokio::test]
async fn the_end_of_a_batch_holds_its_parent_before_the_batch_as_everyone_does() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(4).await;
    let (id, batch, children) = waiting_parent(&user, &mut worker).await;
    worker.tell(children.iter().map(|child| (child, succeeded("{}"))).collect()).await;
    let finalize = worker.next_assigned().await;
    let pool = house.database.pool();
    let mut cancel = pool.begin().await.unwrap();
    sqlx::query("select from jobs.job where id = $1::uuid for update").bind(&id).execute(&mut *cancel).await.unwrap();
    worker.say(&finalize, succeeded("{}")).await;
    kit::testing::something_waits(pool).await;
    // A cancel of the parent goes on to its batch. If the end of the finalize held that, both would wait for ever.
    sqlx::query("select from jobs.batch where id = $1::uuid for update nowait")
        .bind(&batch)
        .execute(&mut *cancel)
        .await
        .unwrap();
    cancel.rollback().await.unwrap();
    user.wait_for(&id, "succeeded").await;
}
