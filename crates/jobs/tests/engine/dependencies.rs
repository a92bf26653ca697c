//! Jobs that run after others: they start when those have ended as they have to, and else never, whatever crashes.

use std::time::Duration;

use chrono::TimeDelta;
use kit::{Fail, Kind, clock::to_timestamp};
use proto::jobs::{
    AddBatchJobsRequest, BatchState, CancelBatchRequest, CancelJobRequest, JobSpec, JobState, RetryBatchRequest,
    RetryJobRequest, Unique,
};
use sqlx::{Postgres, Transaction};

use crate::{
    batches::{counts, ids},
    house::{House, User, Worker, eventually, spec, succeeded},
};

/// A job that runs after these.
fn after<S: AsRef<str>>(jobs: &[S]) -> JobSpec {
    JobSpec { after: jobs.iter().map(|job| job.as_ref().to_owned()).collect(), ..spec("work", "{}") }
}

fn after_end<S: AsRef<str>>(jobs: &[S]) -> JobSpec {
    JobSpec { after_needs: "ended".to_owned(), ..after(jobs) }
}

async fn all(user: &User, specs: Vec<JobSpec>) -> Vec<String> {
    user.submit_all(specs, None).await.unwrap().items.into_iter().map(|item| item.id).collect()
}

async fn retry(user: &User, id: &str) -> Result<JobState, Fail> {
    Ok(user.jobs().retry(user.call.request(RetryJobRequest { id: id.to_owned() })).await?.into_inner().state())
}

/// Ends a job that is running or about to, with an error or without.
async fn run(worker: &mut Worker, id: &str, is_good: bool) {
    let assigned = worker.next_assigned().await;
    assert_eq!(ids(std::slice::from_ref(&assigned)), [id]);
    let accepted =
        if is_good { worker.succeed(&assigned, "{}").await } else { worker.fail(&assigned, "provider", false).await };
    assert!(accepted);
}

async fn lock(house: &House, id: &str) -> Transaction<'static, Postgres> {
    let mut holding = house.database.pool().begin().await.unwrap();
    sqlx::query("select from jobs.job where id = $1::uuid for update").bind(id).fetch_one(&mut *holding).await.unwrap();
    holding
}

fn pointers(fail: &Fail) -> Vec<(&str, &str)> {
    fail.violations().iter().map(|fault| (fault.pointer.as_str(), fault.code.as_str())).collect()
}

#[tokio::test]
async fn a_job_starts_when_all_that_it_runs_after_have_succeeded_and_says_until_then_for_which_it_waits() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = all(&user, vec![spec("work", "{}"), spec("work", "{}")]).await;
    let running = worker.assigned(2).await;
    let both = user.submit(after(&first)).await;
    // What runs after the first alone shows that the end of the first has been seen to.
    let one = user.submit(after(&first[..1])).await;
    let job = user.job(&both).await;
    assert_eq!(
        (job.state(), job.after.clone(), job.after_needs.as_str()),
        (JobState::Waiting, first.clone(), "succeeded")
    );
    let reason = job.waiting_reason.unwrap();
    assert_eq!(reason.reason, "waiting_for_jobs");
    assert!(first.iter().all(|id| reason.detail.contains(id)), "{}", reason.detail);

    house.clock.advance(Duration::from_secs(5));
    worker.succeed(running.iter().find(|job| ids(std::slice::from_ref(job))[0] == first[0]).unwrap(), "1").await;
    run(&mut worker, &one, true).await;
    let job = user.job(&both).await;
    assert_eq!(job.state(), JobState::Waiting);
    let detail = job.waiting_reason.unwrap().detail;
    assert!(!detail.contains(&first[0]) && detail.contains(&first[1]), "{detail}");

    worker.succeed(running.iter().find(|job| ids(std::slice::from_ref(job))[0] == first[1]).unwrap(), "2").await;
    run(&mut worker, &both, true).await;
    let job = user.job(&both).await;
    assert_eq!(job.waited.get("waiting_for_jobs"), Some(&5.0));
    let states: Vec<_> = user.events(&both, 0).await.into_iter().filter(|(_, event, _)| event == "state").collect();
    let states: Vec<_> = states.iter().map(|(_, _, data)| data["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["waiting", "queued", "running", "succeeded"]);
}

#[tokio::test]
async fn where_one_does_not_succeed_the_chain_behind_it_is_cancelled_and_what_needs_its_end_alone_starts() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let mut chain = vec![spec("work", "{}")];
    chain.extend((0..50).map(|n| after(&[format!("#{n}")])));
    let chain = all(&user, chain).await;
    let cleanup = user.submit(after_end(&chain[..1])).await;
    let report = user.submit(after_end(&chain[50..])).await;
    run(&mut worker, &chain[0], false).await;
    let mut ended = ids(&worker.assigned(2).await);
    ended.sort_unstable();
    assert_eq!(ended, [cleanup, report]);
    for (n, id) in chain.iter().enumerate().skip(1) {
        let job = user.job(id).await;
        let error = job.error.clone().unwrap();
        assert_eq!((job.state(), error.kind.as_str(), job.attempt), (JobState::Cancelled, "dependency", 0), "{n}");
        assert!(error.message.contains(&chain[n - 1]), "{}", error.message);
    }
}

