//! Fan-in: the finalize fires once and knows its numbers, whatever happened to the children.

use proto::{
    jobs::{AddBatchJobsRequest, BatchState, CancelBatchRequest, CloseBatchRequest, RetryJobRequest},
    worker::{Assignment, ListChildrenRequest, outcome},
};

use crate::house::{House, failed, spec, stopped, succeeded};

pub(crate) fn ids(assigned: &[Assignment]) -> Vec<String> {
    assigned.iter().map(|assigned| assigned.attempt.clone().unwrap().job_id).collect()
}

pub(crate) fn counts(batch: &proto::jobs::Batch) -> (u32, u32, u32, u32) {
    let counts = batch.counts.unwrap();
    (counts.total, counts.succeeded, counts.failed, counts.cancelled)
}

#[tokio::test]
async fn the_finalize_runs_once_after_the_last_child_whatever_became_of_the_children() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(3).await;
    let batch =
        user.batch(vec![spec("work", "{}"), spec("work", "{}"), spec("work", "{}")], Some("finish"), false).await;
    assert_eq!(batch.state(), BatchState::Running);
    let assigned = worker.assigned(3).await;
    let ends: Vec<outcome::End> = vec![succeeded("1"), failed("provider", false), succeeded("3")];
    worker.tell(assigned.iter().zip(ends).collect()).await;
    worker.credit(2).await;

    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    assert_eq!((finalize.task.as_str(), finalize.batch_id.as_str()), ("finish", batch.id.as_str()));
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finalizing);
    let asked = ListChildrenRequest { attempt: finalize.attempt.clone(), after_ordinal: None, limit: 2 };
    let page = worker.attempts().list_children(worker.request(asked)).await.unwrap().into_inner();
    assert_eq!((page.items.len(), page.more), (2, true));
    let asked = ListChildrenRequest { attempt: finalize.attempt.clone(), after_ordinal: Some(1), limit: 2 };
    let rest = worker.attempts().list_children(worker.request(asked)).await.unwrap().into_inner();
    assert_eq!((rest.items.len(), rest.more, rest.items[0].ordinal), (1, false, 2));

    worker.succeed(&finalize, r#""whole""#).await;
    let batch = user.get_batch(&batch.id).await;
    assert_eq!(batch.state(), BatchState::Finished);
    assert_eq!(counts(&batch), (3, 2, 1, 0));
    let finalizes: i64 = sqlx::query_scalar("select count(*) from jobs.any_job where is_finalize")
        .fetch_one(house.database.pool())
        .await
        .unwrap();
    assert_eq!(finalizes, 1);
}

#[tokio::test]
async fn children_that_end_at_once_in_one_group_and_in_many_fire_one_finalize() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let (mut one, mut other) = (house.worker(10).await, house.worker(10).await);
    let batch = user.batch((0..20).map(|_| spec("work", "{}")).collect(), Some("finish"), false).await;
    let (first, second) = (one.assigned(10).await, other.assigned(10).await);
    let told = |assigned: &[Assignment]| -> Vec<outcome::End> { assigned.iter().map(|_| succeeded("{}")).collect() };
    let (ends, more_ends) = (told(&first), told(&second));
    tokio::join!(one.tell(first.iter().zip(ends).collect()), other.tell(second.iter().zip(more_ends).collect()));
    one.credit(10).await;
    let finalize = one.next_assigned().await;
    one.succeed(&finalize, "{}").await;
    assert_eq!(counts(&user.get_batch(&batch.id).await), (20, 20, 0, 0));
    let events = user.batch_events(&batch.id, 0).await;
    let finalizing = events.iter().filter(|(_, event, data)| event == "batch" && data["state"] == "finalizing").count();
    assert_eq!(finalizing, 1);
    let offsets: Vec<u64> = events.iter().map(|(offset, ..)| *offset).collect();
    let expected: Vec<u64> = (1..offsets.len() as u64).chain([offsets.len() as u64 - 1]).collect();
    assert_eq!(offsets, expected, "a batch's offsets have no gap");
}

#[tokio::test]
async fn an_empty_batch_finalizes_and_one_without_a_finalize_just_finishes() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let plain = user.batch(Vec::new(), None, false).await;
    assert_eq!(plain.state(), BatchState::Finished);
    let batch = user.batch(Vec::new(), Some("finish"), false).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "{}").await;
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finished);
}

#[tokio::test]
async fn an_open_batch_grows_until_it_is_closed() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(2).await;
    let batch = user.batch(vec![spec("work", "{}")], Some("finish"), true).await;
    let first = worker.next_assigned().await;
    worker.succeed(&first, "{}").await;
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Open, "all its jobs are done, but more may come");
    let add = AddBatchJobsRequest { batch_id: batch.id.clone(), jobs: vec![spec("work", "{}")] };
    user.batches().add_jobs(user.call.request(add.clone())).await.unwrap();
    user.batches().close(user.call.request(CloseBatchRequest { id: batch.id.clone() })).await.unwrap();
    let refused = user.batches().add_jobs(user.call.request(add)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.batch_closed");
    let second = worker.next_assigned().await;
    assert_eq!(second.ordinal, 1);
    worker.succeed(&second, "{}").await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
}

