//! Reading jobs: one, lists and their filters, attempts, logs, workers, and why a job waits.

use std::time::Duration;

use kit::{Fail, clock::to_timestamp, grpc::Call};
use proto::{
    jobs::{
        Backoff, GetJobRequest, Job, JobSpec, JobState, ListAttemptsRequest, ListJobsRequest, ListLogsRequest,
        ListWorkersRequest, PauseQueueRequest, queues_client::QueuesClient, workers_client::WorkersClient,
    },
    worker::{Failed, FanOutJob, FanOutRequest, Succeeded, Suspended, attempts_client::AttemptsClient, outcome::End},
};
use serde_json::json;

use crate::support::{House, User, answer, code, spec, task};

async fn get(house: &House, user: &User, id: &str) -> Result<Job, Fail> {
    answer(house.jobs().get(user.call.request(GetJobRequest { id: id.to_owned() })).await)
}

async fn list(house: &House, user: &User, asked: ListJobsRequest) -> Result<(Vec<String>, String), Fail> {
    let page = answer(house.jobs().list(user.call.request(asked)).await)?;
    Ok((page.items.into_iter().map(|job| job.id).collect(), page.next_cursor))
}

async fn all(house: &House, user: &User, asked: ListJobsRequest) -> Vec<String> {
    list(house, user, asked).await.expect("a list").0
}

fn succeeded() -> End {
    End::Succeeded(Succeeded { result_json: r#"{"n":1}"#.to_owned(), files: Vec::new() })
}

fn failed(retryable: bool) -> End {
    End::Failed(Failed {
        kind: "provider".to_owned(),
        message: "It was not there.".to_owned(),
        retryable,
        retry_after_s: None,
    })
}

#[tokio::test]
async fn a_job_is_read_alike_before_and_after_it_is_final() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({ "value": {} }))]).await;
    let asked = JobSpec {
        args_json: r#"{"value":[1,2]}"#.to_owned(),
        tags: vec!["red".to_owned(), "a,b\"c".to_owned()],
        priority: Some(60),
        ..spec("demo_echo")
    };
    let taken = house.submit(&user, asked).await.expect("taken");
    assert_eq!(taken.state(), JobState::Queued);
    assert_eq!((taken.args_json.as_str(), taken.priority, taken.attempt), (r#"{"value":[1,2]}"#, 60, 0));
    assert_eq!(taken.tags, ["red", "a,b\"c"]);
    assert_eq!((taken.owner_id.clone(), taken.max_attempts), (user.id.to_string(), 3));

    let running = hand.take().await;
    let seen = get(&house, &user, &taken.id).await.expect("there");
    assert_eq!((seen.state(), seen.attempt, seen.worker_id.clone()), (JobState::Running, 1, hand.id.clone()));
    assert!(seen.started_at.is_some() && seen.finished_at.is_none() && seen.waiting_reason.is_none());

    hand.end(&running, succeeded()).await;
    let seen = get(&house, &user, &taken.id).await.expect("there");
    assert_eq!((seen.state(), seen.result_json.as_str()), (JobState::Succeeded, r#"{"n":1}"#));
    assert_eq!((seen.tags, seen.args_json, seen.created_at), (taken.tags, taken.args_json, taken.created_at));
    assert!(seen.finished_at.is_some() && seen.error.is_none());
}

#[tokio::test]
async fn a_strangers_job_is_not_there_in_any_way() {
    let house = House::open().await;
    let (owner, stranger, operator) = (house.user("customer"), house.user("customer"), house.user("operator"));
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    let finished = house.submit(&owner, spec("demo_echo")).await.expect("taken").id;
    let running = hand.take().await;
    hand.end(&running, succeeded()).await;
    let live = house.submit(&owner, spec("demo_echo")).await.expect("taken").id;
    for id in [finished.as_str(), live.as_str(), "no id", ""] {
        let mut jobs = house.jobs();
        let codes = [
            code(jobs.get(stranger.call.request(GetJobRequest { id: id.to_owned() })).await),
            code(
                jobs.list_attempts(
                    stranger.call.request(ListAttemptsRequest { job_id: id.to_owned(), ..Default::default() }),
                )
                .await,
            ),
            code(
                jobs.list_logs(stranger.call.request(ListLogsRequest { job_id: id.to_owned(), ..Default::default() }))
                    .await,
            ),
        ];
        assert_eq!(codes, ["jobs.job_not_found"; 3], "{id:?}");
    }
    assert_eq!(all(&house, &stranger, ListJobsRequest::default()).await, [""; 0]);
    let of_owner = ListJobsRequest { owner_id: owner.id.to_string(), ..ListJobsRequest::default() };
    assert_eq!(all(&house, &stranger, of_owner.clone()).await, [""; 0]);
    assert_eq!(all(&house, &operator, of_owner).await.len(), 2);
    assert_eq!(all(&house, &operator, ListJobsRequest::default()).await.len(), 2);
    get(&house, &operator, &finished).await.expect("an operator reads any");

    let nobody = Call::anonymous("request-1");
    let codes = [
        code(house.jobs().get(nobody.request(GetJobRequest::default())).await),
        code(house.jobs().list(nobody.request(ListJobsRequest::default())).await),
        code(house.jobs().list_attempts(nobody.request(ListAttemptsRequest::default())).await),
        code(house.jobs().list_logs(nobody.request(ListLogsRequest::default())).await),
    ];
    assert_eq!(codes, ["auth.required"; 4]);
}

#[tokio::test]
async fn a_list_joins_live_and_final_jobs_and_its_pages() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(house.submit(&user, spec("demo_echo")).await.expect("taken").id);
        if n % 2 == 0 {
            let running = hand.take().await;
            hand.end(&running, succeeded()).await;
        }
    }
    ids.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = ListJobsRequest { limit: 3, cursor, ..ListJobsRequest::default() };
        let (page, next) = list(&house, &user, asked).await.expect("a page");
        seen.extend(page);
        cursor = next;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ids);
    let forged = ListJobsRequest { cursor: "forged".to_owned(), ..ListJobsRequest::default() };
    assert_eq!(list(&house, &user, forged).await.expect_err("no cursor").code(), "invalid_cursor");
}