#[tokio::test]
async fn what_has_ended_before_counts_as_it_ended() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let mut first = Vec::new();
    for is_good in [true, false] {
        first.push(user.submit(spec("work", "{}")).await);
        run(&mut worker, first.last().unwrap(), is_good).await;
    }
    let met = user.submit(after(&first[..1])).await;
    run(&mut worker, &met, true).await;
    let unmet = user.submit(after(&first)).await;
    user.wait_for(&unmet, "cancelled").await;
    let ended = user.submit(after_end(&first)).await;
    run(&mut worker, &ended, true).await;
}

#[tokio::test]
async fn what_cannot_be_waited_for_is_refused_where_it_stands() {
    let house = House::new().await;
    drop(house.stranger_worker("").await);
    let operator = house.user(&["operator"]);
    let theirs = operator.submit(spec("work", "{}")).await;
    let nobodys = house.clock.new_id().to_string();
    let refused = operator
        .submit_all(
            vec![
                after(&["#0"]),
                after(&["#2", "#x", "#0", &nobodys, "job", &theirs]),
                JobSpec { after_needs: "luck".to_owned(), ..after(&[&theirs]) },
                JobSpec { after_needs: "ended".to_owned(), ..spec("work", "{}") },
                after(&vec![theirs.clone(); 101]),
            ],
            None,
        )
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "jobs.invalid");
    assert_eq!(
        pointers(&refused),
        [
            ("/jobs/0/after/0", "reference"),
            ("/jobs/1/after/0", "reference"),
            ("/jobs/1/after/1", "reference"),
            ("/jobs/1/after/3", "jobs.unknown_job"),
            ("/jobs/1/after/4", "jobs.unknown_job"),
            ("/jobs/2/after_needs", "enum"),
            ("/jobs/3/after_needs", "without_after"),
            ("/jobs/4/after", "max_items"),
        ]
    );
    // A stranger's job is not there.
    let refused = house.customer().submit_all(vec![after(&[&theirs])], None).await.unwrap_err();
    assert!(pointers(&refused).contains(&("/jobs/0/after/0", "jobs.unknown_job")), "{refused}");
}

#[tokio::test]
async fn a_reference_to_a_job_that_another_stands_for_waits_for_that_one() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let keyed = || JobSpec { unique_key: Some("k".to_owned()), unique: Some(Unique::default()), ..spec("work", "{}") };
    let holder = user.submit(keyed()).await;
    let jobs = all(&user, vec![keyed(), after(&["#0"])]).await;
    assert_eq!(jobs[0], holder);
    assert_eq!(user.job(&jobs[1]).await.after, std::slice::from_ref(&holder));
    run(&mut worker, &holder, true).await;
    run(&mut worker, &jobs[1], true).await;
}

#[tokio::test]
async fn a_later_run_at_holds_after_the_wait_and_the_clocks_begin_with_its_end() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let run_at = house.clock.now() + TimeDelta::hours(1);
    let late = user.submit(JobSpec { run_at: Some(to_timestamp(run_at)), ..after(&[&first]) }).await;
    let clocked = JobSpec { deadline_s: Some(60.0), queue_timeout_s: Some(30.0), ..after(&[&first]) };
    let clocked = user.submit(clocked).await;
    house.clock.advance(Duration::from_secs(10));
    let job = user.job(&clocked).await;
    assert_eq!((job.state(), job.deadline_at, job.queue_until), (JobState::Waiting, None, None));
    run(&mut worker, &first, true).await;
    user.wait_for(&late, "scheduled").await;
    assert_eq!(user.job(&late).await.run_at, Some(to_timestamp(run_at)));
    let deadline = house.clock.now() + TimeDelta::seconds(60);
    assert_eq!(user.job(&clocked).await.deadline_at, Some(to_timestamp(deadline)));
    run(&mut worker, &clocked, true).await;
    // Its worker's lease does not last so long.
    house.clock.advance(Duration::from_secs(3_600));
    let mut worker = house.worker(1).await;
    run(&mut worker, &late, true).await;
}

