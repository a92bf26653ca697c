//! A batch that is retried: what ended badly runs again, once, and then the batch is finalized anew.

use proto::{
    jobs::{Batch, BatchState, CancelBatchRequest, JobSpec, JobState, RetryBatchRequest, RetryJobRequest},
    worker::{ListChildrenRequest, outcome},
};
use sqlx::{Postgres, Transaction};

use crate::{
    batches::{counts, ids},
    house::{House, User, Worker, eventually, failed, spec, stopped, succeeded, suspended},
    parents::fan_out,
    policies::{create, policy},
};

/// Two bites.
const MANY: u32 = 1_000;

async fn retry(user: &User, id: &str, states: &[JobState]) -> Result<Batch, kit::Fail> {
    let states = states.iter().map(|state| (*state).into()).collect();
    let asked = RetryBatchRequest { id: id.to_owned(), states };
    Ok(user.batches().retry(user.call.request(asked)).await?.into_inner())
}

/// A batch of which the first job succeeded and the others failed, finalized.
async fn half_done(user: &User, worker: &mut Worker, jobs: usize) -> Batch {
    let batch = user.batch((0..jobs).map(|_| spec("work", "{}")).collect(), Some("finish"), false).await;
    let children = worker.assigned(jobs).await;
    let end = |ordinal| if ordinal == 0 { succeeded("{}") } else { failed("provider", false) };
    let ends: Vec<outcome::End> = children.iter().map(|child| end(child.ordinal)).collect();
    worker.tell(children.iter().zip(ends).collect()).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "1").await;
    batch
}

/// A batch of two bites of jobs, all of them expired, and finalized.
async fn all_expired(house: &House, user: &User, worker: &mut Worker) -> String {
    let child = || JobSpec { queue_timeout_s: Some(10.0), ..spec("work", "{}") };
    let batch = user.batch((0..MANY).map(|_| child()).collect(), Some("finish"), false).await.id;
    house.clock.advance(std::time::Duration::from_secs(11));
    user.wait_for_batch(&batch, |counts| counts["expired"] == MANY).await;
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "1").await;
    batch
}

/// Keeps the second bite from its first job, as long as the transaction lasts.
async fn hold_second(house: &House, batch: &str) -> Transaction<'static, Postgres> {
    let mut holding = house.database.pool().begin().await.unwrap();
    sqlx::query("select from jobs.job_history where batch_id = $1::uuid and ordinal = 500 for update")
        .bind(batch)
        .fetch_one(&mut *holding)
        .await
        .unwrap();
    holding
}

#[tokio::test]
async fn what_failed_runs_again_and_the_batch_is_finalized_anew_with_both_finalizes_kept() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = half_done(&user, &mut worker, 3).await;
    let open = retry(&user, &batch.id, &[]).await.unwrap();
    assert_eq!((open.state(), counts(&open), open.retrying), (BatchState::Running, (3, 1, 0, 0), false));
    let children = worker.assigned(2).await;
    let mut again: Vec<u32> = children.iter().map(|child| child.ordinal).collect();
    again.sort_unstable();
    assert_eq!(again, [1, 2]);
    worker.tell(vec![(&children[0], succeeded("2")), (&children[1], failed("memory_exceeded", false))]).await;
    let finalize = worker.next_assigned().await;
    let asked = ListChildrenRequest { attempt: finalize.attempt.clone(), after_ordinal: None, limit: 10 };
    let page = worker.attempts().list_children(worker.request(asked)).await.unwrap().into_inner();
    let found = page.items.iter().find(|child| child.ordinal == children[1].ordinal).unwrap();
    assert_eq!((found.state.as_str(), found.error_kind.as_str()), ("failed", "memory_exceeded"));
    worker.succeed(&finalize, "2").await;

    let over = user.get_batch(&batch.id).await;
    assert_eq!((over.state(), counts(&over)), (BatchState::Finished, (3, 2, 1, 0)));
    let rounds: Vec<_> = over
        .finalizes
        .iter()
        .map(|round| (round.round, round.state.as_str(), round.counts.unwrap().succeeded, round.finished_at.is_some()))
        .collect();
    assert_eq!(rounds, [(1, "succeeded", 1, true), (2, "succeeded", 2, true)]);
    assert_eq!(over.finalizes[1].job_id, over.finalize_job_id);
    assert_ne!(over.finalizes[0].job_id, over.finalize_job_id);
    assert_eq!(user.job(&over.finalizes[0].job_id).await.result_json, "1");
}

