//! The first administrator: one, whoever starts at once, and never locked out by a crash.

use std::sync::Arc;

use auth::{Settings, new_password};
use kit::{Kind, Secret};

use crate::support::{ADDRESS, PASSWORD, Service, at_once, refused, settings};

#[tokio::test]
async fn the_first_start_makes_an_administrator_who_can_sign_in() {
    let service = Service::start().await;
    assert!(!service.auth.has_admin().await.expect("an answer"));
    let password = new_password().expect("a password");
    let first = service.auth.ensure_first_admin(&password).await.expect("made").expect("it is the first");
    assert_eq!(first.email, "admin@guildhall.localhost");
    assert!(service.auth.has_admin().await.expect("an answer"));
    let tokens = service.try_login(&first.email, first.password.expose(), ADDRESS).await.expect("signed in");
    assert_eq!(tokens.user.expect("a user").roles, ["admin"]);
    let told: Vec<_> = service.told().await.into_iter().map(|(kind, _)| kind).take(2).collect();
    assert_eq!(told, ["auth.user.registered", "auth.role.changed"]);
}

#[tokio::test]
async fn a_start_that_was_cut_short_before_the_password_was_shown_is_taken_up_again() {
    let service = Service::start().await;
    let password = new_password().expect("a password");
    service.auth.ensure_first_admin(&password).await.expect("made");
    let restarted = service.replica(settings()).await;
    let first = restarted.auth.ensure_first_admin(&password).await.expect("looked up");
    assert_eq!(first.expect("the password from the file opens it").password, password);
    assert_eq!(service.count("user").await, 1);
}

#[tokio::test]
async fn a_password_that_opens_no_administrators_account_is_told_so() {
    let service = Service::start().await;
    service.auth.ensure_first_admin(&new_password().unwrap()).await.expect("made");
    let other = service.auth.ensure_first_admin(&new_password().unwrap()).await.expect("looked up");
    assert!(other.is_none());
    assert_eq!(service.count("user").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_processes_that_start_at_once_one_makes_the_administrator() {
    let service = Arc::new(Service::start().await);
    let starts = (0..4).map(|_| {
        let service = Arc::clone(&service);
        async move { service.auth.ensure_first_admin(&new_password().unwrap()).await.expect("made or found") }
    });
    let made = at_once(starts).await;
    assert_eq!(made.iter().filter(|first| first.is_some()).count(), 1);
    assert_eq!((service.count("user").await, service.count("user_role").await), (1, 1));
}

#[tokio::test]
async fn rights_are_not_given_to_whoever_registered_the_address_first() {
    let service = Service::start().await;
    service.register("admin@guildhall.localhost").await;
    let password = Secret::new(PASSWORD.to_owned());
    let answer = service.auth.ensure_first_admin(&password).await;
    refused(answer, Kind::Conflict, "config.admin_email_taken");
    assert!(!service.auth.has_admin().await.expect("an answer"));
}

#[tokio::test]
async fn the_address_is_the_settings_and_the_password_keeps_the_rules() {
    let service = Service::start_with(Settings { admin_email: "Root@Example.com".into(), ..settings() }).await;
    let answer = service.auth.ensure_first_admin(&Secret::new("short".to_owned())).await;
    let fail = refused(answer, Kind::Invalid, "config.admin_password");
    assert!(!fail.to_string().contains("short"));
    let first = service.auth.ensure_first_admin(&Secret::new(PASSWORD.to_owned())).await.expect("made").expect("first");
    assert_eq!(first.email, "root@example.com");
}

#[test]
fn generated_passwords_differ_and_are_easily_copied() {
    let (first, second) = (new_password().unwrap(), new_password().unwrap());
    assert_ne!(first, second);
    let groups: Vec<&str> = first.expose().split('-').collect();
    assert_eq!(groups.iter().map(|group| group.len()).collect::<Vec<_>>(), [5, 5, 5, 5]);
    assert!(!first.expose().contains(['0', '1', 'l', 'o']));
}
