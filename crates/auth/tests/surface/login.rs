//! Signing in, what is refused, and the throttle before it.

use std::{sync::Arc, time::Duration};

use auth::Settings;
use kit::{Fail, Kind};
use proto::auth::TokenPair;

use crate::support::{ADDRESS, EMAIL, PASSWORD, Service, at_once, refused, settings};

const ELSEWHERE: &str = "198.51.100.1";

#[tokio::test]
async fn the_right_password_opens_a_session_of_five_minute_tokens() {
    let service = Service::start().await;
    let user = service.register(EMAIL).await;
    let tokens = service.try_login(" ADA@example.com", PASSWORD, ADDRESS).await.expect("signed in");
    assert_eq!(tokens.expires_in, 300);
    assert!(tokens.refresh_token.starts_with("glr_"));
    assert_eq!(tokens.user.as_ref(), Some(&user));
    let caller = service.caller(&tokens).await;
    assert_eq!(caller.subject.to_string(), user.id);
    assert_eq!(caller.generation, 0);
    assert_eq!(caller.expires_at, service.clock.now().timestamp() + 300);
    assert!(caller.session.is_some() && caller.scope.is_empty());
    assert_eq!(service.told().await.last(), Some(&("auth.session.created".to_owned(), user.id)));
}

#[tokio::test]
async fn every_wrong_credential_is_refused_in_the_same_words_and_told_of() {
    let service = Service::start().await;
    let user = service.register(EMAIL).await;
    let too_long = "x".repeat(5000);
    let attempts = [
        (EMAIL, "wrong horse battery", true),
        (EMAIL, "", true),
        (EMAIL, &too_long, true),
        ("nobody@example.com", PASSWORD, false),
        ("no address", PASSWORD, false),
        ("", "", false),
    ];
    let mut messages = Vec::new();
    for (email, password, is_known) in attempts {
        let fail = refused(
            service.try_login(email, password, ADDRESS).await,
            Kind::Unauthenticated,
            "auth.invalid_credentials",
        );
        messages.push(fail.message().to_owned());
        let subject = if is_known { user.id.clone() } else { String::new() };
        assert_eq!(service.told().await.last(), Some(&("auth.login.failed".to_owned(), subject)));
    }
    messages.dedup();
    assert_eq!(messages.len(), 1);
    assert_eq!(service.count("session").await, 0);
}

#[tokio::test]
async fn a_password_is_hashed_anew_when_the_parameters_have_changed() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    let stronger = service.replica(Settings { password_passes: 2, ..settings() }).await;
    stronger.login(EMAIL).await;
    let stored: String =
        sqlx::query_scalar("select password_hash from auth.user").fetch_one(service.pool()).await.unwrap();
    assert!(stored.starts_with("$argon2id$v=19$m=8192,t=2,p=1$"), "{stored}");
    stronger.login(EMAIL).await;
}

/// Fails to sign in `times` times.
async fn guess(service: &Service, email: &str, address: &str, times: usize) {
    for _ in 0..times {
        let guess = service.try_login(email, "wrong horse battery", address).await;
        refused(guess, Kind::Unauthenticated, "auth.invalid_credentials");
    }
}

fn throttled(answer: Result<TokenPair, Fail>) -> Duration {
    let fail = refused(answer, Kind::Limited, "auth.too_many_attempts");
    fail.retry_after_hint().expect("it says how long to wait")
}

#[tokio::test]
async fn after_ten_failures_even_the_right_password_waits_a_minute() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    guess(&service, EMAIL, ADDRESS, 10).await;
    assert_eq!(throttled(service.try_login(EMAIL, PASSWORD, ADDRESS).await), Duration::from_secs(60));
    service.clock.advance(Duration::from_secs(59));
    assert_eq!(throttled(service.try_login(EMAIL, PASSWORD, ADDRESS).await), Duration::from_secs(1));
    service.clock.advance(Duration::from_secs(1));
    service.login(EMAIL).await;
}

#[tokio::test]
async fn who_hammers_an_account_does_not_shut_its_owner_out() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    guess(&service, EMAIL, ELSEWHERE, 10).await;
    throttled(service.try_login(EMAIL, PASSWORD, ELSEWHERE).await);
    service.login(EMAIL).await;
}

#[tokio::test]
async fn an_account_that_is_not_there_is_throttled_like_one_that_is() {
    let service = Service::start().await;
    for email in ["nobody@example.com", "no address"] {
        guess(&service, email, ADDRESS, 10).await;
        assert_eq!(throttled(service.try_login(email, PASSWORD, ADDRESS).await), Duration::from_secs(60));
    }
}

#[tokio::test]
async fn an_account_guessed_at_from_everywhere_is_throttled_everywhere() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    for host in 0..50 {
        guess(&service, EMAIL, &format!("203.0.113.{host}"), 1).await;
    }
    assert_eq!(throttled(service.try_login(EMAIL, PASSWORD, ADDRESS).await), Duration::from_secs(600));
}

#[tokio::test]
async fn an_address_that_guesses_at_everybody_is_throttled_for_everybody() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    for account in 0..100 {
        guess(&service, &format!("{account}@example.com"), "2001:db8::1", 1).await;
    }
    assert_eq!(throttled(service.try_login(EMAIL, PASSWORD, "2001:db8::2").await), Duration::from_secs(10));
    service.login(EMAIL).await;
}

#[tokio::test]
async fn signing_in_costs_nothing_and_forgives_no_failure() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    guess(&service, EMAIL, ADDRESS, 9).await;
    for _ in 0..20 {
        service.login(EMAIL).await;
    }
    guess(&service, EMAIL, ADDRESS, 1).await;
    throttled(service.try_login(EMAIL, PASSWORD, ADDRESS).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_made_at_once_are_counted_one_by_one() {
    let service = Arc::new(Service::start().await);
    service.register(EMAIL).await;
    let guesses = (0..25).map(|_| {
        let service = Arc::clone(&service);
        async move { service.try_login(EMAIL, "wrong horse battery", ADDRESS).await }
    });
    let answers = at_once(guesses).await;
    let passed = answers.iter().filter(|answer| matches!(answer, Err(fail) if fail.kind() == Kind::Unauthenticated));
    assert_eq!(passed.count(), 10);
}

#[tokio::test]
async fn a_client_cannot_fill_the_list_of_sessions_with_what_it_says_of_itself() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    let request = proto::auth::LoginRequest { email: EMAIL.to_owned(), password: PASSWORD.to_owned() };
    let call = crate::support::anonymous().with_origin("1".repeat(5000), "\t[31m".to_owned() + &"x".repeat(5000));
    crate::support::answer(service.sessions().login(call.request(request)).await).expect("signed in");
    let (address, agent): (String, String) =
        sqlx::query_as("select remote_address, user_agent from auth.session").fetch_one(service.pool()).await.unwrap();
    assert_eq!((address.len(), agent.len()), (64, 256));
    assert!(!agent.contains('\t'));
}
