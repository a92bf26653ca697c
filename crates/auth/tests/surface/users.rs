//! Registering, and one's own user.

use kit::Kind;
use proto::auth::{GetSelfRequest, LogoutRequest, RegisterRequest};
use std::sync::Arc;

use crate::support::{EMAIL, PASSWORD, Service, anonymous, answer, at_once, by, key, refused, registration};

#[tokio::test]
async fn a_new_user_is_a_customer_known_by_a_normalised_address_and_is_told_of() {
    let service = Service::start().await;
    let request =
        RegisterRequest { email: " Ada@Example.COM ".into(), display_name: " Ada ".into(), ..registration(EMAIL) };
    let user = answer(service.users().register(anonymous().request(request)).await).expect("a user");
    assert_eq!((user.email.as_str(), user.display_name.as_str()), (EMAIL, "Ada"));
    assert_eq!(user.roles, ["customer"]);
    assert!(user.created_at.is_some() && !user.replayed);
    assert_eq!(service.told().await, [("auth.user.registered".to_owned(), user.id.clone())]);

    let tokens = service.login(EMAIL).await;
    assert_eq!(service.get_self(&tokens.access_token).await.expect("my own user"), user);
    let stored: String =
        sqlx::query_scalar("select password_hash from auth.user").fetch_one(service.pool()).await.unwrap();
    assert!(stored.starts_with("$argon2id$v=19$m=8192,t=1,p=1$") && !stored.contains(PASSWORD), "{stored}");
}

#[tokio::test]
async fn an_address_is_taken_in_whatever_case() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    for email in [EMAIL, "ADA@EXAMPLE.COM"] {
        refused(service.try_register(email, None).await, Kind::Conflict, "auth.email_taken");
    }
    assert_eq!(service.count("user").await, 1);
}

#[tokio::test]
async fn every_fault_of_a_registration_is_told_at_once_and_where_it_is() {
    let service = Service::start().await;
    let register = async |request| {
        refused(
            answer(service.users().register(anonymous().request(request)).await),
            Kind::Invalid,
            "auth.invalid_registration",
        )
    };
    let empty = register(RegisterRequest::default()).await;
    let found: Vec<_> = empty.violations().iter().map(|v| (v.pointer.as_str(), v.code.as_str())).collect();
    assert_eq!(found, [("/email", "email"), ("/display_name", "required"), ("/password", "min_length")]);

    let request = RegisterRequest {
        email: "ada.lovelace@example.com".into(),
        password: "Ada.Lovelace@example.com".into(),
        display_name: "x".repeat(101),
    };
    let bad = register(request).await;
    let found: Vec<_> = bad.violations().iter().map(|v| (v.pointer.as_str(), v.code.as_str())).collect();
    assert_eq!(found, [("/display_name", "max_length"), ("/password", "equals_email")]);
    let with_controls = RegisterRequest { display_name: "a\u{7}b".into(), ..registration(EMAIL) };
    assert_eq!(register(with_controls).await.violations()[0].code, "characters");
    assert_eq!(service.count("user").await, 0);
}

#[tokio::test]
async fn the_same_registration_twice_under_one_key_is_answered_as_once() {
    let service = Service::start().await;
    let first = service.try_register(EMAIL, key("k", 1)).await.expect("a user");
    let again = service.try_register(EMAIL, key("k", 1)).await.expect("the same answer");
    assert!(!first.replayed && again.replayed);
    assert_eq!(again.id, first.id);
    refused(service.try_register(EMAIL, key("k", 2)).await, Kind::Invalid, "idempotency.mismatch");
    refused(service.try_register(EMAIL, key("other", 1)).await, Kind::Conflict, "auth.email_taken");
    assert_eq!(service.times_told("auth.user.registered").await, 1);
}

#[tokio::test]
async fn two_people_who_choose_the_same_key_do_not_meet() {
    let service = Service::start().await;
    let ada = service.try_register(EMAIL, key("1", 1)).await.expect("a user");
    let bob = service.try_register("bob@example.com", key("1", 2)).await.expect("another user");
    assert_ne!(ada.id, bob.id);
    assert!(!bob.replayed);
}

#[tokio::test]
async fn what_is_stored_for_a_key_is_not_the_plain_digest_of_a_password() {
    let service = Service::start().await;
    service.try_register(EMAIL, key("k", 7)).await.expect("a user");
    let digest: Vec<u8> =
        sqlx::query_scalar("select digest from auth.idempotency_key").fetch_one(service.pool()).await.unwrap();
    assert_ne!(digest, [7; 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_register_one_address_at_once_one_has_it() {
    let service = Arc::new(Service::start().await);
    let registrations = (0..6).map(|_| {
        let service = Arc::clone(&service);
        async move { service.try_register(EMAIL, None).await }
    });
    let answers = at_once(registrations).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for answer in answers.into_iter().filter(Result::is_err) {
        refused(answer, Kind::Conflict, "auth.email_taken");
    }
    assert_eq!(service.times_told("auth.user.registered").await, 1);
}

#[tokio::test]
async fn nobody_is_shown_a_user_without_a_live_session() {
    let service = Service::start().await;
    let anonymous = answer(service.users().get_self(anonymous().request(GetSelfRequest {})).await);
    refused(anonymous, Kind::Unauthenticated, "auth.required");

    let tokens = service.person(EMAIL).await;
    answer(service.sessions().logout(by(&tokens.access_token, LogoutRequest {})).await).expect("signed out");
    refused(service.get_self(&tokens.access_token).await, Kind::Unauthenticated, "auth.session_ended");

    let service_token = service.service_token(&["workers:connect"]).await;
    refused(service.get_self(&service_token).await, Kind::NotFound, "auth.user_not_found");
}
