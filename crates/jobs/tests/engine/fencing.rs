//! Leases and fencing: who no longer counts can change nothing, and what was lost is taken up again.

use std::time::Duration;

use kit::Kind;
use proto::{
    jobs::{JobSpec, JobState},
    worker::CreateAttemptFileRequest,
};

use crate::house::{House, eventually, spec, succeeded};

#[tokio::test]
async fn the_result_of_a_fenced_attempt_is_refused_and_changes_nothing() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut slow = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let first = slow.next_assigned().await;
    // Not heard of for longer than its lease: the job goes back and, after its backoff, to another.
    house.clock.advance(Duration::from_secs(31));
    user.wait_for(&id, "scheduled").await;
    house.clock.advance(Duration::from_secs(301));
    let mut other = house.worker(1).await;
    let second = other.next_assigned().await;
    assert_eq!(second.number, 2);

    assert!(!slow.succeed(&first, r#""late""#).await, "the late result must be refused");
    let asked = CreateAttemptFileRequest { attempt: first.attempt.clone(), name: "late".into() };
    let refused = slow.attempts().create_file(slow.request(asked)).await.unwrap_err();
    assert_eq!(kit::Fail::from(refused).code(), "jobs.fenced");
    assert!(other.succeed(&second, r#""right""#).await);
    let job = user.job(&id).await;
    assert_eq!((job.state(), job.result_json.as_str()), (JobState::Succeeded, r#""right""#));
    assert_eq!(user.attempts(&id).await, ["failed", "succeeded"]);
}

#[tokio::test]
async fn an_outcome_told_twice_counts_once() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.succeed(&assigned, "1").await);
    assert!(!worker.succeed(&assigned, "2").await);
    assert_eq!(user.job(&id).await.result_json, "1");
    assert_eq!(user.attempts(&id).await, ["succeeded"]);
    // In one report, too, and so in one transaction.
    let id = user.submit(spec("work", "{}")).await;
    worker.credit(1).await;
    let assigned = worker.next_assigned().await;
    worker.tell(vec![(&assigned, succeeded("1")), (&assigned, succeeded("2"))]).await;
    assert_eq!(user.job(&id).await.result_json, "1");
}

#[tokio::test]
async fn a_file_that_its_result_does_not_name_goes_with_the_end_of_an_attempt() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let asked = CreateAttemptFileRequest { attempt: assigned.attempt.clone(), name: "draft".into() };
    worker.attempts().create_file(worker.request(asked)).await.unwrap();
    assert!(worker.succeed(&assigned, "1").await);
    let states: Vec<String> =
        sqlx::query_scalar("select state from jobs.file").fetch_all(house.database.pool()).await.unwrap();
    assert_eq!(states, ["doomed"]);
}

#[tokio::test]
async fn an_attempt_that_has_failed_cannot_succeed_any_more() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    assert!(worker.fail(&assigned, "upstream", true).await);
    // The job has kept the token, but nobody holds it by that.
    assert!(!worker.succeed(&assigned, "1").await);
    assert_eq!(user.state(&id).await, JobState::Scheduled);
    assert_eq!(user.attempts(&id).await, ["failed"]);
}

#[tokio::test]
async fn reports_that_come_while_one_is_written_are_written_together() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(3).await;
    user.submit_all(vec![spec("work", "{}"); 3], None).await.unwrap();
    let assigned = worker.assigned(3).await;
    let attempts: Vec<_> = assigned.iter().filter_map(|assigned| assigned.attempt.clone()).collect();
    let mut held = house.database.pool().begin().await.unwrap();
    sqlx::query("select from jobs.job where id = $1::uuid for update")
        .bind(&attempts[0].job_id)
        .execute(&mut *held)
        .await
        .unwrap();
    worker.say(&assigned[0], succeeded("1")).await;
    kit::testing::something_waits(house.database.pool()).await;
    worker.say(&assigned[1], succeeded("2")).await;
    worker.say(&assigned[2], succeeded("3")).await;
    // Its answer says that what was told before it was heard.
    worker.heartbeat(attempts.clone(), 1, 3).await;
    held.rollback().await.unwrap();
    assert_eq!(worker.receipted().await, [attempts[0].job_id.clone()]);
    assert_eq!(worker.receipted().await, [attempts[1].job_id.clone(), attempts[2].job_id.clone()]);
}

#[tokio::test]
async fn heartbeats_keep_a_lease_however_long_the_attempt_runs() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    for beat in 1..=5 {
        house.clock.advance(Duration::from_secs(20));
        worker.heartbeat(vec![assigned.attempt.clone().unwrap()], beat, 1).await;
    }
    assert_eq!(user.state(&id).await, JobState::Running);
    assert!(worker.succeed(&assigned, "{}").await);
}

