//! What comes in, and how it is refused.

use serde_json::{Value, json};

use crate::house::{FOREIGN, House, pointers, problem};

fn fault(pointer: &str, code: &str) -> (String, String) {
    (pointer.to_owned(), code.to_owned())
}

#[tokio::test]
async fn a_job_is_passed_on_whole_and_answered_as_the_contract_shows_it() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({
        "task": "demo_echo", "args": {"value": [1, null, "x"]}, "queue": "default", "priority": 60,
        "run_at": "2030-01-02T03:04:05.5+01:00", "max_attempts": 7, "attempt_timeout_s": 12.5, "tags": ["a"],
        "queue_timeout_s": 30, "deadline_s": 60.5, "concurrency_key": "disk", "after": ["#0"], "after_needs": "ended",
        "retry_on": {"invalid_input": true, "provider": {"kind": "fixed", "seconds": 3}, "timeout": false},
        "backoff": {"kind": "list", "seconds": [1, 2.5], "seconds_max": 9, "jitter": 0.1}
    });
    let answer = house.post("/api/v1/jobs").bearer_auth(&ada.token).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let job: Value = answer.json().await.unwrap();
    let names: Vec<&str> = job.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "after",
            "after_needs",
            "args",
            "attempt",
            "batch_id",
            "cancel_asked",
            "child_batch_id",
            "concurrency_key",
            "created_at",
            "deadline_at",
            "error",
            "existing",
            "finished_at",
            "id",
            "max_attempts",
            "owner_id",
            "priority",
            "progress",
            "queue",
            "queue_until",
            "result",
            "run_at",
            "started_at",
            "state",
            "tags",
            "task",
            "unique_key",
            "waited",
            "waiting_reason",
            "worker_id"
        ]
    );
    assert_eq!(job["state"], "queued");
    assert_eq!(job["args"], json!({"value": 1.50}));
    assert_eq!(job["created_at"], "2023-11-14T22:13:20Z");
    assert_eq!(job["batch_id"], Value::Null);

    let seen = house.jobs.submitted.lock()[0].jobs[0].clone();
    assert_eq!(seen.args_json, r#"{"value":[1,null,"x"]}"#);
    let run_at = seen.run_at.unwrap();
    assert_eq!((run_at.seconds, run_at.nanos), (1_893_549_845, 500_000_000));
    let backoff = seen.backoff.unwrap();
    assert_eq!((backoff.kind.as_str(), backoff.seconds), ("list", vec![1.0, 2.5]));
    assert_eq!((seen.after, seen.after_needs.as_str()), (vec!["#0".to_owned()], "ended"));
    assert_eq!((seen.queue_timeout_s, seen.deadline_s), (Some(30.0), Some(60.5)));
    let rules: Vec<_> = seen.retry_on.iter().map(|rule| (rule.error_kind.as_str(), rule.retry)).collect();
    assert_eq!(rules, [("invalid_input", true), ("provider", true), ("timeout", false)]);
    assert_eq!(seen.retry_on[1].backoff.as_ref().unwrap().seconds, [3.0]);
    assert_eq!(house.jobs.last_call().subject, ada.id);
}

#[tokio::test]
async fn fields_that_do_not_exist_are_told_at_once_with_their_pointers() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({"jobs": [
        {"task": "demo_echo", "args": {}, "colour/~": "red"},
        {"task": "demo_echo", "args": {"anything": "goes"}, "backoff": {"kind": "fixed", "seconds": 1, "speed": 2}},
    ], "more": 1});
    let answer = house.post("/api/v1/jobs/bulk").bearer_auth(&ada.token).json(&body).send().await.unwrap();
    let problem = problem(answer, 400, "request.unknown_field").await;
    assert_eq!(
        pointers(&problem),
        [fault("/jobs/0/colour~1~0", "unknown"), fault("/jobs/1/backoff/speed", "unknown"), fault("/more", "unknown")]
    );
}