#[tokio::test]
async fn what_waits_is_cancelled_at_once_alone_and_with_its_batch() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let second = user.submit(after(&[&first])).await;
    let third = user.submit(after_end(&[&second])).await;
    let asked = CancelJobRequest { id: second.clone(), reason: "Not needed.".to_owned() };
    let cancelled = user.jobs().cancel(user.call.request(asked)).await.unwrap().into_inner();
    assert_eq!((cancelled.state(), cancelled.error.unwrap().message.as_str()), (JobState::Cancelled, "Not needed."));
    let mut both = worker.assigned(2).await;
    both.sort_by_key(|assigned| ids(std::slice::from_ref(assigned)));
    assert_eq!(ids(&both), [first, third]);
    worker.tell(both.iter().map(|assigned| (assigned, succeeded("{}"))).collect()).await;
    assert_eq!(user.state(&second).await, JobState::Cancelled);

    let batch = user.batch(vec![spec("work", "{}"), after(&["#0"]), after(&["#1"])], Some("finish"), false).await;
    let running = worker.next_assigned().await;
    let asked = CancelBatchRequest { id: batch.id.clone(), reason: String::new() };
    let open = user.batches().cancel(user.call.request(asked)).await.unwrap().into_inner();
    assert_eq!(counts(&open), (3, 0, 0, 2));
    worker.succeed(&running, "{}").await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
}

#[tokio::test]
async fn a_batch_is_a_chain_whose_counts_and_finalize_are_right_and_takes_more_that_name_what_is_in_it() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = user.batch(vec![spec("work", "{}"), after(&["#0"])], Some("finish"), true).await;
    let first = worker.next_assigned().await;
    let add = AddBatchJobsRequest {
        batch_id: batch.id.clone(),
        jobs: vec![after(&ids(std::slice::from_ref(&first))), after_end(&["#0"])],
    };
    user.batches().add_jobs(user.call.request(add)).await.unwrap();
    let close = proto::jobs::CloseBatchRequest { id: batch.id.clone() };
    user.batches().close(user.call.request(close)).await.unwrap();
    worker.succeed(&first, "{}").await;
    let next = worker.assigned(2).await;
    worker.succeed(&next[0], "{}").await;
    worker.fail(&next[1], "provider", false).await;
    // By its place in the batch, which is not that of the order in which they came.
    let last = worker.next_assigned().await;
    assert_eq!(last.ordinal, 3);
    worker.succeed(&last, "{}").await;
    let finalize = worker.next_assigned().await;
    assert!(finalize.finalize);
    worker.succeed(&finalize, "{}").await;
    let batch = user.get_batch(&batch.id).await;
    assert_eq!((batch.state(), counts(&batch)), (BatchState::Finished, (4, 3, 1, 0)));
}

#[tokio::test]
async fn a_retry_waits_again_for_what_was_not_met_and_is_refused_while_that_is_over() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let second = user.submit(after(&[&first])).await;
    let third = user.submit(after(&[&second])).await;
    run(&mut worker, &first, false).await;
    user.wait_for(&third, "cancelled").await;
    let refused = retry(&user, &second).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Conflict, "jobs.dependency_unmet"));
    assert_eq!(user.state(&second).await, JobState::Cancelled);
    assert_ne!(retry(&user, &first).await.unwrap(), JobState::Waiting);
    assert_eq!(retry(&user, &second).await.unwrap(), JobState::Waiting);
    assert_eq!(retry(&user, &third).await.unwrap(), JobState::Waiting);
    run(&mut worker, &first, true).await;
    run(&mut worker, &second, false).await;
    user.wait_for(&third, "cancelled").await;
    // What it ran after has been met, and stays so.
    assert_ne!(retry(&user, &second).await.unwrap(), JobState::Waiting);
    run(&mut worker, &second, true).await;
    assert_eq!(retry(&user, &third).await.unwrap(), JobState::Waiting);
    run(&mut worker, &third, true).await;
}

