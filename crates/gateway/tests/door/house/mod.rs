//! A gateway in a house of its own.

mod admin;
mod auth;
mod jobs;
mod schedules;

use std::{sync::Arc, time::Duration};

use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use gateway::{Gateway, Parts, Settings};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Secret,
    grpc::{Credential, Guard, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    storage::Storage,
    tasks::Tasks,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

pub(crate) use admin::Admin;
pub(crate) use auth::Auth;
pub(crate) use jobs::{FOREIGN, Jobs};

pub(crate) const ISSUER: &str = "http://door.test";
/// Long enough for a slow machine, short against a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct House {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) auth: Arc<Auth>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Clock,
    pub(crate) folder: tempfile::TempDir,
    key: EncodingKey,
}

/// Someone who is signed in.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: Uuid,
    pub(crate) session: Uuid,
    pub(crate) token: String,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(mut settings: Settings) -> Self {
        // Whoever came first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        settings.http_listen = "127.0.0.1:0".parse().unwrap();
        let clock = Clock::system();
        let seed = SigningKey::from_bytes(&[7; 32]);
        let public = base64_url(seed.verifying_key().as_bytes());
        let jwks = serde_json::json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "test", "x": public}
        ]})
        .to_string();
        let shown = jwks.clone();
        let verifier = Verifier::new(
            ISSUER,
            Arc::new(move || {
                let jwks = jwks.clone();
                Box::pin(async move { Ok(jwks) })
            }),
        );
        let key = EncodingKey::from_ed_der(seed.to_pkcs8_der().unwrap().as_bytes());

        let guard = Guard::new(verifier.clone());
        let auth = Arc::new(Auth::new(shown, key.clone(), clock.clone()));
        let tasks = Tasks::new();
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&format!("file://{}", folder.path().display()), None, None).unwrap();
        let jobs = Arc::new(Jobs::new(clock.clone(), storage.clone()));
        let auth_peer = Peer::local(auth::routes(&auth), &guard);
        let admin = Arc::new(Admin::default());
        let gateway = Gateway::start(Parts {
            settings,
            public_url: ISSUER.into(),
            auth: auth_peer.clone(),
            jobs: Peer::local(jobs::routes(&jobs), &guard),
            admin: Peer::local(admin::routes(&admin), &guard),
            verifier,
            storage,
            clock: clock.clone(),
            tasks: tasks.clone(),
            credential: Credential::new(auth_peer, Secret::new("gld_test_key".into()), "service_key"),
        })
        .await
        .unwrap();
        auth.followed().await;
        Self { url: gateway.url(), client: Client::new(), auth, jobs, admin, tasks, clock, folder, key }
    }

    pub(crate) fn customer(&self) -> Person {
        self.person("customer")
    }

    pub(crate) fn person(&self, role: &str) -> Person {
        let (id, session) = (self.clock.new_id(), self.clock.new_id());
        let token = self.token(id, session, role, 300);
        Person { id, session, token }
    }

    /// A token that expires in so many seconds.
    pub(crate) fn token(&self, id: Uuid, session: Uuid, role: &str, seconds: i64) -> String {
        mint(&self.key, &self.clock, id, Some(session), role, "", seconds)
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }
    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }
    pub(crate) fn patch(&self, path: &str) -> RequestBuilder {
        self.client.patch(format!("{}{path}", self.url))
    }
    pub(crate) fn delete(&self, path: &str) -> RequestBuilder {
        self.client.delete(format!("{}{path}", self.url))
    }

    /// `host:port`, for a socket of one's own.
    pub(crate) fn socket(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// The names of what lies in the storage, unfinished objects among them.
    pub(crate) fn stored(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    names.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        names
    }
}

pub(crate) fn mint(
    key: &EncodingKey,
    clock: &Clock,
    id: Uuid,
    session: Option<Uuid>,
    role: &str,
    scope: &str,
    seconds: i64,
) -> String {
    let now = clock.now().timestamp();
    let claims = Claims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: id,
        exp: now + seconds,
        iat: now,
        nbf: now,
        jti: clock.new_id(),
        sid: session,
        generation: 0,
        roles: vec![role.into()],
        scope: scope.into(),
    };
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(ACCESS_TOKEN_TYPE.into());
    header.kid = Some("test".into());
    jsonwebtoken::encode(&header, &claims, key).unwrap()
}

fn base64_url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(LETTERS[(word >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// Holds an answer to the shape of every refusal, and gives its document.
pub(crate) async fn problem(answer: Response, status: u16, code: &str) -> Value {
    let shown = answer.status();
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let path = answer.url().path().to_owned();
    let text = answer.text().await.unwrap();
    assert_eq!(
        (shown, kind.as_deref()),
        (StatusCode::from_u16(status).unwrap(), Some("application/problem+json")),
        "{text}"
    );
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["code"], code, "{text}");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["instance"], path.as_str());
    assert_eq!(problem["request_id"], request_id.as_str());
    assert_eq!(problem["type"], format!("{ISSUER}/api/docs#error-{code}"));
    assert_eq!(problem["title"], shown.canonical_reason().unwrap());
    assert!(problem["detail"].as_str().unwrap().ends_with('.'), "{text}");
    let known = ["type", "title", "status", "detail", "instance", "code", "request_id", "errors"];
    assert!(problem.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{text}");
    problem
}

/// The JSON of an answer to `person` that is 200.
pub(crate) async fn good(request: RequestBuilder, person: &Person) -> Value {
    let answer = request.bearer_auth(&person.token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.json().await.unwrap()
}

/// The pointers of a problem's faults, in order.
pub(crate) fn pointers(problem: &Value) -> Vec<(String, String)> {
    let mut faults: Vec<_> = problem["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|fault| (fault["pointer"].as_str().unwrap().to_owned(), fault["code"].as_str().unwrap().to_owned()))
        .collect();
    faults.sort();
    faults
}

/// Waits until a watched value is as wanted.
pub(crate) async fn until<T>(sender: &watch::Sender<T>, is: impl FnMut(&T) -> bool) {
    let mut receiver = sender.subscribe();
    let seen = tokio::time::timeout(PATIENCE, receiver.wait_for(is)).await;
    assert!(matches!(seen, Ok(Ok(_))), "what was waited for did not come");
}
