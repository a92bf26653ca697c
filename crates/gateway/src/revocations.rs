//! Sessions that ended while their access tokens still look good. `auth` tells of each as it happens; while it cannot be
//! heard, it is asked about every request, and a request that it cannot be asked about is refused.

use std::{future::Future, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use dashmap::DashMap;
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Peer},
};
use proto::auth::{
    CheckSessionRequest, ExchangeServiceKeyRequest, WatchRevocationsRequest, revocation::What,
    sessions_client::SessionsClient,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::door::Door;

/// How long an ended session is remembered: longer than an access token lives (5 minutes), with room for two clocks
/// that differ.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// How often what need not be remembered any longer is dropped.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// `auth` says something several times in two seconds, if only that nothing is new: a feed that is silent for longer is
/// lost, though its connection may stand.
const SILENCE: Duration = Duration::from_secs(2);
/// How often a stream asks about its session while the feed is lost: ends are to hold within a second.
const ASK_EVERY: Duration = Duration::from_millis(900);
/// How long `auth` may take to answer a question that a request is waiting for.
const ASK_WITHIN: Duration = Duration::from_secs(3);

/// What is known about ended sessions. Cheap to clone; clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Revocations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    ended: DashMap<Uuid, DateTime<Utc>>,
    /// Goes up with every ended session, so that open streams look again.
    count: watch::Sender<u64>,
    /// Whether every end up to now has been heard of.
    is_followed: watch::Sender<bool>,
}

impl Revocations {
    pub(crate) fn new(clock: Clock) -> Self {
        let inner = Inner {
            clock,
            ended: DashMap::new(),
            count: watch::Sender::new(0),
            is_followed: watch::Sender::new(false),
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
        if *self.0.is_followed.borrow() { Ok(()) } else { ask(call, sessions()).await }
    }

    /// Ends when the caller's session has, at most a second later; and when that can no longer be known: while the feed is
    /// lost, `auth` is asked with the caller's token, which is good for minutes only.
    pub(crate) async fn ended(&self, call: Call, sessions: impl Fn() -> SessionsClient<Peer>) {
        let Some(session) = call.caller().ok().and_then(|caller| caller.session) else {
            return std::future::pending().await;
        };
        let (mut count, mut is_followed) = (self.0.count.subscribe(), self.0.is_followed.subscribe());
        loop {
            count.borrow_and_update();
            let hears = *is_followed.borrow_and_update();
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
                _ = is_followed.changed() => {}
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
pub(crate) async fn follow(door: Arc<Door>, key: Secret, stopping: CancellationToken) -> Result<(), Fail> {
    let revocations = door.revocations.clone();
    let request_id = door.clock.new_id().to_string();
    let key = ExchangeServiceKeyRequest { key: key.expose().clone() };
    let token = door.service_keys().exchange(Call::anonymous(&request_id).request(key)).await?.into_inner();
    let call = Call::with_token(Secret::new(token.access_token), request_id);
    let mut feed = door.sessions().watch_revocations(call.request(WatchRevocationsRequest {})).await?.into_inner();
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
                revocations.0.is_followed.send_if_modified(|is| !std::mem::replace(is, true));
            }
            None => return Err(lost("The feed of ended sessions has ended.")),
        }
    }
}

/// Says, when it is dropped, that the feed is not heard any longer.
struct Lost(Revocations);

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.0.is_followed.send_replace(false);
    }
}

async fn ask(call: &Call, mut sessions: SessionsClient<Peer>) -> Result<(), Fail> {
    let answer = within(sessions.check(call.request(CheckSessionRequest {}))).await?.into_inner();
    if answer.live { Ok(()) } else { Err(ended()) }
}

async fn within<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Fail> {
    match tokio::time::timeout(ASK_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fail::unavailable("unavailable", "Whether the session is still live cannot be found out.")),
    }
}

fn lost(sentence: &str) -> Fail {
    Fail::unavailable("auth.feed_lost", sentence)
}

fn ended() -> Fail {
    Fail::unauthenticated("auth.session_ended", "This session has ended: sign in again.")
}
