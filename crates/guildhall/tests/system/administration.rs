//! Administration, over the public API: who is kept out is out at once, at every gateway; every act stands in the audit log,
//! once, and is told to those alone who may read it; how each role fares is seen.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    house::House,
    person::{Person, answer},
    place::{Place, in_both_shapes},
    wait::{SOON, until},
};

/// Within so much of an administrator's answer, nothing of a disabled user goes on.
const AT_ONCE: Duration = Duration::from_secs(1);
/// So many refusals one after the other come from all gateways there are.
const REFUSALS: u32 = 20;

in_both_shapes! {
    what_a_disabled_user_has_open_ends_within_a_second
    each_act_stands_in_the_audit_log_once_and_is_told_to_those_who_may_read_it
    one_look_shows_how_every_role_fares
}

async fn what_a_disabled_user_has_open_ends_within_a_second(place: Place) {
    let (administrator, user) = (place.administrator().await, place.newcomer("ada").await);
    let job_id = user.submit("demo_sleep", json!({ "seconds": 600 })).await;
    let credentials = json!({ "email": user.email, "password": user.password });
    let stranger = Person::stranger(place.http());
    let tokens = stranger.post("/api/v1/auth/login", &credentials).await.expect(200);
    let stream = user.request(Method::GET, &format!("/api/v1/jobs/{job_id}/events")).await.send().await;
    let mut stream = stream.expect("an answer").bytes_stream();
    stream.next().await.expect("an event").expect("a whole one");

    let path = format!("/api/v1/admin/users/{}/disable", user.id);
    let shown = administrator.post(&path, &json!({ "reason": "a test" })).await.expect(200);
    assert!(shown["disabled_at"].is_string(), "{shown:#}");
    let since = Instant::now();
    let requests = async {
        let (mut last, mut refusals) = (Duration::ZERO, 0);
        while refusals < REFUSALS {
            match user.get("/api/v1/me").await.status {
                StatusCode::UNAUTHORIZED => refusals += 1,
                _ => (last, refusals) = (since.elapsed(), 0),
            }
        }
        last
    };
    let streams = async {
        while let Some(Ok(_)) = stream.next().await {}
        since.elapsed()
    };
    let refreshes = async {
        stranger.post("/api/v1/auth/refresh", &json!({ "refresh_token": tokens["refresh_token"] })).await.expect(401);
        since.elapsed()
    };
    let ended = tokio::time::timeout(SOON, async { tokio::join!(requests, streams, refreshes) }).await;
    let (requests, streams, refreshes) = ended.expect("all of it ends");
    println!("the last request after {requests:?}, the stream's end after {streams:?}, no refresh after {refreshes:?}");
    assert!([requests, streams, refreshes].iter().all(|took| *took < AT_ONCE));
    let refused = stranger.post("/api/v1/auth/login", &credentials).await;
    assert!(refused.status.is_client_error(), "{refused:?}");

    // And back again.
    let enable = format!("/api/v1/admin/users/{}/enable", user.id);
    assert_eq!(administrator.post(&enable, &json!({})).await.expect(200)["disabled_at"], Value::Null);
    let user = user.at(place.http()).await;
    user.post(&format!("/api/v1/jobs/{job_id}/cancel"), &json!({})).await.expect(202);
    place.close().await;
}

