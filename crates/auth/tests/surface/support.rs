//! A running service, and the people who call it.

use std::{sync::Arc, time::Duration};

use auth::{Auth, MIGRATOR, SCHEMA, Settings};
use kit::{
    Clock, Fail, Kind, Secret,
    grpc::{Call, Guard, IdempotencyKey, Peer},
    identity::{Caller, Verifier},
    tasks::Tasks,
    testing::TestDatabase,
};
use prost::Message as _;
use proto::auth::{
    GetSelfRequest, ListSigningKeysRequest, LoginRequest, RefreshRequest, RegisterRequest, TokenPair, User,
    service_keys_client::ServiceKeysClient, sessions_client::SessionsClient, signing_keys_client::SigningKeysClient,
    users_client::UsersClient,
};
use proto::events::ActRecorded;
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Request, Response, Status};

pub(crate) const ISSUER: &str = "https://guildhall.test";
pub(crate) const EMAIL: &str = "ada@example.com";
pub(crate) const PASSWORD: &str = "correct horse battery";
pub(crate) const ADDRESS: &str = "192.0.2.7";
pub(crate) const AGENT: &str = "a test";

/// One replica of the service, and what it stands on.
pub(crate) struct Service {
    pub(crate) auth: Auth,
    pub(crate) peer: Peer,
    pub(crate) clock: Clock,
    pub(crate) verifier: Verifier,
    pub(crate) database: Arc<TestDatabase>,
    tasks: Tasks,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Passwords that are quick to hash: none of the tests is about how slow that is.
pub(crate) fn settings() -> Settings {
    Settings { password_memory_kib: 8192, password_passes: 1, auth_connections_max: 8, ..Settings::default() }
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_with(settings()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let migrate = |url: String| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await };
        let database = Arc::new(kit::testing::database_with("auth", migrate).await);
        // Verifiers read the machine's clock, so that a test whose tokens are verified must not move this one on.
        let clock = Clock::frozen(Clock::system().now());
        Self::start_on(settings, database, clock).await
    }

    /// Another replica, or the same one after a crash.
    pub(crate) async fn replica(&self, settings: Settings) -> Self {
        Self::start_on(settings, Arc::clone(&self.database), self.clock.clone()).await
    }

    async fn start_on(settings: Settings, database: Arc<TestDatabase>, clock: Clock) -> Self {
        let tasks = Tasks::new();
        let auth =
            Auth::start(settings, database.url(), ISSUER, clock.clone(), &tasks).await.expect("the service starts");
        let verifier = verifier(&auth);
        let peer = Peer::local(auth.routes(), &Guard::new(verifier.clone()));
        Self { auth, peer, clock, verifier, database, tasks }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    pub(crate) fn users(&self) -> UsersClient<Peer> {
        UsersClient::new(self.peer.clone())
    }
    pub(crate) fn sessions(&self) -> SessionsClient<Peer> {
        SessionsClient::new(self.peer.clone())
    }
    pub(crate) fn service_keys(&self) -> ServiceKeysClient<Peer> {
        ServiceKeysClient::new(self.peer.clone())
    }

    pub(crate) async fn register(&self, email: &str) -> User {
        self.try_register(email, None).await.expect("a registration")
    }

    pub(crate) async fn try_register(&self, email: &str, key: Option<IdempotencyKey>) -> Result<User, Fail> {
        answer(self.users().register(anonymous().with_idempotency(key).request(registration(email))).await)
    }

    /// Signs a registered user in.
    pub(crate) async fn login(&self, email: &str) -> TokenPair {
        self.try_login(email, PASSWORD, ADDRESS).await.expect("a sign-in")
    }

    pub(crate) async fn try_login(&self, email: &str, password: &str, address: &str) -> Result<TokenPair, Fail> {
        let request = LoginRequest { email: email.to_owned(), password: password.to_owned() };
        answer(self.sessions().login(anonymous().with_origin(address, AGENT).request(request)).await)
    }

    /// A new user, signed in.
    pub(crate) async fn person(&self, email: &str) -> TokenPair {
        self.register(email).await;
        self.login(email).await
    }

    pub(crate) async fn refresh(&self, refresh_token: &str) -> Result<TokenPair, Fail> {
        let request = RefreshRequest { refresh_token: refresh_token.to_owned() };
        answer(self.sessions().refresh(anonymous().request(request)).await)
    }

    pub(crate) async fn get_self(&self, access_token: &str) -> Result<User, Fail> {
        answer(self.users().get_self(by(access_token, GetSelfRequest {})).await)
    }

    pub(crate) async fn caller(&self, tokens: &TokenPair) -> Caller {
        self.verifier.verify(&tokens.access_token).await.expect("a token of ours")
    }

    /// The access token of a service account with this scope.
    pub(crate) async fn service_token(&self, scope: &[&str]) -> String {
        let key = auth::new_service_key().expect("a key");
        self.auth.ensure_service_key("tests", scope, &key).await.expect("the key is taken");
        self.exchange_key(key.expose()).await.expect("the key is good")
    }

    pub(crate) async fn exchange_key(&self, key: &str) -> Result<String, Fail> {
        let request = proto::auth::ExchangeServiceKeyRequest { key: key.to_owned() };
        answer(self.service_keys().exchange(anonymous().request(request)).await).map(|token| token.access_token)
    }

    /// The first administrator, signed in.
    pub(crate) async fn admin(&self) -> TokenPair {
        let password = Secret::new(PASSWORD.to_owned());
        let first = self.auth.ensure_first_admin(&password).await.expect("made").expect("the first");
        self.login(&first.email).await
    }

    /// What the outbox tells, as `type` and `subject`, oldest first. The audit log's entries are [`acts`](Self::acts).
    pub(crate) async fn told(&self) -> Vec<(String, String)> {
        let told = self.kept().await.into_iter().filter(|event| event.kind != "auth.act.recorded");
        told.map(|event| (event.kind, event.subject)).collect()
    }

    /// All that stands in the outbox, oldest first.
    pub(crate) async fn kept(&self) -> Vec<kit::bus::Event> {
        let mut connection = self.pool().acquire().await.expect("a connection");
        kit::outbox::kept(&mut connection, auth::SCHEMA, 0).await.expect("events")
    }

    /// The entries for the audit log, oldest first.
    pub(crate) async fn acts(&self) -> Vec<ActRecorded> {
        let acts = self.kept().await.into_iter().filter(|event| event.kind == "auth.act.recorded");
        acts.map(|event| ActRecorded::decode(event.data).expect("an entry")).collect()
    }

    pub(crate) async fn times_told(&self, kind: &str) -> usize {
        self.told().await.iter().filter(|(told, _)| told == kind).count()
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("select count(*) from auth.{table}"));
        sqlx::query_scalar(sql).fetch_one(self.pool()).await.expect("a count")
    }
}

