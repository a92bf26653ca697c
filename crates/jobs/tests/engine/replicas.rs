//! Two replicas on one database: whatever was asked at one, the other does; what is common to all, one does, and another
//! when that one dies, is cut off or stands still.

use std::time::{Duration, Instant};

use proto::jobs::{CancelJobRequest, JobSpec, JobState};
use sqlx::PgPool;

use crate::house::{Freezer, House, PATIENCE, User, eventually, spec, stopped};

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

/// Longer than the leader's row may stand still before it is taken, and what a look and a machine under load add.
const TAKEN_WITHIN: Duration = Duration::from_secs(6);

async fn epoch(pool: &PgPool) -> i64 {
    eventually(pool, "select replica is not null from jobs.leader").await;
    sqlx::query_scalar("select epoch from jobs.leader").fetch_one(pool).await.unwrap()
}

/// Waits until an epoch after `old` has begun and was beaten in; how long that took.
async fn next_epoch(pool: &PgPool, old: i64) -> Duration {
    let began = Instant::now();
    leads_so(pool, "select coalesce(max(epoch), 0) from jobs.leader where beat > 0", |epoch| epoch > old).await;
    began.elapsed()
}

/// Waits for so many beats of the leader, whoever it is.
async fn beats(pool: &PgPool, count: i64) {
    let beat = "select beat from jobs.leader";
    let until = sqlx::query_scalar::<_, i64>(beat).fetch_one(pool).await.unwrap() + count;
    leads_so(pool, beat, |beat| beat >= until).await;
}

async fn leads_so(pool: &PgPool, question: &'static str, is_so: impl Fn(i64) -> bool) {
    let so = async { while !is_so(sqlx::query_scalar(question).fetch_one(pool).await.unwrap()) {} };
    tokio::time::timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("it never came to be so: {question}"));
}

/// Submits a job that becomes due at once, and waits until it was promoted, which only the leader does.
async fn is_led(house: &House, user: &User) {
    let _offers_the_task = house.stranger_worker("").await;
    let soon = kit::clock::to_timestamp(house.clock.now() + Duration::from_secs(10));
    let id = user.submit(JobSpec { run_at: Some(soon), ..spec("work", "{}") }).await;
    house.clock.advance(Duration::from_secs(10));
    user.wait_for(&id, "queued").await;
}

#[tokio::test]
async fn one_replica_leads_and_another_soon_after_it_has_died() {
    let here = House::new().await;
    let pool = here.database.pool().clone();
    let first = epoch(&pool).await;
    let there = here.beside().await;
    beats(&pool, 10).await;
    assert_eq!(epoch(&pool).await, first, "the lead goes to nobody while the leader lives");
    here.crash().await;
    let took = next_epoch(&pool, first).await;
    println!("another led after {took:?}");
    assert!(took < TAKEN_WITHIN, "{took:?}");
    is_led(&there, &there.user(&["operator"])).await;
}

#[tokio::test]
async fn a_leader_that_stops_lays_the_lead_down() {
    let here = House::new().await;
    let pool = here.database.pool().clone();
    epoch(&pool).await;
    here.stop();
    // So that the next one need not wait until the row has stood still.
    eventually(&pool, "select replica is null from jobs.leader").await;
    let there = here.beside().await;
    is_led(&there, &there.user(&["operator"])).await;
}

#[tokio::test]
async fn a_frozen_leader_loses_the_lead_and_does_not_take_it_back() {
    let house = House::new().await;
    let pool = house.database.pool().clone();
    let first = epoch(&pool).await;
    let frozen = Freezer::beside(&house).await;
    house.crash().await;
    next_epoch(&pool, first).await;
    let led_by_it = epoch(&pool).await;
    let there = house.beside().await;
    let thaw = frozen.freeze().await;
    let took = next_epoch(&pool, led_by_it).await;
    println!("another led {took:?} after the leader was frozen");
    assert!(took < TAKEN_WITHIN, "{took:?}");
    is_led(&there, &there.user(&["operator"])).await;
    let second = epoch(&pool).await;
    drop(thaw);
    beats(&pool, 10).await;
    assert_eq!(epoch(&pool).await, second, "it must see that another leads");
    frozen.end();
}

