//! What goes into the audit log: who stopped, retried, paused, resumed and removed what, and on whose behalf; each once,
//! in the transaction of the act.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kit::{Fail, bus::Event, grpc::Call};
use prost::Message as _;
use proto::{
    events::ActRecorded,
    jobs::{
        Batch, CancelBatchRequest, CancelJobRequest, CompleteFilesRequest, CompletedFile, CreateBatchRequest,
        FinalizeSpec, Job, JobSpec, JobState, PauseQueueRequest, Queue, QueueLimits, RemoveFileRequest,
        ReserveFilesRequest, ResumeQueueRequest, RetryBatchRequest, RetryJobRequest, Task, UpdateQueueRequest,
        UpdateTaskRequest, batches_client::BatchesClient, files_client::FilesClient, queues_client::QueuesClient,
        tasks_client::TasksClient,
    },
    worker::{
        Failed, FanOutJob, FanOutRequest, Stopped, Succeeded, Suspended, attempts_client::AttemptsClient, outcome::End,
    },
};
use serde_json::{Value, json};

use crate::{
    schedules,
    support::{Hand, House, User, answer, spec, task},
};

const REASON: &str = "it is not wanted any more";
const NOBODYS: &str = "00000000-0000-7000-8000-000000000000";

/// The entries for the audit log, oldest first.
async fn acts(house: &House) -> Vec<ActRecorded> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("select subject, data from jobs.outbox where type = 'jobs.act.recorded' order by seq")
            .fetch_all(house.pool())
            .await
            .expect("rows");
    let entry = |(subject, data): (String, Vec<u8>)| {
        let entry = ActRecorded::decode(data.as_slice()).expect("an entry");
        assert_eq!(entry.target_id, subject);
        entry
    };
    rows.into_iter().map(entry).collect()
}

/// The last entry, and that there is one more than `before`.
async fn newest(house: &House, before: usize) -> ActRecorded {
    let mut acts = acts(house).await;
    assert_eq!(acts.len(), before + 1, "{acts:?}");
    acts.pop().expect("one")
}

/// Someone new, who comes through a gateway.
fn person(house: &House, role: &str) -> User {
    let user = house.user(role);
    User { call: user.call.with_origin("192.0.2.7", "a test"), ..user }
}

async fn worker(house: &House) -> Hand {
    house.hand(vec![task("demo_echo", "default", &json!({})), task("demo_last", "default", &json!({}))]).await
}

async fn cancel(house: &House, user: &User, id: &str) -> Result<Job, Fail> {
    let message = CancelJobRequest { id: id.to_owned(), reason: REASON.to_owned() };
    answer(house.jobs().cancel(user.call.request(message)).await)
}

async fn retry(house: &House, user: &User, id: &str) -> Result<Job, Fail> {
    answer(house.jobs().retry(user.call.request(RetryJobRequest { id: id.to_owned() })).await)
}

fn batches(house: &House) -> BatchesClient<kit::grpc::Peer> {
    BatchesClient::new(house.peer.clone())
}

async fn batch(house: &House, user: &User, jobs: Vec<JobSpec>) -> Batch {
    let message = CreateBatchRequest { jobs, ..CreateBatchRequest::default() };
    answer(batches(house).create(user.call.request(message)).await).expect("a batch")
}

async fn cancel_batch(house: &House, user: &User, id: &str) -> Result<Batch, Fail> {
    let message = CancelBatchRequest { id: id.to_owned(), reason: REASON.to_owned() };
    answer(batches(house).cancel(user.call.request(message)).await)
}

/// What was cancelled in it.
async fn retry_batch(house: &House, user: &User, id: &str) -> Result<Batch, Fail> {
    let message = RetryBatchRequest { id: id.to_owned(), states: vec![JobState::Cancelled.into()] };
    answer(batches(house).retry(user.call.request(message)).await)
}

async fn pause(house: &House, user: &User, name: &str) -> Result<Queue, Fail> {
    let message = PauseQueueRequest { name: name.to_owned() };
    answer(QueuesClient::new(house.peer.clone()).pause(user.call.request(message)).await)
}

