//! Ended sessions, and telling whoever checks access tokens of them within a second. A session that ends is marked in the
//! caller's transaction; after it commits, every replica is woken to read what ended since it last looked, and passes it
//! on to its watchers.
//!
//! Waking may be lost, reading is not: a replica looks twice a second anyway, and asks for what was ended by transactions
//! that its last snapshot did not see as finished. A replica that cannot look ends its watchers' streams, so that they
//! know that they know nothing.

use std::{collections::HashSet, pin::Pin, time::Duration};

use chrono::TimeDelta;
use kit::{Fail, outbox::Event};
use proto::{
    auth::{Revocation, revocation::What},
    events::SessionRevoked,
};
use sqlx::{PgConnection, PgPool, postgres::PgListener};
use tokio::sync::{Notify, broadcast};
use tokio_stream::{Stream, StreamExt as _, wrappers::BroadcastStream};
use tonic::Status;
use uuid::Uuid;

use crate::{Auth, Inner, SCHEMA};

const CHANNEL: &str = "guildhall_auth_session_ended";
/// A revocation holds everywhere within a second; half of it is for the look, half for the way.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// News that a slow watcher may be behind before its stream is ended.
const NEWS_MAX: usize = 4096;
/// Beyond its lifetime, a token may be taken for valid by a verifier whose clock is behind.
const CLOCKS_DIFFER_MAX: TimeDelta = TimeDelta::seconds(60);

/// Why a session ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    LoggedOut,
    LoggedOutEverywhere,
    /// From the list of sessions.
    Revoked,
    TokenReused,
    /// By an administrator.
    SignedOut,
    UserDisabled,
    /// Its tokens name a role that the user has no more.
    RoleTaken,
    /// What a newer version of this service calls by a word that this one does not know.
    Other,
}

impl EndReason {
    pub(crate) const ALL: [Self; 8] = [
        Self::LoggedOut,
        Self::LoggedOutEverywhere,
        Self::Revoked,
        Self::TokenReused,
        Self::SignedOut,
        Self::UserDisabled,
        Self::RoleTaken,
        Self::Other,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::LoggedOut => "logged_out",
            Self::LoggedOutEverywhere => "logged_out_everywhere",
            Self::Revoked => "revoked",
            Self::TokenReused => "token_reused",
            Self::SignedOut => "signed_out",
            Self::UserDisabled => "user_disabled",
            Self::RoleTaken => "role_taken",
            Self::Other => "other",
        }
    }
}

impl From<&str> for EndReason {
    fn from(word: &str) -> Self {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Self::Other)
    }
}

impl Auth {
    /// Ends one live session, of `owner` where that is given: whose it was, `None` where there is none. After the
    /// transaction has committed, [`tell`] must follow.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn end_session(
        &self,
        transaction: &mut PgConnection,
        session: Uuid,
        owner: Option<Uuid>,
        reason: EndReason,
        traceparent: Option<&str>,
    ) -> Result<Option<Uuid>, Fail> {
        let user = sqlx::query_scalar!(
            "update auth.session
             set ended_at = $3, end_reason = $4, ended_in = pg_current_xact_id()
             where id = $1 and ended_at is null and ($2::uuid is null or user_id = $2)
             returning user_id",
            session,
            owner,
            self.0.clock.now(),
            reason.as_str(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(user) = user {
            let word = [revoked(user, session, reason)];
            kit::outbox::write(transaction, SCHEMA, &word, &self.0.clock, traceparent).await?;
        }
        Ok(user)
    }

    /// Ends every live session of a user; how many. After the transaction has committed, [`tell`] must follow.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn end_sessions_of(
        &self,
        transaction: &mut PgConnection,
        user: Uuid,
        reason: EndReason,
        traceparent: Option<&str>,
    ) -> Result<u32, Fail> {
        // Locked in one order, so that two of these at once do not wait for each other.
        let ended = sqlx::query_scalar!(
            "with live as (
               select id from auth.session where user_id = $1 and ended_at is null order by id for update
             )
             update auth.session as session
             set ended_at = $2, end_reason = $3, ended_in = pg_current_xact_id()
             from live
             where session.id = live.id
             returning session.id",
            user,
            self.0.clock.now(),
            reason.as_str(),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let events: Vec<Event> = ended.iter().map(|session| revoked(user, *session, reason)).collect();
        kit::outbox::write(transaction, SCHEMA, &events, &self.0.clock, traceparent).await?;
        Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX))
    }

    /// Every ended session whose access tokens may be unexpired, then word that these were all, then each as it ends.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn watch_revocations(&self) -> Result<Watch, Fail> {
        // Subscribed before the table is read: what ends in between comes twice rather than never.
        let news = self.0.feed.news.subscribe();
        let since = self.0.clock.now() - self.tokens_outlive();
        let known = sqlx::query_scalar!("select id from auth.session where ended_at > $1", since)
            .fetch_all(&self.0.pool)
            .await?;
        let known = known.into_iter().map(|id| Ok(ended(id))).chain([Ok(caught_up())]);
        let live = BroadcastStream::new(news).map(|news| match news {
            Ok(News::Ended(id)) => Ok(ended(id)),
            Ok(News::Current) => Ok(caught_up()),
            Ok(News::Lost) | Err(_) => Err(Status::from(Fail::unavailable(
                "auth.revocations_lost",
                "The feed of ended sessions broke off. Open it again.",
            ))),
        });
        Ok(Box::pin(tokio_stream::iter(known).chain(live)))
    }

    /// How long after a session's end its last access token may still be taken for valid.
    fn tokens_outlive(&self) -> TimeDelta {
        TimeDelta::seconds(self.0.settings.access_token_s.into()) + CLOCKS_DIFFER_MAX
    }
}

