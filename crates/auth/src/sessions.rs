//! Sessions: the gRPC service of signing in, staying in and getting out, and the list of one's sessions. Signing in
//! stands in `login.rs`, staying in in `refresh.rs`, and how an end is told in `revocations.rs`.

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, audit::Act, clock::to_timestamp, cursor::page_rows, grpc::Call, identity::Caller, telemetry::span};
use proto::auth::{
    CheckSessionRequest, CheckSessionResponse, ListSessionsRequest, ListSessionsResponse, LoginRequest,
    LogoutAllRequest, LogoutAllResponse, LogoutRequest, LogoutResponse, RefreshRequest, RevokeSessionRequest,
    RevokeSessionResponse, Session, TokenPair, WatchRevocationsRequest, sessions_server::Sessions,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Auth,
    access_tokens::{Grant, SessionGrant},
    acts,
    refresh::{self, RefreshToken},
    revocations::{self, EndReason, Watch},
    users::Account,
};

#[tonic::async_trait]
impl Sessions for Auth {
    type WatchRevocationsStream = Watch;

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<TokenPair>, Status> {
        let pair = self.log_in(request.get_ref(), Call::of(&request)?).await?;
        Ok(Response::new(pair))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<TokenPair>, Status> {
        let pair = self.exchange(&request.get_ref().refresh_token, Call::of(&request)?).await?;
        Ok(Response::new(pair))
    }

    /// Ends the caller's session. An access token of a session that has ended gets the same answer again.
    async fn logout(&self, request: Request<LogoutRequest>) -> Result<Response<LogoutResponse>, Status> {
        let call = Call::of(&request)?;
        let caller = call.caller()?;
        let session = caller.session.ok_or_else(no_session)?;
        let _told = span::transaction("auth.end_session");
        let mut transaction = self.0.pool.begin().await.map_err(Fail::from)?;
        let owner = Some(caller.subject);
        let reason = EndReason::LoggedOut;
        if self.end_session(&mut transaction, session, owner, reason, call.traceparent.as_deref()).await?.is_some() {
            let act = Act::of(call, &acts::LOGOUT, session).after("end_reason", reason.as_str());
            self.0.audit.record(&mut transaction, act).await?;
        }
        transaction.commit().await.map_err(Fail::from)?;
        revocations::tell(&self.0).await;
        Ok(Response::new(LogoutResponse {}))
    }

    async fn logout_all(&self, request: Request<LogoutAllRequest>) -> Result<Response<LogoutAllResponse>, Status> {
        let call = Call::of(&request)?;
        let user = self.live(call.caller()?).await?;
        let _told = span::transaction("auth.end_sessions");
        let mut transaction = self.0.pool.begin().await.map_err(Fail::from)?;
        let reason = EndReason::LoggedOutEverywhere;
        let ended = self.end_sessions_of(&mut transaction, user, reason, call.traceparent.as_deref()).await?;
        if ended > 0 {
            let act = Act::of(call, &acts::LOGOUT_ALL, user).after("sessions_ended", u64::from(ended));
            self.0.audit.record(&mut transaction, act).await?;
        }
        transaction.commit().await.map_err(Fail::from)?;
        revocations::tell(&self.0).await;
        Ok(Response::new(LogoutAllResponse { ended }))
    }

    async fn list(&self, request: Request<ListSessionsRequest>) -> Result<Response<ListSessionsResponse>, Status> {
        let caller = Call::of(&request)?.caller()?;
        self.live(caller).await?;
        Ok(Response::new(self.list_sessions(caller, request.get_ref()).await?))
    }

    async fn revoke(&self, request: Request<RevokeSessionRequest>) -> Result<Response<RevokeSessionResponse>, Status> {
        let call = Call::of(&request)?;
        self.live(call.caller()?).await?;
        let session: Uuid = request.get_ref().id.parse().map_err(|_| not_found())?;
        self.revoke_session(call, session).await?;
        revocations::tell(&self.0).await;
        Ok(Response::new(RevokeSessionResponse {}))
    }

    async fn check(&self, request: Request<CheckSessionRequest>) -> Result<Response<CheckSessionResponse>, Status> {
        let live = self.is_live(Call::of(&request)?.caller()?).await?;
        Ok(Response::new(CheckSessionResponse { live }))
    }

    async fn watch_revocations(&self, _: Request<WatchRevocationsRequest>) -> Result<Response<Watch>, Status> {
        Ok(Response::new(self.watch_revocations().await?))
    }
}

impl Auth {
    /// Days without use after which a session is over.
    pub(crate) fn idle_max(&self) -> TimeDelta {
        TimeDelta::days(self.0.settings.session_idle_days_max.into())
    }

