//! The Ed25519 keys that access tokens are signed with, and the public halves that everyone else verifies them by.
//!
//! One key signs; the one before it stays in the published set until its tokens have ended. Keys are made in the database
//! under a constraint that lets one sign, so that replicas agree. Private keys leave neither the table nor this process
//! (docs/adr/0010-keys-at-rest.md).

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    identity::{ACCESS_TOKEN_TYPE, Claims},
};
use proto::auth::{ListSigningKeysRequest, SigningKeySet, signing_keys_server::SigningKeys};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::{Auth, random};

/// How long a key verifies after another has taken over: the longest access token, and time for every replica to notice.
const OVERLAP: TimeDelta = TimeDelta::hours(1);

#[tonic::async_trait]
impl SigningKeys for Auth {
    /// Read from the table and not from memory, so that a key another replica has just made is known everywhere at once.
    async fn list(&self, _: Request<ListSigningKeysRequest>) -> Result<Response<SigningKeySet>, Status> {
        Ok(Response::new(SigningKeySet { jwks_json: jwks(&self.0.pool, self.0.clock.now()).await? }))
    }
}

/// The key that signs at present.
#[derive(Debug)]
pub(crate) struct Signer(ArcSwap<Current>);

struct Current {
    kid: String,
    key: EncodingKey,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes the signing key from the database, where a first start makes it.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn ensure(pool: &PgPool, clock: &Clock) -> Result<Self, Fail> {
        insert(&mut *pool.acquire().await?, clock).await?;
        Ok(Self(ArcSwap::new(Arc::new(current(pool).await?))))
    }

    /// Follows what is in the table, after a rotation here or elsewhere.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn reload(&self, pool: &PgPool) -> Result<(), Fail> {
        self.0.store(Arc::new(current(pool).await?));
        Ok(())
    }

    /// Signs an access token.
    ///
    /// # Errors
    /// `internal`.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, Fail> {
        let current = self.0.load();
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(ACCESS_TOKEN_TYPE.to_owned());
        header.kid = Some(current.kid.clone());
        jsonwebtoken::encode(&header, claims, &current.key).map_err(Fail::internal)
    }
}

/// Lets a new key sign where the present one is older than `days`, and forgets keys whose overlap is over. Any number of
/// replicas may do it at once: the row of the present key is retired by one of them alone.
///
/// # Errors
/// As the database.
pub(crate) async fn rotate(pool: &PgPool, clock: &Clock, days: u32) -> Result<(), Fail> {
    let now = clock.now();
    let mut transaction = pool.begin().await?;
    let retired = sqlx::query!(
        "update auth.signing_key
         set retired_at = $1
         where retired_at is null and created_at <= $2",
        now + OVERLAP,
        now - TimeDelta::days(days.into()),
    )
    .execute(&mut *transaction)
    .await?;
    if retired.rows_affected() > 0 {
        insert(&mut transaction, clock).await?;
    }
    sqlx::query!("delete from auth.signing_key where retired_at <= $1", now).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Makes a key, unless there is one that signs.
async fn insert(connection: &mut sqlx::PgConnection, clock: &Clock) -> Result<(), Fail> {
    let private = Secret::new(random::bytes::<32>()?);
    sqlx::query!(
        "insert into auth.signing_key (kid, private_key, created_at)
         values ($1, $2, $3)
         on conflict do nothing",
        kid(&public_key(private.expose())),
        &private.expose()[..],
        clock.now(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn current(pool: &PgPool) -> Result<Current, Fail> {
    let row =
        sqlx::query!("select kid, private_key from auth.signing_key where retired_at is null").fetch_one(pool).await?;
    let private = Secret::new(seed(row.private_key)?);
    let der = SigningKey::from_bytes(private.expose()).to_pkcs8_der().map_err(Fail::internal)?;
    Ok(Current { kid: row.kid, key: EncodingKey::from_ed_der(der.as_bytes()) })
}

/// The public keys as a JWK set (RFC 7517, RFC 8037), the one that signs first.
async fn jwks(pool: &PgPool, now: DateTime<Utc>) -> Result<String, Fail> {
    let rows = sqlx::query!(
        "select kid, private_key
         from auth.signing_key
         where retired_at is null or retired_at > $1
         order by retired_at desc nulls first",
        now,
    )
    .fetch_all(pool)
    .await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        let x = public_key(&seed(row.private_key)?);
        keys.push(serde_json::json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": row.kid, "x": x,
        }));
    }
    Ok(serde_json::json!({ "keys": keys }).to_string())
}

fn seed(bytes: Vec<u8>) -> Result<[u8; 32], Fail> {
    bytes.try_into().map_err(|_| Fail::internal("a signing key is not of 32 bytes"))
}

/// The public key as a JWK's `x`.
fn public_key(seed: &[u8; 32]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(seed).verifying_key().as_bytes())
}

/// The thumbprint of a public key (RFC 7638; the members for Ed25519 are those of RFC 8037, section 2).
fn kid(x: &str) -> String {
    let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    BASE64_URL_SAFE_NO_PAD.encode(random::sha256(members.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, appendix A.3.
    #[test]
    fn a_kid_is_the_thumbprint_of_the_rfcs_example() {
        assert_eq!(kid("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