async fn resume(house: &House, user: &User, name: &str) -> Result<Queue, Fail> {
    let message = ResumeQueueRequest { name: name.to_owned() };
    answer(QueuesClient::new(house.peer.clone()).resume(user.call.request(message)).await)
}

async fn remove(house: &House, user: &User, id: &str) -> Result<(), Fail> {
    let message = RemoveFileRequest { id: id.to_owned() };
    answer(FilesClient::new(house.peer.clone()).remove(user.call.request(message)).await).map(drop)
}

/// A whole file of so many bytes, as far as the rows can tell.
async fn file(house: &House, user: &User, name: &str, size_bytes: u64) -> String {
    let mut files = FilesClient::new(house.peer.clone());
    let message = ReserveFilesRequest { names: vec![name.to_owned()] };
    let upload = answer(files.reserve(user.call.request(message)).await).expect("reserved");
    let id = upload.items[0].id.clone();
    let content_type = "text/plain".to_owned();
    let whole = CompletedFile { id: id.clone(), content_type, size_bytes, sha256: "0".repeat(64) };
    let message = CompleteFilesRequest { ticket: upload.ticket, files: vec![whole] };
    answer(files.complete(Call::anonymous("request-1").request(message)).await).expect("whole");
    id
}

fn failed() -> End {
    End::Failed(Failed {
        kind: "provider".to_owned(),
        message: "It was not there.".to_owned(),
        retryable: false,
        retry_after_s: None,
    })
}

fn facts(entry: &ActRecorded) -> (Value, Value) {
    let read = |json: &str| if json.is_empty() { Value::Null } else { serde_json::from_str(json).expect("JSON") };
    (read(&entry.before_json), read(&entry.after_json))
}

#[tokio::test]
async fn a_cancel_is_written_down_once_with_who_asked_why_and_from_where() {
    let house = House::open().await;
    let (user, mut hand) = (person(&house, "customer"), worker(&house).await);
    let running = house.submit(&user, spec("demo_echo")).await.expect("taken");
    let held = hand.take().await;
    let waiting = house.submit(&user, spec("demo_echo")).await.expect("taken");

    cancel(&house, &user, &waiting.id).await.expect("cancelled");
    let entry = newest(&house, 0).await;
    assert_eq!((entry.action.as_str(), entry.outcome.as_str(), entry.reason.as_str()), ("job.cancel", "done", REASON));
    assert_eq!((entry.actor_kind.as_str(), entry.actor_id.clone()), ("user", user.id.to_string()));
    assert_eq!((entry.target_kind.as_str(), &entry.target_id, entry.on_behalf_of.as_str()), ("job", &waiting.id, ""));
    assert_eq!((entry.remote_address.as_str(), entry.user_agent.as_str()), ("192.0.2.7", "a test"));
    assert_eq!(entry.request_id, "request-1");
    assert_eq!(facts(&entry), (json!({ "state": "queued" }), json!({ "state": "cancelled" })));

    for _ in 0..3 {
        cancel(&house, &user, &running.id).await.expect("asked");
    }
    let entry = newest(&house, 1).await;
    assert_eq!(facts(&entry), (json!({ "state": "running" }), json!({ "state": "cancelling" })));
    hand.end(&held, End::Stopped(Stopped {})).await;
    assert_eq!(acts(&house).await.len(), 2, "that it has stopped is no act");
}

