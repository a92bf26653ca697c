//! Batches within batches, batches that their own jobs make larger, and the size that none outgrows.

use kit::Fail;
use proto::{
    jobs::{AddBatchJobsRequest, BatchState, CancelBatchRequest, JobState},
    worker::{AddSiblingsRequest, Assignment, FanOutJob, FanOutRequest, ListChildrenRequest, Sibling},
};

use crate::{
    batches::{counts, ids},
    house::{House, Worker, interrupted, spec, stopped, succeeded, suspended},
};

/// One child of `task`, for which the parent waits.
async fn wait_for_one(worker: &mut Worker, parent: &Assignment, task: &str) -> String {
    let child = FanOutJob { ordinal: 0, task: task.into(), args_json: "{}".into(), after: Vec::new() };
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

/// Numbers, and those of them that each runs after.
async fn add(worker: &Worker, by: &Assignment, jobs: &[(u32, &[u32])]) -> Result<Vec<String>, Fail> {
    let jobs = jobs.iter().map(|(number, after)| Sibling {
        number: *number,
        task: "work".to_owned(),
        args_json: format!(r#"{{"n": {number}}}"#),
        after: after.to_vec(),
    });
    let asked = AddSiblingsRequest { attempt: by.attempt.clone(), jobs: jobs.collect() };
    Ok(worker.attempts().add_siblings(worker.request(asked)).await?.into_inner().job_ids)
}

#[tokio::test]
async fn what_a_job_adds_to_its_batch_is_waited_for_and_seen_by_the_finalize() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = user.batch(vec![spec("work", "{}")], Some("finish"), false).await;
    let first = worker.next_assigned().await;
    let added = add(&worker, &first, &[(0, &[]), (7, &[])]).await.unwrap();
    assert_eq!(counts(&user.get_batch(&batch.id).await), (3, 0, 0, 0));
    let two = worker.assigned(2).await;
    assert_eq!(ids(&two), added);
    worker.succeed(&first, "{}").await;
    worker.succeed(&two[0], "{}").await;
    // The last one at work adds one more.
    let last = add(&worker, &two[1], &[(0, &[])]).await.unwrap();
    worker.fail(&two[1], "provider", false).await;
    let assigned = worker.next_assigned().await;
    assert_eq!(ids(std::slice::from_ref(&assigned)), last);
    worker.succeed(&assigned, "{}").await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    let asked = ListChildrenRequest { attempt: finalize.attempt.clone(), after_ordinal: None, limit: 10 };
    let page = worker.attempts().list_children(worker.request(asked)).await.unwrap().into_inner();
    let children: Vec<(u32, &str)> = page.items.iter().map(|child| (child.ordinal, child.state.as_str())).collect();
    assert_eq!(children, [(0, "succeeded"), (100_000, "succeeded"), (100_001, "failed"), (100_002, "succeeded")]);
    assert_eq!(counts(&user.get_batch(&batch.id).await), (4, 3, 1, 0));
}

#[tokio::test]
async fn a_repeated_attempt_adds_each_job_once_and_one_that_does_not_count_adds_none() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let batch = user.batch(vec![spec("work", "{}")], None, false).await;
    let first = worker.next_assigned().await;
    let added = add(&worker, &first, &[(0, &[]), (1, &[])]).await.unwrap();
    worker.tell(vec![(&first, interrupted())]).await;
    assert_eq!(add(&worker, &first, &[(2, &[])]).await.unwrap_err().code(), "jobs.fenced");
    worker.credit(3).await;
    let again = worker.assigned(3).await.into_iter().find(|assigned| assigned.ordinal == 0).unwrap();
    let all = add(&worker, &again, &[(1, &[]), (0, &[]), (2, &[1])]).await.unwrap();
    assert_eq!((&all[..2], all.len()), (&[added[1].clone(), added[0].clone()][..], 3));
    assert_eq!(user.get_batch(&batch.id).await.counts.unwrap().total, 4);
    assert_eq!(user.job(&all[2]).await.after, [added[1].clone()]);
}

