//! Access tokens: what goes into one. They are signed by `signing_keys.rs` and verified by everyone for themselves
//! (`kit::identity`); nothing here reads one.

use chrono::{DateTime, Utc};
use kit::{
    Fail,
    identity::{AUDIENCE, Claims},
};
use uuid::Uuid;

use crate::Auth;

/// What an access token speaks for.
#[derive(Debug)]
pub(crate) struct Grant {
    /// The user or the service account.
    pub(crate) subject: Uuid,
    pub(crate) session: Option<SessionGrant>,
    pub(crate) roles: Vec<String>,
    pub(crate) scope: Vec<String>,
}

/// The session that a token belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionGrant {
    pub(crate) id: Uuid,
    pub(crate) generation: i64,
    /// No token outlives its session.
    pub(crate) expires_at: DateTime<Utc>,
}

/// A signed token, and the seconds it is good for.
#[derive(Debug)]
pub(crate) struct AccessToken {
    pub(crate) token: String,
    pub(crate) expires_in: u32,
}

impl Auth {
    /// Makes and signs an access token.
    ///
    /// # Errors
    /// `internal`.
    pub(crate) fn mint(&self, grant: Grant) -> Result<AccessToken, Fail> {
        let now = self.0.clock.now();
        let most = i64::from(self.0.settings.access_token_s);
        let left = grant.session.map_or(most, |session| (session.expires_at - now).num_seconds());
        let expires_in = left.clamp(0, most);
        let issued_at = now.timestamp();
        let token = self.0.signer.sign(&Claims {
            iss: self.0.issuer.clone(),
            aud: AUDIENCE.to_owned(),
            sub: grant.subject,
            exp: issued_at + expires_in,
            iat: issued_at,
            nbf: issued_at,
            jti: self.0.clock.new_id(),
            sid: grant.session.map(|session| session.id),
            generation: grant.session.map_or(0, |session| session.generation.unsigned_abs()),
            roles: grant.roles,
            scope: grant.scope.join(" "),
        })?;
        Ok(AccessToken { token, expires_in: u32::try_from(expires_in).unwrap_or(0) })
    }
}