#[tokio::test]
async fn what_breaks_the_schema_is_422_and_every_fault_is_told() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({
        "args": {}, "priority": 101, "run_at": "tomorrow", "max_attempts": 0, "tags": [7],
        "backoff": {"kind": "magic", "seconds": -1}
    });
    let answer = house.post("/api/v1/jobs").bearer_auth(&ada.token).json(&body).send().await.unwrap();
    let problem = problem(answer, 422, "request.invalid").await;
    let faults = pointers(&problem);
    for expected in [
        fault("/task", "required"),
        fault("/priority", "maximum"),
        fault("/run_at", "format"),
        fault("/max_attempts", "minimum"),
        fault("/tags/0", "type"),
        fault("/backoff/kind", "enum"),
    ] {
        assert!(faults.contains(&expected), "{expected:?} is missing in {faults:#?}");
    }
    assert!(faults.iter().any(|(pointer, _)| pointer == "/backoff/seconds"), "{faults:#?}");
    assert!(house.jobs.submitted.lock().is_empty());
}

#[tokio::test]
async fn a_large_body_is_told_its_first_fault() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({ "jobs": vec![0; 100_000] });
    let answer = house.post("/api/v1/jobs/bulk").bearer_auth(&ada.token).json(&body).send().await.unwrap();
    assert_eq!(pointers(&problem(answer, 422, "request.invalid").await).len(), 1);
    assert!(house.jobs.submitted.lock().is_empty());
}

#[tokio::test]
async fn a_refusal_of_the_role_points_into_the_body_that_was_sent() {
    let house = House::open().await;
    let ada = house.customer();
    let one = json!({"task": "unknown", "args": {}});
    let answer = house.post("/api/v1/jobs").bearer_auth(&ada.token).json(&one).send().await.unwrap();
    assert_eq!(pointers(&problem(answer, 422, "jobs.invalid").await), [fault("/task", "unknown_task")]);

    let two = json!({"jobs": [{"task": "demo_echo", "args": {}}, {"task": "unknown", "args": {}}]});
    let answer = house.post("/api/v1/jobs/bulk").bearer_auth(&ada.token).json(&two).send().await.unwrap();
    assert_eq!(pointers(&problem(answer, 422, "jobs.invalid").await), [fault("/jobs/1/task", "unknown_task")]);
}

#[tokio::test]
async fn malformed_json_another_media_type_and_too_much_are_refused() {
    let house = House::open().await;
    let ada = house.customer();
    let post = || house.post("/api/v1/jobs").bearer_auth(&ada.token);

    let answer = post().header("content-type", "application/json").body("{\"task\": ").send().await.unwrap();
    problem(answer, 400, "request.malformed_json").await;
    let answer = post().header("content-type", "application/json").body("").send().await.unwrap();
    problem(answer, 400, "request.malformed_json").await;
    let answer = post().header("content-type", "text/plain").body("{}").send().await.unwrap();
    problem(answer, 415, "request.unsupported_media_type").await;
    let answer = post().body("{}").send().await.unwrap();
    problem(answer, 415, "request.unsupported_media_type").await;

    let large = format!("{{\"task\": \"{}\"}}", "x".repeat(600 * 1024));
    let answer = post().header("content-type", "application/json").body(large.clone()).send().await.unwrap();
    problem(answer, 413, "request.too_large").await;
    // Without a length to look at.
    let chunks = futures::stream::iter(
        large.into_bytes().chunks(8192).map(<[u8]>::to_vec).map(Ok::<_, std::io::Error>).collect::<Vec<_>>(),
    );
    let body = reqwest::Body::wrap_stream(chunks);
    let answer = post().header("content-type", "application/json").body(body).send().await.unwrap();
    problem(answer, 413, "request.too_large").await;
    // Deep enough to exhaust a stack.
    let deep = "[".repeat(100_000);
    let answer = post().header("content-type", "application/json").body(deep).send().await.unwrap();
    problem(answer, 400, "request.malformed_json").await;
}