    /// The user behind a token whose session is live. A token outlives its session by minutes: whoever is asked here
    /// has the truth at hand and uses it.
    ///
    /// # Errors
    /// `auth.session_ended` (401).
    pub(crate) async fn live(&self, caller: &Caller) -> Result<Uuid, Fail> {
        if self.is_live(caller).await? { Ok(caller.subject) } else { Err(refresh::ended()) }
    }

    /// A service account's token has no session and is live for as long as it lasts.
    async fn is_live(&self, caller: &Caller) -> Result<bool, Fail> {
        let Some(session) = caller.session else { return Ok(true) };
        let is_live = sqlx::query_scalar!(
            r#"select exists(
                 select from auth.session
                 join auth.user as owner on owner.id = session.user_id
                 where session.id = $1 and ended_at is null and expires_at > $2 and disabled_at is null
               ) as "is_live!""#,
            session,
            self.0.clock.now(),
        )
        .fetch_one(&self.0.pool)
        .await?;
        Ok(is_live)
    }

    /// Ends one session, the caller's own where its permission reaches no further.
    async fn revoke_session(&self, call: &Call, session: Uuid) -> Result<(), Fail> {
        let (act, reason) = (Act::of(call, &acts::REVOKE_SESSION, session), EndReason::Revoked);
        let owner = call.caller()?.narrowed_to("sessions:revoke");
        let _told = span::transaction("auth.end_session_of");
        let mut transaction = self.0.pool.begin().await?;
        let trace = call.traceparent.as_deref();
        let Some(user) = self.end_session(&mut transaction, session, owner, reason, trace).await? else {
            let owner = sqlx::query_scalar!("select user_id from auth.session where id = $1", session)
                .fetch_optional(&mut *transaction)
                .await?;
            transaction.rollback().await?;
            let act = owner.map_or(act.clone(), |owner| act.owned_by(owner));
            return self.0.audit.witness(&self.0.pool, act, Err(not_found())).await;
        };
        let act = act.owned_by(user).after("end_reason", reason.as_str());
        self.0.audit.record(&mut transaction, act).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn list_sessions(
        &self,
        caller: &Caller,
        request: &ListSessionsRequest,
    ) -> Result<ListSessionsResponse, Fail> {
        let rows_max = page_rows(request.limit);
        // A stranger's cursor is refused before it could be wondered about.
        let list = format!("sessions of {}", caller.subject);
        let before: Option<Uuid> = self.0.keys.cursor.place(&list, &request.cursor)?;
        let now = self.0.clock.now();
        let mut rows = sqlx::query_as!(
            Row,
            "select id, created_at, last_used_at, expires_at, remote_address, user_agent
             from auth.session
             where user_id = $1 and ended_at is null and expires_at > $2 and last_used_at > $3
               and ($4::uuid is null or id < $4)
             order by id desc
             limit $5",
            caller.subject,
            now,
            now - self.idle_max(),
            before,
            rows_max + 1,
        )
        .fetch_all(&self.0.pool)
        .await?;
        let next_cursor = self.0.keys.cursor.close_page(&list, &mut rows, rows_max, |row| row.id.to_string());
        let items = rows.into_iter().map(|row| row.into_message(caller.session, self.idle_max())).collect();
        Ok(ListSessionsResponse { items, next_cursor })
    }

    /// What a person is given who has signed in or stays in.
    pub(crate) fn token_pair(
        &self,
        account: Account,
        session: SessionGrant,
        refresh_token: &RefreshToken,
    ) -> Result<TokenPair, Fail> {
        let roles = account.roles.clone();
        let grant = Grant { subject: account.id, session: Some(session), roles, scope: Vec::new() };
        let access = self.mint(grant)?;
        Ok(TokenPair {
            access_token: access.token,
            expires_in: access.expires_in,
            refresh_token: refresh_token.text(),
            user: Some(account.into_message()),
        })
    }
}

fn not_found() -> Fail {
    Fail::not_found("auth.session_not_found", "There is no such session.")
}

fn no_session() -> Fail {
    Fail::conflict("auth.no_session", "This access token belongs to no session that could be ended.")
}

struct Row {
    id: Uuid,
    created_at: DateTime<Utc>,
    last_used_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    remote_address: String,
    user_agent: String,
}

impl Row {
    fn into_message(self, current: Option<Uuid>, idle_max: TimeDelta) -> Session {
        Session {
            id: self.id.to_string(),
            created_at: Some(to_timestamp(self.created_at)),
            last_used_at: Some(to_timestamp(self.last_used_at)),
            // When it ends if it is not used again.
            expires_at: Some(to_timestamp(self.expires_at.min(self.last_used_at + idle_max))),
            remote_address: self.remote_address,
            user_agent: self.user_agent,
            current: current == Some(self.id),
        }
    }
}