#[tokio::test]
async fn a_batch_that_is_retried_runs_its_chain_in_order_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = user.batch(vec![spec("work", "{}"), after(&["#0"]), after(&["#1"])], None, false).await;
    let first = worker.next_assigned().await;
    worker.fail(&first, "provider", false).await;
    user.wait_for_batch(&batch.id, |counts| counts["cancelled"] == 2).await;
    let states = vec![JobState::Failed.into(), JobState::Cancelled.into()];
    user.batches().retry(user.call.request(RetryBatchRequest { id: batch.id.clone(), states })).await.unwrap();
    for ordinal in 0..3 {
        let assigned = worker.next_assigned().await;
        assert_eq!(assigned.ordinal, ordinal);
        worker.succeed(&assigned, "{}").await;
    }
    let batch = user.get_batch(&batch.id).await;
    assert_eq!((batch.state(), counts(&batch)), (BatchState::Finished, (3, 3, 0, 0)));
}

#[tokio::test]
async fn a_crash_before_what_is_named_is_watched_and_one_before_its_end_is_seen_to_lose_nothing() {
    let mut house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;

    let holding = lock(&house, &first).await;
    let second = user.submit(after(&[&first])).await;
    kit::testing::something_waits(house.database.pool()).await;
    let let_go = async move { drop(holding) };
    tokio::join!(house.crash_and_restart(), let_go);
    let user = house.again(&user);
    eventually(house.database.pool(), "select state = 'watched' from jobs.dependency").await;

    // The attempt was given back to the queue.
    drop((worker, assigned));
    let mut worker = house.worker(100).await;
    let assigned = worker.next_assigned().await;
    let holding = lock(&house, &second).await;
    assert!(worker.succeed(&assigned, "{}").await);
    kit::testing::something_waits(house.database.pool()).await;
    let let_go = async move { drop(holding) };
    tokio::join!(house.crash_and_restart(), let_go);
    let mut worker = house.worker(100).await;
    run(&mut worker, &second, true).await;
    assert_eq!(house.again(&user).state(&second).await, JobState::Succeeded);
}

#[tokio::test]
async fn who_takes_over_a_key_within_a_call_is_waited_for_by_none_of_the_call() {
    let house = House::new().await;
    drop(house.stranger_worker("").await);
    let user = house.user(&["operator"]);
    let keyed = |what: &str, job: JobSpec| JobSpec {
        unique_key: Some("k".to_owned()),
        unique: Some(Unique { on_conflict: what.to_owned(), ..Unique::default() }),
        ..job
    };
    user.submit(keyed("return", spec("work", "{}"))).await;
    for jobs in [
        vec![keyed("return", spec("work", "{}")), keyed("replace", after(&["#0"]))],
        vec![keyed("return", spec("work", "{}")), after(&["#0"]), keyed("replace", after(&["#1"]))],
    ] {
        let refused = user.submit_all(jobs, None).await.unwrap_err();
        assert_eq!(pointers(&refused), [("/jobs/1/after", "reference")]);
    }
}

#[tokio::test]
async fn a_retry_waits_for_what_has_to_end_and_is_retried_with_it() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let batch = user.batch(vec![spec("work", "{}"), after_end(&["#0"])], None, false).await;
    for _ in 0..2 {
        let assigned = worker.next_assigned().await;
        worker.fail(&assigned, "provider", false).await;
    }
    let asked = RetryBatchRequest { id: batch.id.clone(), states: vec![JobState::Failed.into()] };
    user.batches().retry(user.call.request(asked)).await.unwrap();
    for ordinal in 0..2 {
        let assigned = worker.next_assigned().await;
        assert_eq!(assigned.ordinal, ordinal);
        worker.succeed(&assigned, "{}").await;
    }
}

#[tokio::test]
async fn what_is_retried_before_its_end_was_told_is_waited_for_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let second = user.submit(after(&[&first])).await;
    let pool = house.database.pool();
    eventually(pool, "select state = 'watched' from jobs.dependency").await;
    // The leader comes as far as to the row that is to be told.
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("select from jobs.dependency for update").execute(&mut *holding).await.unwrap();
    worker.fail(&assigned, "provider", false).await;
    kit::testing::something_waits(pool).await;
    assert_ne!(retry(&user, &first).await.unwrap(), JobState::Waiting);
    drop(holding);
    run(&mut worker, &first, true).await;
    run(&mut worker, &second, true).await;
}