#[tokio::test]
async fn jobs_that_are_large_together_come_in_pages_that_fit_a_message() {
    const JOBS: usize = 40;
    let house = House::open().await;
    let user = house.user("customer");
    let _hand = house.hand(vec![task("demo_echo", "default", &json!({ "value": {} }))]).await;
    // 20 MB in all, where a message may have 16 MiB.
    let large = JobSpec { args_json: json!({ "value": "x".repeat(500_000) }).to_string(), ..spec("demo_echo") };
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        ids.push(house.submit(&user, large.clone()).await.expect("taken").id);
    }
    ids.reverse();
    let mut client = house.jobs().max_decoding_message_size(kit::grpc::MESSAGE_BYTES_MAX);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = ListJobsRequest { limit: 200, cursor, ..ListJobsRequest::default() };
        let page = answer(client.list(user.call.request(asked)).await).expect("a page");
        assert!((1..=16).contains(&page.items.len()), "{} jobs on a page", page.items.len());
        seen.extend(page.items.into_iter().map(|job| job.id));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn every_filter_narrows_a_list() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut hand =
        house.hand(vec![task("demo_a", "default", &json!({})), task("demo_b", "pictures", &json!({}))]).await;
    let a = house.submit(&user, JobSpec { tags: vec!["red".to_owned()], ..spec("demo_a") }).await.expect("taken").id;
    let running = hand.take().await;
    hand.end(&running, succeeded()).await;
    let between = house.clock.now() + Duration::from_secs(30);
    house.clock.advance(Duration::from_secs(60));
    let tags = vec!["red".to_owned(), "blue".to_owned()];
    let b = house.submit(&user, JobSpec { tags, ..spec("demo_b") }).await.expect("taken").id;
    let none: Vec<String> = Vec::new();
    let default = ListJobsRequest::default;
    let cases = [
        (ListJobsRequest { task: "demo_a".to_owned(), ..default() }, vec![a.clone()]),
        (ListJobsRequest { queue: "pictures".to_owned(), ..default() }, vec![b.clone()]),
        (ListJobsRequest { tag: "red".to_owned(), ..default() }, vec![b.clone(), a.clone()]),
        (ListJobsRequest { tag: "blue".to_owned(), ..default() }, vec![b.clone()]),
        (ListJobsRequest { tag: "re".to_owned(), ..default() }, none.clone()),
        (ListJobsRequest { states: vec![JobState::Queued as i32], ..default() }, vec![b.clone()]),
        (
            ListJobsRequest { states: vec![JobState::Queued as i32, JobState::Succeeded as i32], ..default() },
            vec![b.clone(), a.clone()],
        ),
        (ListJobsRequest { created_after: Some(to_timestamp(between)), ..default() }, vec![b.clone()]),
        (ListJobsRequest { created_before: Some(to_timestamp(between)), ..default() }, vec![a.clone()]),
        (ListJobsRequest { owner_id: user.id.to_string(), task: "demo_b".to_owned(), ..default() }, vec![b.clone()]),
        (ListJobsRequest { batch_id: a.clone(), ..default() }, none.clone()),
        (ListJobsRequest { task: "' or true --".to_owned(), ..default() }, none),
    ];
    for (asked, expected) in cases {
        assert_eq!(all(&house, &user, asked.clone()).await, expected, "{asked:?}");
    }
    for asked in [
        ListJobsRequest { owner_id: "me".to_owned(), ..default() },
        ListJobsRequest { batch_id: "7".to_owned(), ..default() },
        ListJobsRequest { states: vec![99], ..default() },
        ListJobsRequest { states: vec![0], ..default() },
        ListJobsRequest { tag: "a\0b".to_owned(), ..default() },
        ListJobsRequest { created_after: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), ..default() },
    ] {
        assert_eq!(list(&house, &user, asked.clone()).await.expect_err("no filter").code(), "jobs.invalid_filter");
    }
}

