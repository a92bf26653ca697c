//! Signing in with an e-mail address and a password. Every refusal of a credential is the same: what was wrong, and
//! whether there is such an account, is told neither in words nor by the time it takes.

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Fail, outbox::Event, telemetry::span};
use proto::{
    auth::{LoginRequest, TokenPair},
    events::{LoginFailed, SessionCreated},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Auth, SCHEMA,
    access_tokens::SessionGrant,
    email::Email,
    passwords::{Password, Verified},
    throttle::Attempt,
    users::Account,
};

/// Longest kept of what a client says about itself, in characters.
const USER_AGENT_CHARS_MAX: usize = 256;
/// An IPv6 address with its zone fits.
const REMOTE_ADDRESS_CHARS_MAX: usize = 64;

impl Auth {
    /// Checks the credential and starts a session.
    ///
    /// # Errors
    /// `auth.too_many_attempts` (429), `auth.invalid_credentials` (401), `auth.busy` (503).
    pub(crate) async fn log_in(&self, request: LoginRequest, traceparent: Option<&str>) -> Result<TokenPair, Fail> {
        let email = Email::parse(&request.email).ok();
        let remote_address = shown(&request.remote_address, REMOTE_ADDRESS_CHARS_MAX);
        let attempt = Attempt::new(email.as_ref().map_or(&request.email, Email::as_str), &remote_address);
        attempt.pay(&self.0.pool, self.0.clock.now()).await?;

        let credential = match &email {
            Some(email) => self.credential(email).await?,
            None => None,
        };
        let Some(password) = Password::offer(&request.password) else {
            // Nobody has such a password, so refusing it unhashed tells nothing of the account.
            return Err(self.refuse(credential, traceparent).await);
        };
        let stored = credential.as_ref().map(|credential| credential.password_hash.as_str());
        let verified = match self.0.hasher.verify(&password, stored).await {
            Ok(verified) => verified,
            Err(fail) => {
                // Nothing was guessed, so nothing is owed.
                attempt.give_back(&mut *self.0.pool.acquire().await?).await?;
                return Err(fail);
            }
        };
        let credential = match (verified, credential) {
            (Verified::Yes | Verified::YesButStale, Some(credential)) => credential,
            (_, credential) => return Err(self.refuse(credential, traceparent).await),
        };
        let rehashed = match verified {
            // When too many wait, the next sign-in will do it.
            Verified::YesButStale => self.0.hasher.hash(&password).await.ok(),
            _ => None,
        };

        let now = self.0.clock.now();
        let _told = span::transaction("auth.login");
        let mut transaction = self.0.pool.begin().await?;
        if let Some(rehashed) = rehashed {
            credential.replace_hash(&mut transaction, &rehashed).await?;
        }
        let account = Account::get(&mut transaction, credential.user).await?;
        let user_agent = shown(&request.user_agent, USER_AGENT_CHARS_MAX);
        let session = self.insert_session(&mut transaction, account.id, &remote_address, &user_agent, now).await?;
        let refresh_token = Self::start_family(&mut transaction, session.id).await?;
        let created = SessionCreated { user_id: account.id.to_string(), session_id: session.id.to_string() };
        let created = Event::new("auth.session.created", account.id, &created);
        kit::outbox::write(&mut transaction, SCHEMA, &[created], &self.0.clock, traceparent).await?;
        attempt.give_back(&mut transaction).await?;
        transaction.commit().await?;
        self.token_pair(account, session, &refresh_token)
    }

    async fn credential(&self, email: &Email) -> Result<Option<Credential>, Fail> {
        let found = sqlx::query_as!(
            Credential,
            r#"select id as "user", password_hash from auth.user where email = $1"#,
            email.as_str(),
        );
        Ok(found.fetch_optional(&self.0.pool).await?)
    }

    /// Writes down that an attempt failed, for a known and an unknown account alike, and makes the one refusal there is.
    async fn refuse(&self, credential: Option<Credential>, traceparent: Option<&str>) -> Fail {
        let user_id = credential.map(|credential| credential.user.to_string()).unwrap_or_default();
        let event = Event::new("auth.login.failed", user_id.clone(), &LoginFailed { user_id });
        let written = async {
            let mut connection = self.0.pool.acquire().await?;
            kit::outbox::write(&mut connection, SCHEMA, &[event], &self.0.clock, traceparent).await
        };
        match written.await {
            Ok(()) => Fail::unauthenticated("auth.invalid_credentials", "The e-mail address or the password is wrong."),
            Err(fail) => fail,
        }
    }

    async fn insert_session(
        &self,
        connection: &mut PgConnection,
        user: Uuid,
        remote_address: &str,
        user_agent: &str,
        now: DateTime<Utc>,
    ) -> Result<SessionGrant, Fail> {
        let id = self.0.clock.new_id();
        let expires_at = now + TimeDelta::days(self.0.settings.session_days_max.into());
        sqlx::query!(
            "insert into auth.session
               (id, user_id, created_at, last_used_at, expires_at, remote_address, user_agent)
             values ($1, $2, $3, $3, $4, $5, $6)",
            id,
            user,
            now,
            expires_at,
            remote_address,
            user_agent,
        )
        .execute(connection)
        .await?;
        Ok(SessionGrant { id, generation: 0, expires_at })
    }
}

struct Credential {
    user: Uuid,
    password_hash: String,
}

impl Credential {
    /// Stores the same password under present parameters, unless it was changed meanwhile.
    async fn replace_hash(&self, connection: &mut PgConnection, rehashed: &str) -> Result<(), Fail> {
        sqlx::query!(
            "update auth.user set password_hash = $3 where id = $1 and password_hash = $2",
            self.user,
            self.password_hash,
            rehashed,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// What a client said of itself, bounded and fit to be shown in a list.
fn shown(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}