#[tokio::test]
async fn what_is_done_to_anothers_thing_names_whose_it_is() {
    let house = House::open().await;
    let (user, operator, admin) = (person(&house, "customer"), person(&house, "operator"), person(&house, "admin"));
    let mut hand = worker(&house).await;
    let job = house.submit(&user, spec("demo_echo")).await.expect("taken");
    let held = hand.take().await;
    hand.end(&held, failed()).await;
    retry(&house, &operator, &job.id).await.expect("queued again");
    cancel(&house, &operator, &job.id).await.expect("cancelled");
    let batch = batch(&house, &user, vec![spec("demo_echo")]).await;
    cancel_batch(&house, &operator, &batch.id).await.expect("cancelled");
    retry_batch(&house, &operator, &batch.id).await.expect("queued again");
    retry_batch(&house, &operator, &batch.id).await.expect("there is nothing more to do");
    let file = file(&house, &user, "a.txt", 7).await;
    remove(&house, &admin, &file).await.expect("removed");

    let told: Vec<_> = acts(&house).await;
    let actions: Vec<&str> = told.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["job.retry", "job.cancel", "batch.cancel", "batch.retry", "file.remove"]);
    assert!(told.iter().all(|entry| entry.on_behalf_of == user.id.to_string() && entry.outcome == "done"));
    assert_eq!(facts(&told[0]), (json!({ "state": "failed" }), json!({ "state": "queued" })));
    assert_eq!(facts(&told[2]), (json!({ "is_cancel_asked": false }), json!({ "is_cancel_asked": true })));
    let retried = json!({ "state": "running", "retried": ["cancelled"] });
    assert_eq!(facts(&told[3]), (json!({ "state": "cancelled" }), retried));
    assert_eq!(facts(&told[4]), (json!({ "size_bytes": 7 }), Value::Null));
    assert_eq!(told[4].actor_id, admin.id.to_string());
}

#[tokio::test]
async fn a_batch_is_cancelled_by_one_act_whoever_fanned_it_out() {
    let house = House::open().await;
    let (user, mut hand) = (person(&house, "customer"), worker(&house).await);
    let plain = batch(&house, &user, vec![spec("demo_echo"), spec("demo_echo"), spec("demo_echo")]).await;
    let held = hand.take().await;
    for _ in 0..2 {
        cancel_batch(&house, &user, &plain.id).await.expect("asked");
    }
    assert_eq!(newest(&house, 0).await.action, "batch.cancel");
    hand.end(&held, End::Stopped(Stopped {})).await;

    house.submit(&user, spec("demo_echo")).await.expect("taken");
    let parent = hand.take().await;
    let children = FanOutJob { task: "demo_last".to_owned(), args_json: "{}".to_owned(), ..FanOutJob::default() };
    let message = FanOutRequest { attempt: parent.attempt.clone(), jobs: vec![children], ..FanOutRequest::default() };
    let fanned = AttemptsClient::new(house.peer.clone()).fan_out(hand.call.request(message)).await;
    let batch_id = answer(fanned).expect("fanned out").batch_id;
    hand.end(&parent, End::Suspended(Suspended { batch_id: batch_id.clone() })).await;
    // A child at work holds the batch open, so that the second cancel meets one that was asked and has not ended.
    let _child = hand.take().await;
    for _ in 0..2 {
        cancel_batch(&house, &user, &batch_id).await.expect("asked");
    }
    let entry = newest(&house, 1).await;
    assert_eq!((entry.action.as_str(), entry.target_id), ("batch.cancel", batch_id));
}

#[tokio::test]
async fn pausing_and_resuming_a_queue_are_written_down_when_they_change_it() {
    let house = House::open().await;
    let operator = person(&house, "operator");
    for _ in 0..2 {
        pause(&house, &operator, "default").await.expect("paused");
    }
    let entry = newest(&house, 0).await;
    assert_eq!((entry.action.as_str(), entry.target_id.as_str()), ("queue.pause", "default"));
    assert_eq!(facts(&entry), (json!({ "is_paused": false }), json!({ "is_paused": true })));
    for _ in 0..2 {
        resume(&house, &operator, "default").await.expect("resumed");
    }
    let entry = newest(&house, 1).await;
    assert_eq!((entry.action.as_str(), entry.target_id.as_str()), ("queue.resume", "default"));
    assert_eq!(facts(&entry), (json!({ "is_paused": true }), json!({ "is_paused": false })));
}

