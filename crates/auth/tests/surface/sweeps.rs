//! What is over is forgotten, and nothing before its time.

use std::time::Duration;

use proto::auth::LogoutRequest;

use crate::support::{ADDRESS, EMAIL, Service, answer, by, key};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn sweep(service: &Service) {
    let failed = service.auth.sweep().await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test]
async fn an_ended_session_is_kept_for_a_day_and_then_goes_with_its_tokens() {
    let service = Service::start().await;
    let (ended, live) = (service.person(EMAIL).await, service.login(EMAIL).await);
    answer(service.sessions().logout(by(&ended.access_token, LogoutRequest {})).await).expect("signed out");
    service.clock.advance(DAY);
    sweep(&service).await;
    assert_eq!(service.count("session").await, 2);
    service.clock.advance(Duration::from_secs(1));
    sweep(&service).await;
    assert_eq!((service.count("session").await, service.count("refresh_token").await), (1, 1));
    service.refresh(&live.refresh_token).await.expect("the live one is left alone");
}

#[tokio::test]
async fn an_expired_session_goes_a_day_after_its_last() {
    let service = Service::start().await;
    service.person(EMAIL).await;
    service.clock.advance(DAY * 31);
    sweep(&service).await;
    assert_eq!(service.count("session").await, 1);
    service.clock.advance(Duration::from_secs(1));
    sweep(&service).await;
    assert_eq!(service.count("session").await, 0);
}

#[tokio::test]
async fn buckets_that_ran_empty_are_forgotten() {
    let service = Service::start().await;
    service.try_login(EMAIL, "wrong horse battery", ADDRESS).await.expect_err("there is no such user");
    assert_eq!(service.count("login_throttle").await, 3);
    service.clock.advance(Duration::from_secs(61));
    sweep(&service).await;
    assert_eq!(service.count("login_throttle").await, 1, "the account's own takes ten minutes");
    service.clock.advance(Duration::from_secs(540));
    sweep(&service).await;
    assert_eq!(service.count("login_throttle").await, 0);
}

#[tokio::test]
async fn what_happened_is_kept_for_a_week_and_idempotency_keys_for_a_day() {
    let service = Service::start().await;
    service.try_register(EMAIL, key("k", 1)).await.expect("a user");
    service.clock.advance(DAY - Duration::from_secs(1));
    sweep(&service).await;
    assert_eq!((service.count("idempotency_key").await, service.count("outbox").await), (1, 2));
    service.clock.advance(Duration::from_secs(1));
    sweep(&service).await;
    assert_eq!((service.count("idempotency_key").await, service.count("outbox").await), (0, 2));
    service.clock.advance(DAY * 6 + Duration::from_secs(1));
    sweep(&service).await;
    assert_eq!(service.count("outbox").await, 2, "nobody has heard of it yet");
    sqlx::query("update auth.outbox set published_at = at").execute(service.pool()).await.expect("a mark");
    sweep(&service).await;
    assert_eq!(service.count("outbox").await, 0);
}
