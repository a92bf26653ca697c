//! Limits: how much runs at once, how often it starts, and between whom it is shared.

use std::collections::{BTreeMap, HashMap};

use kit::Fail;
use proto::jobs::{
    JobSpec, PauseQueueRequest, Queue, QueueLimits, Rate, ResumeQueueRequest, Task, UpdateQueueRequest,
    UpdateTaskRequest, queues_client::QueuesClient, tasks_client::TasksClient,
};
use proto::worker::Assignment;

use crate::house::{House, User, Worker, eventually, spec};

/// Sets what is given, and leaves the rest.
async fn limit(house: &House, queue: &str, fields: &[&str], limits: QueueLimits) -> Result<Queue, Fail> {
    let operator = house.user(&["operator"]);
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    let asked = UpdateQueueRequest { name: queue.to_owned(), limits: Some(limits), fields };
    QueuesClient::new(operator.peer.clone())
        .update(operator.call.request(asked))
        .await
        .map(tonic::Response::into_inner)
        .map_err(Fail::from)
}

async fn limit_task(house: &House, task: &str, concurrency: Option<u32>) -> Result<Task, Fail> {
    let operator = house.user(&["operator"]);
    let asked = UpdateTaskRequest { name: task.to_owned(), concurrency };
    TasksClient::new(operator.peer.clone())
        .update(operator.call.request(asked))
        .await
        .map(tonic::Response::into_inner)
        .map_err(Fail::from)
}

fn keyed(key: &str) -> JobSpec {
    JobSpec { concurrency_key: Some(key.to_owned()), ..spec("work", "{}") }
}

/// Everything that the worker is given before a job of another queue that nothing holds back and that comes last: what is
/// not given by then is held back.
async fn given(house: &House, worker: &mut Worker) -> Vec<Assignment> {
    let operator = house.user(&["operator"]);
    let last = JobSpec { queue: Some("maintenance".to_owned()), priority: Some(0), ..spec("work", "{}") };
    let last = operator.submit(last).await;
    let mut given = Vec::new();
    loop {
        given.extend(worker.assigned(1).await);
        if let Some(last) = given.pop_if(|assignment| id(assignment) == last) {
            worker.succeed(&last, "{}").await;
            worker.credit(1).await;
            return given;
        }
    }
}

fn id(assignment: &Assignment) -> String {
    assignment.attempt.as_ref().unwrap().job_id.clone()
}

fn ids(assignments: &[Assignment]) -> Vec<String> {
    assignments.iter().map(id).collect()
}

async fn many(user: &User, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(user.submit(spec("work", "{}")).await);
    }
    ids
}

async fn reason(user: &User, id: &str) -> String {
    user.job(id).await.waiting_reason.unwrap().reason
}

#[tokio::test]
async fn a_queue_runs_as_many_as_it_allows() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let queue =
        limit(&house, "default", &["concurrency"], QueueLimits { concurrency: Some(2), ..QueueLimits::default() });
    assert_eq!(queue.await.unwrap().limits.unwrap().concurrency, Some(2));
    let mut worker = house.worker(10).await;
    let jobs = many(&user, 5).await;
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), jobs[..2]);
    assert_eq!(reason(&user, &jobs[2]).await, "queue_limit");
    worker.succeed(&running[0], "{}").await;
    assert_eq!(ids(&worker.assigned(1).await), jobs[2..3]);
    limit(&house, "default", &["concurrency"], QueueLimits::default()).await.unwrap();
    assert_eq!(ids(&given(&house, &mut worker).await), jobs[3..]);
}

#[tokio::test]
async fn a_named_key_runs_one_at_a_time_in_whichever_queue() {
    let house = House::new().await;
    let operator = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    let one = operator.submit(keyed("disk")).await;
    let two = operator.submit(JobSpec { queue: Some("maintenance".to_owned()), ..keyed("disk") }).await;
    let other = operator.submit(keyed("printer")).await;
    let strangers = house.user(&["operator"]).submit(keyed("disk")).await;
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), [one, other, strangers]);
    assert_eq!(reason(&operator, &two).await, "key_limit");
    assert_eq!(operator.job(&two).await.concurrency_key, "disk");
    worker.succeed(&running[0], "{}").await;
    assert_eq!(ids(&worker.assigned(1).await), [two]);
}

