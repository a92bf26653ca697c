//! A role's own credential: a service key, exchanged at `auth` for short access tokens. Every call that a role makes for
//! nobody but itself shows such a token; the key itself goes nowhere else.

use std::{sync::Arc, time::Duration};

use proto::auth::{ExchangeServiceKeyRequest, service_keys_client::ServiceKeysClient};
use tokio::{sync::Mutex, time::Instant};

use super::{Call, Peer};
use crate::{Fail, Secret};

/// How long `auth` may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A service key and the role that exchanges it. Cheap to clone; clones share their token.
#[derive(Debug, Clone)]
pub struct Credential(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    auth: Peer,
    key: Secret,
    setting: &'static str,
    token: Mutex<Option<Token>>,
}

#[derive(Debug, Clone)]
struct Token {
    secret: Secret,
    /// A new one is fetched from here on, well before the old one ends.
    stale_at: Instant,
}

impl Credential {
    /// `key` is a service key `gld_<id>_<secret>`; what its calls may do is its scope. `setting` is where people said it.
    #[must_use]
    pub fn new(auth: Peer, key: Secret, setting: &'static str) -> Self {
        Self(Arc::new(Inner { auth, key, setting, token: Mutex::new(None) }))
    }

    /// The context of a call that shows a live token.
    ///
    /// # Errors
    /// As `ServiceKeys/Exchange`, with the name of the setting; `unavailable` when `auth` is away.
    pub async fn call(&self, request_id: &str) -> Result<Call, Fail> {
        Ok(Call::with_token(self.token().await?, request_id))
    }

    /// Forgets the present token, as when a role did not believe it: the next call shows a new one.
    pub async fn forget(&self) {
        *self.0.token.lock().await = None;
    }

    async fn token(&self) -> Result<Secret, Fail> {
        // The lock is held over the exchange, so that a burst of calls makes one.
        let mut token = self.0.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| Instant::now() < token.stale_at) {
            return Ok(token.secret.clone());
        }
        let asked_at = Instant::now();
        let request = ExchangeServiceKeyRequest { key: self.0.key.expose().clone() };
        let request = Call::anonymous("credential").request_within(ANSWER_WITHIN, request);
        let mut client = ServiceKeysClient::new(self.0.auth.clone());
        let answer = tokio::time::timeout(ANSWER_WITHIN, client.exchange(request))
            .await
            .map_err(|_| Fail::unavailable("unavailable", "A part of the system is away for the moment."))?
            .map_err(|status| self.named(status.into()))?
            .into_inner();
        let fresh = Token {
            secret: Secret::new(answer.access_token),
            stale_at: asked_at + Duration::from_secs(answer.expires_in.into()) * 2 / 3,
        };
        *token = Some(fresh.clone());
        Ok(fresh.secret)
    }

    /// A key that `auth` does not know was said wrongly here or there, and whoever reads of it has to know which.
    fn named(&self, fail: Fail) -> Fail {
        if fail.code() != "auth.invalid_service_key" {
            return fail;
        }
        let setting = self.0.setting;
        Fail::unauthenticated(
            fail.code().to_owned(),
            format!("auth does not know the {setting} of this process: give both the same {setting}."),
        )
    }
}
