//! Refresh tokens and their families. A session has one family: each exchange of its present token makes the next
//! generation, and every token of a former generation is spent.
//!
//! A spent token that comes back is either a client that lost our answer or a copy in other hands. It is taken for the
//! former within [`REPEAT_WITHIN`] of its exchange and while nobody has used what it was exchanged for, and is answered
//! with that same child, which is derived from it and stored nowhere. Anything else ends the family
//! (docs/adr/0011-refresh-families.md).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use kit::{
    Fail, Secret,
    audit::{Act, Credential},
    grpc::Call,
    outbox::Event,
    telemetry::span,
};
use proto::{auth::TokenPair, events::TokenReused};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Auth, SCHEMA,
    access_tokens::SessionGrant,
    acts, random,
    revocations::{self, EndReason},
    server_keys::ServerKey,
    users::Account,
};

/// How long after its exchange a token may come back for the same answer.
const REPEAT_WITHIN: TimeDelta = TimeDelta::seconds(60);

/// So that a secret scanner knows one when it sees one.
const PREFIX: &str = "glr_";

/// 256 random bits, written `glr_` and base64url.
#[derive(Debug)]
pub(crate) struct RefreshToken(Secret<[u8; 32]>);

impl RefreshToken {
    /// The first of a family.
    ///
    /// # Errors
    /// `internal` without randomness.
    pub(crate) fn new() -> Result<Self, Fail> {
        Ok(Self(Secret::new(random::bytes()?)))
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        Some(Self(Secret::new(bytes.try_into().ok()?)))
    }

    pub(crate) fn text(&self) -> String {
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(self.0.expose()))
    }

    /// What is stored of it.
    pub(crate) fn hash(&self) -> [u8; 32] {
        random::sha256(self.0.expose())
    }

    /// The token it is exchanged for: always the same, and known to nobody who lacks either it or the key.
    fn child(&self, key: &ServerKey) -> Self {
        Self(Secret::new(key.mac(self.0.expose())))
    }
}

/// A family as it stands when one of its tokens is shown.
#[derive(Debug)]
struct Family {
    /// Of the token that is not spent.
    generation: i64,
    /// When that token was made.
    last_used_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    end_reason: Option<EndReason>,
}

/// What to do with a token that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is the present one.
    Exchange,
    /// Its answer was lost: give it again.
    Repeat,
    /// Two hold it: end the family.
    Reused,
    /// The family has ended already.
    Ended(EndReason),
    Expired,
}

impl Family {
    /// The rule of families.
    fn judge(&self, generation: i64, idle_max: TimeDelta, now: DateTime<Utc>) -> Verdict {
        if let Some(reason) = self.end_reason {
            return Verdict::Ended(reason);
        }
        if now >= self.expires_at || now >= self.last_used_at + idle_max {
            return Verdict::Expired;
        }
        if generation == self.generation {
            return Verdict::Exchange;
        }
        let child_is_unused = generation + 1 == self.generation;
        if child_is_unused && now <= self.last_used_at + REPEAT_WITHIN { Verdict::Repeat } else { Verdict::Reused }
    }
}

impl Auth {
    /// Exchanges a refresh token for its child and an access token.
    ///
    /// # Errors
    /// All 401: `auth.invalid_token`, `auth.token_reused`, `auth.session_ended`, `auth.session_expired`.
    pub(crate) async fn exchange(&self, token: &str, call: &Call) -> Result<TokenPair, Fail> {
        let token = RefreshToken::parse(token).ok_or_else(invalid)?;
        let traceparent = call.traceparent.as_deref();
        let (pool, now) = (&self.0.pool, self.0.clock.now());
        let _told = span::transaction("auth.refresh");
        let mut transaction = pool.begin().await?;
        // The lock on the session lets one exchange of a family happen at a time: the second sees what the first made.
        let shown = sqlx::query!(
            r#"select token.generation as shown_generation, session.id, session.user_id, session.generation,
                 session.last_used_at, session.expires_at, session.end_reason
               from auth.refresh_token as token
               join auth.session as session on session.id = token.session_id
               where token.hash = $1
               for update of session"#,
            &token.hash()[..],
        )
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or_else(invalid)?;
        let family = Family {
            generation: shown.generation,
            last_used_at: shown.last_used_at,
            expires_at: shown.expires_at,
            end_reason: shown.end_reason.as_deref().map(EndReason::from),
        };
        let child = token.child(&self.0.keys.refresh);
        let generation = shown.shown_generation + 1;
        match family.judge(shown.shown_generation, self.idle_max(), now) {
            Verdict::Exchange => store_child(&mut transaction, &child, shown.id, generation, now).await?,
            Verdict::Repeat => check_child(&mut transaction, &child, shown.id).await?,
            Verdict::Reused => {
                let event = TokenReused { user_id: shown.user_id.to_string(), session_id: shown.id.to_string() };
                let event = Event::new("auth.token.reused", shown.user_id, &event);
                kit::outbox::write(&mut transaction, SCHEMA, &[event], &self.0.clock, traceparent).await?;
                let reason = EndReason::TokenReused;
                self.end_session(&mut transaction, shown.id, None, reason, traceparent).await?;
                let act = Act::of(call, &acts::REFRESH, shown.id).showing(Credential::RefreshToken);
                let act = act.owned_by(shown.user_id).after("end_reason", reason.as_str()).refused(reused().code());
                self.0.audit.record(&mut transaction, act).await?;
                transaction.commit().await?;
                tracing::warn!(session.id = %shown.id, "a spent refresh token came back and its session was ended");
                revocations::tell(&self.0).await;
                return Err(reused());
            }
            Verdict::Ended(EndReason::TokenReused) => return Err(reused()),
            Verdict::Ended(_) => return Err(ended()),
            Verdict::Expired => {
                return Err(Fail::unauthenticated("auth.session_expired", "The session has expired. Sign in again."));
            }
        }
        let account = Account::get(&mut transaction, shown.user_id).await?;
        // Disabling ends every session, and a sign-in looks for it under a lock; an older replica's sign-in does not.
        if account.is_disabled() {
            return Err(ended());
        }
        transaction.commit().await?;
        let session = SessionGrant { id: shown.id, generation, expires_at: shown.expires_at };
        self.token_pair(account, session, &child)
    }