#[tokio::test]
async fn a_refused_act_is_written_down_and_one_on_nothing_is_not() {
    let house = House::open().await;
    let (user, stranger, mut hand) = (person(&house, "customer"), person(&house, "customer"), worker(&house).await);
    let job = house.submit(&user, spec("demo_echo")).await.expect("taken");
    let batch = batch(&house, &user, Vec::new()).await;
    let file = file(&house, &user, "a.txt", 7).await;
    let mut count = 0;
    let mut next = async |who: &User, action: &str, target: &str, reason: &str| {
        let entry = newest(&house, count).await;
        count += 1;
        assert_eq!((entry.action.as_str(), entry.outcome.as_str(), entry.reason.as_str()), (action, "refused", reason));
        assert_eq!((entry.actor_id, entry.target_id.as_str()), (who.id.to_string(), target));
        assert_eq!(entry.before_json + &entry.after_json, "");
        entry.on_behalf_of
    };
    let owner = user.id.to_string();
    cancel(&house, &stranger, &job.id).await.expect_err("a stranger's");
    assert_eq!(next(&stranger, "job.cancel", &job.id, "jobs.job_not_found").await, owner);
    retry(&house, &stranger, &job.id).await.expect_err("a stranger's");
    assert_eq!(next(&stranger, "job.retry", &job.id, "jobs.job_not_found").await, owner);
    cancel_batch(&house, &stranger, &batch.id).await.expect_err("a stranger's");
    assert_eq!(next(&stranger, "batch.cancel", &batch.id, "jobs.batch_not_found").await, owner);
    remove(&house, &stranger, &file).await.expect_err("a stranger's");
    assert_eq!(next(&stranger, "file.remove", &file, "files.not_found").await, owner);

    retry(&house, &user, &job.id).await.expect_err("it waits");
    assert_eq!(next(&user, "job.retry", &job.id, "jobs.not_final").await, "");
    let held = hand.take().await;
    hand.end(&held, End::Succeeded(Succeeded { result_json: "{}".to_owned(), files: Vec::new() })).await;
    cancel(&house, &user, &job.id).await.expect_err("it has ended");
    next(&user, "job.cancel", &job.id, "jobs.already_final").await;
    retry(&house, &user, &job.id).await.expect_err("it has succeeded");
    next(&user, "job.retry", &job.id, "jobs.already_succeeded").await;
    cancel_batch(&house, &user, &batch.id).await.expect_err("it has ended");
    next(&user, "batch.cancel", &batch.id, "jobs.already_final").await;

    for id in ["", "nonsense", NOBODYS] {
        cancel(&house, &user, id).await.expect_err("not there");
        retry(&house, &user, id).await.expect_err("not there");
        cancel_batch(&house, &user, id).await.expect_err("not there");
        remove(&house, &user, id).await.expect_err("not there");
    }
    remove(&house, &user, &file).await.expect("removed");
    remove(&house, &user, &file).await.expect_err("gone");
    pause(&house, &person(&house, "operator"), "nothing").await.expect_err("not there");
    // The guard refuses before anything of ours runs.
    pause(&house, &user, "default").await.expect_err("no operator");
    assert_eq!(acts(&house).await.len(), count + 1, "but for the removal");
}

