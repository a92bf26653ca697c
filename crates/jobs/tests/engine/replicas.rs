//! Two replicas on one database: whatever was asked at one, the other does.

use std::time::{Duration, Instant};

use proto::jobs::{CancelJobRequest, JobState};

use crate::house::{House, User, spec, stopped};

#[tokio::test]
async fn what_one_replica_takes_in_a_worker_of_another_does_and_both_show() {
    let here = House::new().await;
    let there = here.beside().await;
    let mut worker = there.worker(2).await;
    let (user, same_user) = here.user_at_both(&there);
    let batch = user.batch(vec![spec("work", "{}"), spec("work", "{}")], Some("finish"), false).await;
    for assigned in worker.assigned(2).await {
        assert!(worker.succeed(&assigned, "{}").await);
    }
    worker.credit(1).await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    assert!(worker.succeed(&finalize, "{}").await);
    let (at_one, at_other) = (user.batch_events(&batch.id, 0).await, same_user.batch_events(&batch.id, 0).await);
    assert_eq!(at_one, at_other);
    assert_eq!(at_one.iter().filter(|(_, event, data)| event == "batch" && data["state"] == "finished").count(), 1);
}

#[tokio::test]
async fn a_cancel_asked_at_one_replica_reaches_the_worker_of_another() {
    let here = House::new().await;
    let there = here.beside().await;
    let mut worker = there.worker(1).await;
    let user = here.user(&["operator"]);
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let asked = CancelJobRequest { id: id.clone(), reason: "no longer wanted".to_owned() };
    user.jobs().cancel(user.call.request(asked)).await.unwrap();
    assert_eq!(worker.stop_of(&id).await, "cancel");
    assert_eq!(worker.tell(vec![(&assigned, stopped())]).await, [true]);
    assert_eq!(user.state(&id).await, JobState::Cancelled);
}

/// Replicas look by themselves every half a second: without a word between them, 20 jobs would take 5 s longer where the
/// worker is elsewhere. Half of that is allowed.
#[tokio::test]
async fn a_job_is_handed_out_elsewhere_about_as_soon_as_here() {
    let here = House::new().await;
    let there = here.beside().await;
    let mut worker = there.worker(1).await;
    let mut took = Vec::new();
    for house in [&there, &here] {
        let user = house.user(&["operator"]);
        let started = Instant::now();
        for _ in 0..20 {
            let id = user.submit(spec("work", "{}")).await;
            let assigned = worker.next_assigned().await;
            assert_eq!(assigned.attempt.as_ref().unwrap().job_id, id);
            worker.succeed(&assigned, "{}").await;
            worker.credit(1).await;
        }
        took.push(started.elapsed());
    }
    println!("20 jobs: {:?} with the worker here, {:?} with the worker elsewhere", took[0], took[1]);
    assert!(took[1] < took[0] + Duration::from_millis(2500), "{took:?}");
}

/// Lists of tasks are made from what a replica has read within the last second. Of what it was told itself they show
/// everything at once, of what another was told within that second.
#[tokio::test]
async fn what_workers_of_another_replica_offer_is_listed_within_a_second() {
    let here = House::new().await;
    let there = here.beside().await;
    let (user, same_user) = here.user_at_both(&there);
    assert_eq!(user.tasks().await, []);
    let offered = |workers| ["finish", "process", "work"].map(|name| (name.to_owned(), workers));

    let mut worker = there.worker(1).await;
    let told = Instant::now();
    assert_eq!(same_user.tasks().await, offered(1), "the replica that was told");
    lists_within_a_second_of(told, &user, &offered(1)).await;

    let _second = here.worker(1).await;
    assert_eq!(user.tasks().await, offered(2), "the replica that was told");
    worker.drain().await;
    let told = Instant::now();
    assert_eq!(same_user.tasks().await, offered(1), "the replica that was told");
    lists_within_a_second_of(told, &user, &offered(1)).await;

    // A lease that ends counts no longer at that moment, however long ago it was read.
    here.clock.advance(Duration::from_secs(31));
    assert_eq!(user.tasks().await, offered(0));
}

/// However slow the machine: a list that is asked for a second after `told` shows what was told.
async fn lists_within_a_second_of(told: Instant, user: &User, expected: &[(String, u32)]) {
    loop {
        let asked_after = told.elapsed();
        let tasks = user.tasks().await;
        if tasks == expected {
            return;
        }
        assert!(asked_after < Duration::from_secs(1), "{asked_after:?} later the list was still {tasks:?}");
    }
}
