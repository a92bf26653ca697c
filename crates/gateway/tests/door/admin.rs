//! What administrators see.

use kit::identity::Role;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::house::{FOREIGN, House, good, problem};

const SOMEBODY: &str = "0190a000-0000-7000-8000-000000000001";

#[tokio::test]
async fn bad_input_is_refused_at_the_door_and_reaches_nobody() {
    let house = House::open().await;
    let admin = house.person("admin");
    let ask = async |request: RequestBuilder| request.bearer_auth(&admin.token).send().await.unwrap();
    problem(ask(house.get("/api/v1/admin/audit?colour=red")).await, 400, "request.unknown_parameter").await;
    problem(ask(house.get("/api/v1/admin/audit?actor_id=ada")).await, 422, "request.invalid").await;
    problem(ask(house.get("/api/v1/admin/audit?outcome=maybe")).await, 422, "request.invalid").await;
    problem(ask(house.get("/api/v1/admin/audit?after=yesterday")).await, 422, "request.invalid").await;
    problem(ask(house.get("/api/v1/admin/audit?cursor=foreign")).await, 400, "invalid_cursor").await;
    problem(ask(house.get("/api/v1/admin/events/parked?with_replayed=1")).await, 422, "request.invalid").await;
    assert!(house.admin.audit.lock().is_empty() && house.admin.parked.lock().is_empty());
}

#[tokio::test]
async fn the_audit_log_is_read_by_every_filter_and_shown_as_the_contract_says() {
    let house = House::open().await;
    let operator = house.person("operator");
    let query = format!(
        "?limit=2&cursor=further&service=jobs&actor_id={SOMEBODY}&action=job.cancel&target_kind=job&target_id=a%20job\
         &outcome=refused&request_id=r-1&after=2023-11-14T22:13:20Z&before=2023-11-14T23:13:20%2B01:00"
    );
    let page = good(house.get(&format!("/api/v1/admin/audit{query}")), &operator).await;
    let asked = house.admin.audit.lock()[0].clone();
    assert_eq!((asked.limit, asked.cursor.as_str(), asked.service.as_str()), (2, "further", "jobs"));
    assert_eq!((asked.actor_id.as_str(), asked.action.as_str()), (SOMEBODY, "job.cancel"));
    assert_eq!((asked.target_kind.as_str(), asked.target_id.as_str()), ("job", "a job"));
    assert_eq!((asked.outcome.as_str(), asked.request_id.as_str()), ("refused", "r-1"));
    assert_eq!((asked.after.unwrap().seconds, asked.before.unwrap().seconds), (1_700_000_000, 1_700_000_000));
    assert_eq!(page["next_cursor"], "further");
    assert_eq!(
        page["items"][0],
        json!({
            "id": "00000000-0000-0000-0000-000000000000", "at": "2023-11-14T22:13:20Z", "service": "jobs",
            "actor_kind": "user", "actor_id": "00000000-0000-0000-0000-000000000000", "on_behalf_of": null,
            "credential": "session:1", "remote_address": "192.0.2.7", "user_agent": null, "action": "job.cancel",
            "target_kind": "job", "target_id": "a job", "outcome": "done", "reason": null,
            "before": { "state": "queued" }, "after": null, "request_id": "request-1"
        })
    );
}

#[tokio::test]
async fn parked_events_are_listed_and_replayed_in_the_name_of_the_request() {
    let house = House::open().await;
    let admin = house.person("admin");
    let query = "?limit=3&consumer=admin&type=auth.act.recorded&with_replayed=true";
    let page = good(house.get(&format!("/api/v1/admin/events/parked{query}")), &admin).await;
    let asked = house.admin.parked.lock()[0].clone();
    assert_eq!((asked.limit, asked.consumer.as_str(), asked.with_replayed), (3, "admin", true));
    assert_eq!(asked.r#type, "auth.act.recorded");
    assert_eq!(page["items"][0]["type"], "auth.act.recorded");
    assert_eq!((&page["items"][0]["subject"], &page["items"][0]["replayed_at"]), (&Value::Null, &Value::Null));

    let replay = |id: &str| house.post(&format!("/api/v1/admin/events/parked/{id}/replay")).bearer_auth(&admin.token);
    let answer = replay(SOMEBODY).header("x-request-id", "request-77").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let replayed: Value = answer.json().await.unwrap();
    assert_eq!(replayed["replayed_at"], "2023-11-14T22:13:25Z");
    assert_eq!(*house.admin.replayed.lock(), [(SOMEBODY.to_owned(), "request-77".to_owned())]);
    problem(replay(FOREIGN).send().await.unwrap(), 404, "admin.parked_event_not_found").await;
}

#[tokio::test]
async fn health_shows_each_process_with_what_it_stands_on() {
    let house = House::open().await;
    let health = good(house.get("/api/v1/admin/health"), &house.person("operator")).await;
    assert_eq!(
        health,
        json!({
            "ok": false, "missing_roles": ["worker"], "parked_events": 2,
            "replicas": [{
                "id": "replica-1", "roles": ["auth", "jobs"], "version": "1.2.3", "host": "here", "pid": 7,
                "started_at": "2023-11-14T22:13:20Z", "reported_at": "2023-11-14T22:13:21Z", "live": true,
                "dependencies": [
                    { "name": "database", "ok": true, "duration_ms": 1.5, "error": null },
                    { "name": "bus", "ok": false, "duration_ms": 3000.0, "error": "It is away." }
                ],
                "lags": [{ "service": "auth", "unpublished": 3, "seconds": 0.25 }]
            }]
        })
    );
}

/// Which roles the doors of administration open for, said once more than the role table says it: a slip there is seen here.
#[tokio::test]
async fn operators_see_the_audit_and_the_health_alone_and_whoever_is_neither_sees_nothing() {
    let house = House::open().await;
    let paths = ["audit", "events/parked", "health"];
    for role in Role::ALL {
        let caller = house.person(role.as_str());
        for path in paths {
            let answer = house.get(&format!("/api/v1/admin/{path}")).bearer_auth(&caller.token).send().await.unwrap();
            let may = match role {
                Role::Admin => true,
                Role::Operator => ["audit", "health"].contains(&path),
                _ => false,
            };
            assert_eq!(answer.status() == StatusCode::OK, may, "{role} {path}");
            if !may {
                problem(answer, 403, "forbidden").await;
            }
        }
    }
}
