//! Verifying access tokens: JWT, EdDSA only, header `typ: at+jwt` (RFC 9068), issuer and audience fixed, `exp` and
//! `nbf` required. Keys come from `auth` and are fetched again when a token names one that is not known.

use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{Caller, Role};
use crate::{Fail, Secret};

/// The `aud` of every access token.
pub const AUDIENCE: &str = "guildhall";
/// The `typ` of every access token (RFC 9068, section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// Clocks of two machines may differ by this much, in seconds.
const LEEWAY_S: u64 = 5;
/// A token with an unknown `kid` makes us ask `auth` for keys, at most this often.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The claims of an access token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: Uuid,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    pub jti: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<Uuid>,
    /// The session's generation: how often it has been refreshed.
    #[serde(rename = "gen")]
    pub generation: u64,
    pub roles: Vec<String>,
    /// Space-separated (RFC 9068, section 2.2.3).
    pub scope: String,
}

/// How a verifier gets the present JWK set, as JSON.
pub type FetchKeys = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, Fail>> + Send>> + Send + Sync>;

/// Verifies access tokens. Cheap to clone; clones share their keys.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    validation: Validation,
    keys: ArcSwap<HashMap<String, DecodingKey>>,
    fetch: FetchKeys,
    fetched_at: Mutex<Option<Instant>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.0.keys.load().len()).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier of tokens by `issuer` (the public URL) that knows no key yet.
    pub fn new(issuer: &str, fetch: FetchKeys) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        Self(Arc::new(Inner { validation, keys: ArcSwap::default(), fetch, fetched_at: Mutex::new(None) }))
    }

    /// Verifies a token and tells who it speaks for.
    ///
    /// # Errors
    /// `auth.invalid_token`, `auth.token_expired`; `unavailable` when a key is unknown and `auth` cannot be asked.
    pub async fn verify(&self, token: &str) -> Result<Caller, Fail> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid())?;
        if header.typ.as_deref() != Some(ACCESS_TOKEN_TYPE) || header.alg != Algorithm::EdDSA {
            return Err(invalid());
        }
        let kid = header.kid.ok_or_else(invalid)?;
        let key = self.key(&kid).await?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &self.0.validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => {
                    Fail::unauthenticated("auth.token_expired", "The access token has expired.")
                }
                _ => invalid(),
            })?
            .claims;
        Ok(Caller {
            subject: claims.sub,
            session: claims.sid,
            generation: claims.generation,
            expires_at: claims.exp,
            // A role this version does not know grants nothing here.
            roles: claims.roles.iter().filter_map(|role| role.parse::<Role>().ok()).collect(),
            scope: claims.scope.split_ascii_whitespace().map(str::to_owned).collect(),
            token: Secret::new(token.to_owned()),
        })
    }

    async fn key(&self, kid: &str) -> Result<DecodingKey, Fail> {
        if let Some(key) = self.0.keys.load().get(kid) {
            return Ok(key.clone());
        }
        let mut fetched_at = self.0.fetched_at.lock().await;
        if let Some(key) = self.0.keys.load().get(kid) {
            return Ok(key.clone());
        }
        if fetched_at.is_some_and(|at| at.elapsed() < FETCH_AGAIN_AFTER) {
            return Err(invalid());
        }
        let set: JwkSet = serde_json::from_str(&(self.0.fetch)().await?).map_err(Fail::internal)?;
        let keys = set
            .keys
            .iter()
            .filter_map(|jwk| Some((jwk.common.key_id.clone()?, DecodingKey::from_jwk(jwk).ok()?)))
            .collect::<HashMap<_, _>>();
        let found = keys.get(kid).cloned();
        self.0.keys.store(Arc::new(keys));
        *fetched_at = Some(Instant::now());
        found.ok_or_else(invalid)
    }
}

fn invalid() -> Fail {
    Fail::unauthenticated("auth.invalid_token", "The access token is not valid.")
}