#[tokio::test]
async fn who_is_waited_for_by_no_batch_adds_nothing_and_none_is_added_to_what_is_cancelled_or_full() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let code = |refused: Result<Vec<String>, Fail>| refused.unwrap_err().code().to_owned();
    user.submit(spec("work", "{}")).await;
    let alone = worker.next_assigned().await;
    assert_eq!(code(add(&worker, &alone, &[(0, &[])]).await), "jobs.not_in_a_batch");
    user.batch(vec![spec("work", "{}")], Some("finish"), false).await;
    let child = worker.next_assigned().await;
    for wrong in
        [[(0, [].as_slice()), (0, &[])], [(0, &[]), (100_000, &[])], [(1, &[]), (0, &[1])], [(0, &[]), (1, &[9])]]
    {
        assert_eq!(code(add(&worker, &child, &wrong).await), "jobs.invalid", "{wrong:?}");
    }
    let pool = house.database.pool();
    sqlx::query("update jobs.batch set total = 99999").execute(pool).await.unwrap();
    assert_eq!(code(add(&worker, &child, &[(0, &[]), (1, &[])]).await), "jobs.batch_full");
    sqlx::query("update jobs.batch set total = 1").execute(pool).await.unwrap();
    worker.succeed(&child, "{}").await;
    let finalize = worker.next_assigned().await;
    assert_eq!(code(add(&worker, &finalize, &[(0, &[])]).await), "jobs.not_in_a_batch");

    let batch = user.batch(vec![spec("work", "{}"), spec("work", "{}")], None, false).await.id;
    let two = worker.assigned(2).await;
    let asked = CancelBatchRequest { id: batch.clone(), reason: String::new() };
    user.batches().cancel(user.call.request(asked)).await.unwrap();
    assert_eq!(code(add(&worker, &two[0], &[(0, &[])]).await), "jobs.batch_cancelling");
    worker.tell(two.iter().map(|assigned| (assigned, stopped())).collect()).await;
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Cancelled);
}

#[tokio::test]
async fn jobs_that_add_to_one_batch_at_once_and_end_leave_counters_that_are_right() {
    let house = House::new().await;
    let beside = house.beside().await;
    let user = house.user(&["operator"]);
    let (mut one, mut other) = (house.worker(500).await, beside.worker(500).await);
    let batch = user.batch((0..20).map(|_| spec("work", "{}")).collect(), None, false).await.id;
    let over = user.wait_for_batch(&batch, |counts| counts["succeeded"] == 80);
    let grow = async |worker: &mut Worker| {
        loop {
            let assigned = worker.assigned(1).await;
            let first = assigned.iter().filter(|assigned| assigned.ordinal < 20);
            let adding = first.map(|by| add(worker, by, &[(0, &[]), (1, &[0]), (2, &[])]));
            futures::future::try_join_all(adding).await.unwrap();
            worker.tell(assigned.iter().map(|assigned| (assigned, succeeded("{}"))).collect()).await;
        }
    };
    tokio::select! {
        () = over => {}
        () = grow(&mut one) => {}
        () = grow(&mut other) => {}
    }
    assert_eq!(user.get_batch(&batch).await.state(), BatchState::Finished);
    assert_eq!(counts(&user.get_batch(&batch).await), (80, 80, 0, 0));
}

#[tokio::test]
async fn children_of_a_task_run_after_others_of_it_across_its_calls() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let mut batch = String::new();
    let child = |ordinal, after| FanOutJob { ordinal, task: "work".into(), args_json: "{}".into(), after };
    for jobs in [vec![child(4, vec![]), child(5, vec![4])], vec![child(9, vec![5])]] {
        let asked = FanOutRequest { attempt: parent.attempt.clone(), jobs, ..FanOutRequest::default() };
        batch = worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id;
    }
    let asked =
        FanOutRequest { attempt: parent.attempt.clone(), jobs: vec![child(10, vec![11])], ..FanOutRequest::default() };
    let refused: Fail = worker.attempts().fan_out(worker.request(asked)).await.unwrap_err().into();
    assert_eq!(refused.code(), "jobs.invalid");
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    for ordinal in [4, 5, 9] {
        let assigned = worker.next_assigned().await;
        assert_eq!(assigned.ordinal, ordinal);
        worker.succeed(&assigned, "{}").await;
    }
    assert_eq!(user.state(&id).await, JobState::Succeeded);
}