#[tokio::test]
async fn a_batch_whose_policy_was_not_met_is_retried_until_it_is() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = create(&user, 1, policy("all", None)).await;
    let child = worker.next_assigned().await;
    worker.fail(&child, "provider", false).await;
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finished);
    let open = retry(&user, &batch.id, &[]).await.unwrap();
    assert_eq!((open.state(), open.finalize_skipped.as_str()), (BatchState::Running, ""));
    let child = worker.next_assigned().await;
    worker.succeed(&child, "{}").await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "{}").await;
    let states: Vec<_> = user.get_batch(&batch.id).await.finalizes.into_iter().map(|round| round.state).collect();
    assert_eq!(states, ["skipped", "succeeded"]);
}

/// Retries a batch whose jobs all expired, and lets those of the first bite expire again while the second waits.
async fn retried_by_half(house: &House, user: &User, batch: &str) {
    let pool = house.database.pool();
    let holding = hold_second(house, batch).await;
    // The call may be the one that takes the second bite.
    let (answer, ()) = tokio::join!(retry(user, batch, &[]), async {
        eventually(pool, "select expired = 500 from jobs.batch").await;
        assert!(user.get_batch(batch).await.retrying);
        // By its counters the batch is complete before the second bite comes.
        house.clock.advance(std::time::Duration::from_secs(11));
        eventually(pool, "select expired = 1000 and retry_states is not null from jobs.batch").await;
        kit::testing::something_waits(pool).await;
        let between = user.get_batch(batch).await;
        assert_eq!((between.state(), between.finalizes.len()), (BatchState::Running, 1));
        holding.rollback().await.unwrap();
    });
    answer.unwrap();
    eventually(pool, "select retry_states is null from jobs.batch").await;
}

#[tokio::test]
async fn no_finalize_starts_between_two_bites_of_a_retry() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    let batch = all_expired(&house, &user, &mut worker).await;
    retried_by_half(&house, &user, &batch).await;
    house.clock.advance(std::time::Duration::from_secs(11));
    // The first worker's lease is over by now.
    let mut worker = house.worker(1).await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    worker.succeed(&finalize, "2").await;
    let over = user.get_batch(&batch).await;
    assert_eq!((over.state(), over.finalizes.len(), over.counts.unwrap().expired), (BatchState::Finished, 2, MANY));
}

#[tokio::test]
async fn a_retry_that_a_crash_cuts_between_two_bites_is_carried_on_from_where_it_was() {
    let mut house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    all_expired(&house, &user, &mut worker).await;
    let pool = house.database.pool().clone();
    house.crash().await;
    // What a process leaves that asked, and died when 500 jobs had had their turn and ended again.
    sqlx::query(
        "update jobs.batch
         set state = 'running', finished_at = null, finalize_job_id = null, retry_states = '{expired}', retry_after = 499",
    )
    .execute(&pool)
    .await
    .unwrap();
    house.crash_and_restart().await;
    eventually(&pool, "select retry_states is null and retry_after is null from jobs.batch").await;
    eventually(&pool, "select expired = 500 and state = 'running' from jobs.batch").await;
    eventually(&pool, "select count(*) = 500 and min(ordinal) = 500 from jobs.job").await;
    eventually(&pool, "select count(*) = 1 from jobs.batch_finalize").await;
}

#[tokio::test]
async fn a_job_that_fails_again_at_once_has_one_turn_in_a_retry() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    let batch = all_expired(&house, &user, &mut worker).await;
    retried_by_half(&house, &user, &batch).await;
    eventually(house.database.pool(), "select count(*) = 500 and min(ordinal) = 500 from jobs.job").await;
    assert_eq!(user.get_batch(&batch).await.counts.unwrap().expired, 500);
}

#[tokio::test]
async fn two_retries_at_once_queue_each_job_once() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = half_done(&user, &mut worker, 20).await;
    let (one, other) = tokio::join!(retry(&user, &batch.id, &[]), retry(&user, &batch.id, &[]));
    assert_eq!(counts(&one.unwrap()), (20, 1, 0, 0));
    assert_eq!(counts(&other.unwrap()), (20, 1, 0, 0));
    let children = worker.assigned(19).await;
    let ends: Vec<outcome::End> = children.iter().map(|_| succeeded("{}")).collect();
    worker.tell(children.iter().zip(ends).collect()).await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "2").await;
    let over = user.get_batch(&batch.id).await;
    assert_eq!((over.state(), counts(&over)), (BatchState::Finished, (20, 20, 0, 0)));
}

