//! The service's own symmetric keys: made once, in the database, so that every replica has the same.
//!
//! To exchange one, delete its row and restart the replicas. It costs little: pages of lists in hand are refused once,
//! and a refresh whose answer was lost in that very minute means signing in again.

use hmac::{Hmac, KeyInit as _, Mac as _};
use kit::{Clock, Fail, Secret, cursor::CursorKey};
use sha2::Sha256;
use sqlx::PgPool;

use crate::random;

/// A key of 256 random bits.
#[derive(Debug, Clone)]
pub(crate) struct ServerKey(Secret<[u8; 32]>);

impl ServerKey {
    /// HMAC-SHA256 (RFC 2104).
    pub(crate) fn mac(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    #[cfg(test)]
    pub(crate) fn of_test(byte: u8) -> Self {
        Self(Secret::new([byte; 32]))
    }
}

/// The keys, one a purpose.
#[derive(Debug)]
pub(crate) struct ServerKeys {
    /// Derives a refresh token's child.
    pub(crate) refresh: ServerKey,
    /// Signs the cursors of lists.
    pub(crate) cursor: CursorKey,
}

impl ServerKeys {
    /// Takes the keys from the database, where a first start makes them.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn ensure(pool: &PgPool, clock: &Clock) -> Result<Self, Fail> {
        let refresh = ensure(pool, clock, "refresh").await?;
        let cursor = ensure(pool, clock, "cursor").await?;
        Ok(Self { refresh, cursor: CursorKey::new(cursor.0.expose()) })
    }
}

async fn ensure(pool: &PgPool, clock: &Clock, purpose: &str) -> Result<ServerKey, Fail> {
    sqlx::query!(
        "insert into auth.server_key (purpose, key, created_at)
         values ($1, $2, $3)
         on conflict (purpose) do nothing",
        purpose,
        &random::bytes::<32>()?[..],
        clock.now(),
    )
    .execute(pool)
    .await?;
    // Whoever came first made it: the key is what stands there now.
    let key =
        sqlx::query_scalar!("select key from auth.server_key where purpose = $1", purpose).fetch_one(pool).await?;
    let key = key.try_into().map_err(|_| Fail::internal("a server key is not of 32 bytes"))?;
    Ok(ServerKey(Secret::new(key)))
}