#[tokio::test]
async fn a_body_that_may_be_left_out_is_checked_when_it_is_there() {
    let house = House::open().await;
    let ada = house.customer();
    let path = format!("/api/v1/jobs/{}/cancel", house.clock.new_id());
    let answer = house.post(&path).bearer_auth(&ada.token).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let answer =
        house.post(&path).bearer_auth(&ada.token).json(&json!({"reason": "changed my mind"})).send().await.unwrap();
    let job: Value = answer.json().await.unwrap();
    assert_eq!((&job["state"], &job["waiting_reason"]["reason"]), (&json!("cancelling"), &json!("changed my mind")));
    let answer = house.post(&path).bearer_auth(&ada.token).json(&json!({"raison": "x"})).send().await.unwrap();
    assert_eq!(pointers(&problem(answer, 400, "request.unknown_field").await), [fault("/raison", "unknown")]);
}

#[tokio::test]
async fn query_parameters_are_read_by_their_types_and_unknown_ones_refused() {
    let house = House::open().await;
    let ada = house.person("operator");
    let get = |query: &str| house.get(&format!("/api/v1/jobs?{query}")).bearer_auth(&ada.token).send();

    let answer =
        get("limit=7&state=queued&state=failed&tag=a%26b&created_after=2030-01-01T00:00:00Z&cursor=abc").await.unwrap();
    assert_eq!(answer.status(), 200);
    let page: Value = answer.json().await.unwrap();
    assert_eq!(page["next_cursor"], "more");
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    let asked = house.jobs.listed.lock().take().unwrap();
    assert_eq!((asked.limit, asked.tag.as_str(), asked.cursor.as_str()), (7, "a&b", "abc"));
    assert_eq!(asked.states, [proto::jobs::JobState::Queued as i32, proto::jobs::JobState::Failed as i32]);
    assert_eq!(asked.created_after.unwrap().seconds, 1_893_456_000);

    assert_eq!(get("").await.unwrap().status(), 200);
    assert_eq!(house.jobs.listed.lock().take().unwrap().limit, 50);

    let told = pointers(&problem(get("colour=red").await.unwrap(), 400, "request.unknown_parameter").await);
    assert_eq!(told, [fault("/colour", "unknown")]);
    for (query, pointer) in [
        ("limit=0", "/limit"),
        ("limit=201", "/limit"),
        ("limit=ten", "/limit"),
        ("state=lost", "/state/0"),
        ("owner_id=me", "/owner_id"),
        ("created_after=now", "/created_after"),
    ] {
        let told = pointers(&problem(get(query).await.unwrap(), 422, "request.invalid").await);
        assert_eq!(told[0].0, pointer, "{query}: {told:?}");
    }
    problem(get("limit=1&limit=2").await.unwrap(), 400, "request.repeated_parameter").await;

    // A route that takes none takes none.
    let answer = house.get("/api/v1/me?verbose=1").bearer_auth(&ada.token).send().await.unwrap();
    problem(answer, 400, "request.unknown_parameter").await;
}

#[tokio::test]
async fn an_idempotency_key_travels_with_the_digest_of_its_request() {
    let house = House::open().await;
    let ada = house.customer();
    let body = json!({"task": "demo_echo", "args": {}});
    let send = |path: &'static str, key: &'static str, body: &Value| {
        house.post(path).bearer_auth(&ada.token).header("idempotency-key", key).json(body).send()
    };
    let digest = || house.jobs.last_call().idempotency.unwrap();

    let answer = send("/api/v1/jobs", "a-key", &body).await.unwrap();
    assert!(!answer.headers().contains_key("idempotent-replayed"));
    let first = digest();
    assert_eq!(first.key, "a-key");
    send("/api/v1/jobs", "a-key", &body).await.unwrap();
    assert_eq!(digest(), first, "the same request has the same digest");
    send("/api/v1/jobs", "a-key", &json!({"task": "demo_echo", "args": {"value": 1}})).await.unwrap();
    assert_ne!(digest().digest, first.digest, "another body has another digest");
    let jobs = json!({"jobs": [{"task": "demo_echo", "args": {}}]});
    send("/api/v1/batches", "a-key", &jobs).await.unwrap();
    let batch = digest();
    send("/api/v1/jobs/bulk", "a-key", &jobs).await.unwrap();
    assert_ne!(digest().digest, batch.digest, "another route has another digest");

    *house.jobs.replays.lock() = true;
    let answer = send("/api/v1/jobs", "a-key", &body).await.unwrap();
    assert_eq!(answer.headers()["idempotent-replayed"], "true");

    for key in ["", "two words", "ümlaut", &"x".repeat(256)] {
        let answer =
            house.post("/api/v1/jobs").bearer_auth(&ada.token).header("idempotency-key", key).json(&body).send();
        problem(answer.await.unwrap(), 400, "idempotency.malformed").await;
    }
    let answer =
        house.post("/api/v1/jobs").bearer_auth(&ada.token).header("idempotency-key", "x".repeat(255)).json(&body);
    assert_eq!(answer.send().await.unwrap().status(), 202);
}

