//! Queues: who sees them and how deep they are, and that a paused one gives nothing out.

use std::time::Duration;

use kit::{Fail, grpc::Call};
use proto::jobs::{ListQueuesRequest, PauseQueueRequest, Queue, ResumeQueueRequest, queues_client::QueuesClient};
use serde_json::json;

use crate::support::{House, User, answer, code, spec, task};

fn client(house: &House) -> QueuesClient<kit::grpc::Peer> {
    QueuesClient::new(house.peer.clone())
}

async fn list(house: &House, user: &User) -> Vec<Queue> {
    answer(client(house).list(user.call.request(ListQueuesRequest {})).await).expect("a list").items
}

async fn pause(house: &House, user: &User, name: &str) -> Result<Queue, Fail> {
    answer(client(house).pause(user.call.request(PauseQueueRequest { name: name.to_owned() })).await)
}

async fn resume(house: &House, user: &User, name: &str) -> Result<Queue, Fail> {
    answer(client(house).resume(user.call.request(ResumeQueueRequest { name: name.to_owned() })).await)
}

#[tokio::test]
async fn a_caller_sees_the_queues_it_may_use_and_its_own_jobs_in_them() {
    let house = House::open().await;
    let (one, two, operator) = (house.user("customer"), house.user("customer"), house.user("operator"));
    let _hand = house.hand(vec![task("demo_echo", "pictures", &json!({}))]).await;
    for user in [&one, &one, &two] {
        house.submit(user, spec("demo_echo")).await.expect("taken");
    }
    let names = |queues: &[Queue]| queues.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>();
    let depth = |queues: &[Queue], state: &str| queues.iter().map(|queue| queue.depth[state]).collect::<Vec<_>>();
    let (own, any) = (list(&house, &one).await, list(&house, &operator).await);
    assert_eq!(names(&own), ["default", "pictures"]);
    assert_eq!(names(&any), ["default", "maintenance", "pictures", "priority"]);
    assert_eq!(depth(&own, "queued"), [0, 2]);
    assert_eq!(depth(&any, "queued"), [0, 0, 3, 0]);
    assert_eq!(depth(&own, "running"), [0, 0]);
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_out_until_it_is_resumed() {
    let house = House::open().await;
    let (user, operator) = (house.user("customer"), house.user("operator"));
    let mut hand =
        house.hand(vec![task("demo_echo", "pictures", &json!({})), task("demo_other", "default", &json!({}))]).await;
    let paused = pause(&house, &operator, "pictures").await.expect("paused");
    assert!(paused.paused && paused.paused_at.is_some());
    let waiting = house.submit(&user, spec("demo_echo")).await.expect("taken");
    let other = house.submit(&user, spec("demo_other")).await.expect("taken");
    // The newer job of the other queue comes first: the older one is passed over.
    assert_eq!(hand.take().await.attempt.expect("an attempt").job_id, other.id);

    // Its free slot is known before there is work for it: resuming is what wakes the engine.
    let (taken, resumed) = tokio::join!(hand.take(), resume(&house, &operator, "pictures"));
    assert_eq!(taken.attempt.expect("an attempt").job_id, waiting.id);
    let resumed = resumed.expect("resumed");
    assert!(!resumed.paused && resumed.paused_at.is_none());
}

#[tokio::test]
async fn pausing_twice_keeps_the_first_time_and_resuming_twice_is_as_once() {
    let house = House::open().await;
    let operator = house.user("operator");
    let first = pause(&house, &operator, "default").await.expect("paused");
    house.clock.advance(Duration::from_secs(60));
    assert_eq!(pause(&house, &operator, "default").await.expect("paused"), first);
    resume(&house, &operator, "default").await.expect("resumed");
    assert!(!resume(&house, &operator, "default").await.expect("resumed").paused);
    assert_ne!(pause(&house, &operator, "default").await.expect("paused again").paused_at, first.paused_at);
}

#[tokio::test]
async fn only_operators_pause_and_only_what_is_there() {
    let house = House::open().await;
    let (user, operator) = (house.user("customer"), house.user("operator"));
    assert_eq!(pause(&house, &user, "default").await.expect_err("not theirs").code(), "forbidden");
    assert_eq!(resume(&house, &user, "default").await.expect_err("not theirs").code(), "forbidden");
    for name in ["nothing", "", "a\0b", "Robert'); drop table jobs.queue; --"] {
        assert_eq!(pause(&house, &operator, name).await.expect_err(name).code(), "jobs.queue_not_found");
        assert_eq!(resume(&house, &operator, name).await.expect_err(name).code(), "jobs.queue_not_found");
    }
    let nobody = Call::anonymous("request-1");
    let mut client = client(&house);
    let codes = [
        code(client.list(nobody.request(ListQueuesRequest {})).await),
        code(client.pause(nobody.request(PauseQueueRequest::default())).await),
        code(client.resume(nobody.request(ResumeQueueRequest::default())).await),
    ];
    assert_eq!(codes, ["auth.required"; 3]);
}
