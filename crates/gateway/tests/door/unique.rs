//! Unique jobs at the door: what is there already is answered as such.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::house::{House, pointers, problem};

fn fault(pointer: &str, code: &str) -> (String, String) {
    (pointer.to_owned(), code.to_owned())
}

#[tokio::test]
async fn a_job_whose_unique_key_is_held_is_answered_by_the_one_that_holds_it() {
    let house = House::open().await;
    let ada = house.customer();
    let send =
        async |path: &str, body: &Value| house.post(path).bearer_auth(&ada.token).json(body).send().await.unwrap();
    let one = |key: &str, how: Value| json!({"task": "demo_echo", "args": {}, "unique_key": key, "unique": how});

    let how = json!({"hold": "dead_letter", "window_s": 1.5, "on_conflict": "replace", "for_all": true});
    for (key, status, existing) in [("free", 202, false), ("held", 200, true)] {
        let answer = send("/api/v1/jobs", &one(key, how.clone())).await;
        assert_eq!(answer.status().as_u16(), status);
        let shown: Value = answer.json().await.unwrap();
        assert_eq!((&shown["existing"], &shown["unique_key"]), (&json!(existing), &json!(key)));
        assert_eq!(shown["task"], "demo_echo");
    }
    let asked = house.jobs.submitted.lock()[0].jobs[0].clone();
    let unique = asked.unique.unwrap();
    assert_eq!(asked.unique_key.as_deref(), Some("free"));
    assert_eq!((unique.hold.as_str(), unique.on_conflict.as_str()), ("dead_letter", "replace"));
    assert_eq!((unique.window_s, unique.for_all), (Some(1.5), true));

    let two = json!({"jobs": [one("free", json!({})), one("held", json!(null))]});
    let answer = send("/api/v1/jobs/bulk", &two).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let shown: Value = answer.json().await.unwrap();
    assert_eq!((&shown["items"][0]["existing"], &shown["items"][1]["existing"]), (&json!(false), &json!(true)));

    let refuse = one("held", json!({"on_conflict": "refuse"}));
    let answer = send("/api/v1/jobs", &refuse).await;
    assert_eq!(pointers(&problem(answer, 409, "jobs.unique_key_held").await), [fault("/unique_key", "unique")]);
    let answer = send("/api/v1/jobs/bulk", &json!({"jobs": [one("free", json!({})), refuse]})).await;
    assert_eq!(pointers(&problem(answer, 409, "jobs.unique_key_held").await), [fault("/jobs/1/unique_key", "unique")]);

    let wrong = one("", json!({"hold": "for ever", "window_s": 0, "on_conflict": "fight"}));
    let told = pointers(&problem(send("/api/v1/jobs", &wrong).await, 422, "request.invalid").await);
    let told: Vec<&str> = told.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(told, ["/unique/hold", "/unique/on_conflict", "/unique/window_s", "/unique_key"]);
}
