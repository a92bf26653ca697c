//! The edge.

use std::time::Duration;

use gateway::Settings;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::house::{House, PATIENCE, problem, until};

/// What the gateway says on a socket until it closes it.
async fn heard(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // Being cut off may show as a reset.
    let _ = timeout(PATIENCE, socket.read_to_end(&mut text)).await.expect("the connection is closed");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_client_that_takes_too_long_over_its_head_is_cut_off() {
    let house = House::with(Settings { header_read_s: 1, ..Settings::default() }).await;
    // Silence, half a head, half of what begins HTTP/2, and silence after a request.
    for said in ["", "GET /livez HTTP/1.1\r\nhost: x\r\nx-slow:", "PRI * HTTP/2.0\r\n"] {
        let mut socket = TcpStream::connect(house.socket()).await.unwrap();
        socket.write_all(said.as_bytes()).await.unwrap();
        let heard = heard(&mut socket).await;
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 408"), "{said:?} was answered {heard:?}");
    }
    let mut socket = TcpStream::connect(house.socket()).await.unwrap();
    socket.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(heard(&mut socket).await.contains("\"alive\""));
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_given_up() {
    let house = House::with(Settings { stall_s: 1, ..Settings::default() }).await;
    let mut socket = TcpStream::connect(house.socket()).await.unwrap();
    let head =
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    let heard = heard(&mut socket).await;
    assert!(heard.starts_with("HTTP/1.1 408") && heard.contains("request.stalled"), "{heard}");
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_given_up() {
    let house = House::with(Settings { stall_s: 1, http_requests_max: 1, ..Settings::default() }).await;
    let ada = house.customer();
    // Larger than what two sockets hold between them.
    let form =
        reqwest::multipart::Form::new().part("file", reqwest::multipart::Part::bytes(vec![7; 48 << 20]).file_name("a"));
    let answer = house.post("/api/v1/files").bearer_auth(&ada.token).multipart(form).send().await.unwrap();
    let id = answer.json::<Value>().await.unwrap()["items"][0]["id"].as_str().unwrap().to_owned();
    let mut socket = TcpStream::connect(house.socket()).await.unwrap();
    let head =
        format!("GET /api/v1/files/{id}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", ada.token);
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    socket.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    // Its place among the requests is given back, though the socket is still open.
    let until = tokio::time::Instant::now() + PATIENCE;
    while house.get("/api/openapi.json").send().await.unwrap().status() != 200 {
        assert!(tokio::time::Instant::now() < until, "a reader that does not read keeps its place");
    }
}

#[tokio::test]
async fn a_path_or_method_that_does_not_exist_is_a_problem_like_any_other() {
    let house = House::open().await;
    problem(house.get("/api/v1/nothing").send().await.unwrap(), 404, "not_found").await;
    problem(house.get("/").send().await.unwrap(), 404, "not_found").await;
    let answer = house.delete("/api/v1/jobs").send().await.unwrap();
    let allow = answer.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    problem(answer, 405, "request.method_not_allowed").await;
    let answer = house.client.head(format!("{}/api/v1/nothing", house.url)).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn a_panic_is_one_requests_own_and_tells_nothing() {
    let house = House::open().await;
    let body = serde_json::json!({"email": "panic@example.com", "password": "p", "display_name": "P"});
    let answer = house.post("/api/v1/auth/register").json(&body).send().await.unwrap();
    let told = problem(answer, 500, "internal").await;
    assert!(!told.to_string().contains("asked to"), "{told}");
    assert_eq!(house.get("/livez").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_sensible_request_id_is_kept_and_any_other_replaced() {
    let house = House::open().await;
    let ada = house.customer();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let send = |id: &'static str, trace: &'static str| {
        let request =
            house.post("/api/v1/jobs").bearer_auth(&ada.token).header("x-request-id", id).header("traceparent", trace);
        request.json(&serde_json::json!({"task": "demo_echo", "args": {}})).send()
    };
    let answer = send("deploy-7.a:b_c", traceparent).await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "deploy-7.a:b_c");
    let call = house.jobs.last_call();
    assert_eq!((call.request_id.as_str(), call.traceparent.as_deref()), ("deploy-7.a:b_c", Some(traceparent)));

    for id in [
        "",
        "a b",
        "<script>",
        "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
    ] {
        let answer = send(id, "00-zz-00f067aa0ba902b7-01").await.unwrap();
        let made = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_ne!(made, id);
        let call = house.jobs.last_call();
        assert_eq!((call.request_id, call.traceparent), (made, None));
    }
}

#[tokio::test]
async fn answers_carry_what_browsers_are_to_hold_to() {
    let house = House::open().await;
    for path in ["/livez", "/api/v1/nothing", "/api/docs"] {
        let answer = house.get(path).send().await.unwrap();
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers()["referrer-policy"], "no-referrer", "{path}");
        assert!(
            answer.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"),
            "{path}"
        );
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{path}");
        assert!(!answer.headers().contains_key("server"), "{path}");
    }
}

#[tokio::test]
async fn only_listed_origins_may_call_from_a_browser() {
    let settings = Settings { cors_origins: vec!["https://app.example.com".into()], ..Settings::default() };
    let house = House::with(settings).await;
    let preflight = |origin: &'static str| {
        let url = format!("{}/api/v1/jobs", house.url);
        let request = house.client.request(reqwest::Method::OPTIONS, url).header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, idempotency-key")
            .send()
    };
    let answer = preflight("https://app.example.com").await.unwrap();
    assert!(answer.status().is_success());
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
    assert!(answer.headers()["access-control-allow-headers"].to_str().unwrap().contains("idempotency-key"));
    let answer = preflight("https://evil.example.com").await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    // A refusal can be read too.
    let answer = house.get("/api/v1/me").header("origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
    problem(answer, 401, "auth.required").await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_told_at_start() {
    use kit::{
        grpc::{Credential, Guard, Peer},
        identity::Verifier,
    };
    let try_with = |settings: Settings| async move {
        let verifier = Verifier::new("x", std::sync::Arc::new(|| Box::pin(async { Ok(String::new()) })));
        let peer = Peer::local(tonic::service::Routes::default(), &Guard::new(verifier.clone()));
        let folder = tempfile::tempdir().unwrap();
        let started = gateway::Gateway::start(gateway::Parts {
            settings: Settings { http_listen: "127.0.0.1:0".parse().unwrap(), ..settings },
            public_url: "http://x".into(),
            auth: peer.clone(),
            jobs: peer.clone(),
            admin: peer.clone(),
            verifier,
            storage: kit::storage::Storage::open(&format!("file://{}", folder.path().display()), None, None).unwrap(),
            clock: kit::Clock::system(),
            tasks: kit::tasks::Tasks::new(),
            credential: Credential::new(peer, kit::Secret::default(), "service_key"),
        });
        started.await.map(drop).map_err(|fail| fail.code().to_owned())
    };
    let refused =
        try_with(Settings { cors_origins: vec!["https://a.example/path".into()], ..Settings::default() }).await;
    assert_eq!(refused, Err("config.cors_origins".into()));
    let refused = try_with(Settings { trusted_proxies: vec!["10.0.0.0/40".into()], ..Settings::default() }).await;
    assert_eq!(refused, Err("config.trusted_proxies".into()));
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_at_once() {
    let house = House::with(Settings { http_requests_max: 1, ..Settings::default() }).await;
    let ada = house.customer();
    house.jobs.gate.send_replace(false);
    let path = format!("/api/v1/jobs/{}", house.clock.new_id());
    let slow = house.get(&path).bearer_auth(&ada.token).send();
    let (slow, ()) = tokio::join!(slow, async {
        until(&house.jobs.waiting, |count| *count == 1).await;
        let answer = house.get("/api/openapi.json").send().await.unwrap();
        assert_eq!(answer.headers()["retry-after"], "1");
        problem(answer, 503, "busy").await;
        // Whoever asks whether the process lives is answered all the same.
        assert_eq!(house.get("/livez").send().await.unwrap().status(), 200);
        house.jobs.gate.send_replace(true);
    });
    assert_eq!(slow.unwrap().status(), 200);
    assert_eq!(house.get("/api/openapi.json").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn one_address_leaves_half_of_the_requests_to_others() {
    let settings =
        Settings { http_requests_max: 4, trusted_proxies: vec!["127.0.0.0/8".into()], ..Settings::default() };
    let house = House::with(settings).await;
    let status_for = async |address: &'static str| {
        let answer = house.get("/api/openapi.json").header("x-forwarded-for", address).send().await.unwrap();
        let status = answer.status();
        if status != 200 {
            problem(answer, 503, "busy").await;
        } else {
            answer.bytes().await.unwrap();
        }
        status
    };
    // Somebody who sends bodies of which the rest never comes.
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 2001:db8:1:2::7\r\n\
                content-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    let mut trickling = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(house.socket()).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        trickling.push(socket);
    }
    // A neighbour within what one customer is given is the same customer.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while status_for("2001:db8:1:2::8").await == 200 {
        assert!(tokio::time::Instant::now() < deadline, "one address may take more than half");
    }
    assert_eq!(status_for("2001:db8:1:3::7").await, 200);
    assert_eq!(status_for("203.0.113.7").await, 200);
    drop(trickling);
    while status_for("2001:db8:1:2::8").await != 200 {
        assert!(tokio::time::Instant::now() < deadline, "its places are not given back");
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_at_work_and_takes_no_more() {
    let house = House::open().await;
    let ada = house.customer();
    house.jobs.gate.send_replace(false);
    let mut stream = house
        .get(&format!("/api/v1/jobs/{}/events", house.clock.new_id()))
        .bearer_auth(&ada.token)
        .send()
        .await
        .unwrap();
    let first = stream.chunk().await.unwrap().unwrap();
    assert_eq!(&first[..], b"retry: 1000\n\n");

    let path = format!("/api/v1/jobs/{}", house.clock.new_id());
    let slow = house.get(&path).bearer_auth(&ada.token).send();
    let (slow, ()) = tokio::join!(slow, async {
        until(&house.jobs.waiting, |count| *count == 1).await;
        house.tasks.stop();
        // The stream is told when to come back, and ends.
        let last = timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap().unwrap();
        assert!(last.starts_with(b"retry: "), "{last:?}");
        assert_eq!(timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap(), None);
        house.jobs.gate.send_replace(true);
    });
    assert_eq!(slow.unwrap().status(), 200);
    assert!(house.tasks.join(Duration::from_secs(20)).await, "something did not end by itself");
    assert!(TcpStream::connect(house.socket()).await.is_err(), "connections are still taken");
}

#[tokio::test]
async fn the_client_behind_a_trusted_proxy_is_who_signs_in() {
    let settings = Settings { trusted_proxies: vec!["127.0.0.0/8".into()], ..Settings::default() };
    let house = House::with(settings).await;
    let body = serde_json::json!({"email": "ada@example.com", "password": "right"});
    let request = house
        .post("/api/v1/auth/login")
        .header("x-forwarded-for", "6.6.6.6, 203.0.113.7")
        .header("user-agent", "browser");
    assert_eq!(request.json(&body).send().await.unwrap().status(), 200);
    let seen = house.auth.login.lock().take().unwrap();
    assert_eq!((seen.remote_address.as_str(), seen.user_agent.as_str()), ("203.0.113.7", "browser"));

    let house = House::open().await;
    let request = house.post("/api/v1/auth/login").header("x-forwarded-for", "203.0.113.7");
    request.json(&body).send().await.unwrap();
    assert_eq!(house.auth.login.lock().take().unwrap().remote_address, "127.0.0.1");
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_no_more() {
    let house = House::open().await;
    let answer = house.get("/readyz").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap(), serde_json::json!({"ready": true, "waiting_for": []}));
    let answer = house.get("/.well-known/jwks.json").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/jwk-set+json");
    assert_eq!(answer.json::<Value>().await.unwrap()["keys"][0]["kid"], "test");
}
