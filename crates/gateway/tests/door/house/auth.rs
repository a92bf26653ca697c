//! Stands in for `auth`.

use std::{collections::HashSet, pin::Pin, sync::Arc};

use jsonwebtoken::EncodingKey;
use kit::{
    Clock, Fail,
    grpc::{Call, IdempotencyKey},
};
use parking_lot::Mutex;
use proto::auth::{
    CheckSessionRequest, CheckSessionResponse, DisableUserRequest, EnableUserRequest, ExchangeServiceKeyRequest,
    GetSelfRequest, GetUserRequest, ListSessionsRequest, ListSessionsResponse, ListSigningKeysRequest,
    ListUsersRequest, ListUsersResponse, LoginRequest, LogoutAllRequest, LogoutAllResponse, LogoutRequest,
    LogoutResponse, RefreshRequest, RegisterRequest, Revocation, RevokeSessionRequest, RevokeSessionResponse,
    ServiceToken, Session, SetUserRolesRequest, SignOutUserRequest, SignOutUserResponse, SigningKeySet, TokenPair,
    UpdateSelfRequest, UpdateUserRequest, User, WatchRevocationsRequest,
    revocation::What,
    service_keys_server::{ServiceKeys, ServiceKeysServer},
    sessions_server::{Sessions, SessionsServer},
    signing_keys_server::{SigningKeys, SigningKeysServer},
    users_server::{Users, UsersServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;

use super::{mint, until};

const BEAT: std::time::Duration = std::time::Duration::from_millis(200);

pub(crate) struct Auth {
    jwks: String,
    key: EncodingKey,
    clock: Clock,
    tasks: kit::tasks::Tasks,
    /// The end of the feed that is open now.
    feed: Mutex<Option<mpsc::Sender<Result<Revocation, Status>>>>,
    feeds_opened: watch::Sender<u32>,
    state: Mutex<State>,
    pub(crate) checks: watch::Sender<u32>,
    /// The call that the last sign-in came with.
    pub(crate) login: Mutex<Option<Call>>,
    /// The keys that registrations came with.
    pub(crate) registered: Mutex<Vec<IdempotencyKey>>,
    /// What the list of users was asked for.
    pub(crate) listed: Mutex<Vec<ListUsersRequest>>,
    /// What was done to users: the act, its reason, and by whom.
    pub(crate) acts: Mutex<Vec<(&'static str, String, Uuid)>>,
}

#[derive(Default)]
struct State {
    ended: HashSet<Uuid>,
    refuses_feed: bool,
    cannot_check: bool,
}

pub(crate) fn routes(auth: &Arc<Auth>) -> Routes {
    Routes::new(UsersServer::from_arc(auth.clone()))
        .add_service(SessionsServer::from_arc(auth.clone()))
        .add_service(ServiceKeysServer::from_arc(auth.clone()))
        .add_service(SigningKeysServer::from_arc(auth.clone()))
}

impl Auth {
    pub(super) fn new(jwks: String, key: EncodingKey, clock: Clock) -> Self {
        Self {
            jwks,
            key,
            clock,
            tasks: kit::tasks::Tasks::new(),
            feed: Mutex::default(),
            feeds_opened: watch::Sender::new(0),
            state: Mutex::default(),
            checks: watch::Sender::new(0),
            login: Mutex::default(),
            registered: Mutex::default(),
            listed: Mutex::default(),
            acts: Mutex::default(),
        }
    }

    /// Once the gateway has opened its feed.
    pub(super) async fn followed(&self) {
        until(&self.feeds_opened, |count| *count > 0).await;
    }

    /// Ends a session and tells of it, if anyone listens.
    pub(crate) async fn end(&self, session: Uuid) {
        self.state.lock().ended.insert(session);
        let feed = self.feed.lock().clone();
        if let Some(feed) = feed {
            feed.send(Ok(Revocation { what: Some(What::SessionId(session.to_string())) })).await.unwrap();
        }
    }

    /// Breaks the feed, and keeps it broken.
    pub(crate) fn break_feed(&self) {
        self.state.lock().refuses_feed = true;
        *self.feed.lock() = None;
    }

    pub(crate) fn mend_feed(&self) {
        self.state.lock().refuses_feed = false;
    }

    pub(crate) async fn followed_again(&self, before: u32) {
        until(&self.feeds_opened, |count| *count > before).await;
    }

    pub(crate) fn feeds_opened(&self) -> u32 {
        *self.feeds_opened.borrow()
    }

    pub(crate) fn cannot_check(&self) {
        self.state.lock().cannot_check = true;
    }

    fn user(&self, id: Uuid) -> User {
        User {
            id: id.to_string(),
            email: "ada@example.com".into(),
            display_name: "Ada".into(),
            roles: vec!["customer".into()],
            created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            replayed: false,
            disabled_at: None,
        }
    }

    /// There is every user but the one whose id is nothing but ones.
    fn known(&self, id: &str) -> Result<User, Fail> {
        let id = id.parse().ok().filter(|id| *id != Uuid::max());
        let id = id.ok_or_else(|| Fail::not_found("auth.user_not_found", "There is no such user."))?;
        Ok(self.user(id))
    }

    /// Notes an act on somebody else.
    fn act(&self, call: &Call, verb: &'static str, id: &str, reason: &str) -> Result<User, Fail> {
        let (by, user) = (call.caller()?.subject, self.known(id)?);
        if user.id == by.to_string() {
            return Err(Fail::forbidden("auth.not_yourself", "You cannot do this to yourself."));
        }
        self.acts.lock().push((verb, reason.to_owned(), by));
        Ok(user)
    }

    fn pair(&self) -> TokenPair {
        TokenPair {
            access_token: "an access token".into(),
            expires_in: 300,
            refresh_token: "a refresh token".into(),
            user: Some(self.user(Uuid::nil())),
        }
    }
}

#[tonic::async_trait]
impl Users for Auth {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<User>, Status> {
        if request.get_ref().email == "taken@example.com" {
            return Err(Fail::conflict("auth.email_taken", "There is an account with this address.").into());
        }
        assert_ne!(request.get_ref().email, "panic@example.com", "asked to");
        let key = Call::of(&request)?.idempotency.clone();
        let mut registered = self.registered.lock();
        let replayed = key.as_ref().is_some_and(|key| registered.contains(key));
        registered.extend(key);
        Ok(Response::new(User { replayed, ..self.user(Uuid::nil()) }))
    }
    async fn list(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        self.listed.lock().push(request.into_inner());
        let items = vec![self.user(Uuid::nil())];
        Ok(Response::new(ListUsersResponse { items, next_cursor: String::new() }))
    }
    async fn get(&self, request: Request<GetUserRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.known(&request.get_ref().id)?))
    }
    async fn disable(&self, request: Request<DisableUserRequest>) -> Result<Response<User>, Status> {
        let asked = request.get_ref();
        let user = self.act(Call::of(&request)?, "disable", &asked.id, &asked.reason)?;
        let disabled_at = Some(prost_types::Timestamp { seconds: 1_700_000_060, nanos: 0 });
        Ok(Response::new(User { disabled_at, ..user }))
    }
    async fn enable(&self, request: Request<EnableUserRequest>) -> Result<Response<User>, Status> {
        let asked = request.get_ref();
        Ok(Response::new(self.act(Call::of(&request)?, "enable", &asked.id, &asked.reason)?))
    }
    async fn sign_out(&self, request: Request<SignOutUserRequest>) -> Result<Response<SignOutUserResponse>, Status> {
        let asked = request.get_ref();
        self.act(Call::of(&request)?, "sign-out", &asked.id, &asked.reason)?;
        Ok(Response::new(SignOutUserResponse { ended: 2 }))
    }
    async fn set_roles(&self, request: Request<SetUserRolesRequest>) -> Result<Response<User>, Status> {
        let asked = request.get_ref();
        let user = self.act(Call::of(&request)?, "roles", &asked.id, &asked.reason)?;
        Ok(Response::new(User { roles: asked.roles.clone(), ..user }))
    }
    async fn update(&self, request: Request<UpdateUserRequest>) -> Result<Response<User>, Status> {
        let asked = request.get_ref();
        let user = self.act(Call::of(&request)?, "update", &asked.id, &asked.reason)?;
        Ok(Response::new(renamed(user, asked.display_name.as_deref())))
    }
    async fn get_self(&self, request: Request<GetSelfRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.user(Call::of(&request)?.caller()?.subject)))
    }
    async fn update_self(&self, request: Request<UpdateSelfRequest>) -> Result<Response<User>, Status> {
        let user = self.user(Call::of(&request)?.caller()?.subject);
        Ok(Response::new(renamed(user, request.get_ref().display_name.as_deref())))
    }
}

