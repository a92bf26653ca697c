//! Access tokens that are not ours, or not any more, tried on a method that any of ours opens. Whoever forges here holds
//! our private key, so that each token fails for the one thing that is wrong with it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use kit::Kind;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::{EMAIL, ISSUER, Service, refused};

struct Forger {
    service: Service,
    key: SigningKey,
    header: Value,
    claims: Value,
}

impl Forger {
    /// Starts from a good token, which opens what it should.
    async fn new() -> Self {
        let service = Service::start().await;
        let tokens = service.person(EMAIL).await;
        let parts: Vec<&str> = tokens.access_token.split('.').collect();
        let read = |part: &str| -> Value {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url");
            serde_json::from_slice(&bytes).expect("JSON")
        };
        let (header, claims) = (read(parts[0]), read(parts[1]));
        let seed: Vec<u8> = sqlx::query_scalar("select private_key from auth.signing_key")
            .fetch_one(service.pool())
            .await
            .expect("a key");
        let key = SigningKey::from_bytes(&seed.try_into().expect("32 bytes"));
        let forger = Self { service, key, header, claims };
        let same = forger.sign(&forger.header, &forger.claims);
        forger.service.get_self(&same).await.expect("signed anew and otherwise the same, it is good");
        forger
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// Signs a token whose one member of the header or the claims is another; `Null` leaves it out.
    fn header_with(&self, member: &str, value: &Value) -> String {
        self.sign(&with(&self.header, member, value), &self.claims)
    }
    fn claims_with(&self, member: &str, value: &Value) -> String {
        self.sign(&self.header, &with(&self.claims, member, value))
    }

    async fn refuses(&self, token: &str, code: &str, what: &str) {
        let answer = self.service.get_self(token).await;
        assert!(answer.is_err(), "a token with {what} was taken for good");
        refused(answer, Kind::Unauthenticated, code);
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let write = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", write(header), write(claims))
}

fn with(object: &Value, member: &str, value: &Value) -> Value {
    let mut object = object.clone();
    let members = object.as_object_mut().expect("an object");
    match value {
        Value::Null => drop(members.remove(member)),
        value => drop(members.insert(member.to_owned(), value.clone())),
    }
    object
}

#[tokio::test]
async fn a_good_token_says_what_the_contract_says() {
    let forger = Forger::new().await;
    let header: Vec<&String> = forger.header.as_object().unwrap().keys().collect();
    assert_eq!(header, ["alg", "kid", "typ"]);
    assert_eq!((&forger.header["alg"], &forger.header["typ"]), (&json!("EdDSA"), &json!("at+jwt")));
    let claims: Vec<&String> = forger.claims.as_object().unwrap().keys().collect();
    assert_eq!(claims, ["aud", "exp", "gen", "iat", "iss", "jti", "nbf", "roles", "scope", "sid", "sub"]);
    assert_eq!((&forger.claims["iss"], &forger.claims["aud"]), (&json!(ISSUER), &json!("guildhall")));
    assert_eq!((&forger.claims["roles"], &forger.claims["scope"]), (&json!(["customer"]), &json!("")));
}

#[tokio::test]
async fn another_algorithm_is_refused_whatever_it_is_keyed_with() {
    let forger = Forger::new().await;
    for alg in ["none", "None", "NONE"] {
        let header = with(&forger.header, "alg", &json!(alg));
        forger.refuses(&format!("{}.", unsigned(&header, &forger.claims)), "auth.invalid_token", "no signature").await;
    }
    let header = with(&forger.header, "alg", &json!("HS256"));
    let signed = unsigned(&header, &forger.claims);
    let public = forger.key.verifying_key();
    let in_jwk = BASE64_URL_SAFE_NO_PAD.encode(public.as_bytes());
    for secret in [&public.as_bytes()[..], in_jwk.as_bytes()] {
        let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(&signed).finalize().into_bytes();
        let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac));
        forger.refuses(&token, "auth.invalid_token", "the public key for a secret").await;
    }
    forger.refuses(&forger.header_with("alg", &json!("RS256")), "auth.invalid_token", "another algorithm's name").await;
}

#[tokio::test]
async fn a_token_of_another_type_or_key_is_refused() {
    let forger = Forger::new().await;
    for typ in [json!("JWT"), json!("jwt"), json!("id+jwt"), Value::Null] {
        forger.refuses(&forger.header_with("typ", &typ), "auth.invalid_token", "another typ").await;
    }
    for kid in [json!("another"), json!("../../dev/null"), json!("' or 1=1 --"), Value::Null] {
        forger.refuses(&forger.header_with("kid", &kid), "auth.invalid_token", "another kid").await;
    }
    let stranger = Forger { key: SigningKey::from_bytes(&[7; 32]), ..forger };
    let token = stranger.sign(&stranger.header, &stranger.claims);
    stranger.refuses(&token, "auth.invalid_token", "a stranger's signature").await;
}

#[tokio::test]
async fn a_token_that_was_changed_after_signing_is_refused() {
    let forger = Forger::new().await;
    let good = forger.sign(&forger.header, &forger.claims);
    let parts: Vec<&str> = good.split('.').collect();
    let admin = BASE64_URL_SAFE_NO_PAD.encode(with(&forger.claims, "roles", &json!(["admin"])).to_string());
    let changed = [
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}.{}", parts[2]),
        String::new(),
        "..".to_owned(),
    ];
    for token in changed {
        forger.refuses(&token, "auth.invalid_token", "a changed part").await;
    }
}

#[tokio::test]
async fn a_token_for_others_or_by_others_is_refused() {
    let forger = Forger::new().await;
    for (claim, value) in [
        ("aud", json!("another")),
        ("aud", json!(["another"])),
        ("aud", Value::Null),
        ("iss", json!("https://evil.test")),
        ("iss", json!(format!("{ISSUER}/"))),
        ("iss", Value::Null),
        ("sub", json!("not an id")),
        ("sub", Value::Null),
    ] {
        forger.refuses(&forger.claims_with(claim, &value), "auth.invalid_token", claim).await;
    }
}

#[tokio::test]
async fn a_token_out_of_its_time_is_refused() {
    let forger = Forger::new().await;
    let now = forger.service.clock.now().timestamp();
    forger.refuses(&forger.claims_with("exp", &json!(now - 60)), "auth.token_expired", "its time over").await;
    for (claim, value) in [
        ("nbf", json!(now + 600)),
        ("nbf", json!((now + 600).to_string())),
        ("nbf", json!(now.to_string())),
        ("nbf", Value::Null),
        ("exp", json!((now + 600).to_string())),
        ("exp", json!("never")),
        ("exp", json!([now + 600])),
        ("exp", Value::Null),
    ] {
        forger.refuses(&forger.claims_with(claim, &value), "auth.invalid_token", claim).await;
    }
}

#[tokio::test]
async fn a_role_that_nobody_knows_grants_nothing() {
    let forger = Forger::new().await;
    let token = forger.claims_with("roles", &json!(["superuser", "Admin"]));
    let caller = forger.service.verifier.verify(&token).await.expect("it is signed by us");
    assert!(caller.roles.is_empty() && caller.require("jobs:read").is_err());
}
