//! Batches at the door: policies, retries, and how both are shown.

use proto::jobs::JobState;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::house::{FOREIGN, House, pointers, problem};

const PATH: &str = "/api/v1/batches";
const SOMEBODYS: &str = "0190a000-0000-7000-8000-000000000007";

#[tokio::test]
async fn a_batchs_policy_is_passed_on_and_shown() {
    let house = House::open().await;
    let ada = house.customer();
    let finalize = json!({ "task": "demo_echo", "args": {} });
    for policy in [json!({ "kind": "all" }), json!({ "kind": "threshold", "at_least": 2 })] {
        let body = json!({ "jobs": [], "finalize": finalize, "policy": policy });
        let answer = house.post(PATH).bearer_auth(&ada.token).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let shown: Value = answer.json().await.unwrap();
        assert_eq!((&shown["policy"], &shown["finalize_skipped"]), (&policy, &Value::Null));
    }
    let plain = house.post(PATH).bearer_auth(&ada.token).json(&json!({ "jobs": [] })).send().await.unwrap();
    assert_eq!(plain.json::<Value>().await.unwrap()["policy"], json!({ "kind": "always" }));
    let body = json!({ "jobs": [], "finalize": finalize, "policy": { "kind": "most" } });
    let refused = house.post(PATH).bearer_auth(&ada.token).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_retry_says_which_jobs_and_is_the_owners() {
    let house = House::open().await;
    let ada = house.customer();
    let path = format!("{PATH}/{SOMEBODYS}/retry");
    let answer = house.post(&path).bearer_auth(&ada.token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert!(house.jobs.retried.lock().is_empty(), "what is retried unless said is for the role to say");
    let body = json!({ "states": ["expired", "cancelled"] });
    let answer = house.post(&path).bearer_auth(&ada.token).json(&body).send().await.unwrap();
    let shown: Value = answer.json().await.unwrap();
    assert_eq!((&shown["retrying"], &shown["finalizes"][0]["state"]), (&json!(true), &json!("skipped")));
    assert_eq!(*house.jobs.retried.lock(), [JobState::Expired, JobState::Cancelled]);
    let body = json!({ "states": ["succeeded"] });
    let refused =
        problem(house.post(&path).bearer_auth(&ada.token).json(&body).send().await.unwrap(), 422, "request.invalid");
    assert_eq!(pointers(&refused.await)[0].0, "/states/0");
    let foreign = house.post(&format!("{PATH}/{FOREIGN}/retry")).bearer_auth(&ada.token).send().await.unwrap();
    problem(foreign, 404, "jobs.batch_not_found").await;
}
