//! Sessions that ended while their access tokens still look good. `auth` tells of each as it happens; while it cannot be
//! heard, it is asked about every request, and a request that it cannot be asked about is refused.
//!
//! An upload may last longer than the token it was admitted with, and `auth` takes no question by a token that is over. It
//! is held to what has been heard since; where something may have been missed, it is refused too.

use std::{future::Future, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use dashmap::DashMap;
use kit::{
    Clock, Fail, Kind,
    grpc::{Call, Credential, Peer},
};
use proto::auth::{
    CheckSessionRequest, Revocation, WatchRevocationsRequest, revocation::What, sessions_client::SessionsClient,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use uuid::Uuid;

use crate::{door::Door, upload};

/// How long an ended session is remembered: longer than a request may last that began by an access token of it, with room
/// for the token's own life (at most 10 minutes) and for two clocks that differ.
const REMEMBERED: Duration = Duration::from_secs(upload::WITHIN.as_secs() + 15 * 60);
/// How often what need not be remembered any longer is dropped.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// `auth` says something several times in two seconds, if only that nothing is new: a feed that is silent for longer is
/// lost, though its connection may stand.
const SILENCE: Duration = Duration::from_secs(2);
/// How often a stream asks about its session while the feed is lost: ends are to hold within a second.
const ASK_EVERY: Duration = Duration::from_millis(900);
/// How long `auth` may take to answer a question that a request is waiting for.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// The code of an ended session, as `auth` and the gateway both tell it.
const SESSION_ENDED: &str = "auth.session_ended";
/// A feed that is back after this tells of everything that ended meanwhile, since `auth` begins with all sessions whose
/// access tokens may be unexpired, and those live for at least a minute. After longer it may not.
const GAP_MAX: Duration = Duration::from_secs(60);

/// What is known about ended sessions. Cheap to clone; clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Revocations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    ended: DashMap<Uuid, DateTime<Utc>>,
    /// Goes up with every ended session, so that open streams look again.
    count: watch::Sender<u64>,
    feed: watch::Sender<Feed>,
}

/// What has been heard of the ends of sessions.
#[derive(Debug, Clone, Copy)]
struct Feed {
    /// Whether every end up to now has been heard of, but for what [`complete_since`](Self::complete_since) says.
    is_heard: bool,
    /// When that changed last.
    changed_at: Instant,
    /// Of what ended from here on, nothing was missed.
    complete_since: Instant,
}

impl Feed {
    fn lost(at: Instant) -> Self {
        Self { is_heard: false, changed_at: at, complete_since: at }
    }

    /// Whether that is news.
    fn hear(&mut self, now: Instant) -> bool {
        if self.is_heard {
            return false;
        }
        let complete_since = if now - self.changed_at > GAP_MAX { now } else { self.complete_since };
        *self = Self { is_heard: true, changed_at: now, complete_since };
        true
    }

    fn lose(&mut self, now: Instant) {
        *self = Self { is_heard: false, changed_at: now, ..*self };
    }
}

impl Revocations {
    pub(crate) fn new(clock: Clock) -> Self {
        let inner = Inner {
            clock,
            ended: DashMap::new(),
            count: watch::Sender::new(0),
            feed: watch::Sender::new(Feed::lost(Instant::now())),
        };
        Self(Arc::new(inner))
    }

    /// Refuses a caller whose session has ended.
    ///
    /// # Errors
    /// `auth.session_ended`; `unavailable` when it is not known and cannot be asked.
    pub(crate) async fn admit(&self, call: &Call, sessions: impl Fn() -> SessionsClient<Peer>) -> Result<(), Fail> {
        // A service account has no session: its token lives for minutes and its key is checked at every exchange.
        let Some(session) = call.caller()?.session else { return Ok(()) };
        if self.0.ended.contains_key(&session) {
            return Err(ended());
        }
        if self.0.feed.borrow().is_heard { Ok(()) } else { ask(call, sessions()).await }
    }

    /// Whether a caller that was admitted is known to have ended its session since. Cheap enough for every chunk of a body.
    pub(crate) fn has_ended(&self, call: &Call) -> bool {
        let session = call.caller.as_ref().and_then(|caller| caller.session);
        session.is_some_and(|session| self.0.ended.contains_key(&session))
    }

    /// Refuses a caller that was admitted at `since` and whose session has ended meanwhile, though its token may be over by
    /// now. Waits a minute for a feed that is lost, where `auth` cannot be asked instead.
    ///
    /// # Errors
    /// `auth.session_ended`; `unavailable` when it cannot be known.
    pub(crate) async fn admit_still(
        &self,
        call: &Call,
        since: Instant,
        sessions: impl Fn() -> SessionsClient<Peer>,
    ) -> Result<(), Fail> {
        // Of a service account, the key was good when it began.
        if call.caller()?.session.is_none() {
            return Ok(());
        }
        if self.has_ended(call) {
            return Err(ended());
        }
        let vouches = |feed: &Feed| feed.is_heard && feed.complete_since <= since;
        let mut feed = self.0.feed.subscribe();
        if vouches(&feed.borrow_and_update()) {
            return Ok(());
        }
        match ask(call, sessions()).await {
            Err(fail) if fail.code() != SESSION_ENDED => {}
            answer => return answer,
        }
        // The token is over, or `auth` is away. The feed tells first of what ended meanwhile, and then that it is heard.
        let is_vouched_for = match tokio::time::timeout(GAP_MAX, feed.wait_for(|feed| feed.is_heard)).await {
            Ok(Ok(feed)) => vouches(&feed),
            Ok(Err(_)) | Err(_) => false,
        };
        match (self.has_ended(call), is_vouched_for) {
            (true, _) => Err(ended()),
            (false, true) => Ok(()),
            (false, false) => Err(unknown()),
        }
    }

    /// Ends when the caller's session has, at most a second later; and when that can no longer be known: while the feed is
    /// lost, `auth` is asked with the caller's token, which is good for minutes only.
    pub(crate) async fn ended(&self, call: Call, sessions: impl Fn() -> SessionsClient<Peer>) {
        let Some(session) = call.caller().ok().and_then(|caller| caller.session) else {
            return std::future::pending().await;
        };
        let (mut count, mut feed) = (self.0.count.subscribe(), self.0.feed.subscribe());
        loop {
            count.borrow_and_update();
            let hears = feed.borrow_and_update().is_heard;
            if self.0.ended.contains_key(&session) {
                return;
            }
            if !hears && ask(&call, sessions()).await.is_err() {
                return;
            }
            let pause =
                async { if hears { std::future::pending().await } else { tokio::time::sleep(ASK_EVERY).await } };
            tokio::select! {
                _ = count.changed() => {}
                _ = feed.changed() => {}
                () = pause => {}
            }
        }
    }

    fn note(&self, session: Uuid) {
        self.0.ended.insert(session, self.0.clock.now());
        self.0.count.send_modify(|count| *count += 1);
    }

    fn tidy(&self) {
        let before = self.0.clock.now() - REMEMBERED;
        self.0.ended.retain(|_, at| *at > before);
    }
}

/// Follows the feed until it breaks. It is meant to be started again.
///
/// # Errors
/// As `auth`: the feed broke, or could not be opened.
pub(crate) async fn follow(door: Arc<Door>, credential: Credential, stopping: CancellationToken) -> Result<(), Fail> {
    let revocations = door.revocations.clone();
    // While `auth` is away a call waits for it, and nobody who stops waits for that.
    let Some(opened) = stopping.run_until_cancelled(open(&door, &credential)).await else { return Ok(()) };
    let mut feed = opened?;
    // However this ends, what happens from then on is not heard.
    let _lost = Lost(revocations.clone());
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    loop {
        let told = tokio::select! {
            told = tokio::time::timeout(SILENCE, feed.message()) => match told {
                Ok(told) => told?,
                Err(_) => return Err(lost("The feed of ended sessions is silent.")),
            },
            _ = tidy.tick() => {
                revocations.tidy();
                continue;
            }
            () = stopping.cancelled() => return Ok(()),
        };
        match told.and_then(|revocation| revocation.what) {
            Some(What::SessionId(id)) => {
                revocations.note(Uuid::parse_str(&id).map_err(Fail::internal)?);
            }
            Some(What::CaughtUp(_)) => {
                revocations.0.feed.send_if_modified(|feed| feed.hear(Instant::now()));
            }
            None => return Err(lost("The feed of ended sessions has ended.")),
        }
    }
}

async fn open(door: &Door, credential: &Credential) -> Result<Streaming<Revocation>, Fail> {
    let call = credential.call(&door.clock.new_id().to_string()).await?;
    let opened = door.sessions().watch_revocations(call.request(WatchRevocationsRequest {})).await.map_err(Fail::from);
    if opened.as_ref().is_err_and(|fail| fail.kind() == Kind::Unauthenticated) {
        credential.forget().await;
    }
    Ok(opened?.into_inner())
}

/// Says, when it is dropped, that the feed is not heard any longer.
struct Lost(Revocations);

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.0.feed.send_modify(|feed| feed.lose(Instant::now()));
    }
}

async fn ask(call: &Call, mut sessions: SessionsClient<Peer>) -> Result<(), Fail> {
    let answer = within(sessions.check(call.request(CheckSessionRequest {}))).await?.into_inner();
    if answer.live { Ok(()) } else { Err(ended()) }
}

async fn within<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Fail> {
    match tokio::time::timeout(ASK_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(unknown()),
    }
}

fn unknown() -> Fail {
    Fail::unavailable("unavailable", "Whether the session is still live cannot be found out.")
}

fn lost(sentence: &str) -> Fail {
    Fail::unavailable("auth.feed_lost", sentence)
}

/// What a caller is refused with whose session has ended.
pub(crate) fn ended() -> Fail {
    Fail::unauthenticated(SESSION_ENDED, "This session has ended: sign in again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_that_was_lost_for_long_vouches_for_nothing_before_it() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut feed = Feed::lost(start);
        assert!(feed.hear(after(1)));
        assert!(!feed.hear(after(2)), "it was heard already");
        feed.lose(after(100));
        feed.hear(after(160));
        assert!(feed.is_heard && feed.complete_since == start);
        feed.lose(after(200));
        feed.hear(after(261));
        assert_eq!(feed.complete_since, after(261));
    }
}
