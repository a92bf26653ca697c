//! What people and programs give us in confidence is told nowhere that an operator looks: every value that must not be
//! shown is marked, the house is made as talkative as it can be, and then everything that it told is searched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    collector::Collector,
    house::House,
    person::{Person, answer},
    wait::SOON,
};

const EMAIL: &str = "mark-email-7f3a91";
const NAME: &str = "mark-name-55e1c0";
const PASSWORD: &str = "mark-password-91c2d7";
const WRONG_PASSWORD: &str = "mark-wrong-3b8d11";
const BAD_TOKEN: &str = "mark-token-a41e77";
const ARGUMENT: &str = "mark-argument-0d7b3f";
const FAILURE: &str = "mark-failure-c9e204";
const QUERY: &str = "mark-query-6612aa";
const FILE: &str = "mark-file-8e07b5";
const AGENT: &str = "mark-agent-1fd9c3";
const IDEMPOTENCY_KEY: &str = "mark-idempotency-77aa02";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_given_in_confidence_is_in_a_log_a_trace_or_a_metric() {
    let collector = Collector::open().await;
    let endpoint = collector.endpoint();
    let mut house =
        House::open_with(&[("otlp_endpoint", &endpoint), ("log_filter", "debug"), ("log_format", "json")]).await;
    let secrets = use_everything(&house).await;
    let metrics = Person::stranger(&house.ready().ops);
    let metrics = metrics.request(Method::GET, "/metrics").await.send().await.expect("an answer");
    let metrics = metrics.text().await.expect("a page");
    // Once more as text, which is written by other code.
    house.signal(nix::sys::signal::Signal::SIGTERM);
    house.ended().await;
    house.set("log_format", "text");
    house.set("log_filter", "trace");
    house.reopen().await;
    let person = Person::login(&house.ready().http, &address(), PASSWORD).await;
    person.get("/api/v1/me").await.expect(200);
    let logs = server_logs(house.dir());
    let log = house.log();
    house.close().await;

    let spans: String = collector.seen().into_iter().map(|span| span.text + "\n").collect();
    assert!(log.contains("\"target\":\"sqlx::query\""), "the house was not as talkative as it can be");
    assert!(spans.contains("auth.login") && metrics.contains("guildhall_http_requests_total"));
    let told = [("the log", log), ("the traces", spans), ("the metrics", metrics), ("Postgres' log", logs)];
    for (place, text) in &told {
        for (what, secret) in &secrets {
            let found = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(found.is_none(), "{what} is in {place}: {}", found.unwrap_or_default());
        }
    }
}

fn address() -> String {
    format!("{EMAIL}@example.org")
}

/// Does, well and badly, whatever takes something that must not be shown; everything that was given, by what it is.
async fn use_everything(house: &House) -> Vec<(&'static str, String)> {
    let base = house.ready().http.clone();
    let stranger = Person::stranger(&base);
    let register = json!({ "email": address(), "password": PASSWORD, "display_name": NAME });
    stranger.post("/api/v1/auth/register", &register).await.expect(201);
    // A second one meets a constraint of the database, which names the value in its error.
    stranger.post("/api/v1/auth/register", &register).await.expect(409);
    let wrong = json!({ "email": address(), "password": WRONG_PASSWORD });
    stranger.post("/api/v1/auth/login", &wrong).await.expect(401);
    let broken = json!({ "email": format!("{EMAIL}@@"), "password": PASSWORD, "display_name": NAME, "more": ARGUMENT });
    assert!(stranger.post("/api/v1/auth/register", &broken).await.status.is_client_error());
    let refused = stranger.request(Method::GET, "/api/v1/me").await.bearer_auth(BAD_TOKEN);
    answer(refused).await.expect(401);

    let right = json!({ "email": address(), "password": PASSWORD });
    let pair = stranger.post("/api/v1/auth/login", &right).await.expect(200);
    let token = |pair: &Value, name: &str| pair[name].as_str().expect("a token").to_owned();
    let refresh = json!({ "refresh_token": token(&pair, "refresh_token") });
    let fresh = stranger.post("/api/v1/auth/refresh", &refresh).await.expect(200);

    let person = Person::login(&base, &address(), PASSWORD).await;
    let submit = json!({ "task": "demo_echo", "args": { "value": ARGUMENT } });
    let request = person.request(Method::POST, "/api/v1/jobs").await.json(&submit);
    let request = request.header("idempotency-key", IDEMPOTENCY_KEY).header("user-agent", AGENT);
    let job = answer(request).await.expect(202);
    person.finished(job["id"].as_str().expect("an id"), SOON).await;
    let fails = json!({ "times": 9, "kind": "provider", "message": FAILURE });
    let failing = person.submit("demo_fail", fails).await;
    person.field(&failing, "error").await;
    person.get(&format!("/api/v1/jobs?tag={QUERY}")).await.expect(200);
    person.upload(vec![(format!("{FILE}.png"), crate::pictures::small_png())]).await;

    let mut secrets: Vec<_> = [
        ("an e-mail address", EMAIL),
        ("a name", NAME),
        ("a password", PASSWORD),
        ("a wrong password", WRONG_PASSWORD),
        ("a token that is none", BAD_TOKEN),
        ("a job's argument", ARGUMENT),
        ("a task's message", FAILURE),
        ("a query", QUERY),
        ("a file's name", FILE),
        ("a user agent", AGENT),
        ("an idempotency key", IDEMPOTENCY_KEY),
    ]
    .map(|(what, mark)| (what, mark.to_owned()))
    .to_vec();
    for pair in [&pair, &fresh] {
        secrets.push(("a refresh token", token(pair, "refresh_token")));
        // Its last part is what makes it good.
        let access = token(pair, "access_token");
        secrets.push(("an access token", access.rsplit('.').next().expect("a part").to_owned()));
    }
    for key in fs::read_dir(house.data_dir().join("keys")).expect("the house's keys") {
        let key = fs::read_to_string(key.expect("an entry").path()).expect("a key");
        secrets.push(("a key of the house", key.trim().to_owned()));
    }
    secrets
}

/// What the private Postgres wrote, wherever in the house it lies.
fn server_logs(dir: &Path) -> String {
    let mut found = String::new();
    let mut folders: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "log") {
                found.push_str(&fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    found
}
