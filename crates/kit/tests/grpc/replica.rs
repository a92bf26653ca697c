//! A role to be called: two services of the product's contracts, answered by the test. What is asked of it is said in the
//! request: its name, how long the caller will wait, to hold the call.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::{Stream, StreamExt as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kit::{
    Clock, Fail, Secret,
    grpc::{Call, Guard, MESSAGE_BYTES_MAX, Peer},
    identity::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, Verifier},
    tasks::Tasks,
    tls::Tls,
};
use proto::{
    auth::{
        ExchangeServiceKeyRequest, ServiceToken,
        service_keys_client::ServiceKeysClient,
        service_keys_server::{ServiceKeys, ServiceKeysServer},
    },
    worker::{
        FromWorker, ToWorker,
        workers_client::WorkersClient,
        workers_server::{Workers, WorkersServer},
    },
};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

const ISSUER: &str = "https://guildhall.test";
static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_ED25519).expect("a key"));

/// What a handler knows of its replica, and what the test sees of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    name: String,
    /// Calls that reached a handler.
    pub(crate) calls: AtomicUsize,
    /// A held call has begun.
    pub(crate) held: Notify,
    /// Lets one held call end.
    pub(crate) release: Notify,
    /// A held call was dropped before it was let go.
    pub(crate) dropped: CancellationToken,
}

impl Seen {
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// A replica that serves.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) seen: Arc<Seen>,
    pub(crate) address: SocketAddr,
    pub(crate) tasks: Tasks,
    scheme: &'static str,
}

impl Replica {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_at(name, SocketAddr::from(([127, 0, 0, 1], 0)), None).await
    }

    pub(crate) async fn start_at(name: &str, address: SocketAddr, tls: Option<Tls>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen { name: name.to_owned(), ..Seen::default() });
        let tasks = Tasks::new();
        let scheme = if tls.is_some() { "https" } else { "http" };
        kit::grpc::serve(listener, routes(&seen), &guard(), tls, &tasks);
        Self { seen, address, tasks, scheme }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// As `kill -9` does: connections break where they stand.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.tasks.abort().await;
        self.address
    }
}

/// The same role in this process.
pub(crate) fn local() -> (Arc<Seen>, Peer) {
    let seen = Arc::new(Seen { name: "local".to_owned(), ..Seen::default() });
    let peer = Peer::local(routes(&seen), &guard());
    (seen, peer)
}

/// The role at these URLs. The connections end with the test.
pub(crate) fn remote(urls: &[String], tls: Option<Tls>) -> Peer {
    Peer::remote("testing", urls, tls, &Tasks::new()).expect("good URLs")
}

/// The replica, or what it was asked to tell.
pub(crate) async fn ask(peer: &Peer, call: &Call, what: &str) -> Result<ServiceToken, Fail> {
    request(peer, call.request(ExchangeServiceKeyRequest { key: what.to_owned() })).await
}