    /// Makes the first token of a session's family.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn start_family(connection: &mut PgConnection, session: Uuid) -> Result<RefreshToken, Fail> {
        let token = RefreshToken::new()?;
        insert(connection, &token, session, 0).await?;
        Ok(token)
    }
}

async fn store_child(
    connection: &mut PgConnection,
    child: &RefreshToken,
    session: Uuid,
    generation: i64,
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    insert(connection, child, session, generation).await?;
    sqlx::query!("update auth.session set generation = $2, last_used_at = $3 where id = $1", session, generation, now,)
        .execute(connection)
        .await?;
    Ok(())
}

/// A key exchanged in this very minute derives another child than the one we know; that one must not be handed out.
async fn check_child(connection: &mut PgConnection, child: &RefreshToken, session: Uuid) -> Result<(), Fail> {
    let is_known = sqlx::query_scalar!(
        r#"select exists(select from auth.refresh_token where hash = $1 and session_id = $2) as "is_known!""#,
        &child.hash()[..],
        session,
    )
    .fetch_one(connection)
    .await?;
    if is_known { Ok(()) } else { Err(invalid()) }
}

async fn insert(
    connection: &mut PgConnection,
    token: &RefreshToken,
    session: Uuid,
    generation: i64,
) -> Result<(), Fail> {
    sqlx::query!(
        "insert into auth.refresh_token (hash, session_id, generation) values ($1, $2, $3)",
        &token.hash()[..],
        session,
        generation,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn invalid() -> Fail {
    Fail::unauthenticated("auth.invalid_token", "The refresh token is not valid. Sign in again.")
}

/// What everybody is told whose session is over, whatever ended it.
pub(crate) fn ended() -> Fail {
    Fail::unauthenticated("auth.session_ended", "The session was ended. Sign in again.")
}

fn reused() -> Fail {
    Fail::unauthenticated(
        "auth.token_reused",
        "A refresh token was used twice, so someone may hold a copy of it. The session was ended. Sign in again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MAX: TimeDelta = TimeDelta::days(7);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    /// A family in its fifth generation, made at second 1000, ending at second 2,000,000.
    fn family() -> Family {
        Family { generation: 5, last_used_at: at(1000), expires_at: at(2_000_000), end_reason: None }
    }

    fn judge(generation: i64, seconds: i64) -> Verdict {
        family().judge(generation, IDLE_MAX, at(seconds))
    }

    #[test]
    fn the_present_token_is_exchanged_until_the_family_is_idle_too_long_or_too_old() {
        assert_eq!(judge(5, 1000), Verdict::Exchange);
        let idle_end = 1000 + IDLE_MAX.num_seconds();
        assert_eq!(judge(5, idle_end - 1), Verdict::Exchange);
        assert_eq!(judge(5, idle_end), Verdict::Expired);
        let busy = Family { last_used_at: at(1_999_990), ..family() };
        assert_eq!(busy.judge(5, IDLE_MAX, at(1_999_999)), Verdict::Exchange);
        assert_eq!(busy.judge(5, IDLE_MAX, at(2_000_000)), Verdict::Expired);
    }

    #[test]
    fn the_parent_of_an_unused_child_may_come_back_for_a_minute() {
        assert_eq!(judge(4, 1000), Verdict::Repeat);
        assert_eq!(judge(4, 1060), Verdict::Repeat);
        assert_eq!(judge(4, 1061), Verdict::Reused);
        assert_eq!(judge(4, 999), Verdict::Repeat, "the clock of the other replica may be ahead");
    }

    #[test]
    fn a_token_whose_child_was_exchanged_is_reused_however_soon() {
        for generation in 0..=3 {
            assert_eq!(judge(generation, 1000), Verdict::Reused);
        }
    }

    #[test]
    fn a_family_that_ended_answers_with_its_end_whatever_is_shown() {
        for reason in EndReason::ALL {
            let ended = Family { end_reason: Some(reason), ..family() };
            for generation in 0..=5 {
                assert_eq!(ended.judge(generation, IDLE_MAX, at(1001)), Verdict::Ended(reason));
            }
        }
    }

    #[test]
    fn a_child_follows_from_its_parent_and_the_key_and_from_nothing_less() {
        let (key, other_key) = (ServerKey::of_test(1), ServerKey::of_test(2));
        let parent = RefreshToken(Secret::new([7; 32]));
        let twin = RefreshToken::parse(&parent.text()).expect("it was written by us");
        assert_eq!(parent.child(&key).text(), twin.child(&key).text());
        assert_ne!(parent.child(&key).text(), parent.child(&other_key).text());
        assert_ne!(parent.child(&key).text(), RefreshToken(Secret::new([8; 32])).child(&key).text());
        assert_ne!(parent.child(&key).text(), parent.text());
    }

    #[test]
    fn what_is_not_written_like_a_token_is_none() {
        let good = RefreshToken(Secret::new([7; 32])).text();
        assert!(RefreshToken::parse(&good).is_some());
        for text in ["", "glr_", "glr_AAAA", &good[4..], &format!("{good}A"), &good.replace("glr_", "gld_")] {
            assert!(RefreshToken::parse(text).is_none(), "{text}");
        }
    }
}
