//! Limits: which are set, which are taken away, and which stay.

use serde_json::{Value, json};

use crate::house::{House, pointers, problem};

async fn limited(house: &House, path: &str, body: &Value) -> Value {
    let operator = house.person("operator");
    let answer = house.patch(path).bearer_auth(&operator.token).json(body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

#[tokio::test]
async fn what_is_left_out_stays_and_null_takes_a_limit_away() {
    let house = House::open().await;
    let body = json!({
        "concurrency": 8, "key_concurrency": null, "rate": {"starts": 6, "seconds": 1.5}, "share": "owner",
        "weights": {"someone": 2.5}
    });
    let queue = limited(&house, "/api/v1/queues/default", &body).await;
    let fields: Vec<&str> = queue["depth"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["concurrency", "key_concurrency", "rate", "share", "weights"]);
    let expected = json!({
        "concurrency": 8, "key_concurrency": null, "rate": {"starts": 6, "seconds": 1.5, "burst": null},
        "key_rate": null, "share": "owner", "weights": {"someone": 2.5}
    });
    assert_eq!(queue["limits"], expected);
    let task = limited(&house, "/api/v1/tasks/demo_echo", &json!({ "concurrency": 3 })).await;
    assert_eq!(task["concurrency"], 3);
    let task = limited(&house, "/api/v1/tasks/demo_echo", &json!({ "concurrency": null })).await;
    assert_eq!(task["concurrency"], Value::Null);
}

#[tokio::test]
async fn a_limit_that_is_none_is_refused_at_its_place_and_a_customer_sets_none() {
    let house = House::open().await;
    let operator = house.person("operator");
    for (path, body, status, code, pointer) in [
        ("/api/v1/queues/default", json!({ "concurrencies": 1 }), 400, "request.unknown_field", "/concurrencies"),
        ("/api/v1/queues/default", json!({ "rate": {"starts": 1} }), 422, "request.invalid", "/rate/seconds"),
        ("/api/v1/tasks/demo_echo", json!({}), 422, "request.invalid", ""),
    ] {
        let answer = house.patch(path).bearer_auth(&operator.token).json(&body).send().await.unwrap();
        let problem = problem(answer, status, code).await;
        assert_eq!(pointers(&problem)[0].0, pointer, "{path} {body}");
    }
    let ada = house.customer();
    let body = json!({ "concurrency": 1 });
    let answer = house.patch("/api/v1/queues/default").bearer_auth(&ada.token).json(&body).send().await.unwrap();
    problem(answer, 403, "forbidden").await;
}