/// Its key may have been changed since, and whoever has the old one only is to lose what it opened.
#[tokio::test]
async fn a_stream_lives_an_hour_and_a_worker_that_may_open_another_goes_on() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    for beat in 1..144 {
        house.clock.advance(Duration::from_secs(25));
        worker.heartbeat(Vec::new(), beat, 0).await;
    }
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    house.clock.advance(Duration::from_secs(25));
    let holding = vec![assigned.attempt.clone().unwrap()];
    worker.say_holding(holding.clone(), 144, 1).await;
    let ended = worker.broken().await;
    assert_eq!((ended.kind(), ended.code()), (Kind::Unauthenticated, "workers.stream_over"));
    let mut again = house.stranger_worker(&worker.id).await;
    again.heartbeat(holding, 145, 0).await;
    assert!(again.succeed(&assigned, "{}").await);
    assert_eq!(user.attempts(&id).await, ["succeeded"]);
}

#[tokio::test]
async fn an_attempt_that_its_worker_does_not_name_is_lost_and_one_on_its_way_is_not() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    worker.next_assigned().await;
    // The worker has read nothing yet as far as it says: the assignment is on its way.
    worker.heartbeat(Vec::new(), 1, 0).await;
    assert_eq!(user.state(&id).await, JobState::Running);
    // It has read one assignment and does not hold it.
    worker.heartbeat(Vec::new(), 2, 1).await;
    user.wait_for(&id, "scheduled").await;
    assert_eq!(user.job(&id).await.error.unwrap().kind, "heartbeat_lost");
}

#[tokio::test]
async fn a_worker_that_comes_back_keeps_what_it_holds() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let name = worker.id.clone();
    drop(worker);
    let mut back = house.stranger_worker(&name).await;
    assert_eq!(back.id, name);
    back.heartbeat(vec![assigned.attempt.clone().unwrap()], 1, 0).await;
    assert_eq!(user.state(&id).await, JobState::Running);
    assert!(back.succeed(&assigned, "{}").await);
}

#[tokio::test]
async fn a_worker_is_told_to_end_what_it_holds_and_no_longer_owns() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    house.clock.advance(Duration::from_secs(31));
    user.wait_for(&id, "scheduled").await;
    let mut back = house.stranger_worker(&worker.id).await;
    back.heartbeat(vec![assigned.attempt.clone().unwrap()], 1, 0).await;
    assert_eq!(back.stop_of(&id).await, "fenced");
}

#[tokio::test]
async fn an_attempt_that_outlives_its_timeout_is_fenced_even_if_its_worker_lives() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { attempt_timeout_s: Some(5.0), max_attempts: Some(1), ..spec("work", "{}") }).await;
    let assigned = worker.next_assigned().await;
    for beat in 1..=2 {
        house.clock.advance(Duration::from_secs(20));
        worker.heartbeat(vec![assigned.attempt.clone().unwrap()], beat, 1).await;
    }
    user.wait_for(&id, "failed").await;
    assert_eq!(user.job(&id).await.error.unwrap().kind, "timeout");
    assert!(!worker.succeed(&assigned, "{}").await);
}

#[tokio::test]
async fn after_a_crash_of_everything_the_same_jobs_run_again_and_none_has_spent_an_attempt() {
    let mut house = House::new().await;
    let id = {
        let user = house.user(&["operator"]);
        let mut worker = house.worker(1).await;
        let id = user.submit(JobSpec { max_attempts: Some(1), ..spec("work", "{}") }).await;
        worker.next_assigned().await;
        id
    };
    // However long it was down.
    house.clock.advance(Duration::from_secs(3_600));
    // The start is held up where it makes partitions: nothing may sweep before what was held is given back.
    let pool = house.database.pool().clone();
    let mut hold = pool.begin().await.unwrap();
    let partitions = "select pg_advisory_xact_lock(hashtextextended('guildhall.jobs.partitions', 0))";
    sqlx::query(partitions).execute(&mut *hold).await.unwrap();
    let let_go = async {
        kit::testing::something_waits(&pool).await;
        eventually(&pool, "select count(*) = 1 from jobs.job where state = 'running'").await;
        hold.rollback().await.unwrap();
    };
    tokio::join!(house.crash_and_restart(), let_go);
    let mut worker = house.worker(1).await;
    let assigned = worker.next_assigned().await;
    assert_eq!(assigned.attempt.as_ref().unwrap().job_id, id);
    assert!(worker.succeed(&assigned, "{}").await);
    let admin = house.user(&["admin"]);
    assert_eq!(admin.attempts(&id).await, ["interrupted", "succeeded"]);
}