/// What a watcher is given.
pub(crate) type Watch = Pin<Box<dyn Stream<Item = Result<Revocation, Status>> + Send>>;

fn ended(session: Uuid) -> Revocation {
    Revocation { what: Some(What::SessionId(session.to_string())) }
}

fn caught_up() -> Revocation {
    Revocation { what: Some(What::CaughtUp(true)) }
}

fn revoked(user: Uuid, session: Uuid, reason: EndReason) -> Event {
    let message = SessionRevoked {
        user_id: user.to_string(),
        session_id: session.to_string(),
        reason: reason.as_str().to_owned(),
    };
    Event::new("auth.session.revoked", user, &message)
}

/// Wakes every replica after sessions were ended. Outside of the transaction that ended them, since `notify` makes
/// committing transactions wait for each other; and best effort, since every replica looks by itself.
pub(crate) async fn tell(auth: &Inner) {
    auth.feed.wake.notify_one();
    if let Err(error) = sqlx::query!("select pg_notify($1, '')", CHANNEL).execute(&auth.pool).await {
        tracing::warn!(error = %Fail::from(error), "other replicas were not woken and will see ended sessions by themselves");
    }
}

/// Where watchers subscribe, and what wakes the reader.
#[derive(Debug)]
pub(crate) struct Feed {
    news: broadcast::Sender<News>,
    wake: Notify,
}

#[derive(Debug, Clone, Copy)]
enum News {
    Ended(Uuid),
    /// All that had ended was told.
    Current,
    /// It is not known what has ended.
    Lost,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { news: broadcast::Sender::new(NEWS_MAX), wake: Notify::new() }
    }

    fn say(&self, news: News) {
        // Without a watcher there is nobody to tell.
        let _nobody_listens = self.news.send(news);
    }
}

/// Wakes the reader when another replica has ended sessions. Fails when its connection does, to be started again.
///
/// # Errors
/// As the database.
pub(crate) async fn listen(auth: Auth, pool: PgPool) -> Result<(), Fail> {
    let stopping = auth.0.tasks.stopping();
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            heard = listener.try_recv() => {
                heard?;
                auth.0.feed.wake.notify_one();
            }
        }
    }
}

/// Reads what has ended, for as long as the process runs.
///
/// # Errors
/// None: what fails is tried again.
pub(crate) async fn follow(auth: Auth, pool: PgPool) -> Result<(), Fail> {
    let stopping = auth.0.tasks.stopping();
    let feed = &auth.0.feed;
    let mut reader = Reader::default();
    let mut failures = 0_u32;
    loop {
        let look = tokio::time::timeout(LOOK_EVERY, reader.look(&auth, &pool)).await;
        match look.unwrap_or_else(|_| Err(Fail::unavailable("database_unavailable", "The database is slow."))) {
            Ok(new) => {
                failures = 0;
                new.into_iter().for_each(|session| feed.say(News::Ended(session)));
                feed.say(News::Current);
            }
            Err(fail) => {
                failures += 1;
                // One look may meet a connection that has just died; with the second, a second has gone by.
                if failures == 2 {
                    tracing::warn!(error = %fail, "ended sessions cannot be read: watchers are sent away");
                }
                if failures >= 2 {
                    feed.say(News::Lost);
                }
            }
        }
        tokio::select! {
            () = stopping.cancelled() => {
                feed.say(News::Lost);
                return Ok(());
            }
            () = feed.wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Reads each end once, in whatever order transactions commit.
#[derive(Debug)]
struct Reader {
    /// Every transaction below this had finished when we last looked, and what it ended was read.
    horizon: String,
    /// What the last look found at or above its horizon: the next look may find it again.
    last: HashSet<Uuid>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { horizon: "0".to_owned(), last: HashSet::new() }
    }
}

impl Reader {
    async fn look(&mut self, auth: &Auth, pool: &PgPool) -> Result<Vec<Uuid>, Fail> {
        let found = sqlx::query!(
            r#"select pg_snapshot_xmin(pg_current_snapshot())::text as "horizon!",
                 array(select id from auth.session where ended_in >= $1::text::xid8 and ended_at > $2) as "ended!""#,
            self.horizon,
            auth.0.clock.now() - auth.tokens_outlive(),
        )
        .fetch_one(pool)
        .await?;
        let ended: HashSet<Uuid> = found.ended.into_iter().collect();
        let new = ended.difference(&self.last).copied().collect();
        self.horizon = found.horizon;
        self.last = ended;
        Ok(new)
    }
}
