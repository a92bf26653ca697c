//! Somebody who uses the public API, as any HTTP client would.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use eventsource_stream::Eventsource as _;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::wait::{SOON, until};

/// An access token is good for five minutes; a long batch takes longer.
const TOKEN_KEPT: Duration = Duration::from_secs(200);
/// Longest time in which a patient person asks again.
const PATIENCE: Duration = Duration::from_secs(120);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub(crate) struct Person {
    http: reqwest::Client,
    base: String,
    /// An access token, and when it was given; none for somebody who is not signed in.
    token: Option<Arc<Mutex<(String, Instant)>>>,
    pub(crate) email: String,
    pub(crate) password: String,
    /// The user's id; empty for somebody who is not signed in.
    pub(crate) id: String,
    is_patient: bool,
}

/// An answer: its status and its JSON, null when there is none.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    pub(crate) request_id: String,
}

impl Answer {
    /// The body of an answer that is as good as `status`.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{:#}", self.body);
        self.body
    }
}

/// One event of a live stream.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) event: String,
    pub(crate) data: Value,
}

impl Person {
    /// Somebody who is not signed in.
    pub(crate) fn stranger(base: &str) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(300)).build().expect("a client");
        let (email, password) = (String::new(), String::new());
        Self { http, base: base.to_owned(), token: None, email, password, id: String::new(), is_patient: false }
    }

    /// The same person, who asks again when nobody answers or something is away, as a good client does: what creates
    /// something with the same idempotency key.
    pub(crate) fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }

    pub(crate) async fn register(base: &str, name: &str) -> Self {
        let (email, password) = (format!("{name}@example.org"), format!("a long password of {name}"));
        let body = json!({ "email": email, "password": password, "display_name": name });
        Self::stranger(base).post("/api/v1/auth/register", &body).await.expect(201);
        Self::login(base, &email, &password).await
    }

    pub(crate) async fn login(base: &str, email: &str, password: &str) -> Self {
        let mut person = Self { email: email.to_owned(), password: password.to_owned(), ..Self::stranger(base) };
        person.sign_in().await;
        person
    }

    /// The same person after a restart of the house, which may be elsewhere now.
    pub(crate) async fn at(&self, base: &str) -> Self {
        Self::login(base, &self.email, &self.password).await
    }

    /// Takes a new token, as after a change of roles.
    pub(crate) async fn sign_in(&mut self) {
        let (token, id) = self.log_in().await;
        self.token = Some(Arc::new(Mutex::new((token, Instant::now()))));
        self.id = id;
    }

    async fn log_in(&self) -> (String, String) {
        let body = json!({ "email": self.email, "password": self.password });
        let request = self.http.post(format!("{}/api/v1/auth/login", self.base)).json(&body);
        let answer = self.ask(|| request.try_clone().expect("a body of JSON")).await.expect(200);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&answer["access_token"]), text(&answer["user"]["id"]))
    }

    pub(crate) async fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let Some(token) = &self.token else { return request };
        let mut token = token.lock().await;
        if token.1.elapsed() > TOKEN_KEPT {
            *token = (self.log_in().await.0, Instant::now());
        }
        request.bearer_auth(&token.0)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let request = self.request(Method::GET, path).await;
        self.ask(|| request.try_clone().expect("no body")).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.keyed(self.request(Method::POST, path).await).json(body);
        self.ask(|| request.try_clone().expect("a body of JSON")).await
    }

    /// Under a key of the caller's own: however often it is asked, it happens once.
    pub(crate) async fn post_as(&self, path: &str, body: &Value, key: &str) -> Answer {
        let request = self.request(Method::POST, path).await.header("idempotency-key", key).json(body);
        self.ask(|| request.try_clone().expect("a body of JSON")).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        let request = self.request(Method::PUT, path).await.json(body);
        self.ask(|| request.try_clone().expect("a body of JSON")).await
    }

    /// The access token, to be shown elsewhere.
    pub(crate) async fn token(&self) -> String {
        self.token.as_ref().expect("somebody who is signed in").lock().await.0.clone()
    }

    /// The refresh token of a session of its own.
    pub(crate) async fn refresh_token(&self) -> String {
        let body = json!({ "email": self.email, "password": self.password });
        let answer = answer(self.http.post(format!("{}/api/v1/auth/login", self.base)).json(&body)).await.expect(200);
        answer["refresh_token"].as_str().expect("a token").to_owned()
    }

    /// The same person with the same session, through another door.
    pub(crate) fn by_way_of(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// A live stream, to be read by the test.
    pub(crate) async fn open_stream(&self, path: &str) -> reqwest::Response {
        let response = self.request(Method::GET, path).await.send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        response
    }

    fn keyed(&self, request: RequestBuilder) -> RequestBuilder {
        if !self.is_patient {
            return request;
        }
        // One request however often it is asked: where the answer to an act was lost, the next try finds it done already,
        // and it is the first that stands in the audit log.
        let id = kit::Clock::system().new_id().to_string();
        request.header("idempotency-key", &id).header("x-request-id", id)
    }

    /// Asks once, or until somebody answers who is not broken.
    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Answer {
        if !self.is_patient {
            return answer(request()).await;
        }
        let answered = async {
            loop {
                if let Ok(answer) = try_answer(request()).await
                    && !answer.status.is_server_error()
                {
                    return answer;
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("somebody answers")
    }

    /// Uploads files of these names in one request; their ids in order.
    pub(crate) async fn upload(&self, files: Vec<(String, Vec<u8>)>) -> Vec<String> {
        let files: Vec<(String, bytes::Bytes)> =
            files.into_iter().map(|(name, bytes)| (name, bytes::Bytes::from(bytes))).collect();
        let form = || {
            files.iter().fold(reqwest::multipart::Form::new(), |form, (name, bytes)| {
                let part = reqwest::multipart::Part::stream(bytes.clone()).file_name(name.clone());
                form.part("file", part)
            })
        };
        let request = self.keyed(self.request(Method::POST, "/api/v1/files").await);
        let body = self.ask(|| request.try_clone().expect("no body").multipart(form())).await.expect(201);
        let items = body["items"].as_array().expect("items");
        items.iter().map(|file| file["id"].as_str().expect("an id").to_owned()).collect()
    }

    pub(crate) async fn download(&self, id: &str) -> Vec<u8> {
        let response = self.request(Method::GET, &format!("/api/v1/files/{id}/content")).await.send().await;
        let response = response.expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "file {id}");
        response.bytes().await.expect("a whole body").to_vec()
    }

    /// Submits one job; its id.
    pub(crate) async fn submit(&self, task: &str, args: Value) -> String {
        let job = self.post("/api/v1/jobs", &json!({ "task": task, "args": args })).await.expect(202);
        job["id"].as_str().expect("an id").to_owned()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/jobs/{id}")).await.expect(200)
    }

    /// Waits until the job is final; the job then.
    pub(crate) async fn finished(&self, id: &str, limit: Duration) -> Value {
        until(&format!("the end of job {id}"), limit, async || {
            let job = self.job(id).await;
            let state = job["state"].as_str().unwrap_or_default();
            ["succeeded", "failed", "cancelled", "expired"].contains(&state).then_some(job)
        })
        .await
    }

    /// Waits until the job has a field that is not null; its value.
    pub(crate) async fn field(&self, id: &str, name: &str) -> Value {
        until(&format!("`{name}` of job {id}"), SOON, async || {
            let mut job = self.job(id).await;
            let value = job[name].take();
            (!value.is_null()).then_some(value)
        })
        .await
    }

    /// Every item of a list, page by page.
    pub(crate) async fn list(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{sign}limit=200{cursor}")).await.expect(200);
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }

    /// The events of a stream from the first one kept to its end.
    pub(crate) async fn events(&self, path: &str, limit: Duration) -> Vec<Event> {
        let response = self.request(Method::GET, path).await.timeout(limit).send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        let mut stream = response.bytes_stream().eventsource();
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            let event = event.expect("the stream stays whole until it ends");
            let is_end = event.event == "end";
            let data = serde_json::from_str(&event.data).expect("events carry JSON");
            events.push(Event { event: event.event, data });
            if is_end {
                return events;
            }
        }
        panic!("{path} closed without an `end`");
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    try_answer(request).await.expect("an answer with a whole body")
}

async fn try_answer(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let status = response.status();
    let request_id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let request_id = request_id.to_owned();
    let text = response.text().await?;
    Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null), request_id })
}