#[tokio::test]
async fn a_key_for_all_is_for_those_who_see_all() {
    let house = House::new().await;
    let for_all = JobSpec { concurrency_key_for_all: true, ..keyed("disk") };
    let mut worker = house.worker(10).await;
    let refused = house.customer().submit_all(vec![for_all.clone()], None).await.unwrap_err();
    let pointers: Vec<_> = refused.violations().iter().map(|fault| fault.pointer.as_str()).collect();
    assert!(pointers.contains(&"/jobs/0/concurrency_key_for_all"), "{pointers:?}");
    let one = house.user(&["operator"]).submit(for_all.clone()).await;
    let two = house.user(&["operator"]).submit(for_all).await;
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), [one]);
    worker.succeed(&running[0], "{}").await;
    assert_eq!(ids(&worker.assigned(1).await), [two]);
}

#[tokio::test]
async fn each_owner_runs_as_many_as_a_key_may() {
    let house = House::new().await;
    let mut worker = house.stranger_worker("").await;
    let (one, two) = (house.user(&["operator"]), house.user(&["operator"]));
    let waiting = many(&one, 3).await;
    worker.credit(10).await;
    // One that waits already, and two that run, are counted, too.
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), waiting);
    let limits = QueueLimits { key_concurrency: Some(2), ..QueueLimits::default() };
    limit(&house, "default", &["key_concurrency"], limits).await.unwrap();
    let more = many(&one, 2).await;
    let others = many(&two, 3).await;
    assert_eq!(ids(&given(&house, &mut worker).await), others[..2]);
    assert_eq!(reason(&one, &more[0]).await, "key_limit");
    worker.succeed(&running[0], "{}").await;
    assert!(given(&house, &mut worker).await.is_empty());
    worker.succeed(&running[1], "{}").await;
    assert_eq!(ids(&worker.assigned(1).await), more[..1]);
}

#[tokio::test]
async fn what_waits_already_is_given_its_lane() {
    let house = House::new().await;
    let mut worker = house.stranger_worker("").await;
    let user = house.user(&["operator"]);
    let jobs = many(&user, 3).await;
    let limits = QueueLimits { key_concurrency: Some(1), ..QueueLimits::default() };
    limit(&house, "default", &["key_concurrency"], limits).await.unwrap();
    worker.credit(10).await;
    assert_eq!(id(&worker.next_assigned().await), jobs[0]);
    assert!(given(&house, &mut worker).await.is_empty());
    eventually(house.database.pool(), "select bool_and(lane is not null) from jobs.job where queue = 'default'").await;
    limit(&house, "default", &["key_concurrency"], QueueLimits::default()).await.unwrap();
    assert_eq!(ids(&worker.assigned(2).await), jobs[1..]);
}

#[tokio::test]
async fn a_task_runs_as_many_as_it_may_in_all_queues() {
    let house = House::new().await;
    let operator = house.user(&["operator"]);
    let mut worker = house.worker(10).await;
    assert_eq!(limit_task(&house, "process", Some(1)).await.unwrap().concurrency, Some(1));
    let one = operator.submit(spec("process", "{}")).await;
    let two = operator.submit(JobSpec { queue: Some("maintenance".to_owned()), ..spec("process", "{}") }).await;
    let other = operator.submit(spec("work", "{}")).await;
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), [one, other]);
    assert_eq!(reason(&operator, &two).await, "task_limit");
    worker.succeed(&running[0], "{}").await;
    assert_eq!(ids(&worker.assigned(1).await), [two]);
    assert_eq!(limit_task(&house, "nobodys", Some(1)).await.unwrap_err().code(), "jobs.task_not_found");
    assert_eq!(limit_task(&house, "process", Some(0)).await.unwrap_err().code(), "jobs.invalid");
}

#[tokio::test]
async fn a_limit_holds_for_what_waits_in_the_lanes_of_another() {
    let house = House::new().await;
    let operator = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    let one = operator.submit(keyed("one")).await;
    let _two = operator.submit(keyed("two")).await;
    limit_task(&house, "work", Some(1)).await.unwrap();
    worker.credit(10).await;
    assert_eq!(ids(&worker.assigned(1).await), [one]);
    let last = JobSpec { queue: Some("maintenance".to_owned()), ..spec("finish", "{}") };
    let last = operator.submit(last).await;
    assert_eq!(ids(&worker.assigned(1).await), [last]);
}

