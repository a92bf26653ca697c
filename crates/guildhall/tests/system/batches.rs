//! Batches that grow and are retried, and jobs that run after others, while the process that sees to them is killed.

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    house::House,
    person::Person,
    wait::{SOON, until},
};

/// Asks for something, whose answer may come or not before the process is killed at `point`; opens the house again.
async fn killed_at(house: &mut House, crashes: &Path, point: &str, person: &mut Person, path: &str, body: &Value) {
    fs::write(crashes.join(point), []).expect("a file");
    let request = person.request(Method::POST, path).await.header("idempotency-key", path).json(body);
    let (_answer, _status) = tokio::join!(request.send(), house.ended());
    assert!(!crashes.join(point).exists(), "it was not killed at {point}");
    house.reopen().await;
    *person = person.at(&house.ready().http).await;
}

/// The batch once it is over with so many finalizes behind it.
async fn finished(person: &Person, id: &str, finalizes: usize) -> Value {
    until(&format!("finalize {finalizes}"), SOON, async || {
        let batch = person.get(&format!("/api/v1/batches/{id}")).await.expect(200);
        let rounds = batch["finalizes"].as_array().expect("a list").len();
        (batch["state"] == "finished" && rounds == finalizes).then_some(batch)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_grows_and_runs_in_order_ends_and_is_retried_as_it_was_asked_wherever_the_process_is_killed() {
    let crashes = tempfile::tempdir().expect("a temporary directory");
    let mut house = House::closed(&[("test_crash_dir", &crashes.path().display().to_string())]);
    house.reopen().await;
    let mut person = house.newcomer("ada").await;
    let jobs = json!([
        { "task": "demo_grow", "args": { "width": 2, "levels": 2 } },
        { "task": "demo_sleep", "args": { "seconds": 0 }, "after": ["#0"] },
        { "task": "demo_fail", "args": { "times": 9 }, "after": ["#1"], "max_attempts": 1 },
        { "task": "demo_echo", "args": { "value": 1 }, "after": ["#2"] },
    ]);
    let body = json!({ "jobs": jobs, "finalize": { "task": "demo_echo", "args": { "value": "end" } } });
    let path = "/api/v1/batches";
    killed_at(&mut house, crashes.path(), "dependencies-not-watched", &mut person, path, &body).await;
    let made = person.post_as(path, &body, path).await.expect(202);
    let id = made["id"].as_str().expect("an id").to_owned();
    let counts = json!({ "total": 10, "succeeded": 8, "failed": 1, "cancelled": 1, "expired": 0 });
    assert_eq!(finished(&person, &id, 1).await["counts"], counts);

    let path = format!("{path}/{id}/retry");
    let asked = json!({ "states": ["failed", "cancelled"] });
    for (n, point) in
        ["batch-retry-asked", "batch-retry-bite", "end-not-told", "dependents-not-freed"].into_iter().enumerate()
    {
        killed_at(&mut house, crashes.path(), point, &mut person, &path, &asked).await;
        assert_eq!(finished(&person, &id, n + 2).await["counts"], counts);
    }
    let list = format!("/api/v1/jobs?batch_id={id}&task=demo_echo");
    let echoes = person.list(&list).await;
    let cancelled: Vec<_> = echoes.iter().filter(|job| job["state"] == "cancelled").collect();
    assert_eq!((echoes.len(), cancelled.len()), (6, 1), "{echoes:#?}");
    assert_eq!(cancelled[0]["error"]["kind"], "dependency");
    house.close().await;
}