#[tokio::test]
async fn what_is_a_strangers_or_no_id_at_all_is_not_there() {
    let house = House::open().await;
    let ada = house.customer();
    for path in ["", "/attempts", "/logs", "/events"] {
        let answer = house.get(&format!("/api/v1/jobs/{FOREIGN}{path}")).bearer_auth(&ada.token).send().await.unwrap();
        problem(answer, 404, "jobs.job_not_found").await;
        let answer = house.get(&format!("/api/v1/jobs/not-an-id{path}")).bearer_auth(&ada.token).send().await.unwrap();
        problem(answer, 404, "not_found").await;
    }
    for path in ["cancel", "retry"] {
        let answer =
            house.post(&format!("/api/v1/jobs/{FOREIGN}/{path}")).bearer_auth(&ada.token).send().await.unwrap();
        problem(answer, 404, "jobs.job_not_found").await;
    }
    for path in ["", "/events"] {
        let answer =
            house.get(&format!("/api/v1/batches/{FOREIGN}{path}")).bearer_auth(&ada.token).send().await.unwrap();
        problem(answer, 404, "jobs.batch_not_found").await;
    }
    let answer =
        house.delete(&format!("/api/v1/auth/sessions/{FOREIGN}")).bearer_auth(&ada.token).send().await.unwrap();
    problem(answer, 404, "auth.session_not_found").await;
}

#[tokio::test]
async fn sign_in_speaks_the_contracts_words() {
    let house = House::open().await;
    let body = json!({"email": "ada@example.com", "password": "right"});
    let answer = house.post("/api/v1/auth/login").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let tokens: Value = answer.json().await.unwrap();
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["expires_in"], 300);
    assert_eq!(tokens["user"]["email"], "ada@example.com");

    let wrong = json!({"email": "ada@example.com", "password": "a secret guess"});
    let answer = house.post("/api/v1/auth/login").json(&wrong).send().await.unwrap();
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    problem(answer, 401, "auth.invalid_credentials").await;

    // A fault is told without the value it is about.
    let answer =
        house.post("/api/v1/auth/login").json(&json!({"email": 5, "password": ["hunter2"]})).send().await.unwrap();
    let told = problem(answer, 422, "request.invalid").await;
    assert!(!told.to_string().contains("hunter2"), "{told}");

    let answer = house
        .post("/api/v1/auth/register")
        .json(&json!({"email": "taken@example.com", "password": "p", "display_name": "T"}));
    problem(answer.send().await.unwrap(), 409, "auth.email_taken").await;
    let answer = house
        .post("/api/v1/auth/register")
        .json(&json!({"email": "new@example.com", "password": "p", "display_name": "N"}));
    assert_eq!(answer.send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn the_same_registration_under_the_same_key_is_told_to_be_a_repeat() {
    let house = House::open().await;
    let register = async |name: &str| {
        let body = json!({"email": "new@example.com", "password": "p", "display_name": name});
        let request = house.post("/api/v1/auth/register").header("idempotency-key", "k").json(&body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 201);
        answer.headers().get("idempotent-replayed").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(register("N").await, None);
    assert_eq!(register("N").await.as_deref(), Some("true"));
    // That another body is refused is for `auth` to say, by the digest.
    assert_eq!(register("M").await, None);
    let keys = house.auth.registered.lock();
    assert!(keys.iter().all(|key| key.key == "k") && keys[0].digest != keys[2].digest);
}