#[tokio::test]
async fn a_rate_lets_a_burst_go_and_then_what_flows_in() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let rate = Some(Rate { starts: 6, seconds: 6.0, burst: Some(2) });
    limit(&house, "default", &["rate"], QueueLimits { rate, ..QueueLimits::default() }).await.unwrap();
    let mut worker = house.worker(20).await;
    let jobs = many(&user, 6).await;
    let running = given(&house, &mut worker).await;
    assert_eq!(ids(&running), jobs[..2]);
    assert_eq!(reason(&user, &jobs[2]).await, "rate_limit");
    house.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(ids(&worker.assigned(1).await), jobs[2..3]);
    assert!(given(&house, &mut worker).await.is_empty());
    house.clock.advance(std::time::Duration::from_millis(2_500));
    assert_eq!(ids(&worker.assigned(2).await), jobs[3..5]);
    // What ends gives no token back.
    worker.succeed(&running[0], "{}").await;
    assert!(given(&house, &mut worker).await.is_empty());
}

#[tokio::test]
async fn a_keys_rate_is_its_own() {
    let house = House::new().await;
    let (one, two) = (house.user(&["operator"]), house.user(&["operator"]));
    let key_rate = Some(Rate { starts: 1, seconds: 6.0, burst: None });
    limit(&house, "default", &["key_rate"], QueueLimits { key_rate, ..QueueLimits::default() }).await.unwrap();
    let mut worker = house.worker(20).await;
    let (ones, twos) = (many(&one, 2).await, many(&two, 2).await);
    assert_eq!(ids(&given(&house, &mut worker).await), [ones[0].clone(), twos[0].clone()]);
    assert_eq!(reason(&one, &ones[1]).await, "key_rate_limit");
    house.clock.advance(std::time::Duration::from_secs(6));
    assert_eq!(ids(&worker.assigned(2).await), [ones[1].clone(), twos[1].clone()]);
}

#[tokio::test]
async fn who_has_had_less_comes_first_by_weight() {
    let house = House::new().await;
    let mut worker = house.stranger_worker("").await;
    let (rich, poor) = (house.user(&["operator"]), house.user(&["operator"]));
    let mut owners: BTreeMap<String, char> = BTreeMap::new();
    owners.extend(many(&rich, 9).await.into_iter().map(|id| (id, 'r')));
    let poors = many(&poor, 6).await;
    let weights = HashMap::from([(poor.job(&poors[0]).await.owner_id, 2.0)]);
    owners.extend(poors.into_iter().map(|id| (id, 'p')));
    let limits = QueueLimits { share: "owner".to_owned(), weights, concurrency: Some(1), ..QueueLimits::default() };
    limit(&house, "default", &["share", "weights", "concurrency"], limits).await.unwrap();
    // One slot for both: without shares all of the first owner's would come first.
    worker.credit(2).await;
    let mut order = String::new();
    for _ in 0..9 {
        let assignment = worker.next_assigned().await;
        order.push(owners[&id(&assignment)]);
        worker.succeed(&assignment, "{}").await;
        worker.credit(1).await;
    }
    let count = |who: char| order.chars().filter(|one| *one == who).count();
    assert_eq!((count('r'), count('p')), (3, 6), "{order}");
}

#[tokio::test]
async fn two_replicas_keep_a_limit_of_one() {
    let house = House::new().await;
    let other = house.beside().await;
    let user = house.user(&["operator"]);
    limit(&house, "default", &["concurrency"], QueueLimits { concurrency: Some(1), ..QueueLimits::default() })
        .await
        .unwrap();
    let (mut here, mut there) = (house.worker(5).await, other.worker(5).await);
    let jobs = many(&user, 20).await;
    for _ in &jobs {
        let (assignment, worker) = tokio::select! {
            assignment = here.next_assigned() => (assignment, &mut here),
            assignment = there.next_assigned() => (assignment, &mut there),
        };
        let running = "select count(*) from jobs.job where worker_id is not null";
        let running: i64 = sqlx::query_scalar(running).fetch_one(house.database.pool()).await.unwrap();
        assert_eq!(running, 1);
        worker.succeed(&assignment, "{}").await;
        worker.credit(1).await;
    }
}

