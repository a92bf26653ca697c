//! Batches within batches, and the size that none outgrows.

use proto::{
    jobs::{AddBatchJobsRequest, BatchState, JobState},
    worker::{Assignment, FanOutJob, FanOutRequest},
};

use crate::house::{House, Worker, spec, suspended};

/// One child of `task`, for which the parent waits.
async fn wait_for_one(worker: &mut Worker, parent: &Assignment, task: &str) -> String {
    let child = FanOutJob { ordinal: 0, task: task.into(), args_json: "{}".into() };
    let asked = FanOutRequest {
        attempt: parent.attempt.clone(),
        jobs: vec![child],
        finalize_task: "finish".into(),
        finalize_args_json: "{}".into(),
        ..FanOutRequest::default()
    };
    let batch = worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id;
    worker.tell(vec![(parent, suspended(&batch))]).await;
    batch
}

#[tokio::test]
async fn batches_three_deep_end_from_the_inside_and_none_of_them_early() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let id = user.submit(spec("process", "{}")).await;
    let mut batches = Vec::new();
    for task in ["process", "process", "work"] {
        let parent = worker.next_assigned().await;
        batches.push(wait_for_one(&mut worker, &parent, task).await);
    }
    let leaf = worker.next_assigned().await;
    for batch in &batches {
        let open = user.get_batch(batch).await;
        assert_eq!((open.state(), open.finalizes.len()), (BatchState::Running, 0));
    }
    worker.succeed(&leaf, "{}").await;
    for batch in batches.iter().rev() {
        let finalize = worker.next_assigned().await;
        assert_eq!((finalize.finalize, &finalize.batch_id), (true, batch));
        assert_eq!(user.state(&id).await, JobState::Suspended);
        worker.succeed(&finalize, r#""deep""#).await;
        assert_eq!(user.get_batch(batch).await.state(), BatchState::Finished);
    }
    let whole = user.job(&id).await;
    assert_eq!((whole.state(), whole.result_json.as_str()), (JobState::Succeeded, r#""deep""#));
}

#[tokio::test]
async fn of_two_who_add_the_last_job_at_once_one_is_refused() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let batch = user.batch(Vec::new(), None, true).await;
    let pool = house.database.pool();
    sqlx::query("update jobs.batch set total = 99999").execute(pool).await.unwrap();
    let add = || async {
        let asked = AddBatchJobsRequest { batch_id: batch.id.clone(), jobs: vec![spec("work", "{}")] };
        user.batches()
            .add_jobs(user.call.request(asked))
            .await
            .map_err(|status| kit::Fail::from(status).code().to_owned())
    };
    let (one, other) = tokio::join!(add(), add());
    let refused: Vec<String> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(refused, ["jobs.batch_full"]);
    assert_eq!(user.get_batch(&batch.id).await.counts.unwrap().total, 100_000);
}
