//! Who is asking: registration, sign-in, sessions.

use kit::Fail;
use proto::auth as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SMALL;
use crate::{
    route::{Access, Ask, Fails, Id, Idempotency, Json, NoContent, Nothing, Query, Reply, Route},
    wire::{LIMIT, List, Paging, Time, time},
};

const TAG: &str = "auth";
const AUTHENTICATED: Access = Access::Authenticated;
/// A service account has none.
const NO_SESSION: Fails = Fails(&[(409, "auth.no_session")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/auth/register", TAG, "Create an account")
            .access(Access::Public, &["/guildhall.auth.v1.Users/Register"])
            .limits(SMALL)
            .idempotency(Idempotency::ByKey)
            .refuses(Fails(&[(409, "auth.email_taken"), (422, "auth.invalid_registration"), (503, "auth.busy")]))
            .by(register),
        Route::post("/api/v1/auth/login", TAG, "Start a session")
            .access(Access::Public, &["/guildhall.auth.v1.Sessions/Login"])
            .limits(SMALL)
            .idempotency(Idempotency::Never)
            .refuses(Fails(&[(401, "auth.invalid_credentials"), (429, "auth.too_many_attempts"), (503, "auth.busy")]))
            .by(login),
        Route::post("/api/v1/auth/refresh", TAG, "Exchange a refresh token for new tokens")
            .access(Access::Public, &["/guildhall.auth.v1.Sessions/Refresh"])
            .limits(SMALL)
            .idempotency(Idempotency::Never)
            .refuses(Fails(&[
                (401, "auth.invalid_token"),
                (401, "auth.token_reused"),
                (401, "auth.session_ended"),
                (401, "auth.session_expired"),
            ]))
            .by(refresh),
        Route::post("/api/v1/auth/logout", TAG, "End this session")
            .access(AUTHENTICATED, &["/guildhall.auth.v1.Sessions/Logout"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NO_SESSION)
            .by(logout),
        Route::post("/api/v1/auth/logout-all", TAG, "End every session of yours")
            .access(AUTHENTICATED, &["/guildhall.auth.v1.Sessions/LogoutAll"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(logout_all),
        Route::get("/api/v1/auth/sessions", TAG, "List your live sessions, newest first")
            .access(Access::Permission("sessions:read"), &["/guildhall.auth.v1.Sessions/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(sessions),
        Route::delete("/api/v1/auth/sessions/{id}", TAG, "End one of your sessions")
            .access(Access::Permission("sessions:revoke"), &["/guildhall.auth.v1.Sessions/Revoke"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "auth.session_not_found")]))
            .by(revoke),
        Route::get("/api/v1/me", TAG, "Show your own account")
            .access(AUTHENTICATED, &["/guildhall.auth.v1.Users/GetSelf"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(me),
        Route::patch("/api/v1/me", TAG, "Change what your account says of you")
            .access(AUTHENTICATED, &["/guildhall.auth.v1.Users/UpdateSelf"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(422, "auth.invalid_user")]))
            .by(change_me),
    ]
}

/// An account.
#[derive(Debug, Serialize, JsonSchema)]
struct User {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    email: String,
    display_name: String,
    roles: Vec<String>,
    created_at: Time,
}

/// What a new account is made of.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Registration {
    email: String,
    password: String,
    display_name: String,
}

/// What is to change; what is left out stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    #[serde(default)]
    display_name: Option<String>,
}

/// What starts a session.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    email: String,
    password: String,
}

/// What a session is carried on with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

/// The tokens of a session.
#[derive(Debug, Serialize, JsonSchema)]
struct Tokens {
    /// Shown as `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// Seconds until the access token expires.
    expires_in: u32,
    /// Good for one exchange.
    refresh_token: String,
    user: User,
}

/// A live session.
#[derive(Debug, Serialize, JsonSchema)]
struct Session {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    created_at: Time,
    last_used_at: Time,
    expires_at: Time,
    remote_address: String,
    user_agent: String,
    /// Whether it is the one that asks.
    current: bool,
}

/// How many sessions have ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ended {
    pub(super) ended: u32,
}

async fn register(ask: Ask<Nothing, Nothing, Json<Registration>>) -> Result<Reply<201, User>, Fail> {
    let Json(Registration { email, password, display_name }) = ask.body;
    let message = rpc::RegisterRequest { email, password, display_name };
    let user = ask.door.users().register(ask.call.request(message)).await?.into_inner();
    let replayed = user.replayed;
    Ok(Reply::new(User::read(user)?).replayed(replayed))
}

async fn login(ask: Ask<Nothing, Nothing, Json<Credentials>>) -> Result<Reply<200, Tokens>, Fail> {
    let Json(Credentials { email, password }) = ask.body;
    let message = rpc::LoginRequest { email, password };
    let pair = ask.door.sessions().login(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(Tokens::read(pair)?))
}

async fn refresh(ask: Ask<Nothing, Nothing, Json<Refresh>>) -> Result<Reply<200, Tokens>, Fail> {
    let message = rpc::RefreshRequest { refresh_token: ask.body.0.refresh_token };
    let pair = ask.door.sessions().refresh(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(Tokens::read(pair)?))
}

async fn logout(ask: Ask) -> Result<NoContent, Fail> {
    ask.door.sessions().logout(ask.call.request(rpc::LogoutRequest {})).await?;
    Ok(NoContent)
}

async fn logout_all(ask: Ask) -> Result<Reply<200, Ended>, Fail> {
    let answer = ask.door.sessions().logout_all(ask.call.request(rpc::LogoutAllRequest {})).await?.into_inner();
    Ok(Reply::new(Ended { ended: answer.ended }))
}

async fn sessions(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<Session>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListSessionsRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.sessions().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, Session::read)?))
}

async fn revoke(ask: Ask<Id>) -> Result<NoContent, Fail> {
    let message = rpc::RevokeSessionRequest { id: ask.path.0.to_string() };
    ask.door.sessions().revoke(ask.call.request(message)).await?;
    Ok(NoContent)
}

async fn me(ask: Ask) -> Result<Reply<200, User>, Fail> {
    let user = ask.door.users().get_self(ask.call.request(rpc::GetSelfRequest {})).await?.into_inner();
    Ok(Reply::new(User::read(user)?))
}

async fn change_me(ask: Ask<Nothing, Nothing, Json<Changes>>) -> Result<Reply<200, User>, Fail> {
    let Json(Changes { display_name }) = ask.body;
    let message = rpc::UpdateSelfRequest { display_name };
    Ok(Reply::new(User::read(ask.door.users().update_self(ask.call.request(message)).await?.into_inner())?))
}

impl User {
    fn read(user: rpc::User) -> Result<Self, Fail> {
        Ok(Self {
            id: user.id,
            email: user.email,
            display_name: user.display_name,
            roles: user.roles,
            created_at: time(user.created_at)?,
        })
    }
}

impl Tokens {
    fn read(pair: rpc::TokenPair) -> Result<Self, Fail> {
        let user = pair.user.ok_or_else(|| Fail::internal("auth answered a sign-in without its user"))?;
        Ok(Self {
            access_token: pair.access_token,
            token_type: "Bearer",
            expires_in: pair.expires_in,
            refresh_token: pair.refresh_token,
            user: User::read(user)?,
        })
    }
}

impl Session {
    fn read(session: rpc::Session) -> Result<Self, Fail> {
        Ok(Self {
            id: session.id,
            created_at: time(session.created_at)?,
            last_used_at: time(session.last_used_at)?,
            expires_at: time(session.expires_at)?,
            remote_address: session.remote_address,
            user_agent: session.user_agent,
            current: session.current,
        })
    }
}