pub(crate) async fn request(peer: &Peer, request: Request<ExchangeServiceKeyRequest>) -> Result<ServiceToken, Fail> {
    let mut client = ServiceKeysClient::new(peer.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(client.exchange(request).await?.into_inner())
}

/// The name of the replica that answers.
pub(crate) async fn name(peer: &Peer) -> Result<String, Fail> {
    Ok(ask(peer, &anonymous(), "name").await?.access_token)
}

/// Waits until each of the replicas has answered.
pub(crate) async fn all_answer(peer: &Peer, replicas: &[&Replica]) {
    let is_missing = |replica: &&&Replica| replica.seen.calls() == 0;
    crate::soon("every replica to answer", async {
        while replicas.iter().any(|replica| is_missing(&replica)) {
            name(peer).await.expect("an answer");
        }
    })
    .await;
}

pub(crate) fn anonymous() -> Call {
    Call::anonymous("test")
}

/// A worker's call.
pub(crate) fn worker() -> Call {
    Call::with_token(token("workers:connect"), "test")
}

pub(crate) fn token(scope: &str) -> Secret {
    let now = Clock::system().now().timestamp();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: Clock::system().new_id(),
        exp: now + 300,
        iat: now,
        nbf: now,
        jti: Clock::system().new_id(),
        sid: None,
        generation: 0,
        roles: vec!["service".to_owned()],
        scope: scope.to_owned(),
    };
    let header = Header {
        typ: Some(ACCESS_TOKEN_TYPE.to_owned()),
        kid: Some("test".to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let key = EncodingKey::from_ed_pem(KEY.serialize_pem().as_bytes()).expect("a key");
    Secret::new(jsonwebtoken::encode(&header, &claims, &key).expect("a token"))
}

/// An open stream: what is sent on it comes back.
pub(crate) struct Echo {
    pub(crate) sender: mpsc::Sender<FromWorker>,
    pub(crate) answers: Streaming<ToWorker>,
}

impl Echo {
    pub(crate) async fn open(peer: &Peer, call: &Call) -> Result<Self, Fail> {
        Self::open_by(peer, |receiver| call.request(receiver)).await
    }

    pub(crate) async fn open_by(
        peer: &Peer,
        request: impl FnOnce(ReceiverStream<FromWorker>) -> Request<ReceiverStream<FromWorker>>,
    ) -> Result<Self, Fail> {
        let (sender, receiver) = mpsc::channel(4);
        let answers = WorkersClient::new(peer.clone()).work(request(ReceiverStream::new(receiver))).await?;
        Ok(Self { sender, answers: answers.into_inner() })
    }

    pub(crate) async fn answers(&mut self) {
        self.sender.send(FromWorker::default()).await.expect("the stream is open");
        let answer = crate::soon("an echo", self.answers.message()).await;
        answer.expect("no failure").expect("an echo");
    }

    /// What the stream ends with.
    pub(crate) async fn ended(&mut self) -> Fail {
        loop {
            match crate::soon("the stream's end", self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => return status.into(),
            }
        }
    }
}

fn guard() -> Guard {
    let keys = serde_json::json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "test",
        "x": BASE64_URL_SAFE_NO_PAD.encode(KEY.der_bytes()),
    }] });
    let keys = keys.to_string();
    Guard::new(Verifier::new(
        ISSUER,
        Arc::new(move || {
            let keys = keys.clone();
            Box::pin(async move { Ok(keys) })
        }),
    ))
}

fn routes(seen: &Arc<Seen>) -> Routes {
    let keys = ServiceKeysServer::new(Role(seen.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Routes::new(keys).add_service(WorkersServer::new(Role(seen.clone())))
}

struct Role(Arc<Seen>);

#[tonic::async_trait]
impl ServiceKeys for Role {
    async fn exchange(&self, request: Request<ExchangeServiceKeyRequest>) -> Result<Response<ServiceToken>, Status> {
        let seen = &self.0;
        seen.calls.fetch_add(1, Ordering::Relaxed);
        let call = Call::of(&request)?;
        let answer = |access_token: String, expires_in| Ok(Response::new(ServiceToken { access_token, expires_in }));
        match request.get_ref().key.as_str() {
            "name" => answer(seen.name.clone(), 0),
            "left" => {
                // Zero for none; milliseconds otherwise, here and for the next role.
                let left = call.deadline.map_or(0, |deadline| deadline.duration_since(Instant::now()).as_millis());
                let next = call.request(());
                let next = next.metadata().get("grpc-timeout").map_or("none", |value| value.to_str().unwrap_or(""));
                answer(next.to_owned(), u32::try_from(left).unwrap_or(u32::MAX))
            }
            "hold" => {
                let dropped = seen.dropped.clone().drop_guard();
                seen.held.notify_one();
                seen.release.notified().await;
                dropped.disarm();
                answer(seen.name.clone(), 0)
            }
            "details" => {
                let fail = (0..50).fold(Fail::invalid("test.much", "Much is wrong."), |fail, at| {
                    fail.at(format!("/jobs/{at}/args/{}", "x".repeat(100)), "required", "is required".repeat(20))
                });
                Err(fail.into())
            }
            large => answer(large.to_owned(), 0),
        }
    }
}

#[tonic::async_trait]
impl Workers for Role {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<ToWorker, Status>> + Send>>;

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::WorkStream>, Status> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        let echoes = request.into_inner().map(|message| message.map(|_| ToWorker::default()));
        Ok(Response::new(echoes.boxed()))
    }
}