/// The worst moment: within a transaction, with rows locked and another at the row of the epoch.
#[tokio::test]
async fn a_leader_that_is_frozen_in_the_middle_of_a_sweep_changes_nothing_when_it_wakes() {
    let here = House::new().await;
    let pool = here.database.pool().clone();
    let first = epoch(&pool).await;
    let frozen = Freezer::beside(&here).await;
    here.crash().await;
    next_epoch(&pool, first).await;
    let led_by_it = epoch(&pool).await;
    let there = here.beside().await;
    let user = there.user(&["operator"]);
    let mut worker = there.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    // Its sweep finds the lease over, and waits for the job.
    let mut hold = pool.begin().await.unwrap();
    sqlx::query("select from jobs.job for update").execute(&mut *hold).await.unwrap();
    there.clock.advance(Duration::from_secs(31));
    kit::testing::something_waits(&pool).await;
    let thaw = frozen.freeze().await;
    // The lease is over all the same; but what the frozen one has found goes with its transaction.
    hold.rollback().await.unwrap();
    next_epoch(&pool, led_by_it).await;
    user.wait_for(&id, "scheduled").await;
    drop(thaw);
    beats(&pool, 5).await;
    assert_eq!(user.attempts(&id).await, ["failed"]);
    assert!(!worker.succeed(&assigned, "{}").await);
    frozen.end();
}

#[tokio::test]
async fn common_work_goes_on_when_every_connection_was_cut() {
    let here = House::new().await;
    let there = here.beside().await;
    let pool = here.database.pool().clone();
    epoch(&pool).await;
    sqlx::query(
        "select pg_terminate_backend(pid)
         from pg_stat_activity
         where datname = current_database() and application_name = 'guildhall jobs'",
    )
    .execute(&pool)
    .await
    .unwrap();
    is_led(&here, &there.user(&["operator"])).await;
    beats(&pool, 3).await;
}

#[tokio::test]
async fn a_worker_that_went_to_another_replica_is_not_disturbed_by_its_old_stream() {
    let here = House::new().await;
    let there = here.beside().await;
    let user = here.user(&["operator"]);
    // Two slots, one of which stays free.
    let mut old = here.worker(2).await;
    user.submit(spec("work", "{}")).await;
    let first = old.next_assigned().await;
    let holding = vec![first.attempt.clone().unwrap()];
    let mut new = there.stranger_worker(&old.id).await;
    new.heartbeat(holding.clone(), 1, 0).await;
    new.credit(1).await;
    // What the old stream's slot could still take goes to the new one.
    let id = user.submit(spec("work", "{}")).await;
    let second = new.next_assigned().await;
    assert_eq!(second.attempt.as_ref().unwrap().job_id, id);
    // A heartbeat that was on its way over the old stream knows nothing of it.
    old.say_holding(holding, 1, 1).await;
    assert_eq!(old.broken().await.code(), "workers.lease_over");
    assert!(new.succeed(&second, "{}").await);
    assert!(new.succeed(&first, "{}").await);
}

#[tokio::test]
async fn what_another_replica_is_claiming_is_passed_over_for_what_comes_next() {
    let house = House::new().await;
    let pool = house.database.pool();
    let user = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    user.submit(spec("work", "{}")).await;
    let next = user.submit(JobSpec { priority: Some(0), ..spec("work", "{}") }).await;
    // As a claim of another replica holds it until it is durable.
    let mut claim = pool.begin().await.unwrap();
    sqlx::query("select from jobs.job order by rank limit 1 for update").execute(&mut *claim).await.unwrap();
    worker.credit(1).await;
    assert_eq!(worker.next_assigned().await.attempt.unwrap().job_id, next);
}
