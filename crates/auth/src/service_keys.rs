//! Service accounts and their keys. A key is `gld_<id>_<secret>`; what is stored of it is its SHA-256, which is enough
//! for 256 random bits. It is exchanged for a short access token with the role `service`, which may do what the key's
//! scope names and nothing by itself.

use kit::{Fail, Secret, grpc::Call, identity::Role};
use proto::auth::{ExchangeServiceKeyRequest, ServiceToken, service_keys_server::ServiceKeys};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Auth, access_tokens::Grant, random};

const PREFIX: &str = "gld_";
const SECRET_CHARS: usize = 64;

/// Makes a key, for its holder to keep in a file that nobody else reads and to show to [`Auth::ensure_service_key`].
///
/// # Errors
/// `internal` without randomness.
pub fn new_service_key() -> Result<Secret, Fail> {
    let id = uuid::Builder::from_random_bytes(random::bytes()?).into_uuid();
    let secret: String = random::bytes::<{ SECRET_CHARS / 2 }>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::new(format!("{PREFIX}{}_{secret}", id.simple())))
}

/// Whether a text is written like a key, which says nothing of what it is worth.
pub fn is_service_key(text: &Secret) -> bool {
    id_of(text.expose()).is_some()
}

#[tonic::async_trait]
impl ServiceKeys for Auth {
    async fn exchange(&self, request: Request<ExchangeServiceKeyRequest>) -> Result<Response<ServiceToken>, Status> {
        Call::of(&request)?;
        Ok(Response::new(self.exchange_service_key(&request.get_ref().key).await?))
    }
}

impl Auth {
    /// Lets the service account `name` in with `key`, under `scope` (entries such as `workers:connect` or
    /// `jobs:submit:any`). Makes the account where it is missing. Doing it again changes nothing; with another key, that
    /// one takes the place of the account's former key, whose access tokens end within `access_token_s`.
    ///
    /// # Errors
    /// `auth.invalid_service_key` for what is not written like a key, `auth.invalid_scope`.
    pub async fn ensure_service_key(&self, name: &str, scope: &[&str], key: &Secret) -> Result<(), Fail> {
        let id = id_of(key.expose()).ok_or_else(invalid)?;
        if let Some(entry) = scope.iter().find(|entry| !is_scope(entry)) {
            return Err(Fail::invalid("auth.invalid_scope", format!("`{entry}` is no scope.")));
        }
        let scope: Vec<String> = scope.iter().map(|entry| (*entry).to_owned()).collect();
        let now = self.0.clock.now();
        let mut transaction = self.0.pool.begin().await?;
        // The update changes nothing: it locks the account that is there and tells its id.
        let account = sqlx::query_scalar!(
            "insert into auth.service_account as account (id, name, created_at)
             values ($1, $2, $3)
             on conflict (name) do update set name = account.name
             returning id",
            self.0.clock.new_id(),
            name,
            now,
        )
        .fetch_one(&mut *transaction)
        .await?;
        sqlx::query!(
            "insert into auth.service_key as present (id, account_id, hash, scope, created_at)
             values ($1, $2, $3, $4, $5)
             on conflict (account_id) do update
             set id = excluded.id, hash = excluded.hash, scope = excluded.scope, created_at = excluded.created_at
             where (present.id, present.hash, present.scope) is distinct from (excluded.id, excluded.hash, excluded.scope)",
            id,
            account,
            &random::sha256(key.expose().as_bytes())[..],
            &scope,
            now,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn exchange_service_key(&self, key: &str) -> Result<ServiceToken, Fail> {
        let id = id_of(key).ok_or_else(invalid)?;
        let stored = sqlx::query!("select account_id, hash, scope from auth.service_key where id = $1", id)
            .fetch_optional(&self.0.pool)
            .await?
            .ok_or_else(invalid)?;
        if !bool::from(random::sha256(key.as_bytes()).ct_eq(&stored.hash)) {
            return Err(invalid());
        }
        let token = self.mint(Grant {
            subject: stored.account_id,
            session: None,
            roles: vec![Role::Service.as_str().to_owned()],
            scope: stored.scope,
        })?;
        Ok(ServiceToken { access_token: token.token, expires_in: token.expires_in })
    }
}

fn invalid() -> Fail {
    Fail::unauthenticated("auth.invalid_service_key", "The service key is not valid.")
}

/// The id in a key that is written like one.
fn id_of(key: &str) -> Option<Uuid> {
    let (id, secret) = key.strip_prefix(PREFIX)?.split_once('_')?;
    let is_secret = secret.len() == SECRET_CHARS && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_secret { Uuid::try_parse(id).ok() } else { None }
}

/// `<noun>:<verb>`, with `:own` or `:any` after it or not.
fn is_scope(entry: &str) -> bool {
    let parts: Vec<&str> = entry.split(':').collect();
    let is_word = |part: &&str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte == b'_')
    };
    parts.iter().all(is_word) && (parts.len() == 2 || parts.len() == 3 && matches!(parts[2], "own" | "any"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_written_like_one_and_no_other_text_is() {
        let key = new_service_key().expect("a key");
        assert!(id_of(key.expose()).is_some(), "{}", key.expose());
        let key = key.expose();
        for text in ["", "gld_", "gld__", &key[4..], &key[..key.len() - 1], &format!("{key}0"), &key.replace('_', "-")]
        {
            assert!(id_of(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_scope_names_a_noun_and_a_verb() {
        assert!(is_scope("workers:connect") && is_scope("jobs:submit:any") && is_scope("jobs:read:own"));
        assert!(
            !["", "jobs", "jobs:", "jobs:read:all", "jobs:read:any:any", "jobs: read", "*:*"].into_iter().any(is_scope)
        );
    }
}