#[tokio::test]
async fn a_batchs_cancel_reaches_children_that_wait_and_children_that_run() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let batch = user.batch((0..600).map(|_| spec("work", "{}")).collect(), None, false).await;
    let running = worker.next_assigned().await;
    let asked = CancelBatchRequest { id: batch.id.clone(), reason: String::new() };
    user.batches().cancel(user.call.request(asked.clone())).await.unwrap();
    // More than one bite, of which the sweep may take its share.
    user.wait_for_batch(&batch.id, |counts| counts["cancelled"] == 599).await;
    user.batches().cancel(user.call.request(asked.clone())).await.unwrap();
    worker.tell(vec![(&running, stopped())]).await;
    let over = user.get_batch(&batch.id).await;
    assert_eq!((over.state(), counts(&over)), (BatchState::Cancelled, (600, 0, 0, 600)));
    let refused = user.batches().cancel(user.call.request(asked)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.already_final");
}

#[tokio::test]
async fn a_retried_child_opens_its_batch_again_and_the_batch_finalizes_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(2).await;
    let batch = user.batch(vec![spec("work", "{}")], Some("finish"), false).await;
    let child = worker.next_assigned().await;
    worker.fail(&child, "provider", false).await;
    let finalize = worker.next_assigned().await;
    let id = ids(&[child]).remove(0);
    let refused = user.jobs().retry(user.call.request(RetryJobRequest { id: id.clone() })).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.batch_finalizing");
    worker.succeed(&finalize, "1").await;

    user.jobs().retry(user.call.request(RetryJobRequest { id })).await.unwrap();
    let open = user.get_batch(&batch.id).await;
    assert_eq!((open.state(), counts(&open)), (BatchState::Running, (1, 0, 0, 0)));
    worker.credit(2).await;
    let child = worker.next_assigned().await;
    worker.succeed(&child, "{}").await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "2").await;
    let over = user.get_batch(&batch.id).await;
    assert_eq!((over.state(), counts(&over)), (BatchState::Finished, (1, 1, 0, 0)));
    assert_eq!(user.job(&over.finalize_job_id).await.result_json, "2");
}

#[tokio::test]
async fn a_finalize_that_a_new_one_follows_cannot_be_retried() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(2).await;
    let batch = user.batch(vec![spec("work", "{}")], Some("finish"), false).await;
    let child = worker.next_assigned().await;
    worker.fail(&child, "provider", false).await;
    let finalize = worker.next_assigned().await;
    worker.fail(&finalize, "provider", false).await;
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finished);
    let (child, finalize) = (ids(&[child]).remove(0), ids(&[finalize]).remove(0));
    user.jobs().retry(user.call.request(RetryJobRequest { id: child })).await.unwrap();
    let refused = user.jobs().retry(user.call.request(RetryJobRequest { id: finalize })).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.finalize_superseded");
}

#[tokio::test]
async fn a_failed_finalize_can_be_retried_and_ends_the_batch_once_more() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let batch = user.batch(Vec::new(), Some("finish"), false).await;
    let finalize = worker.next_assigned().await;
    worker.fail(&finalize, "provider", false).await;
    let id = ids(&[finalize]).remove(0);
    user.jobs().retry(user.call.request(RetryJobRequest { id: id.clone() })).await.unwrap();
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finalizing);
    worker.credit(1).await;
    let again = worker.next_assigned().await;
    worker.succeed(&again, "{}").await;
    let over = user.get_batch(&batch.id).await;
    assert_eq!((over.state(), over.finalize_job_id), (BatchState::Finished, id));
}

#[tokio::test]
async fn what_is_asked_of_a_batch_that_is_over_tells_its_watchers_nothing() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let batch = user.batch(Vec::new(), None, false).await;
    let told = user.batch_events(&batch.id, 0).await;
    user.batches().close(user.call.request(CloseBatchRequest { id: batch.id.clone() })).await.unwrap();
    assert_eq!(user.batch_events(&batch.id, 0).await, told);
}

#[tokio::test]
async fn jobs_that_an_administrator_adds_belong_to_the_owner_of_the_batch() {
    let house = House::new().await;
    let (owner, other) = (house.user(&["operator"]), house.user(&["admin"]));
    drop(house.stranger_worker("").await);
    let batch = owner.batch(vec![spec("work", "{}")], None, true).await;
    let add = AddBatchJobsRequest { batch_id: batch.id.clone(), jobs: vec![spec("work", "{}")] };
    let added = other.batches().add_jobs(other.call.request(add)).await.unwrap().into_inner();
    assert_eq!(owner.job(&added.items[0].id).await.owner_id, batch.owner_id);
}