#[tokio::test]
async fn a_flood_of_refused_acts_is_cut_off_until_the_next_minute() {
    let house = House::open().await;
    let (user, stranger) = (person(&house, "customer"), person(&house, "customer"));
    let _hand = worker(&house).await;
    let job = house.submit(&user, spec("demo_echo")).await.expect("taken");
    for minute in 1..=2 {
        for _ in 0..30 {
            cancel(&house, &stranger, &job.id).await.expect_err("a stranger's");
        }
        assert_eq!(acts(&house).await.len(), 10 * minute);
        house.clock.advance(Duration::from_secs(60));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_act_at_once_one_did_it() {
    let house = Arc::new(House::open().await);
    let operator = person(&house, "operator");
    let _hand = worker(&house).await;
    let job = house.submit(&operator, spec("demo_echo")).await.expect("taken");
    let pauses = (0..6).map(|_| pause(&house, &operator, "default"));
    assert!(futures::future::join_all(pauses).await.iter().all(Result::is_ok));
    assert_eq!(newest(&house, 0).await.action, "queue.pause");
    let cancels = (0..6).map(|_| cancel(&house, &operator, &job.id));
    let answers = futures::future::join_all(cancels).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    let told = acts(&house).await;
    let done = told.iter().filter(|entry| entry.action == "job.cancel" && entry.outcome == "done").count();
    let refused = told.iter().filter(|entry| entry.reason == "jobs.already_final").count();
    assert_eq!((done, refused), (1, 5));
}

#[tokio::test]
async fn what_cannot_be_written_down_does_not_happen() {
    let house = House::open().await;
    let (operator, mut hand) = (person(&house, "operator"), worker(&house).await);
    let dead = house.submit(&operator, spec("demo_echo")).await.expect("taken");
    let held = hand.take().await;
    hand.end(&held, failed()).await;
    pause(&house, &operator, "priority").await.expect("paused");
    pause(&house, &operator, "default").await.expect("paused");
    let waiting = house.submit(&operator, spec("demo_echo")).await.expect("taken");
    let batch = batch(&house, &operator, vec![spec("demo_echo")]).await;
    let file = file(&house, &operator, "a.txt", 7).await;
    // The outbox takes no entry from now on.
    sqlx::query("alter table jobs.outbox add constraint shut check (type <> 'jobs.act.recorded') not valid")
        .execute(house.pool())
        .await
        .expect("the superuser may");
    let picture = async || {
        let sql = "select row_to_json(all_of) from (
                     select (select json_agg(j order by id) from jobs.job as j) as live,
                       (select json_agg(h order by id) from jobs.job_history as h) as history,
                       (select json_agg(b order by id) from jobs.batch as b) as batches,
                       (select json_agg(f order by id) from jobs.file as f) as files,
                       (select json_agg(u order by owner_id) from jobs.file_usage as u) as usage,
                       (select json_agg(q order by name) from jobs.queue as q) as queues,
                       (select count(*) from jobs.outbox) as told,
                       (select count(*) from jobs.event) as events
                   ) as all_of";
        sqlx::query_scalar::<_, Value>(sql).fetch_one(house.pool()).await.expect("a picture")
    };
    let before = picture().await;
    let failures = [
        cancel(&house, &operator, &waiting.id).await.err(),
        retry(&house, &operator, &dead.id).await.err(),
        cancel_batch(&house, &operator, &batch.id).await.err(),
        pause(&house, &operator, "maintenance").await.err(),
        resume(&house, &operator, "priority").await.err(),
        limit(&house, &operator, "default").await.err(),
        limit_task(&house, &operator, "demo_echo").await.err(),
        remove(&house, &operator, &file).await.err(),
        // A refusal that cannot be written down is no answer, either.
        cancel(&house, &operator, &dead.id).await.err(),
    ];
    for (at, failure) in failures.into_iter().enumerate() {
        assert_eq!(failure.map(|fail| fail.kind()), Some(kit::Kind::Internal), "number {at}");
    }
    assert_eq!(picture().await, before);
}

#[tokio::test]
async fn limits_are_written_down_as_they_were_and_as_they_are() {
    let house = House::open().await;
    let (operator, _hand) = (person(&house, "operator"), worker(&house).await);
    limit(&house, &operator, "default").await.expect("limited");
    limit_task(&house, &operator, "demo_echo").await.expect("limited");
    let told: Vec<_> = acts(&house).await.iter().map(|entry| (entry.action.clone(), facts(entry))).collect();
    let before = json!({
        "concurrency": 0, "key_concurrency": 0, "key_rate_milliseconds": 0, "key_rate_starts": 0,
        "rate_milliseconds": 0, "rate_starts": 0, "share": "none"
    });
    let mut after = before.clone();
    after["concurrency"] = json!(3);
    assert_eq!(told[0], ("queue.limit".to_owned(), (before, after)));
    assert_eq!(told[1], ("task.limit".to_owned(), (json!({ "concurrency": 0 }), json!({ "concurrency": 2 }))));
}

async fn limit(house: &House, user: &User, queue: &str) -> Result<Queue, Fail> {
    let limits = Some(QueueLimits { concurrency: Some(3), ..QueueLimits::default() });
    let asked = UpdateQueueRequest { name: queue.to_owned(), limits, fields: vec!["concurrency".to_owned()] };
    answer(QueuesClient::new(house.peer.clone()).update(user.call.request(asked)).await)
}

async fn limit_task(house: &House, user: &User, task: &str) -> Result<Task, Fail> {
    let asked = UpdateTaskRequest { name: task.to_owned(), concurrency: Some(2) };
    answer(TasksClient::new(house.peer.clone()).update(user.call.request(asked)).await)
}

#[tokio::test]
async fn submissions_retries_by_policy_and_fan_in_are_no_acts() {
    let house = House::open().await;
    let (user, mut hand) = (person(&house, "customer"), worker(&house).await);
    let finalize = Some(FinalizeSpec { task: "demo_last".to_owned(), args_json: "{}".to_owned() });
    let message = CreateBatchRequest { jobs: vec![spec("demo_echo")], finalize, ..CreateBatchRequest::default() };
    answer(batches(&house).create(user.call.request(message)).await).expect("a batch");
    for end in [failed(), End::Succeeded(Succeeded { result_json: "{}".to_owned(), files: Vec::new() })] {
        let held = hand.take().await;
        hand.end(&held, end).await;
    }
    let finished: i64 = sqlx::query_scalar("select count(*) from jobs.outbox where type = 'jobs.batch.finished'")
        .fetch_one(house.pool())
        .await
        .expect("a count");
    assert_eq!((finished, acts(&house).await.len()), (1, 0));
}

#[tokio::test]
async fn entries_tell_what_the_table_lists_and_nothing_that_a_person_typed_but_the_reason() {
    const MARK: &str = "zyxmark";
    let house = House::open().await;
    let (user, admin) = (person(&house, "customer"), person(&house, "admin"));
    let properties = json!({ "value": {} });
    let mut hand = house.hand(vec![task("demo_echo", "default", &properties)]).await;
    let marked = || JobSpec {
        args_json: json!({ "value": format!("{MARK}@example.com") }).to_string(),
        tags: vec![MARK.to_owned()],
        ..spec("demo_echo")
    };
    let job = house.submit(&user, marked()).await.expect("taken");
    let held = hand.take().await;
    let message = format!("{MARK} was not there");
    hand.end(
        &held,
        End::Failed(Failed { kind: "provider".to_owned(), message, retryable: false, retry_after_s: None }),
    )
    .await;
    retry(&house, &user, &job.id).await.expect("queued again");
    cancel(&house, &admin, &job.id).await.expect("cancelled");
    let batch = batch(&house, &user, vec![marked()]).await;
    cancel_batch(&house, &user, &batch.id).await.expect("cancelled");
    retry_batch(&house, &user, &batch.id).await.expect("queued again");
    pause(&house, &admin, "default").await.expect("paused");
    resume(&house, &admin, "default").await.expect("resumed");
    limit(&house, &admin, "default").await.expect("limited");
    limit_task(&house, &admin, "demo_echo").await.expect("limited");
    let file = file(&house, &user, &format!("{MARK}.txt"), 7).await;
    remove(&house, &person(&house, "customer"), &file).await.expect_err("a stranger's");
    remove(&house, &user, &file).await.expect("removed");
    schedules::every_act(&house, &user, MARK, marked()).await;

    let mut seen = BTreeSet::new();
    for entry in acts(&house).await {
        let line = jobs::ACTS.iter().find(|line| line.name == entry.action).expect("a line of the table");
        assert_eq!(line.target, entry.target_kind);
        let (before, after) = facts(&entry);
        for told in [before, after].iter().filter_map(Value::as_object) {
            assert!(told.keys().all(|field| line.fields.contains(&field.as_str())), "{}: {told:?}", line.name);
        }
        seen.insert(line.name);
    }
    assert_eq!(seen, jobs::ACTS.iter().map(|line| line.name).collect());
    let mut connection = house.pool().acquire().await.expect("a connection");
    let events = kit::outbox::kept(&mut connection, jobs::SCHEMA, 0).await.expect("events");
    assert!(events.iter().all(|Event { data, .. }| !data.windows(MARK.len()).any(|part| part == MARK.as_bytes())));
}