#[tokio::test]
async fn what_is_limited_is_not_passed_over_for_as_long_as_there_is_other_work() {
    let house = House::new().await;
    let other = house.beside().await;
    let (here, there) = house.user_at_both(&other);
    let mut worker = house.worker(2).await;
    // A claim that finds less than it may: this replica knows that nothing is limited. From the next one on all are full.
    for _ in 0..2 {
        let job = here.submit(spec("work", "{}")).await;
        assert_eq!(ids(&worker.assigned(1).await), [job]);
    }
    many(&here, 10).await;
    // Before all of them, and known to the other replica alone.
    let limited = JobSpec { priority: Some(100), queue: Some("maintenance".to_owned()), ..keyed("disk") };
    let limited = there.submit(limited).await;
    worker.credit(1).await;
    let mut order = Vec::new();
    while !order.contains(&limited) {
        let assignment = worker.next_assigned().await;
        order.push(id(&assignment));
        worker.succeed(&assignment, "{}").await;
        worker.credit(1).await;
    }
    assert!(order.len() <= 2, "it came as number {}", order.len());
}

#[tokio::test]
async fn a_limit_that_is_set_again_gives_no_new_burst() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let rate = Some(Rate { starts: 1, seconds: 60.0, burst: None });
    let again = || limit(&house, "default", &["rate"], QueueLimits { rate, ..QueueLimits::default() });
    again().await.unwrap();
    let mut worker = house.worker(5).await;
    let jobs = many(&user, 2).await;
    assert_eq!(ids(&given(&house, &mut worker).await), jobs[..1]);
    again().await.unwrap();
    let share = QueueLimits { share: "owner".to_owned(), ..QueueLimits::default() };
    limit(&house, "default", &["share"], share).await.unwrap();
    assert!(given(&house, &mut worker).await.is_empty());
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_at_their_place() {
    let house = House::new().await;
    let limits = QueueLimits {
        concurrency: Some(0),
        rate: Some(Rate { starts: 1, seconds: 0.0, burst: Some(0) }),
        share: "all".to_owned(),
        ..QueueLimits::default()
    };
    let refused = limit(&house, "default", &["concurrency", "rate", "share"], limits).await.unwrap_err();
    let pointers: Vec<_> = refused.violations().iter().map(|fault| fault.pointer.as_str()).collect();
    assert_eq!(pointers, ["/concurrency", "/rate/burst", "/rate/seconds", "/share"]);
    let unknown = limit(&house, "nowhere", &["concurrency"], QueueLimits::default()).await.unwrap_err();
    assert_eq!(unknown.code(), "jobs.queue_not_found");
}

#[tokio::test]
async fn a_job_tells_what_it_has_waited_for() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.stranger_worker("").await;
    let pool = house.database.pool();
    eventually(pool, "select not exists (select from jobs.holdup where queue = 'default' and to_at is null)").await;
    let id = user.submit(keyed("disk")).await;
    house.clock.advance(std::time::Duration::from_secs(2));
    let queues = || QueuesClient::new(user.peer.clone());
    let pause = PauseQueueRequest { name: "default".to_owned() };
    queues().pause(user.call.request(pause)).await.unwrap();
    eventually(pool, "select exists (select from jobs.holdup where reason = 'queue_paused')").await;
    house.clock.advance(std::time::Duration::from_secs(5));
    let waited = user.job(&id).await.waited;
    assert_eq!(waited, HashMap::from([("turn".to_owned(), 2.0), ("queue_paused".to_owned(), 5.0)]));
    let resume = ResumeQueueRequest { name: "default".to_owned() };
    queues().resume(user.call.request(resume)).await.unwrap();
    eventually(pool, "select bool_and(to_at is not null) from jobs.holdup where reason = 'queue_paused'").await;

    worker.credit(2).await;
    let first = worker.next_assigned().await;
    let second = user.submit(keyed("disk")).await;
    eventually(pool, "select exists (select from jobs.holdup where reason = 'key_limit')").await;
    house.clock.advance(std::time::Duration::from_secs(3));
    worker.succeed(&first, "{}").await;
    let next = worker.next_assigned().await;
    worker.succeed(&next, "{}").await;
    assert_eq!(user.job(&second).await.waited, HashMap::from([("key_limit".to_owned(), 3.0)]));
    assert_eq!(user.job(&id).await.waited, waited);
}
