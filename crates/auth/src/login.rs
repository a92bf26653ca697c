//! Signing in with an e-mail address and a password. Every refusal of a credential is the same: what was wrong, and
//! whether there is such an account, is told neither in words nor by the time it takes.

use chrono::{DateTime, TimeDelta, Utc};
use kit::{
    Fail,
    audit::{Act, Credential as Shown},
    grpc::Call,
    outbox::Event,
    telemetry::span,
};
use proto::{
    auth::{LoginRequest, TokenPair},
    events::{LoginFailed, SessionCreated},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Auth, SCHEMA,
    access_tokens::SessionGrant,
    acts,
    email::Email,
    passwords::{Password, Verified},
    throttle::{Attempt, Throttled},
    users::Account,
};

/// Why the right password of a disabled user opens nothing. Told to the audit log, and never to who asks.
const DISABLED: &str = "auth.user_disabled";

impl Auth {
    /// Checks the credential and starts a session.
    ///
    /// # Errors
    /// `auth.too_many_attempts` (429), `auth.invalid_credentials` (401), `auth.busy` (503).
    pub(crate) async fn log_in(&self, request: &LoginRequest, call: &Call) -> Result<TokenPair, Fail> {
        let email = Email::parse(&request.email).ok();
        let attempt = Attempt::new(email.as_ref().map_or(&request.email, Email::as_str), &call.remote_address);
        if let Some(throttled) = attempt.pay(&self.0.pool, self.0.clock.now()).await? {
            return Err(self.refuse_throttled(throttled, email.as_ref(), call).await?);
        }

        let credential = match &email {
            Some(email) => self.credential(email).await?,
            None => None,
        };
        let user = credential.as_ref().map(|credential| credential.user);
        let Some(password) = Password::offer(&request.password) else {
            // Nobody has such a password, so refusing it unhashed tells nothing of the account.
            return Err(self.refuse(user, invalid().code(), call).await);
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
            (Verified::Yes | Verified::YesButStale, Some(credential)) if credential.is_disabled => {
                return Err(self.refuse(user, DISABLED, call).await);
            }
            (Verified::Yes | Verified::YesButStale, Some(credential)) => credential,
            _ => return Err(self.refuse(user, invalid().code(), call).await),
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
        let account = Account::get_held(&mut transaction, credential.user).await?;
        if account.is_disabled() {
            // Since the password was looked up.
            transaction.rollback().await?;
            return Err(self.refuse(user, DISABLED, call).await);
        }
        let session = self.insert_session(&mut transaction, account.id, call, now).await?;
        let refresh_token = Self::start_family(&mut transaction, session.id).await?;
        let created = SessionCreated { user_id: account.id.to_string(), session_id: session.id.to_string() };
        let created = Event::new("auth.session.created", account.id, &created);
        kit::outbox::write(&mut transaction, SCHEMA, &[created], &self.0.clock, call.traceparent.as_deref()).await?;
        let act = by_password(call, Some(account.id)).by_user(account.id).after("session_id", session.id);
        self.0.audit.record(&mut transaction, act).await?;
        attempt.give_back(&mut transaction).await?;
        transaction.commit().await?;
        self.token_pair(account, session, &refresh_token)
    }

    async fn credential(&self, email: &Email) -> Result<Option<Credential>, Fail> {
        let found = sqlx::query_as!(
            Credential,
            r#"select id as "user", password_hash, disabled_at is not null as "is_disabled!"
               from auth.user
               where email = $1"#,
            email.as_str(),
        );
        Ok(found.fetch_optional(&self.0.pool).await?)
    }

    /// Writes down that an attempt failed and why, for a known and an unknown account alike, and makes the one refusal
    /// there is: the reason is for the audit log alone.
    async fn refuse(&self, user: Option<Uuid>, reason: &str, call: &Call) -> Fail {
        let user_id = user.map(|user| user.to_string()).unwrap_or_default();
        let event = Event::new("auth.login.failed", user_id.clone(), &LoginFailed { user_id });
        let written = async {
            let mut transaction = self.0.pool.begin().await?;
            let trace = call.traceparent.as_deref();
            kit::outbox::write(&mut transaction, SCHEMA, &[event], &self.0.clock, trace).await?;
            self.0.audit.record(&mut transaction, by_password(call, user).refused(reason)).await?;
            transaction.commit().await?;
            Ok(())
        };
        match written.await {
            Ok(()) => invalid(),
            Err(fail) => fail,
        }
    }

    /// The throttle's refusal, after it was written down where that is due.
    async fn refuse_throttled(&self, throttled: Throttled, email: Option<&Email>, call: &Call) -> Result<Fail, Fail> {
        if let Some(mut transaction) = throttled.untold {
            let email = email.map(Email::as_str);
            let user = sqlx::query_scalar!("select id from auth.user where email = $1", email)
                .fetch_optional(&mut *transaction)
                .await?;
            let act = by_password(call, user).refused(throttled.fail.code());
            self.0.audit.record(&mut transaction, act).await?;
            transaction.commit().await?;
        }
        Ok(throttled.fail)
    }

    async fn insert_session(
        &self,
        connection: &mut PgConnection,
        user: Uuid,
        call: &Call,
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
            call.remote_address,
            call.user_agent,
        )
        .execute(connection)
        .await?;
        Ok(SessionGrant { id, generation: 0, expires_at })
    }
}

struct Credential {
    user: Uuid,
    password_hash: String,
    is_disabled: bool,
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

/// An attempt to sign in, as the audit log has it. Nobody has signed in yet, whoever is meant.
fn by_password(call: &Call, user: Option<Uuid>) -> Act {
    Act::of(call, &acts::LOGIN, user.map(|user| user.to_string()).unwrap_or_default()).showing(Shown::Password)
}

fn invalid() -> Fail {
    Fail::unauthenticated("auth.invalid_credentials", "The e-mail address or the password is wrong.")
}
