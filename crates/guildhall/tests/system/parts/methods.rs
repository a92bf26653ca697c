//! Every gRPC method, called at its own port: by nobody, with a token that is none, and as each role.

use bytes::{Buf, BufMut, Bytes};
use kit::{
    Secret,
    grpc::{Call, Peer},
    identity::Role,
};
use proto::{METHODS, Method, Need};
use serde_json::json;
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::Parts;

/// A method's message as it stands on the wire.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What became of a call that carried `message`: none for one that was let in and answered, or the code of what it failed
/// with.
async fn call(peer: &Peer, method: &Method, token: Option<&str>, message: Bytes) -> Option<(Code, String)> {
    let call = match token {
        Some(token) => Call::with_token(Secret::new(token.to_owned()), "methods"),
        None => Call::anonymous("methods"),
    };
    let mut client = Grpc::new(peer.clone());
    client.ready().await.expect("the port is there");
    let path = method.path.parse().expect("a path");
    match client.server_streaming(call.request(message), path, Raw).await {
        Ok(_stream) => None,
        Err(status) => {
            let code = status.code();
            Some((code, kit::Fail::from(status).code().to_owned()))
        }
    }
}

/// The roles at whose ports a method is served.
pub(super) fn served_by(method: &Method) -> &'static [&'static str] {
    let package = method.path.trim_start_matches('/').split('.').nth(1);
    match package {
        Some("auth") => &["auth"],
        Some("jobs" | "worker") => &["jobs"],
        Some("admin") => &["admin"],
        Some("events") => &["auth", "jobs", "admin"],
        _ => panic!("which role serves {}? Tell this test", method.path),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_at_its_own_port_asks_who_calls_and_what_they_may() {
    let parts = Parts::open(&[]).await;
    let administrator = parts.administrator().await;
    let mut people = Vec::new();
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Service) {
        let mut person = parts.newcomer(role.as_str()).await;
        let path = format!("/api/v1/admin/users/{}/roles", person.id);
        administrator.put(&path, &json!({ "roles": [role.as_str()] })).await.expect(200);
        person.sign_in().await;
        people.push((role, person.token().await));
    }
    let mut called = 0;
    for method in METHODS {
        for served_by in served_by(method) {
            for peer in parts.peers(served_by) {
                let nobody = call(&peer, method, None, Bytes::new()).await;
                let unknown = call(&peer, method, Some("no.such.token"), Bytes::new()).await;
                if method.need != Need::Public {
                    assert_eq!(nobody, Some((Code::Unauthenticated, "auth.required".to_owned())), "{method:?}");
                    assert_eq!(unknown, Some((Code::Unauthenticated, "auth.invalid_token".to_owned())), "{method:?}");
                } else {
                    assert_ne!(nobody.map(|(_, code)| code), Some("auth.required".to_owned()), "{method:?}");
                }
                for (role, token) in &people {
                    let refused = call(&peer, method, Some(token), Bytes::new()).await;
                    let is_forbidden = refused.as_ref().is_some_and(|(_, code)| code == "forbidden");
                    let may = match method.need {
                        Need::Permission(permission) => role.reach(permission).is_some(),
                        Need::Public | Need::Authenticated => true,
                    };
                    assert_eq!(!is_forbidden, may, "{role}: {method:?}: {refused:?}");
                    let is_broken = refused.is_some_and(|(code, _)| matches!(code, Code::Internal | Code::Unknown));
                    assert!(!is_broken, "{role}: {method:?}");
                }
                called += 1;
            }
        }
    }
    parts.close().await;
    println!("{called} methods at their ports, each as nobody, with a wrong token, and as {} roles", people.len());
}
