//! Roles in processes of their own, by `guildhall serve`: what they must be told, how they find each other, and what they
//! say when one is not there. The database is the test's own; the services run in one process, so that no broker is needed.

#[path = "../system/wait.rs"]
mod wait;

mod certificates;
mod doctor;
mod foreign;
mod place;

use std::time::{Duration, Instant};

use kit::{
    grpc::{Call, Peer},
    tasks::Tasks,
};
use nix::sys::signal::Signal;
use proto::{
    auth::{LoginRequest, sessions_client::SessionsClient},
    jobs::{ListQueuesRequest, queues_client::QueuesClient},
};
use serde_json::{Value, json};

use certificates::{Ca, is_answered};
use place::{PASSWORD, Place, Process};
use wait::{SOON, until};

const SERVICES: &[&str] = &["serve", "auth", "jobs", "admin"];
/// Nobody listens there, and nobody has to: what is told waits.
const NO_BROKER: (&str, &str) = ("amqp_url", "amqp://127.0.0.1:1");

#[tokio::test]
async fn what_roles_apart_must_be_told_is_told_at_once_and_nothing_is_begun() {
    let place = Place::without_settings().await;
    let expected = [
        (
            &["serve", "auth"][..],
            &["database_url", "amqp_url", "public_url", "service_key", "worker_key", "admin_url"][..],
        ),
        (
            &["serve", "gateway", "worker"],
            &["storage_url", "public_url", "service_key", "worker_key", "auth_url", "jobs_url"],
        ),
        (&["check-config", "jobs"], &["database_url", "amqp_url", "storage_url", "auth_url"]),
    ];
    for (arguments, names) in expected {
        let (code, said) = place.run("lacking", arguments, &[]).await;
        assert_eq!(code, Some(64), "{arguments:?}: {said}");
        for name in names {
            assert!(said.contains(&format!("  {name} ")), "{arguments:?} does not tell of {name}: {said}");
        }
    }
    let contradictions = [
        ("tls_ca_file", "/ca"),
        ("jobs_url", "https://jobs:7002"),
        ("service_key", "open sesame"),
        ("grpc_listen", "127.0.0.1:7001"),
        ("database_url", "mysql://x"),
        ("storage_url", "/tmp/x"),
    ];
    let (code, said) = place.run("lacking", SERVICES, &contradictions).await;
    assert_eq!(code, Some(64), "{said}");
    for (name, _) in contradictions {
        assert!(said.contains(&format!("  {name} ")), "{name} is not told: {said}");
    }
    assert!(!said.contains("sesame"), "a secret was shown: {said}");
    assert!(!place.data_dir("lacking").exists(), "something was begun");
}