fn renamed(user: User, display_name: Option<&str>) -> User {
    User { display_name: display_name.map_or(user.display_name, str::to_owned), ..user }
}

#[tonic::async_trait]
impl Sessions for Auth {
    type WatchRevocationsStream = Pin<Box<dyn Stream<Item = Result<Revocation, Status>> + Send>>;

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<TokenPair>, Status> {
        *self.login.lock() = Some(Call::of(&request)?.clone());
        let is_right = request.get_ref().password == "right";
        if is_right {
            Ok(Response::new(self.pair()))
        } else {
            Err(Fail::unauthenticated("auth.invalid_credentials", "Address or password are wrong.").into())
        }
    }
    async fn refresh(&self, _: Request<RefreshRequest>) -> Result<Response<TokenPair>, Status> {
        Ok(Response::new(self.pair()))
    }
    async fn logout(&self, request: Request<LogoutRequest>) -> Result<Response<LogoutResponse>, Status> {
        let session = Call::of(&request)?.caller()?.session;
        self.end(session.unwrap()).await;
        Ok(Response::new(LogoutResponse {}))
    }
    async fn logout_all(&self, _: Request<LogoutAllRequest>) -> Result<Response<LogoutAllResponse>, Status> {
        Ok(Response::new(LogoutAllResponse { ended: 2 }))
    }
    async fn list(&self, _: Request<ListSessionsRequest>) -> Result<Response<ListSessionsResponse>, Status> {
        let at = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 });
        let session = Session {
            id: Uuid::nil().to_string(),
            created_at: at,
            last_used_at: at,
            expires_at: at,
            remote_address: "192.0.2.1".into(),
            user_agent: "test".into(),
            current: true,
        };
        Ok(Response::new(ListSessionsResponse { items: vec![session], next_cursor: String::new() }))
    }
    async fn revoke(&self, _: Request<RevokeSessionRequest>) -> Result<Response<RevokeSessionResponse>, Status> {
        Err(Fail::not_found("auth.session_not_found", "There is no such session of yours.").into())
    }
    async fn check(&self, request: Request<CheckSessionRequest>) -> Result<Response<CheckSessionResponse>, Status> {
        let session = Call::of(&request)?.caller()?.session.unwrap();
        self.checks.send_modify(|count| *count += 1);
        let state = self.state.lock();
        if state.cannot_check {
            return Err(Status::unavailable("away"));
        }
        Ok(Response::new(CheckSessionResponse { live: !state.ended.contains(&session) }))
    }
    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        {
            let state = self.state.lock();
            if state.refuses_feed {
                return Err(Status::unavailable("away"));
            }
            for session in &state.ended {
                sender.try_send(Ok(Revocation { what: Some(What::SessionId(session.to_string())) })).unwrap();
            }
        }
        let nothing_new = || Ok(Revocation { what: Some(What::CaughtUp(true)) });
        sender.try_send(nothing_new()).unwrap();
        let beat = sender.downgrade();
        self.tasks.detach("say that nothing is new", async move {
            let mut every = tokio::time::interval(BEAT);
            while let Some(feed) = beat.upgrade() {
                let _ = feed.try_send(nothing_new());
                drop(feed);
                every.tick().await;
            }
        });
        *self.feed.lock() = Some(sender);
        self.feeds_opened.send_modify(|count| *count += 1);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl ServiceKeys for Auth {
    async fn exchange(&self, request: Request<ExchangeServiceKeyRequest>) -> Result<Response<ServiceToken>, Status> {
        assert_eq!(request.get_ref().key, "gld_test_key");
        let token = mint(&self.key, &self.clock, Uuid::nil(), None, "service", "revocations:watch", 300);
        Ok(Response::new(ServiceToken { access_token: token, expires_in: 300 }))
    }
}

#[tonic::async_trait]
impl SigningKeys for Auth {
    async fn list(&self, _: Request<ListSigningKeysRequest>) -> Result<Response<SigningKeySet>, Status> {
        Ok(Response::new(SigningKeySet { jwks_json: self.jwks.clone() }))
    }
}