#[tokio::test]
async fn a_batch_is_not_retried_while_it_finalizes_or_is_cancelled_nor_for_nothing_nor_by_a_stranger() {
    let house = House::new().await;
    let (user, stranger) = (house.user(&["operator"]), house.customer());
    let mut worker = house.worker(100).await;
    let code = |answer: Result<Batch, kit::Fail>| answer.unwrap_err().code().to_owned();
    let batch = user.batch(vec![spec("work", "{}")], Some("finish"), false).await;
    let child = worker.next_assigned().await;
    assert_eq!(retry(&user, &batch.id, &[]).await.unwrap().state(), BatchState::Running, "nothing has failed yet");
    worker.fail(&child, "provider", false).await;
    let finalize = worker.next_assigned().await;
    assert_eq!(code(retry(&user, &batch.id, &[]).await), "jobs.batch_finalizing");
    worker.succeed(&finalize, "{}").await;
    assert_eq!(code(retry(&user, &batch.id, &[JobState::Cancelled]).await), "jobs.nothing_to_retry");
    assert_eq!(code(retry(&user, &batch.id, &[JobState::Succeeded]).await), "jobs.invalid");
    assert_eq!(code(retry(&stranger, &batch.id, &[]).await), "jobs.batch_not_found");

    let batch = user.batch(vec![spec("work", "{}")], None, false).await;
    let child = worker.next_assigned().await;
    let cancel = CancelBatchRequest { id: batch.id.clone(), reason: String::new() };
    user.batches().cancel(user.call.request(cancel)).await.unwrap();
    assert_eq!(code(retry(&user, &batch.id, &[]).await), "jobs.batch_cancelling");
    worker.tell(vec![(&child, stopped())]).await;
    let open = retry(&user, &batch.id, &[JobState::Cancelled]).await.unwrap();
    assert_eq!((open.state(), counts(&open)), (BatchState::Running, (1, 0, 0, 0)));
    let child = worker.next_assigned().await;
    worker.succeed(&child, "{}").await;
    assert_eq!(user.get_batch(&batch.id).await.state(), BatchState::Finished, "it is not cancelled any more");
}

#[tokio::test]
async fn a_waiting_parent_waits_for_what_is_retried_and_one_that_has_ended_stays_as_it_is() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let batch = fan_out(&worker, &parent, 0..2).await;
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    let children = worker.assigned(2).await;
    worker.fail(&children[0], "provider", false).await;
    retry(&user, &batch, &[]).await.unwrap();
    let again = worker.next_assigned().await;
    assert_eq!(ids(std::slice::from_ref(&again)), ids(&children[..1]));
    worker.tell(vec![(&again, failed("provider", false)), (&children[1], succeeded("{}"))]).await;
    let finalize = worker.next_assigned().await;
    assert_eq!(user.state(&id).await, JobState::Suspended);
    worker.succeed(&finalize, "1").await;
    assert_eq!(user.job(&id).await.result_json, "1");

    retry(&user, &batch, &[]).await.unwrap();
    let again = worker.next_assigned().await;
    worker.succeed(&again, "{}").await;
    let finalize = worker.next_assigned().await;
    worker.succeed(&finalize, "2").await;
    let over = user.get_batch(&batch).await;
    assert_eq!((over.state(), counts(&over)), (BatchState::Finished, (2, 2, 0, 0)));
    assert_eq!(user.job(&over.finalize_job_id).await.result_json, "2");
    assert_eq!((user.state(&id).await, user.job(&id).await.result_json.as_str()), (JobState::Succeeded, "1"));
}

#[tokio::test]
async fn a_finalize_that_is_retried_goes_on_in_its_own_round() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = user.batch(Vec::new(), Some("finish"), false).await;
    let finalize = worker.next_assigned().await;
    worker.fail(&finalize, "provider", false).await;
    let [round] = user.get_batch(&batch.id).await.finalizes.try_into().unwrap();
    assert_eq!(round.state, "failed");
    user.jobs().retry(user.call.request(RetryJobRequest { id: round.job_id.clone() })).await.unwrap();
    let [round] = user.get_batch(&batch.id).await.finalizes.try_into().unwrap();
    assert_eq!((round.state.as_str(), round.finished_at), ("running", None));
    let again = worker.next_assigned().await;
    worker.succeed(&again, "{}").await;
    let [round] = user.get_batch(&batch.id).await.finalizes.try_into().unwrap();
    assert_eq!((round.round, round.state.as_str()), (1, "succeeded"));
}
