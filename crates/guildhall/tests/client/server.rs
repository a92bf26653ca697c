//! A server that speaks what the client needs of the contract: sign-in with rotating tokens, uploads with idempotency
//! keys, jobs, one batch of scripted events, live streams that resume. It answers at once and keeps no clock: a stream
//! that has told all it knows ends, or, when the script says so, waits for what a test does next.

mod admin;
mod schedules;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

pub(crate) use admin::{ADA, BOB, PARKED};
pub(crate) use schedules::{RUN, SCHEDULE};

pub(crate) const EMAIL: &str = "ada@example.org";
pub(crate) const PASSWORD: &str = "correct horse battery";

/// What the server does, and what it has seen.
#[derive(Default)]
pub(crate) struct Script {
    /// Seconds that the first access token lasts; those after it last 300.
    pub(crate) first_token_s: u32,
    /// After so many events the n-th connection to the batch's stream breaks.
    pub(crate) cuts: VecDeque<usize>,
    /// Each cut also ends every access token.
    pub(crate) cuts_end_tokens: bool,
    /// The next upload is stored and its answer lost.
    pub(crate) loses_an_answer: bool,
    /// The batch stays at its first model until it is cancelled.
    pub(crate) holds: bool,

    pub(crate) refreshes: u32,
    /// Exchanges of a refresh token that had been exchanged before.
    pub(crate) spent: u32,
    /// Files in each upload that was accepted, repeats left out.
    pub(crate) uploads: Vec<usize>,
    pub(crate) files: BTreeMap<String, (String, Bytes)>,
    /// Bodies of `POST jobs`.
    pub(crate) submitted: Vec<Value>,
    /// `Last-Event-ID` of each connection to the batch's stream.
    pub(crate) resumed: Vec<Option<String>>,
    pub(crate) cancelled: Vec<String>,
    /// Bodies of retries of batches.
    pub(crate) retried: Vec<Value>,
    pub(crate) admin: admin::Admin,
    pub(crate) schedules: schedules::Schedules,

    access: HashSet<String>,
    refresh: String,
    granted: u32,
    answers: HashMap<String, Value>,
    jobs: BTreeMap<String, Value>,
    batch: Value,
    streams: HashMap<String, Vec<(String, Value)>>,
}

struct Shared {
    script: Mutex<Script>,
    news: watch::Sender<()>,
}

pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let script = Script { first_token_s: 300, ..Script::default() };
        let shared = Arc::new(Shared { script: Mutex::new(script), news: watch::Sender::default() });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router).into_future() => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { address, shared, stop: Some(stop) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread may have ended with a failed test.
        let _gone = self.stop.take().unwrap().send(());
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/api/v1/").to_owned();
    let segments: Vec<&str> = path.split('/').collect();
    let (method, headers) = (request.method().clone(), request.headers().clone());
    if let (&Method::POST, ["auth", verb @ ("login" | "refresh")]) = (&method, segments.as_slice()) {
        let body = body(request).await;
        return shared.script.lock().unwrap().grant(verb, &body);
    }
    if !shared.script.lock().unwrap().is_signed_in(&headers) {
        return problem(StatusCode::UNAUTHORIZED, "auth.unauthenticated", "Sign in first.", &json!([]));
    }
    if let Some(path) = path.strip_prefix("admin/") {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = body(request).await;
        return shared.script.lock().unwrap().admin.answer(&method, path, &query, body);
    }
    if segments.first() == Some(&"schedules") {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = body(request).await;
        return shared.script.lock().unwrap().schedules.answer(&method, &path, &query, &body);
    }
    match (&method, segments.as_slice()) {
        (&Method::POST, ["files"]) => upload(&shared, request).await,
        (&Method::GET, [noun @ ("jobs" | "batches"), id, "events"]) => events(shared.clone(), noun, id, &headers),
        (&Method::POST, ["jobs"]) => {
            let body = body(request).await;
            shared.script.lock().unwrap().submit(&body)
        }
        (&Method::POST, ["jobs" | "batches", id, "cancel"]) => {
            let answer = shared.script.lock().unwrap().cancel(id);
            shared.news.send_replace(());
            answer
        }
        (&Method::POST, ["batches", id, "retry"]) => {
            let asked = body(request).await;
            let mut script = shared.script.lock().unwrap();
            script.retried.push(asked);
            script.plain(&Method::GET, &["batches", id])
        }
        (&Method::GET, ["jobs"]) => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            shared.script.lock().unwrap().list(&query)
        }
        _ => shared.script.lock().unwrap().plain(&method, &segments),
    }
}