#[tokio::test]
async fn a_service_refuses_a_schema_older_than_itself_and_says_the_way_out() {
    let place = Place::new().await;
    let (code, said) = place.run("services", SERVICES, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`guildhall migrate`"), "{said}");
    let (code, said) = place.run("services", &["doctor", "auth", "jobs", "admin"], &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`guildhall migrate`"), "{said}");
    for said_of_it in ["is at this version", "was at this version already"] {
        let (code, said) = place.run("migrate", &["migrate"], &[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(said_of_it) && !said.contains("_sqlx_migrations"), "{said}");
    }
    let services = place.start("services", SERVICES, &[("grpc_listen", "127.0.0.1:0")]).await;
    foreign::tool_learns_nothing(&services, &signed_in(&services).await).await;
    services.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own_do_a_job_lose_each_other_and_find_each_other_again() {
    let mut place = Place::new().await;
    place.migrate().await;
    let services = place.start("services", SERVICES, &[("grpc_listen", "127.0.0.1:0")]).await;
    assert!(services.ready["http"].is_null(), "only a gateway has a public door: {}", services.ready);
    place.others_are_at(&services);
    // It is told no more than it needs.
    let worker = [("demo_tasks", "on"), ("service_key", ""), ("database_url", "")];
    let worker = place.start("worker", &["serve", "worker"], &worker).await;
    let gateway = place.start("gateway", &["serve", "gateway"], &[]).await;
    until("the worker", SOON, async || worker.is_ready().await.then_some(())).await;
    assert!(gateway.is_ready().await);
    let (code, said) = place.run("gateway-doctor", &["doctor", "gateway"], &[("http_listen", "127.0.0.1:0")]).await;
    assert_eq!(code, Some(0), "{said}");

    let admin = gateway.signed_in().await;
    does_a_job(&gateway, &admin).await;
    until("the health of all", SOON, async || {
        let (_, health) = gateway.get("admin/health", &admin).await;
        (health["ok"] == true).then_some(())
    })
    .await;

    // Away, and back where they were.
    services.kill().await;
    let refusal = gateway.post("jobs", Some(&admin), &json!({ "task": "demo_echo", "args": { "value": 1 } })).await;
    assert_eq!((refusal.0, &refusal.1["code"]), (503, &json!("unavailable")), "{refusal:?}");
    assert!(!gateway.is_ready().await);
    let (code, said) = place.run("gateway-doctor", &["doctor", "gateway"], &[("http_listen", "127.0.0.1:0")]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nobody serves at"), "{said}");

    let mut back = Vec::new();
    for role in ["auth", "jobs", "admin"] {
        let address = place.address_of(role);
        back.push(place.start(role, &["serve", role], &[("grpc_listen", &address), NO_BROKER]).await);
    }
    until("the gateway", SOON, async || gateway.is_ready().await.then_some(())).await;
    until("the worker", SOON, async || worker.is_ready().await.then_some(())).await;
    does_a_job(&gateway, &admin).await;

    for process in [gateway, worker].into_iter().chain(back) {
        process.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_with_certificates_do_a_job_and_whoever_shows_none_of_theirs_is_refused() {
    let mut place = Place::new().await;
    place.migrate().await;
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let (ours, foreign) = (place.data_dir("tls"), place.data_dir("foreign-tls"));
    ca.issue(&ours);
    other_ca.issue(&foreign);
    for (name, file) in [("tls_cert_file", "cert.pem"), ("tls_key_file", "key.pem"), ("tls_ca_file", "ca.pem")] {
        place.set(name, &ours.join(file).display().to_string());
    }
    let services = place.start("services", SERVICES, &[("grpc_listen", "127.0.0.1:0")]).await;
    place.others_are_at(&services);
    let worker = place.start("worker", &["serve", "worker"], &[("demo_tasks", "on")]).await;
    let gateway = place.start("gateway", &["serve", "gateway"], &[]).await;
    until("the worker", SOON, async || worker.is_ready().await.then_some(())).await;
    until("the gateway", SOON, async || gateway.is_ready().await.then_some(())).await;
    does_a_job(&gateway, &gateway.signed_in().await).await;

    for role in ["auth", "jobs", "admin"] {
        let url = services.ready["grpc"][role].as_str().expect("a URL").to_owned();
        let address = url.strip_prefix("https://").unwrap_or_else(|| panic!("{url} is of no TLS")).to_owned();
        assert!(
            is_answered(&address, ca.caller(Some(&ours))).await,
            "{role} refuses a certificate of its own authority"
        );
        assert!(!is_answered(&address, ca.caller(None)).await, "{role} answers who shows no certificate");
        assert!(!is_answered(&address, ca.caller(Some(&foreign))).await, "{role} answers a foreign certificate");
    }
    // A whole process of another authority's finds nobody.
    let foreign_cert = foreign.join("cert.pem").display().to_string();
    let foreign_key = foreign.join("key.pem").display().to_string();
    let settings = [("http_listen", "127.0.0.1:0"), ("tls_cert_file", &foreign_cert), ("tls_key_file", &foreign_key)];
    let (code, said) = place.run("doctor-foreign", &["doctor", "gateway"], &settings).await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("nobody serves at").count(), 3, "{said}");
    let (code, said) = place.run("doctor", &["doctor", "gateway"], &settings[..1]).await;
    assert_eq!(code, Some(0), "{said}");
    for process in [gateway, worker, services] {
        process.close().await;
    }
}

/// A call to a role that is away waits three seconds for it, and the first such calls begin as the process opens.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_roles_that_are_away_stops_as_soon_as_it_is_asked_to() {
    let mut place = Place::new().await;
    for role in ["auth", "jobs", "admin"] {
        place.set(&format!("{role}_url"), "http://127.0.0.1:1");
    }
    for role in ["gateway", "worker"] {
        let process = place.start(role, &["serve", role], &[]).await;
        let asked = Instant::now();
        process.close().await;
        assert!(asked.elapsed() < Duration::from_millis(1500), "{role} took {:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_auth_does_not_know_is_told_by_its_setting_and_makes_a_process_unready() {
    let mut place = Place::new().await;
    place.migrate().await;
    let services = place.start("services", SERVICES, &[("grpc_listen", "127.0.0.1:0")]).await;
    place.others_are_at(&services);
    let wrong = auth::new_service_key().expect("randomness").expose().clone();
    for name in ["service_key", "worker_key"] {
        let (code, said) = place.run("doctor", &["doctor", "worker"], &[(name, &wrong)]).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("auth does not know the {name} of this process")), "{said}");
    }
    let gateway = place.start("gateway", &["serve", "gateway"], &[("service_key", &wrong)]).await;
    assert!(!gateway.is_ready().await);
    gateway.close().await;
    services.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_auths_that_start_at_once_make_one_administrator_and_both_let_it_in() {
    let mut place = Place::new().await;
    place.migrate().await;
    place.set("admin_url", "http://127.0.0.1:1");
    let settings = [("grpc_listen", "127.0.0.1:0"), NO_BROKER];
    let (a, b) =
        tokio::join!(place.start("a", &["serve", "auth"], &settings), place.start("b", &["serve", "auth"], &settings));
    let sql = "select count(*) from auth.user_role where role = 'admin'";
    let count: i64 = sqlx::query_scalar(sql).fetch_one(place.pool()).await.expect("a count");
    assert_eq!(count, 1);
    for auth in [&a, &b] {
        signed_in(auth).await;
    }
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_opens_grpc_ports_when_asked_to_and_their_guard_stands_before_them() {
    let place = Place::new().await;
    let up = place.start("up", &["up", "--no-sample"], &[("grpc_listen", "127.0.0.1:0")]).await;
    for role in ["auth", "jobs", "admin"] {
        assert!(
            up.ready["grpc"][role].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")),
            "{}",
            up.ready
        );
    }
    let mut queues = QueuesClient::new(peer(&up, "jobs"));
    let refusal = queues.list(Call::anonymous("test").request(ListQueuesRequest::default())).await;
    assert_eq!(kit::Fail::from(refusal.expect_err("nobody is signed in")).code(), "auth.required");
    foreign::worker_is_welcome(&up, &place.setting("worker_key")).await;
    // Its stream is kept open: whoever looks around holds up no stop.
    let _looking = foreign::tool_learns_what_is_served(&up, &up.signed_in().await).await;
    up.signal(Signal::SIGINT);
    assert_eq!(up.ended().await, Some(0));
}

async fn does_a_job(gateway: &Process, token: &str) {
    let (status, job) =
        gateway.post("jobs", Some(token), &json!({ "task": "demo_echo", "args": { "value": 1 } })).await;
    assert_eq!(status, 202, "{job}");
    let path = format!("jobs/{}", job["id"].as_str().expect("an id"));
    let job: Value = until("the job's end", SOON, async || {
        let (_, job) = gateway.get(&path, token).await;
        (!job["finished_at"].is_null()).then_some(job)
    })
    .await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
}

/// The first administrator's access token, from the port of `auth` itself.
async fn signed_in(auth: &Process) -> String {
    let mut sessions = SessionsClient::new(peer(auth, "auth"));
    let message = LoginRequest { email: "admin@guildhall.localhost".to_owned(), password: PASSWORD.to_owned() };
    let tokens = sessions.login(Call::anonymous("test").request(message)).await.expect("it is let in");
    tokens.into_inner().access_token
}

fn peer(process: &Process, role: &'static str) -> Peer {
    let url = process.ready["grpc"][role].as_str().expect("a URL").to_owned();
    Peer::remote(role, &[url], None, &Tasks::new()).expect("a good URL")
}