#[tokio::test]
async fn what_is_not_known_any_more_has_ended_and_has_not_succeeded() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let running = worker.next_assigned().await;
    // While the leader waits for the job that is named this goes, as it does when its day has come to its end.
    let mut holding = lock(&house, &first).await;
    let both = [user.submit(after(&[&first])).await, user.submit(after_end(&[&first])).await];
    kit::testing::something_waits(house.database.pool()).await;
    sqlx::query("delete from jobs.job where id = $1::uuid").bind(&first).execute(&mut *holding).await.unwrap();
    holding.commit().await.unwrap();
    drop(running);
    user.wait_for(&both[0], "cancelled").await;
    assert!(user.job(&both[0]).await.error.unwrap().message.contains("not known any more"));
    run(&mut worker, &both[1], true).await;
}

#[tokio::test]
async fn one_job_lets_many_more_go_than_one_transaction_takes() {
    const MANY: usize = 900;
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1_000).await;
    let first = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    all(&user, (0..MANY).map(|_| after(&[&first])).collect()).await;
    eventually(house.database.pool(), "select bool_and(state = 'watched') from jobs.dependency").await;
    worker.succeed(&assigned, "{}").await;
    assert_eq!(worker.assigned(MANY).await.len(), MANY);
    eventually(house.database.pool(), "select not exists (select from jobs.dependency_end)").await;
}

#[tokio::test]
async fn an_end_that_an_older_version_did_not_tell_is_found() {
    let mut house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    let second = user.submit(after(&[&first])).await;
    eventually(house.database.pool(), "select state = 'watched' from jobs.dependency").await;
    // To a replica that does not know the column it is as if it were so.
    sqlx::query("update jobs.job set has_dependents = false").execute(house.database.pool()).await.unwrap();
    run(&mut worker, &first, true).await;
    eventually(house.database.pool(), "select state = 'watched' from jobs.dependency").await;
    assert_eq!(user.state(&second).await, JobState::Waiting);
    house.crash_and_restart().await;
    let mut worker = house.worker(100).await;
    run(&mut worker, &second, true).await;
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_not_waited_for_by_a_retry_and_is_forgotten_with_what_ran_after_it() {
    let mut house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    let first = user.submit(spec("work", "{}")).await;
    run(&mut worker, &first, false).await;
    let second = user.submit(after(&[&first])).await;
    user.wait_for(&second, "cancelled").await;
    let refused = retry(&user, &second).await.unwrap_err();
    assert!(refused.to_string().contains("ended failed"), "{refused}");
    sqlx::query("delete from jobs.job_history where id = $1::uuid")
        .bind(&first)
        .execute(house.database.pool())
        .await
        .unwrap();
    let refused = retry(&user, &second).await.unwrap_err();
    assert!(refused.to_string().contains("not kept any more"), "{refused}");
    house.clock.advance(Duration::from_secs(100 * 24 * 3_600));
    house.crash_and_restart().await;
    eventually(house.database.pool(), "select not exists (select from jobs.dependency)").await;
}

#[tokio::test]
async fn jobs_that_end_while_others_are_handed_in_after_them_are_missed_by_none() {
    const FIRSTS: usize = 300;
    let house = House::new().await;
    let beside = house.beside().await;
    let (here, there) = house.user_at_both(&beside);
    let mut worker = house.worker(1_000).await;
    let firsts = all(&here, (0..FIRSTS).map(|_| spec("work", "{}")).collect()).await;
    let assigned = worker.assigned(FIRSTS).await;
    // Each of the second runs after one that ends early and one that ends late.
    let pairs: Vec<[&String; 2]> = firsts.iter().zip(firsts.iter().rev()).map(|(one, other)| [one, other]).collect();
    let pairs = &pairs[..FIRSTS / 2];
    let end = async {
        for page in assigned.chunks(3) {
            worker.tell(page.iter().map(|assigned| (assigned, succeeded("{}"))).collect()).await;
        }
    };
    let hand_in = async {
        for (n, page) in pairs.chunks(5).enumerate() {
            let user = if n % 2 == 0 { &here } else { &there };
            all(user, page.iter().map(|pair| after(pair)).collect()).await;
        }
    };
    tokio::join!(end, hand_in);
    let seconds = worker.assigned(pairs.len()).await;
    worker.tell(seconds.iter().map(|assigned| (assigned, succeeded("{}"))).collect()).await;
    eventually(house.database.pool(), "select not exists (select from jobs.job)").await;
    eventually(house.database.pool(), "select bool_and(state = 'settled') from jobs.dependency").await;
}