async fn body(request: Request) -> Value {
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn problem(status: StatusCode, code: &str, detail: &str, errors: &Value) -> Response {
    let body = json!({ "type": "about:blank", "title": status.to_string(), "status": status.as_u16(), "detail": detail,
        "code": code, "request_id": "request-7", "errors": errors });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn not_found() -> Response {
    problem(StatusCode::NOT_FOUND, "jobs.not_found", "There is nothing of this id.", &json!([]))
}

async fn upload(shared: &Shared, request: Request) -> Response {
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let mut parts = Multipart::from_request(request, &()).await.unwrap();
    let mut received = Vec::new();
    while let Some(part) = parts.next_field().await.unwrap() {
        assert_eq!(part.name(), Some("file"));
        let name = part.file_name().unwrap().to_owned();
        received.push((name, part.bytes().await.unwrap()));
    }
    let mut script = shared.script.lock().unwrap();
    if let Some(before) = script.answers.get(&key) {
        return (StatusCode::CREATED, Json(before.clone())).into_response();
    }
    script.uploads.push(received.len());
    let mut items = Vec::new();
    for (name, bytes) in received {
        let id = format!("file-{}", script.files.len());
        items.push(json!({ "id": id, "name": name, "content_type": "image/png", "size_bytes": bytes.len(),
            "sha256": "", "created_at": "2026-01-01T00:00:00Z" }));
        script.files.insert(id, (name, bytes));
    }
    let answer = json!({ "items": items });
    script.answers.insert(key, answer.clone());
    if std::mem::take(&mut script.loses_an_answer) {
        let broken = stream::iter([Err::<Bytes, _>(io::Error::other("the answer is lost"))]);
        return (StatusCode::CREATED, Body::from_stream(broken)).into_response();
    }
    (StatusCode::CREATED, Json(answer)).into_response()
}

/// The events after `Last-Event-ID`, then what is yet to come, up to `end` or to where the script cuts.
fn events(shared: Arc<Shared>, noun: &str, id: &str, headers: &HeaderMap) -> Response {
    let name = format!("{noun}/{id}");
    let after = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    let cut = {
        let mut script = shared.script.lock().unwrap();
        if !script.streams.contains_key(&name) {
            return not_found();
        }
        if noun == "batches" {
            script.resumed.push(after.clone());
            script.cuts.pop_front()
        } else {
            None
        }
    };
    let news = shared.news.subscribe();
    let next: usize = after.map_or(0, |id| id.parse().unwrap());
    let told = stream::unfold(
        (shared, news, name, next, next, false),
        move |(shared, mut news, name, first, next, is_over)| async move {
            if is_over {
                return None;
            }
            // Lets what has been told leave: a connection that breaks takes along what still waits to be written.
            tokio::task::yield_now().await;
            loop {
                news.borrow_and_update();
                {
                    let mut script = shared.script.lock().unwrap();
                    if cut == Some(next - first) {
                        if script.cuts_end_tokens {
                            script.access.clear();
                        }
                        drop(script);
                        return Some((Err(io::Error::other("cut")), (shared, news, name, first, next, true)));
                    }
                    if let Some((event, data)) = script.streams[&name].get(next).cloned() {
                        drop(script);
                        let offset = next + 1;
                        let text = format!(": comment\nid: {offset}\nevent: {event}\ndata: {data}\n\n");
                        return Some((Ok(Bytes::from(text)), (shared, news, name, first, offset, event == "end")));
                    }
                }
                if news.changed().await.is_err() {
                    return None;
                }
            }
        },
    );
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(told)).into_response()
}

impl Script {
    fn grant(&mut self, verb: &str, body: &Value) -> Response {
        if verb == "login" {
            if body["email"] != EMAIL || body["password"] != PASSWORD {
                let detail = "The email address or the password is wrong.";
                return problem(StatusCode::UNAUTHORIZED, "auth.invalid_credentials", detail, &json!([]));
            }
        } else {
            self.refreshes += 1;
            if body["refresh_token"] != self.refresh.as_str() {
                self.spent += 1;
                return problem(StatusCode::UNAUTHORIZED, "auth.token_reused", "The session has ended.", &json!([]));
            }
        }
        self.granted += 1;
        let access = format!("access-{}", self.granted);
        self.refresh = format!("refresh-{}", self.granted);
        self.access.insert(access.clone());
        let expires_in = if self.granted == 1 { self.first_token_s } else { 300 };
        Json(json!({ "access_token": access, "token_type": "Bearer", "expires_in": expires_in, "refresh_token": self.refresh,
            "user": { "id": "user-1", "email": EMAIL, "display_name": "Ada", "roles": ["customer"] } }))
        .into_response()
    }

    fn is_signed_in(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        shown.strip_prefix("Bearer ").is_some_and(|token| self.access.contains(token))
    }

    /// Ends every access token that is out, as 5 minutes would.
    pub(crate) fn end_tokens(&mut self) {
        self.access.clear();
    }

    fn plain(&mut self, method: &Method, segments: &[&str]) -> Response {
        match (method, segments) {
            (&Method::GET, ["me"]) => Json(json!({ "email": EMAIL })).into_response(),
            (&Method::POST, ["auth", "logout"]) => {
                self.end_tokens();
                StatusCode::NO_CONTENT.into_response()
            }
            (&Method::GET, ["jobs", id]) => self.jobs.get(*id).map_or_else(not_found, |job| Json(job).into_response()),
            (&Method::GET, ["batches", id]) if self.batch["id"] == *id => Json(&self.batch).into_response(),
            (&Method::GET, ["files", id]) => match self.files.get(*id) {
                Some((name, bytes)) => {
                    Json(json!({ "id": id, "name": name, "size_bytes": bytes.len() })).into_response()
                }
                None => not_found(),
            },
            (&Method::GET, ["files", id, "content"]) => {
                self.files.get(*id).map_or_else(not_found, |(_, bytes)| bytes.clone().into_response())
            }
            _ => not_found(),
        }
    }

    /// Pages of two, so that a client that reads only the first is found out.
    fn list(&self, query: &str) -> Response {
        let start: usize = query.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
        let batch = query.split("batch_id=").nth(1).map(|rest| rest.split('&').next().unwrap());
        let newest_first = self.jobs.values().rev().filter(|job| batch.is_none_or(|id| job["batch_id"] == id));
        let items: Vec<_> = newest_first.skip(start).take(3).collect();
        let next = (items.len() == 3).then(|| (start + 2).to_string());
        Json(json!({ "items": &items[..items.len().min(2)], "next_cursor": next })).into_response()
    }

    fn submit(&mut self, body: &Value) -> Response {
        self.submitted.push(body.clone());
        match body["task"].as_str().unwrap() {
            "process_batch" => self.script_batch(body),
            task @ ("demo_echo" | "demo_fail") => {
                let is_good = task == "demo_echo";
                let state = if is_good { "succeeded" } else { "failed" };
                let mut job = job_named("job-1", task, state, &body["args"]);
                job["unique_key"] = body["unique_key"].clone();
                job["existing"] = json!(body["unique_key"] == "held");
                if is_good {
                    job["result"] = json!({ "value": body["args"]["value"] });
                } else {
                    job["error"] = json!({ "kind": "provider", "message": "It was told to.", "retryable": false });
                }
                let log = json!({ "job_id": "job-1", "offset": 1, "level": "info", "message": "At it.", "at": "2026-01-01T00:00:00Z" });
                let told = [
                    ("state", json!({ "job_id": "job-1", "state": "running", "attempt": 1 })),
                    ("log", log),
                    ("state", json!({ "job_id": "job-1", "state": state, "attempt": 1 })),
                    ("end", json!({})),
                ];
                self.streams.insert("jobs/job-1".into(), told.map(|(event, data)| (event.into(), data)).into());
                self.jobs.insert("job-1".into(), job.clone());
                (StatusCode::ACCEPTED, Json(job)).into_response()
            }
            _ => {
                let errors = json!([{ "pointer": "/task", "code": "unknown_task", "message": "No worker offers it." }]);
                problem(StatusCode::UNPROCESSABLE_ENTITY, "jobs.unknown_task", "There is no such task.", &errors)
            }
        }
    }

    /// A batch whose pictures named `broken...` fail, with everything that happens to it.
    fn script_batch(&mut self, body: &Value) -> Response {
        let ids: Vec<String> = serde_json::from_value(body["args"]["file_ids"].clone()).unwrap();
        let mut told = Vec::new();
        let (mut succeeded, mut failed) = (0, 0);
        told.push(("batch", json!({ "batch_id": "batch-1", "state": "running", "counts": { "total": ids.len() } })));
        for (place, file_id) in ids.iter().enumerate() {
            let id = format!("child-{place:02}");
            let (name, _) = self.files[file_id].clone();
            let mut job = job_named(&id, "generate_3d_model", "succeeded", &json!({ "file_id": file_id }));
            job["batch_id"] = json!("batch-1");
            told.push(("state", json!({ "job_id": id, "state": "running", "attempt": 1 })));
            for percent in [20, 60] {
                told.push((
                    "progress",
                    json!({ "job_id": id, "percent": percent, "stage": "mesh", "message": "walls" }),
                ));
            }
            if name.starts_with("broken") {
                failed += 1;
                let error =
                    json!({ "kind": "invalid_input", "message": "The picture ends early.", "retryable": false });
                job["state"] = json!("failed");
                job["error"] = error.clone();
                told.push(("state", json!({ "job_id": id, "state": "failed", "attempt": 1, "error": error })));
            } else {
                succeeded += 1;
                for kind in ["model", "preview"] {
                    let made = (format!("{kind} of {name}"), Bytes::from(format!("{kind} of {name}")));
                    self.files.insert(format!("{kind}-{place}"), made);
                }
                job["result"] = json!({ "model_file_id": format!("model-{place}"), "preview_file_id": format!("preview-{place}"),
                    "triangles": 130_050, "vertices": 65_027, "size_bytes": 2_345_678, "seconds": 1.5 });
                told.push(("state", json!({ "job_id": id, "state": "succeeded", "attempt": 1 })));
            }
            self.jobs.insert(id, job);
        }
        for name in ["manifest", "contact"] {
            self.files.insert(name.into(), (name.into(), Bytes::from(name)));
        }
        let finalize =
            json!({ "manifest_file_id": "manifest", "contact_sheet_file_id": "contact", "archive_file_id": "archive" });
        let mut job = job_named("finalize", "finalize_batch", "succeeded", &json!({}));
        (job["result"], job["batch_id"]) = (finalize.clone(), json!("batch-1"));
        self.jobs.insert("finalize".into(), job);
        self.batch = json!({ "id": "batch-1", "state": "finished", "finalize_job_id": "finalize",
            "counts": { "total": ids.len(), "succeeded": succeeded, "failed": failed, "cancelled": 0, "expired": 0 },
            "created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:01:05Z" });
        told.push(("state", json!({ "job_id": "finalize", "state": "succeeded", "attempt": 1 })));
        told.push(("batch", json!({ "batch_id": "batch-1", "state": "finished", "counts": self.batch["counts"] })));
        told.push(("end", json!({})));
        if self.holds {
            told.truncate(3);
            self.batch["state"] = json!("running");
        }
        self.stream("batches/batch-1", told);

        let mut parent = job_named("job-1", "process_batch", "queued", &body["args"]);
        let accepted = parent.clone();
        (parent["state"], parent["child_batch_id"], parent["result"]) =
            (json!("succeeded"), json!("batch-1"), finalize);
        self.jobs.insert("job-1".into(), parent);
        let state = |state: &str| ("state", json!({ "job_id": "job-1", "state": state, "attempt": 1 }));
        self.stream("jobs/job-1", vec![state("suspended"), state("succeeded"), ("end", json!({}))]);
        (StatusCode::ACCEPTED, Json(accepted)).into_response()
    }

    fn stream(&mut self, name: &str, told: Vec<(&str, Value)>) {
        self.streams.insert(name.into(), told.into_iter().map(|(event, data)| (event.to_owned(), data)).collect());
    }

    fn cancel(&mut self, id: &str) -> Response {
        self.cancelled.push(id.to_owned());
        self.batch["state"] = json!("cancelled");
        let mut told = self.streams.remove("batches/batch-1").unwrap_or_default();
        let mut cancelled = 0;
        for (id, job) in self.jobs.iter_mut().filter(|(id, _)| id.starts_with("child")) {
            cancelled += 1;
            (job["state"], job["result"]) = (json!("cancelled"), Value::Null);
            told.push(("state".into(), json!({ "job_id": id, "state": "cancelled", "attempt": 1 })));
        }
        self.batch["counts"] = json!({ "total": cancelled, "cancelled": cancelled });
        told.push(("end".into(), json!({})));
        self.streams.insert("batches/batch-1".into(), told);
        (StatusCode::ACCEPTED, Json(self.batch.clone())).into_response()
    }
}

fn job_named(id: &str, task: &str, state: &str, args: &Value) -> Value {
    json!({ "id": id, "task": task, "queue": "default", "state": state, "attempt": 1, "args": args, "priority": 50, "tags": [],
        "progress": null, "waiting_reason": null, "result": null, "error": null, "batch_id": null, "child_batch_id": null,
        "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z", "finished_at": "2026-01-01T00:00:04Z" })
}
