//! Refresh families, over the wire. The rule itself is tested where it stands, in `src/refresh.rs`.

use std::{sync::Arc, time::Duration};

use kit::Kind;
use proto::auth::LogoutRequest;

use crate::support::{EMAIL, Service, answer, at_once, by, refused, settings};

async fn refused_as(service: &Service, refresh_token: &str, code: &str) {
    refused(service.refresh(refresh_token).await, Kind::Unauthenticated, code);
}

#[tokio::test]
async fn each_exchange_makes_a_new_pair_in_the_next_generation_of_one_session() {
    let service = Service::start().await;
    let mut tokens = service.person(EMAIL).await;
    let session = service.caller(&tokens).await.session;
    for generation in 1..=5 {
        let next = service.refresh(&tokens.refresh_token).await.expect("the present token is good");
        assert_ne!(next.refresh_token, tokens.refresh_token);
        assert_eq!(next.user, tokens.user);
        let caller = service.caller(&next).await;
        assert_eq!((caller.session, caller.generation), (session, generation));
        tokens = next;
    }
    assert_eq!(service.count("session").await, 1);
}

#[tokio::test]
async fn a_lost_answer_is_given_again_for_a_minute() {
    let service = Service::start().await;
    let parent = service.person(EMAIL).await.refresh_token;
    let child = service.refresh(&parent).await.expect("exchanged").refresh_token;
    for _ in 0..3 {
        service.clock.advance(Duration::from_secs(20));
        let again = service.refresh(&parent).await.expect("the same answer again");
        assert_eq!(again.refresh_token, child);
    }
    assert_eq!(service.count("refresh_token").await, 2, "nothing was minted anew");
    service.refresh(&child).await.expect("and the child is good");
}

#[tokio::test]
async fn a_lost_answer_is_given_again_by_another_replica_and_after_a_crash() {
    let service = Service::start().await;
    let parent = service.person(EMAIL).await.refresh_token;
    let child = service.refresh(&parent).await.expect("exchanged").refresh_token;
    let other = service.replica(settings()).await;
    assert_eq!(other.refresh(&parent).await.expect("the same answer").refresh_token, child);
    drop(service);
    let restarted = other.replica(settings()).await;
    assert_eq!(restarted.refresh(&parent).await.expect("the same answer").refresh_token, child);
}

#[tokio::test]
async fn a_parent_that_comes_back_after_a_minute_ends_the_family() {
    let service = Service::start().await;
    let parent = service.person(EMAIL).await;
    let child = service.refresh(&parent.refresh_token).await.expect("exchanged");
    service.clock.advance(Duration::from_secs(61));
    refused_as(&service, &parent.refresh_token, "auth.token_reused").await;
    refused_as(&service, &child.refresh_token, "auth.token_reused").await;
}

#[tokio::test]
async fn a_parent_that_comes_back_after_its_child_was_used_ends_the_family_and_is_told_of_once() {
    let service = Service::start().await;
    let first = service.person(EMAIL).await;
    let user = first.user.clone().expect("the user").id;
    let second = service.refresh(&first.refresh_token).await.expect("exchanged");
    let third = service.refresh(&second.refresh_token).await.expect("exchanged");
    for token in [&first, &second, &third, &first] {
        refused_as(&service, &token.refresh_token, "auth.token_reused").await;
    }
    refused(service.get_self(&third.access_token).await, Kind::Unauthenticated, "auth.session_ended");
    let told = service.told().await;
    let ends: Vec<_> = told.iter().map(|(kind, subject)| (kind.as_str(), subject == &user)).skip(2).collect();
    assert_eq!(ends, [("auth.token.reused", true), ("auth.session.revoked", true)]);
}