#[tokio::test]
async fn a_late_outcome_does_not_push_the_right_one_aside() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let first = worker.next_assigned().await;
    worker.tell(vec![(&first, crate::house::interrupted())]).await;
    worker.credit(1).await;
    let second = worker.next_assigned().await;
    // Both in one report, and so in one group.
    let told = vec![(&first, succeeded("1")), (&second, succeeded("2"))];
    assert_eq!(worker.tell(told).await, [false, true]);
    assert_eq!(user.job(&id).await.result_json, "2");
}

#[tokio::test]
async fn a_worker_whose_lease_is_over_is_given_nothing_though_its_stream_stands() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let hung = house.worker(1).await;
    house.clock.advance(Duration::from_secs(31));
    let id = user.submit(spec("work", "{}")).await;
    let mut other = house.worker(1).await;
    assert_eq!(other.next_assigned().await.attempt.unwrap().job_id, id);
    drop(hung);
}

#[tokio::test]
async fn an_attempt_whose_worker_is_not_even_known_any_more_is_taken_up_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    worker.next_assigned().await;
    sqlx::query("delete from jobs.worker").execute(house.database.pool()).await.unwrap();
    user.wait_for(&id, "scheduled").await;
}

#[tokio::test]
async fn a_heartbeat_that_comes_just_before_the_sweep_keeps_the_attempt() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let mut hold = house.database.pool().begin().await.unwrap();
    sqlx::query("select from jobs.job for update").execute(&mut *hold).await.unwrap();
    house.clock.advance(Duration::from_secs(31));
    // The sweep has found the lease over and is on its way to the job.
    kit::testing::something_waits(house.database.pool()).await;
    worker.heartbeat(vec![assigned.attempt.clone().unwrap()], 1, 1).await;
    hold.rollback().await.unwrap();
    assert!(worker.succeed(&assigned, "{}").await);
}

#[tokio::test]
async fn an_assignment_that_was_lost_with_its_stream_spends_no_attempt() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(JobSpec { max_attempts: Some(1), ..spec("work", "{}") }).await;
    worker.next_assigned().await;
    let name = worker.id.clone();
    drop(worker);
    let mut back = house.stranger_worker(&name).await;
    back.heartbeat(Vec::new(), 1, 0).await;
    back.credit(1).await;
    let assigned = back.next_assigned().await;
    assert!(back.succeed(&assigned, "{}").await);
    assert_eq!(user.attempts(&id).await, ["interrupted", "succeeded"]);
}

#[tokio::test]
async fn an_outcome_that_could_not_be_written_breaks_the_stream_and_counts_on_the_next() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let fails = "create function jobs.fails() returns trigger language plpgsql as $$
                 begin raise exception 'away' using errcode = '57P01'; end $$;
                 create trigger fails before insert on jobs.job_history for each row execute function jobs.fails()";
    sqlx::raw_sql(fails).execute(house.database.pool()).await.unwrap();
    worker.say(&assigned, succeeded("1")).await;
    assert_eq!(worker.broken().await.kind(), kit::Kind::Unavailable);
    sqlx::raw_sql("drop trigger fails on jobs.job_history").execute(house.database.pool()).await.unwrap();

    let mut back = house.stranger_worker(&worker.id).await;
    back.heartbeat(vec![assigned.attempt.clone().unwrap()], 1, 0).await;
    assert!(back.succeed(&assigned, "1").await);
    assert_eq!(user.job(&id).await.result_json, "1");
}

#[tokio::test]
async fn a_draining_worker_is_given_nothing_whatever_it_says_is_free() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut leaving = house.stranger_worker("").await;
    leaving.drain().await;
    leaving.credit(1).await;
    let id = user.submit(spec("work", "{}")).await;
    // Its credit is heard before this one's heartbeat is answered.
    leaving.heartbeat(Vec::new(), 2, 0).await;
    let mut other = house.worker(1).await;
    assert_eq!(other.next_assigned().await.attempt.unwrap().job_id, id);
}

#[tokio::test]
async fn a_day_past_its_retention_goes_unless_something_live_needs_it() {
    let mut house = House::new().await;
    let day = Duration::from_secs(24 * 60 * 60);
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let kept = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.succeed(&assigned, "{}").await;
    // Of the same day, and not over for long.
    let far = kit::clock::to_timestamp(house.clock.now() + 100 * day);
    user.submit(JobSpec { run_at: Some(far), ..spec("work", "{}") }).await;
    house.clock.advance(day);
    let mut worker = house.worker(1).await;
    user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.succeed(&assigned, "{}").await;

    house.clock.advance(40 * day);
    house.crash_and_restart().await;
    eventually(house.database.pool(), "select count(*) = 1 from jobs.job_history").await;
    let admin = house.user(&["admin"]);
    assert_eq!(admin.state(&kept).await, JobState::Succeeded);
    assert_eq!(admin.events(&kept, 0).await.len(), 4);
}
