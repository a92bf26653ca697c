//! The feed of ended sessions: nothing is missed, whoever ended it, and a watcher that is left in the dark is told so.

use kit::{Fail, Kind};
use proto::auth::{LogoutRequest, Revocation, TokenPair, WatchRevocationsRequest, revocation::What};
use tonic::Streaming;

use crate::support::{EMAIL, Service, answer, by, refused, settings, soon};

async fn try_watch(service: &Service, token: &str) -> Result<Streaming<Revocation>, Fail> {
    answer(service.sessions().watch_revocations(by(token, WatchRevocationsRequest {})).await)
}

async fn watch(service: &Service) -> Streaming<Revocation> {
    let token = service.service_token(&["revocations:watch"]).await;
    try_watch(service, &token).await.expect("the feed opens")
}

async fn next(feed: &mut Streaming<Revocation>) -> What {
    soon(feed.message()).await.expect("the feed stands").expect("the feed goes on").what.expect("something is told")
}

/// The next session that is told of. Word that there is no more to tell comes all the while, so that the wait as a whole
/// is what must not last.
async fn next_ended(feed: &mut Streaming<Revocation>) -> String {
    let ended = async {
        loop {
            if let What::SessionId(id) = next(feed).await {
                return id;
            }
        }
    };
    soon(ended).await
}

async fn caught_up(feed: &mut Streaming<Revocation>) {
    soon(async { while next(feed).await != What::CaughtUp(true) {} }).await;
}

async fn logout(service: &Service, who: &TokenPair) -> String {
    let id = service.caller(who).await.session.expect("a session").to_string();
    answer(service.sessions().logout(by(&who.access_token, LogoutRequest {})).await).expect("signed out");
    id
}

/// Ends the connections of every replica to this database.
async fn cut_connections(service: &Service) {
    sqlx::query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
         where datname = current_database() and application_name = 'guildhall auth'",
    )
    .execute(service.pool())
    .await
    .expect("the superuser may");
}

#[tokio::test]
async fn a_watcher_hears_what_is_known_then_that_this_was_all_then_each_end() {
    let service = Service::start().await;
    let sessions = [service.person(EMAIL).await, service.login(EMAIL).await, service.login(EMAIL).await];
    let known = logout(&service, &sessions[0]).await;
    let mut feed = watch(&service).await;
    assert_eq!(next(&mut feed).await, What::SessionId(known));
    assert_eq!(next(&mut feed).await, What::CaughtUp(true));
    for tokens in &sessions[1..] {
        let ended = logout(&service, tokens).await;
        soon(async { while next_ended(&mut feed).await != ended {} }).await;
    }
    caught_up(&mut feed).await;
}

#[tokio::test]
async fn an_end_is_heard_from_every_replica_however_it_came_about() {
    let service = Service::start().await;
    let other = service.replica(settings()).await;
    let mut feed = watch(&other).await;
    caught_up(&mut feed).await;
    let ended = logout(&service, &service.person(EMAIL).await).await;
    assert_eq!(next_ended(&mut feed).await, ended);

    let stolen = service.login(EMAIL).await;
    let child = service.refresh(&stolen.refresh_token).await.expect("exchanged");
    service.refresh(&child.refresh_token).await.expect("exchanged");
    let reused = service.refresh(&stolen.refresh_token).await;
    refused(reused, Kind::Unauthenticated, "auth.token_reused");
    assert_eq!(next_ended(&mut feed).await, service.caller(&stolen).await.session.expect("a session").to_string());
}

/// Marks a session as ended without a word to anybody, in a transaction that is left open.
async fn end_silently(service: &Service, who: &TokenPair) -> (String, sqlx::PgTransaction<'static>) {
    let id = service.caller(who).await.session.expect("a session");
    let mut transaction = service.pool().begin().await.expect("a transaction");
    sqlx::query(
        "update auth.session set ended_at = $2, end_reason = 'revoked', ended_in = pg_current_xact_id() where id = $1",
    )
    .bind(id)
    .bind(service.clock.now())
    .execute(&mut *transaction)
    .await
    .expect("a session");
    (id.to_string(), transaction)
}

#[tokio::test]
async fn an_end_of_which_no_word_was_sent_is_found_all_the_same() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    let mut feed = watch(&service).await;
    caught_up(&mut feed).await;
    let (ended, transaction) = end_silently(&service, &tokens).await;
    transaction.commit().await.expect("committed");
    assert_eq!(next_ended(&mut feed).await, ended);
}

#[tokio::test]
async fn an_end_that_commits_after_later_ones_is_not_missed() {
    let service = Service::start().await;
    let (slow, quick) = (service.person(EMAIL).await, service.login(EMAIL).await);
    let mut feed = watch(&service).await;
    caught_up(&mut feed).await;
    let (late, transaction) = end_silently(&service, &slow).await;
    let early = logout(&service, &quick).await;
    assert_eq!(next_ended(&mut feed).await, early);
    // Several looks go by while the first transaction is open.
    for _ in 0..3 {
        assert_eq!(next(&mut feed).await, What::CaughtUp(true));
    }
    transaction.commit().await.expect("committed");
    assert_eq!(next_ended(&mut feed).await, late);
}

#[tokio::test]
async fn the_feed_outlives_its_connections() {
    let service = Service::start().await;
    let other = service.replica(settings()).await;
    let tokens = service.person(EMAIL).await;
    let mut feed = watch(&other).await;
    caught_up(&mut feed).await;
    cut_connections(&service).await;
    let ended = logout(&service, &tokens).await;
    assert_eq!(next_ended(&mut feed).await, ended);
}

#[tokio::test]
async fn a_watcher_is_sent_away_while_the_database_cannot_be_read() {
    let service = Service::start().await;
    let mut feed = watch(&service).await;
    caught_up(&mut feed).await;
    let mut transaction = service.pool().begin().await.expect("a transaction");
    sqlx::query("lock table auth.session in access exclusive mode").execute(&mut *transaction).await.expect("locked");
    let end = async {
        loop {
            match feed.message().await {
                Ok(told) => assert!(told.is_some(), "the feed ended as if there were no more to hear"),
                Err(status) => return Fail::from(status),
            }
        }
    };
    let end = soon(end).await;
    assert_eq!((end.kind(), end.code()), (Kind::Unavailable, "auth.revocations_lost"));

    transaction.rollback().await.expect("unlocked");
    let mut feed = watch(&service).await;
    caught_up(&mut feed).await;
}

#[tokio::test]
async fn a_watchers_stream_ends_with_the_service() {
    let service = Service::start().await;
    let mut feed = watch(&service).await;
    caught_up(&mut feed).await;
    drop(service);
    soon(async { while feed.message().await.is_ok_and(|told| told.is_some()) {} }).await;
}

#[tokio::test]
async fn ends_are_told_to_those_alone_who_may_watch() {
    let service = Service::start().await;
    let customer = service.person(EMAIL).await;
    refused(try_watch(&service, &customer.access_token).await, Kind::Forbidden, "forbidden");
    let worker = service.service_token(&["workers:connect"]).await;
    refused(try_watch(&service, &worker).await, Kind::Forbidden, "forbidden");
}