#[tokio::test]
async fn the_end_of_one_family_leaves_the_users_others_alone() {
    let service = Service::start().await;
    let stolen = service.person(EMAIL).await;
    let other = service.login(EMAIL).await;
    let child = service.refresh(&stolen.refresh_token).await.expect("exchanged");
    service.refresh(&child.refresh_token).await.expect("exchanged");
    refused_as(&service, &stolen.refresh_token, "auth.token_reused").await;
    service.refresh(&other.refresh_token).await.expect("the other session lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_shown_many_times_at_once_has_one_child() {
    let service = Arc::new(Service::start().await);
    let parent = service.person(EMAIL).await.refresh_token;
    let replica = Arc::new(service.replica(settings()).await);
    let exchanges = (0..12).map(|at| {
        let service = Arc::clone(if at % 2 == 0 { &service } else { &replica });
        let parent = parent.clone();
        async move { service.refresh(&parent).await.expect("everyone is answered").refresh_token }
    });
    let mut children = at_once(exchanges).await;
    children.dedup();
    assert_eq!(children.len(), 1);
    assert_eq!(service.count("refresh_token").await, 2);
    service.refresh(&children[0]).await.expect("the child is good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_and_an_owner_who_race_end_the_family_in_whatever_order() {
    let service = Arc::new(Service::start().await);
    let first = service.person(EMAIL).await.refresh_token;
    let second = service.refresh(&first).await.expect("exchanged").refresh_token;
    let third = service.refresh(&second).await.expect("exchanged").refresh_token;
    let race = [first.clone(), third].map(|token| {
        let service = Arc::clone(&service);
        async move { service.refresh(&token).await }
    });
    let answers = at_once(race).await;
    assert!(answers[0].is_err(), "a token whose child was used is never good");
    if let Ok(fourth) = &answers[1] {
        refused_as(&service, &fourth.refresh_token, "auth.token_reused").await;
    }
    assert_eq!(service.times_told("auth.token.reused").await, 1);
}

#[tokio::test]
async fn a_token_that_nobody_made_is_refused_and_ends_nothing() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    let forged = format!("glr_{}", "A".repeat(43));
    for token in ["", "glr_", "nonsense", &forged, &tokens.access_token] {
        refused_as(&service, token, "auth.invalid_token").await;
    }
    service.refresh(&tokens.refresh_token).await.expect("the session lives");
}

#[tokio::test]
async fn a_session_that_was_signed_out_is_not_refreshed() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    answer(service.sessions().logout(by(&tokens.access_token, LogoutRequest {})).await).expect("signed out");
    refused_as(&service, &tokens.refresh_token, "auth.session_ended").await;
    assert_eq!(service.times_told("auth.token.reused").await, 0);
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn a_session_ends_when_it_was_not_used_for_a_week() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    service.clock.advance(DAY * 7 - Duration::from_secs(1));
    let tokens = service.refresh(&tokens.refresh_token).await.expect("used in time");
    service.clock.advance(DAY * 7);
    refused_as(&service, &tokens.refresh_token, "auth.session_expired").await;
}

#[tokio::test]
async fn a_session_ends_after_thirty_days_however_much_it_is_used() {
    let service = Service::start().await;
    let mut tokens = service.person(EMAIL).await;
    for _ in 0..5 {
        service.clock.advance(DAY * 6 - Duration::from_secs(20));
        tokens = service.refresh(&tokens.refresh_token).await.expect("used in time");
    }
    assert_eq!(tokens.expires_in, 100, "no access token outlives its session");
    service.clock.advance(Duration::from_secs(100));
    refused_as(&service, &tokens.refresh_token, "auth.session_expired").await;
}

#[tokio::test]
async fn no_token_is_stored_in_a_form_that_opens_anything() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    service.refresh(&tokens.refresh_token).await.expect("exchanged");
    let rows: Vec<String> = sqlx::query_scalar("select row_to_json(t)::text from auth.refresh_token t")
        .fetch_all(service.pool())
        .await
        .unwrap();
    for row in &rows {
        let hash = row.split("\\\\x").nth(1).expect("a hash").split('"').next().expect("its digits");
        let bytes: Vec<u8> =
            (0..hash.len()).step_by(2).map(|at| u8::from_str_radix(&hash[at..at + 2], 16).expect("digits")).collect();
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        refused_as(&service, &format!("glr_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)), "auth.invalid_token").await;
    }
    assert_eq!(rows.len(), 2);
}
