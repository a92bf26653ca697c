//! How long a key is held: by what waits, what is live, what is dead, for a window, and by what is retried.

use super::*;
use crate::house::eventually;

fn seconds(seconds: u64) -> std::time::Duration {
    std::time::Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_key_is_free_again_when_its_job_starts_or_is_over_as_was_asked() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    // Until it starts.
    let waiting = fresh(&user, keyed("waiting", hold("waiting"))).await;
    let waiting_assigned = worker.next_assigned().await;
    let next = fresh(&user, keyed("waiting", hold("live"))).await;
    let next_assigned = worker.next_assigned().await;
    // The end of a job that holds the key no more lets nobody else's go.
    assert!(worker.succeed(&waiting_assigned, "{}").await);
    assert_ne!(waiting, next);
    assert_eq!(there(&user, plain("waiting")).await, next);
    assert!(worker.succeed(&next_assigned, "{}").await);
    fresh(&user, plain("waiting")).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.succeed(&assigned, "{}").await);
    // Until it is over, in any way.
    for (how, is_kept) in [("live", false), ("dead_letter", true)] {
        let key = |what: &str| keyed(&format!("{how} {what}"), hold(how));
        let failed = fresh(&user, key("failed")).await;
        let assigned = worker.next_assigned().await;
        assert_eq!(there(&user, key("failed")).await, failed);
        assert!(worker.fail(&assigned, "provider", false).await);
        fresh(&user, key("succeeded")).await;
        let assigned = worker.next_assigned().await;
        assert!(worker.succeed(&assigned, "{}").await);
        let later = kit::clock::to_timestamp(house.clock.now() + chrono::TimeDelta::seconds(3600));
        let cancelled = fresh(&user, JobSpec { run_at: Some(later), ..key("cancelled") }).await;
        cancel(&user, &cancelled).await;
        for what in ["failed", "succeeded", "cancelled"] {
            let item = submit(&user, JobSpec { run_at: Some(later), ..key(what) }).await.unwrap();
            assert_eq!(item.existing, is_kept && what == "failed", "{how} {what}");
        }
    }
}

#[tokio::test]
async fn a_window_holds_the_key_after_its_job_is_over_and_not_before_it_is() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    let within = |how: &str| Unique { window_s: Some(60.0), ..hold(how) };
    let first = fresh(&user, keyed("k", within("live"))).await;
    let started = fresh(&user, keyed("started", within("waiting"))).await;
    let assigned = worker.assigned(2).await;
    for assigned in &assigned {
        assert!(worker.succeed(assigned, "{}").await);
    }
    house.clock.advance(seconds(59));
    assert_eq!(there(&user, plain("k")).await, first);
    // What is over is not replaced.
    assert_eq!(there(&user, keyed("k", on_conflict("replace"))).await, first);
    assert_eq!(there(&user, plain("started")).await, started);
    assert_eq!(user.state(&first).await, JobState::Succeeded);
    house.clock.advance(seconds(1));
    let second = fresh(&user, keyed("k", within("live"))).await;
    fresh(&user, plain("started")).await;
    house.clock.advance(seconds(120));
    assert_eq!(there(&user, plain("k")).await, second, "it is not over");
}

#[tokio::test]
async fn a_retry_by_hand_takes_the_key_again_or_is_refused() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    let first = fresh(&user, plain("k")).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "provider", false).await);
    let second = fresh(&user, plain("k")).await;
    let assigned = worker.next_assigned().await;
    let refused = retry(&user, &first).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Conflict, "jobs.unique_key_held"));
    assert_eq!(user.state(&first).await, JobState::Failed);
    assert!(worker.succeed(&assigned, "{}").await);
    retry(&user, &first).await.unwrap();
    assert_eq!(there(&user, plain("k")).await, first);
    let again = worker.next_assigned().await;
    assert!(worker.succeed(&again, "{}").await);
    assert_ne!(fresh(&user, plain("k")).await, second);
    // A dead letter that has kept its key goes on with it.
    let kept = fresh(&user, keyed("kept", hold("dead_letter"))).await;
    let assigned = worker.assigned(2).await.pop().unwrap();
    assert!(worker.fail(&assigned, "provider", false).await);
    retry(&user, &kept).await.unwrap();
    let again = worker.next_assigned().await;
    assert!(worker.succeed(&again, "{}").await);
    fresh(&user, plain("kept")).await;
}

#[tokio::test]
async fn keys_that_nobody_holds_are_tidied_away_and_others_are_not() {
    let mut house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    fresh(&user, keyed("dead", hold("dead_letter"))).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "provider", false).await);
    fresh(&user, plain("live")).await;
    sqlx::query(
        "insert into jobs.unique_key (scope, task, key, job_id, hold, held_until, is_let_go)
         select gen_random_uuid(), 'work', hold, gen_random_uuid(), hold, now(), is_let_go
         from unnest(array['waiting', 'live', 'dead_letter']) as hold
         cross join unnest(array[true, false]) as is_let_go",
    )
    .execute(house.database.pool())
    .await
    .unwrap();
    sqlx::query("update jobs.unique_key set held_until = '2000-01-01'").execute(house.database.pool()).await.unwrap();
    house.crash_and_restart().await;
    eventually(house.database.pool(), "select count(*) = 2 from jobs.unique_key").await;
    let left = "select count(*) from jobs.unique_key join jobs.any_job on any_job.id = job_id";
    assert_eq!(count(&house, left).await, 2);
}