#[tokio::test]
async fn attempts_and_logs_tell_what_happened() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut hand = house.hand(vec![task("demo_fail", "default", &json!({}))]).await;
    let at_once = Backoff { kind: "fixed".to_owned(), seconds: vec![0.0], ..Backoff::default() };
    let job = house.submit(&user, JobSpec { backoff: Some(at_once), ..spec("demo_fail") }).await.expect("taken").id;
    let first = hand.take().await;
    for n in 1..=3 {
        hand.log(&first, &format!("line {n}")).await;
    }
    hand.end(&first, failed(true)).await;
    let _second = hand.take().await;

    let attempts =
        |limit: u32, cursor: String| user.call.request(ListAttemptsRequest { job_id: job.clone(), limit, cursor });
    let page = answer(house.jobs().list_attempts(attempts(0, String::new())).await).expect("attempts");
    let told: Vec<(u32, &str)> = page.items.iter().map(|attempt| (attempt.number, attempt.outcome.as_str())).collect();
    assert_eq!(told, [(2, "running"), (1, "failed")]);
    assert_eq!(page.items[1].error.as_ref().map(|error| error.kind.as_str()), Some("provider"));
    assert!(page.items.iter().all(|attempt| attempt.worker_id == hand.id));
    let page = answer(house.jobs().list_attempts(attempts(1, String::new())).await).expect("a page");
    let rest = answer(house.jobs().list_attempts(attempts(1, page.next_cursor)).await).expect("a page");
    assert_eq!((rest.items[0].number, rest.next_cursor.as_str()), (1, ""));

    let logs = |limit: u32, cursor: String| user.call.request(ListLogsRequest { job_id: job.clone(), limit, cursor });
    let page = answer(house.jobs().list_logs(logs(2, String::new())).await).expect("logs");
    let rest = answer(house.jobs().list_logs(logs(2, page.next_cursor)).await).expect("logs");
    let lines: Vec<&str> = page.items.iter().chain(&rest.items).map(|line| line.message.as_str()).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 3"]);
    assert!(page.items[0].offset < page.items[1].offset && page.items[0].level == "info");
    assert_eq!(rest.next_cursor, "");
}

async fn waits(house: &House, user: &User, id: &str) -> (String, String) {
    let reason = get(house, user, id).await.expect("there").waiting_reason.expect("it waits");
    assert!(reason.since.is_some());
    (reason.reason, reason.detail)
}

