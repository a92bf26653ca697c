//! Schedules at the door.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::house::{FOREIGN, House, good, pointers, problem};

const PATH: &str = "/api/v1/schedules";
const SOMEBODYS: &str = "0190a000-0000-7000-8000-000000000007";

#[tokio::test]
async fn a_schedule_is_passed_on_whole_and_shown_so_that_it_can_be_put_back() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({
        "name": "at nine", "cron": "0 9 * * MON-FRI", "time_zone": "Europe/Berlin", "missed": "all", "missed_max": 7,
        "overlap": "queue_all", "queue_max": 8, "jitter_s": 9, "pause_after_failures": 3,
        "job": {"task": "demo_echo", "args": {"value": 1.50}, "priority": 60, "tags": ["a"],
            "backoff": {"kind": "list", "seconds": [1, 2.5]},
            "unique_key": "k", "unique": {"hold": "waiting", "window_s": 1.5, "on_conflict": "refuse"}}
    });
    let answer = house.post(PATH).bearer_auth(&ada.token).header("idempotency-key", "k").json(&body).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let shown: Value = answer.json().await.unwrap();
    let first = house.jobs.scheduled.lock()[0].clone();
    assert_eq!((first.missed.as_str(), first.overlap.as_str()), ("all", "queue_all"));
    assert_eq!((first.missed_max, first.queue_max, first.jitter_s), (Some(7), Some(8), 9));
    assert_eq!(first.timing.as_ref().map(|timing| timing.cron.as_str()), Some("0 9 * * MON-FRI"));
    assert_eq!(house.jobs.last_call().idempotency.map(|key| key.key), Some("k".to_owned()));
    assert_eq!(
        (&shown["every_s"], &shown["paused_by"], &shown["missed_count"]),
        (&Value::Null, &Value::Null, &json!(0))
    );
    assert_eq!(
        shown["runs"][0],
        json!({ "occurrence_at": "2023-11-14T22:13:20Z", "kind": "due", "job_id": SOMEBODYS,
        "state": "running" })
    );

    // What was shown of what is asked for is taken as it is.
    let mut again = shown.clone();
    again.as_object_mut().unwrap().retain(|name, _| body.get(name).is_some());
    let put = house.client.put(format!("{}{PATH}/{SOMEBODYS}", house.url)).json(&again);
    let put = good(put, &ada).await;
    assert_eq!(house.jobs.scheduled.lock()[1], first);
    assert_eq!(put, shown);
}

#[tokio::test]
async fn what_is_done_to_a_schedule_reaches_the_role() {
    let house = House::open().await;
    let ada = house.customer();
    let at = |rest: &str| format!("{PATH}/{SOMEBODYS}{rest}");
    assert_eq!(good(house.get(PATH), &ada).await["next_cursor"], "further");
    assert_eq!(good(house.get(&at("")), &ada).await["id"], SOMEBODYS);
    let paused = good(house.post(&at("/pause")).json(&json!({ "reason": "the summer" })), &ada).await;
    assert_eq!(
        (&paused["state"], &paused["pause_reason"], &paused["next_at"]),
        (&json!("paused"), &json!("the summer"), &Value::Null)
    );
    assert_eq!(good(house.post(&at("/resume")), &ada).await["state"], "active");
    let send = async |request: reqwest::RequestBuilder, status: u16| {
        let answer = request.bearer_auth(&ada.token).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        answer.text().await.unwrap()
    };
    assert_eq!(send(house.post(&at("/run")), 202).await, format!(r#"{{"job_id":"{SOMEBODYS}"}}"#));
    let span = json!({ "from": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:01:00Z" });
    let told = send(house.post(&at("/backfill")).json(&span), 202).await;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), json!({ "job_ids": [SOMEBODYS], "existing": 60 }));
    assert_eq!(send(house.delete(&at("")), 204).await, "");
    let asked = json!({ "cron": "@daily", "count": 2, "after": "2026-03-29T01:00:00Z" });
    let preview = good(house.post(&format!("{PATH}/preview")).json(&asked), &ada).await;
    let item = json!({ "at": "2026-03-29T01:00:00Z", "local": "2026-03-29T03:00:00+02:00", "utc_offset": "+02:00",
        "note": "clock goes forward" });
    assert_eq!(preview, json!({ "items": [item], "time_zone_data": "2025b" }));
}

#[tokio::test]
async fn what_is_no_schedule_and_what_is_anothers_is_refused() {
    let house = House::open().await;
    let ada = house.customer();
    let wrong = json!({ "cron": 5, "missed": "never", "every_s": 0, "when": "now" });
    let answer = house.post(PATH).bearer_auth(&ada.token).json(&wrong).send().await.unwrap();
    let status = answer.status().as_u16();
    assert!(status == 400 || status == 422, "{status}");
    let wrong = json!({ "every_s": 0, "missed": "never", "job": { "task": "demo_echo", "args": {} } });
    let answer = house.post(PATH).bearer_auth(&ada.token).json(&wrong).send().await.unwrap();
    let told: Vec<String> =
        pointers(&problem(answer, 422, "request.invalid").await).into_iter().map(|(pointer, _)| pointer).collect();
    assert_eq!(told, ["/every_s", "/missed"]);
    for (verb, body) in [("pause", json!({})), ("resume", json!({})), ("run", json!({}))] {
        let request = house.post(&format!("{PATH}/{FOREIGN}/{verb}")).bearer_auth(&ada.token);
        let request = if verb == "pause" { request.json(&body) } else { request };
        problem(request.send().await.unwrap(), 404, "schedules.not_found").await;
    }
    problem(house.get(PATH).send().await.unwrap(), 401, "auth.required").await;
}
