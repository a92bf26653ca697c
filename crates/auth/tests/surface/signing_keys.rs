//! The keys that sign access tokens: one for all replicas, published, exchanged with an overlap.

use std::{sync::Arc, time::Duration};

use kit::Kind;
use proto::auth::{ListSigningKeysRequest, signing_keys_client::SigningKeysClient};
use serde_json::Value;

use crate::support::{EMAIL, Service, anonymous, answer, at_once, refused, settings};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn jwks(service: &Service) -> Vec<Value> {
    let mut keys = SigningKeysClient::new(service.peer.clone());
    let set = answer(keys.list(anonymous().request(ListSigningKeysRequest {})).await).expect("a set").jwks_json;
    let set: Value = serde_json::from_str(&set).expect("JSON");
    set["keys"].as_array().expect("a list").clone()
}

fn kid_of(token: &str) -> String {
    jsonwebtoken::decode_header(token).expect("a header").kid.expect("a key id")
}

#[tokio::test]
async fn the_published_set_holds_public_halves_and_nothing_private() {
    let service = Service::start().await;
    let keys = jwks(&service).await;
    assert_eq!(keys.len(), 1);
    let members: Vec<&str> = keys[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"]);
    assert_eq!(
        (&keys[0]["kty"], &keys[0]["crv"], &keys[0]["alg"]),
        (&"OKP".into(), &"Ed25519".into(), &"EdDSA".into())
    );
    let tokens = service.person(EMAIL).await;
    assert_eq!(kid_of(&tokens.access_token), keys[0]["kid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_agree_on_one_key() {
    let service = Arc::new(Service::start().await);
    for table in ["signing_key", "server_key"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("delete from auth.{table}"))).execute(service.pool()).await.unwrap();
    }
    let starts = (0..4).map(|_| {
        let service = Arc::clone(&service);
        async move { service.replica(settings()).await }
    });
    let replicas = at_once(starts).await;
    assert_eq!((service.count("signing_key").await, service.count("server_key").await), (1, 2));
    let parent = replicas[0].person(EMAIL).await;
    let child = replicas[1].refresh(&parent.refresh_token).await.expect("exchanged");
    let again = replicas[2].refresh(&parent.refresh_token).await.expect("the same answer");
    assert_eq!(child.refresh_token, again.refresh_token, "they derive with one key");
    for replica in &replicas {
        replica.get_self(&child.access_token).await.expect("each verifies what another signed");
    }
}

#[tokio::test]
async fn a_new_key_takes_over_after_ninety_days_and_the_old_one_verifies_for_an_hour() {
    let service = Service::start().await;
    let other = service.replica(settings()).await;
    let tokens = service.person(EMAIL).await;
    let old = kid_of(&tokens.access_token);

    service.clock.advance(DAY * 90 - Duration::from_secs(1));
    assert!(service.auth.sweep().await.is_empty());
    assert_eq!(jwks(&service).await.len(), 1, "not yet");
    service.clock.advance(Duration::from_secs(1));
    assert!(service.auth.sweep().await.is_empty());
    assert!(other.auth.sweep().await.is_empty(), "the other replica finds it done");
    let keys = jwks(&service).await;
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[1]["kid"], old.as_str());
    service
        .get_self(&tokens.access_token)
        .await
        .err()
        .filter(|fail| fail.code() == "auth.session_ended")
        .expect("the old key still verifies: it is the session that is ninety days old");
    for replica in [&service, &other] {
        assert_eq!(kid_of(&replica.login(EMAIL).await.access_token), keys[0]["kid"], "all sign with the new one");
    }

    service.clock.advance(Duration::from_secs(3600));
    assert!(service.auth.sweep().await.is_empty());
    assert_eq!(jwks(&service).await, keys[..1]);
}

#[tokio::test]
async fn a_verifier_that_has_never_heard_of_a_key_refuses_it() {
    let (service, stranger) = (Service::start().await, Service::start().await);
    let tokens = stranger.person(EMAIL).await;
    refused(service.get_self(&tokens.access_token).await, Kind::Unauthenticated, "auth.invalid_token");
}