#[tokio::test]
async fn what_waits_says_why() {
    let house = House::open().await;
    let (user, operator) = (house.user("customer"), house.user("operator"));
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    let id = house.submit(&user, spec("demo_echo")).await.expect("taken").id;
    assert_eq!(waits(&house, &user, &id).await.0, "turn");

    let submitted = get(&house, &user, &id).await.expect("there").created_at;
    house.clock.advance(Duration::from_secs(5));
    let pause = operator.call.request(PauseQueueRequest { name: "default".to_owned() });
    let paused = answer(QueuesClient::new(house.peer.clone()).pause(pause).await).expect("paused");
    assert_eq!(waits(&house, &user, &id).await.0, "queue_paused");
    let reason = get(&house, &user, &id).await.expect("there").waiting_reason.expect("it waits");
    assert_eq!(reason.since, paused.paused_at);
    assert_ne!(reason.since, submitted);
    let resume = operator.call.request(proto::jobs::ResumeQueueRequest { name: "default".to_owned() });
    answer(QueuesClient::new(house.peer.clone()).resume(resume).await).expect("resumed");

    let later = Some(to_timestamp(house.clock.now() + Duration::from_secs(3600)));
    let due_later = house.submit(&user, JobSpec { run_at: later, ..spec("demo_echo") }).await.expect("taken").id;
    assert_eq!(waits(&house, &user, &due_later).await.0, "not_due");

    let running = hand.take().await;
    hand.end(&running, failed(true)).await;
    let (reason, detail) = waits(&house, &user, &id).await;
    assert_eq!(reason, "retry");
    assert!(detail.starts_with("Attempt 2 starts at "), "{detail}");

    house.clock.advance(Duration::from_secs(31));
    let id = house.submit(&user, spec("demo_echo")).await.expect("taken").id;
    assert_eq!(waits(&house, &user, &id).await.0, "no_worker");
}

#[tokio::test]
async fn a_job_that_has_fanned_out_waits_for_its_children() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut hand =
        house.hand(vec![task("process_batch", "default", &json!({})), task("demo_child", "default", &json!({}))]).await;
    let parent = house.submit(&user, spec("process_batch")).await.expect("taken").id;
    let running = hand.take().await;
    let child = FanOutJob { ordinal: 0, task: "demo_child".to_owned(), args_json: "{}".to_owned(), after: Vec::new() };
    let fan_out = FanOutRequest { attempt: running.attempt.clone(), jobs: vec![child], ..FanOutRequest::default() };
    let batch = answer(AttemptsClient::new(house.peer.clone()).fan_out(hand.call.request(fan_out)).await)
        .expect("fanned out")
        .batch_id;
    hand.end(&running, End::Suspended(Suspended { batch_id: batch.clone() })).await;
    assert_eq!(waits(&house, &user, &parent).await, ("waiting_for_children".to_owned(), batch.clone()));
    let seen = get(&house, &user, &parent).await.expect("there");
    assert_eq!(
        (seen.state(), seen.child_batch_id.as_str(), seen.worker_id.as_str()),
        (JobState::Suspended, &*batch, "")
    );
    let of_batch = ListJobsRequest { batch_id: batch, ..ListJobsRequest::default() };
    assert_eq!(all(&house, &user, of_batch).await.len(), 1);
}

#[tokio::test]
async fn operators_see_connected_workers_and_nobody_else_does() {
    let house = House::open().await;
    let (user, operator) = (house.user("customer"), house.user("operator"));
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    let other = house.hand(vec![task("demo_other", "default", &json!({}))]).await;
    house.submit(&user, spec("demo_echo")).await.expect("taken");
    let _running = hand.take().await;

    let mut client = WorkersClient::new(house.peer.clone());
    let page = answer(client.list(operator.call.request(ListWorkersRequest::default())).await).expect("a list");
    let told: Vec<(&str, u32)> = page.items.iter().map(|worker| (worker.id.as_str(), worker.running)).collect();
    assert_eq!(told, [(other.id.as_str(), 0), (hand.id.as_str(), 1)]);
    assert_eq!((page.items[1].slots, page.items[1].tasks.clone()), (8, vec!["demo_echo".to_owned()]));
    assert_eq!(code(client.list(user.call.request(ListWorkersRequest::default())).await), "forbidden");
    let nobody = Call::anonymous("request-1");
    assert_eq!(code(client.list(nobody.request(ListWorkersRequest::default())).await), "auth.required");

    house.clock.advance(Duration::from_secs(31));
    let page = answer(client.list(operator.call.request(ListWorkersRequest::default())).await).expect("a list");
    assert_eq!(page.items, []);
}