async fn each_act_stands_in_the_audit_log_once_and_is_told_to_those_who_may_read_it(place: Place) {
    let (administrator, user) = (place.administrator().await, place.newcomer("ada").await);
    let mut operator = place.newcomer("olga").await;
    let request_id = |act: &str| format!("{act}-{}", user.id);
    let set_roles = format!("/api/v1/admin/users/{}/roles", operator.id);
    let request = administrator.request(Method::PUT, &set_roles).await.header("x-request-id", request_id("roles"));
    answer(request.json(&json!({ "roles": ["operator"], "reason": "a new job" }))).await.expect(200);
    operator.sign_in().await;
    let job_id = user.submit("demo_sleep", json!({ "seconds": 600 })).await;
    let cancel = operator.request(Method::POST, &format!("/api/v1/jobs/{job_id}/cancel")).await;
    answer(cancel.header("x-request-id", request_id("cancel")).json(&json!({}))).await.expect(202);
    // Refused, which is an act too: somebody has tried.
    let own = format!("/api/v1/admin/users/{}/disable", administrator.id);
    let refused = administrator.request(Method::POST, &own).await.header("x-request-id", request_id("refused"));
    answer(refused.json(&json!({}))).await.expect(403);

    let expected = [
        ("roles", "auth", "user.set_roles", &administrator, operator.id.as_str(), "done"),
        ("cancel", "jobs", "job.cancel", &operator, job_id.as_str(), "done"),
        ("refused", "auth", "user.disable", &administrator, administrator.id.as_str(), "refused"),
    ];
    for (act, service, action, actor, target, outcome) in expected {
        let request_id = request_id(act);
        let path = format!("/api/v1/admin/audit?request_id={request_id}");
        let entries = until(&format!("the entry of {request_id}"), SOON, async || {
            let entries = administrator.list(&path).await;
            (!entries.is_empty()).then_some(entries)
        })
        .await;
        let [entry] = entries.as_slice() else { panic!("{entries:#?}") };
        let told = [&entry["service"], &entry["action"], &entry["actor_id"], &entry["target_id"], &entry["outcome"]];
        assert_eq!(told, [service, action, &actor.id, target, outcome], "{entry:#}");
        assert_eq!((&entry["actor_kind"], &entry["request_id"]), (&json!("user"), &json!(request_id)));
        assert!(entry["credential"].as_str().is_some_and(|shown| shown.starts_with("session:")), "{entry:#}");
        assert_eq!(entry["remote_address"], "127.0.0.1", "{entry:#}");
    }

    // Everybody's sign-ins are there as well, and nothing of them is an operator's to read.
    let signed_in = administrator.list(&format!("/api/v1/admin/audit?target_id={}", user.id)).await;
    assert!(signed_in.iter().any(|entry| entry["action"] == "user.login"), "{signed_in:#?}");
    let jobs = operator.list("/api/v1/admin/audit").await;
    assert!(!jobs.is_empty() && jobs.iter().all(|entry| entry["service"] == "jobs"), "{jobs:#?}");
    assert_eq!(operator.list("/api/v1/admin/audit?service=auth").await, Vec::<Value>::new());
    for path in ["audit", "users", "health", "events/parked"] {
        user.get(&format!("/api/v1/admin/{path}")).await.expect(403);
    }
    for path in ["users", "events/parked"] {
        operator.get(&format!("/api/v1/admin/{path}")).await.expect(403);
    }
    place.close().await;
}

async fn one_look_shows_how_every_role_fares(place: Place) {
    let health = all_is_well(&place.administrator().await).await;
    let replicas = health["replicas"].as_array().expect("a list");
    let live = |role: &str| {
        let has = |replica: &&Value| replica["roles"].as_array().is_some_and(|roles| roles.contains(&json!(role)));
        replicas.iter().filter(|replica| replica["live"] == true).filter(has).count()
    };
    let told = [live("gateway"), live("auth"), live("jobs"), live("admin"), live("worker")];
    let expected = if place.house().is_some() { [1; 5] } else { [2, 2, 2, 2, 3] };
    assert_eq!(told, expected, "{health:#}");
    for service in ["auth", "jobs", "admin"] {
        let mut lags = replicas.iter().flat_map(|replica| replica["lags"].as_array().into_iter().flatten());
        assert!(lags.any(|lag| lag["service"] == service), "{health:#}");
    }
    let on_bus = replicas.iter().flat_map(|replica| replica["dependencies"].as_array().into_iter().flatten());
    let on_bus = on_bus.filter(|on| on["name"] == "bus" && on["ok"] == true).count();
    assert_eq!(
        on_bus,
        if place.house().is_some() { 0 } else { 6 },
        "services tell each other over RabbitMQ: {health:#}"
    );
    if let Some(house) = place.house() {
        assert_eq!(replicas[0]["pid"], house.pid(), "{health:#}");
        // The same checks as behind the operations port.
        let inside = Person::stranger(&house.ready().ops).get("/readyz").await.expect(200);
        let mut checks: Vec<&str> = inside["checks"].as_object().expect("checks").keys().map(String::as_str).collect();
        let told = replicas[0]["dependencies"].as_array().expect("a list");
        let mut told: Vec<&str> = told.iter().filter_map(|on| on["name"].as_str()).collect();
        checks.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, checks);
    }
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_all_is_well_again() {
    let mut house = House::open().await;
    all_is_well(&house.administrator().await).await;
    house.kill().await;
    house.reopen().await;
    let health = all_is_well(&house.administrator().await).await;
    let replicas = health["replicas"].as_array().expect("a list");
    assert!(replicas.iter().any(|replica| replica["pid"] == house.pid() && replica["live"] == true), "{health:#}");
    house.close().await;
}

async fn all_is_well(administrator: &Person) -> Value {
    until("all to be well", SOON, async || {
        let health = administrator.get("/api/v1/admin/health").await.expect(200);
        (health["ok"] == true).then_some(health)
    })
    .await
}