/// A verifier as every role has one: it fetches the keys over gRPC.
fn verifier(auth: &Auth) -> Verifier {
    // The list of keys is public, so the way to it needs no verifier that knows any.
    let nobody = Verifier::new(ISSUER, Arc::new(|| Box::pin(async { Err(Fail::internal("no keys are needed here")) })));
    let peer = Peer::local(auth.routes(), &Guard::new(nobody));
    Verifier::new(
        ISSUER,
        Arc::new(move || {
            let mut keys = SigningKeysClient::new(peer.clone());
            Box::pin(async move {
                Ok(keys.list(anonymous().request(ListSigningKeysRequest {})).await?.into_inner().jwks_json)
            })
        }),
    )
}

pub(crate) fn anonymous() -> Call {
    Call::anonymous("a request of a test")
}

/// A request by the holder of an access token.
pub(crate) fn by<T>(access_token: &str, message: T) -> Request<T> {
    Call::with_token(Secret::new(access_token.to_owned()), "a request of a test")
        .with_origin(ADDRESS, AGENT)
        .request(message)
}

pub(crate) fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Fail> {
    answer.map(Response::into_inner).map_err(Fail::from)
}

pub(crate) fn registration(email: &str) -> RegisterRequest {
    RegisterRequest { email: email.to_owned(), password: PASSWORD.to_owned(), display_name: "Ada".to_owned() }
}

pub(crate) fn key(key: &str, digest: u8) -> Option<IdempotencyKey> {
    Some(IdempotencyKey { key: key.to_owned(), digest: [digest; 32] })
}

/// Asserts that a call was refused, with this kind and code.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Fail>, kind: Kind, code: &str) -> Fail {
    let fail = answer.expect_err("it must be refused");
    assert_eq!((fail.kind(), fail.code()), (kind, code), "{fail:?}");
    fail
}

/// For waits on a signal that a defect would make last for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it happens soon")
}

/// Runs them at once on threads of the runtime, and gives their answers in order.
pub(crate) async fn at_once<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let mut set = tokio::task::JoinSet::new();
    let count =
        futures.into_iter().enumerate().map(|(at, future)| set.spawn(async move { (at, future.await) })).count();
    let mut done = set.join_all().await;
    assert_eq!(done.len(), count);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, output)| output).collect()
}
