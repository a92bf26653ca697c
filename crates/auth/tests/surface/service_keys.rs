//! Service accounts: a key is let in with its scope, and nothing else is.

use kit::{Kind, Secret, identity::Role};
use sqlx::Row as _;

use crate::support::{Service, refused};

#[tokio::test]
async fn a_key_is_exchanged_for_a_token_of_its_scope_without_a_session() {
    let service = Service::start().await;
    let token = service.service_token(&["workers:connect", "jobs:submit:any"]).await;
    let caller = service.verifier.verify(&token).await.expect("a token of ours");
    assert_eq!(caller.roles, [Role::Service]);
    assert_eq!(caller.scope, ["workers:connect", "jobs:submit:any"]);
    assert_eq!(caller.session, None);
    assert_eq!(caller.expires_at, service.clock.now().timestamp() + 300);
    assert!(caller.require("workers:connect").is_ok());
    assert!(caller.require("queues:write").is_err());
}

#[tokio::test]
async fn ensuring_a_key_twice_changes_nothing_and_another_key_takes_its_place() {
    let service = Service::start().await;
    let (first, second) = (auth::new_service_key().unwrap(), auth::new_service_key().unwrap());
    let ensure = async |key: &Secret, scope: &[&str]| {
        service.auth.ensure_service_key("worker", scope, key).await.expect("the key is taken");
        let row = sqlx::query("select id, xmin::text from auth.service_key").fetch_one(service.pool()).await.unwrap();
        row.get::<String, _>(1)
    };
    let version = ensure(&first, &["workers:connect"]).await;
    assert_eq!(ensure(&first, &["workers:connect"]).await, version, "nothing was written");
    let subject = service.verifier.verify(&service.exchange_key(first.expose()).await.unwrap()).await.unwrap().subject;

    ensure(&second, &["workers:connect"]).await;
    refused(service.exchange_key(first.expose()).await, Kind::Unauthenticated, "auth.invalid_service_key");
    let token = service.exchange_key(second.expose()).await.expect("the new key is good");
    assert_eq!(service.verifier.verify(&token).await.unwrap().subject, subject, "it is the same account");

    ensure(&second, &["workers:connect", "files:read:any"]).await;
    let token = service.exchange_key(second.expose()).await.expect("the key is good");
    assert_eq!(service.verifier.verify(&token).await.unwrap().scope, ["workers:connect", "files:read:any"]);
    assert_eq!(service.count("service_account").await, 1);
}

#[tokio::test]
async fn what_is_not_the_key_opens_nothing() {
    let service = Service::start().await;
    let key = auth::new_service_key().unwrap();
    service.auth.ensure_service_key("worker", &["workers:connect"], &key).await.expect("the key is taken");
    let key = key.expose();
    let (id, secret) = key.rsplit_once('_').unwrap();
    let other_secret = secret.replace(['0', '1', '2', '3', '4', '5', '6', '7'], "8");
    let unknown = auth::new_service_key().unwrap();
    for guess in ["", "gld_", id, secret, &format!("{id}_{other_secret}"), unknown.expose(), &key.to_uppercase()] {
        refused(service.exchange_key(guess).await, Kind::Unauthenticated, "auth.invalid_service_key");
    }
}

#[tokio::test]
async fn a_key_is_not_stored_and_a_scope_that_is_none_is_refused() {
    let service = Service::start().await;
    let key = auth::new_service_key().unwrap();
    refused(
        service.auth.ensure_service_key("worker", &["everything"], &key).await,
        Kind::Invalid,
        "auth.invalid_scope",
    );
    let no_key = Secret::new("hush".to_owned());
    let refusal = service.auth.ensure_service_key("worker", &[], &no_key).await;
    refused(refusal, Kind::Unauthenticated, "auth.invalid_service_key");
    service.auth.ensure_service_key("worker", &[], &key).await.expect("a key without rights");
    let row: String = sqlx::query_scalar("select row_to_json(k)::text from auth.service_key k")
        .fetch_one(service.pool())
        .await
        .unwrap();
    assert!(!row.contains(key.expose().rsplit_once('_').unwrap().1), "{row}");
}
