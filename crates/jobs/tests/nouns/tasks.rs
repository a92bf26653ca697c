//! Tasks: what is offered, who is shown it, and whether arguments fit.

use std::time::Duration;

use kit::{Fail, grpc::Call};
use proto::{
    jobs::{JobSpec, ListTasksRequest, SubmitJobsRequest, Task, tasks_client::TasksClient},
    worker::OfferedTask,
};
use serde_json::json;

use crate::support::{Hand, House, User, answer, code, spec, task};

async fn list(house: &House, user: &User, limit: u32, cursor: &str) -> Result<(Vec<Task>, String), Fail> {
    let request = user.call.request(ListTasksRequest { limit, cursor: cursor.to_owned() });
    let page = answer(TasksClient::new(house.peer.clone()).list(request).await)?;
    Ok((page.items, page.next_cursor))
}

async fn names(house: &House, user: &User) -> Vec<String> {
    list(house, user, 0, "").await.expect("a list").0.into_iter().map(|task| task.name).collect()
}

#[tokio::test]
async fn a_task_that_was_offered_stays_known_when_its_workers_have_gone() {
    let house = House::open().await;
    let user = house.user("customer");
    assert_eq!(names(&house, &user).await, [""; 0]);
    let offered = task("demo_echo", "default", &json!({ "value": {} }));
    let _one = house.hand(vec![offered.clone()]).await;
    let _two = house.hand(vec![offered.clone()]).await;
    let (tasks, _) = list(&house, &user, 0, "").await.expect("a list");
    let expected = Task {
        name: offered.name,
        queue: offered.queue,
        schema_json: offered.schema_json,
        description: offered.description,
        concurrency: None,
        workers: 2,
    };
    assert_eq!(tasks, std::slice::from_ref(&expected));

    house.clock.advance(Duration::from_secs(31));
    let (tasks, _) = list(&house, &user, 0, "").await.expect("a list");
    assert_eq!(tasks, [Task { workers: 0, ..expected }]);
    house.submit(&user, spec("demo_echo")).await.expect("its jobs may wait");
}

#[tokio::test]
async fn a_caller_sees_the_tasks_that_it_may_run() {
    let house = House::open().await;
    let offered = ["demo_a", "demo_b", "demo_c", "finalize_batch", "generate_3d_model", "zero"];
    let _hand = house.hand(offered.map(|name| task(name, "default", &json!({}))).to_vec()).await;
    let (customer, operator) = (house.user("customer"), house.user("operator"));
    assert_eq!(names(&house, &operator).await, offered);
    assert_eq!(names(&house, &customer).await, ["demo_a", "demo_b", "demo_c", "generate_3d_model"]);

    // Pages hold as many as were asked for, whatever stands between them that is not shown.
    let (first, cursor) = list(&house, &customer, 3, "").await.expect("a page");
    let (second, end) = list(&house, &customer, 3, &cursor).await.expect("a page");
    assert_eq!(first.len(), 3);
    assert_eq!(second.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["generate_3d_model"]);
    assert_eq!(end, "");

    let nobody = Call::anonymous("request-1").request(ListTasksRequest::default());
    assert_eq!(code(TasksClient::new(house.peer.clone()).list(nobody).await), "auth.required");
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_told_each_at_its_place() {
    let house = House::open().await;
    let user = house.user("customer");
    let schema = json!({
        "type": "object",
        "required": ["file_id"],
        "properties": { "file_id": { "type": "string", "format": "uuid" } },
    });
    let mut offered = task("demo_file", "default", &json!({}));
    offered.schema_json = schema.to_string();
    let _hand = house.hand(vec![offered]).await;
    let with = |task: &str, args: &str| JobSpec { args_json: args.to_owned(), ..spec(task) };
    let good = r#"{"file_id":"0190a0b0-0000-7000-8000-000000000000"}"#;
    let jobs = vec![
        with("demo_file", good),
        with("demo_file", "{}"),
        with("demo_file", r#"{"file_id":7}"#),
        with("demo_nothing", "{}"),
        with("demo_file", "{"),
    ];
    let request = user.call.request(SubmitJobsRequest { jobs });
    let fail = answer(house.jobs().submit(request).await).expect_err("faults");
    let told: Vec<String> = fail.violations().iter().map(|fault| format!("{} {}", fault.pointer, fault.code)).collect();
    assert_eq!(
        told,
        [
            "/jobs/1/args/file_id required",
            "/jobs/2/args/file_id type",
            "/jobs/3/task jobs.unknown_task",
            "/jobs/4/args json",
        ]
    );
    house.submit(&user, with("demo_file", good)).await.expect("taken");
}

#[tokio::test]
async fn an_offer_that_cannot_be_kept_is_refused_and_nothing_of_it_is_known() {
    let house = House::open().await;
    let good = task("demo_good", "default", &json!({}));
    let bad: [fn(&mut OfferedTask); 6] = [
        |task| task.name = "Not A Name".to_owned(),
        |task| task.queue = String::new(),
        |task| task.schema_json = "{".to_owned(),
        |task| task.schema_json = json!({ "$ref": "https://example.com/a.json" }).to_string(),
        |task| task.schema_json = format!("{{\"description\": \"{}\"}}", "x".repeat(64 * 1024)),
        |task| task.description = "x".repeat(1_001),
    ];
    for spoil in bad {
        let mut spoiled = task("demo_bad", "default", &json!({}));
        spoil(&mut spoiled);
        let refusal = Hand::connect(&house, vec![good.clone(), spoiled]).await.map(drop).expect_err("refused");
        assert_eq!(refusal.code(), "workers.invalid_task");
    }
    assert_eq!(names(&house, &house.user("operator")).await, [""; 0]);
}

#[tokio::test]
async fn two_workers_that_offer_the_same_at_once_are_both_welcome() {
    let house = House::open().await;
    let offered = |names: &[&str]| names.iter().map(|name| task(name, name, &json!({}))).collect::<Vec<_>>();
    for _ in 0..5 {
        let (one, two) = tokio::join!(
            Hand::connect(&house, offered(&["demo_a", "demo_b", "demo_c"])),
            Hand::connect(&house, offered(&["demo_c", "demo_b", "demo_a"])),
        );
        one.and(two).map(drop).expect("welcome");
    }
    assert_eq!(names(&house, &house.user("customer")).await, ["demo_a", "demo_b", "demo_c"]);
}
