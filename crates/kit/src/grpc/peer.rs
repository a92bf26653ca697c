//! The other end of a generated client.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{body::Body, service::Routes};
use tower::{BoxError, Layer as _, Service, ServiceExt as _};

use super::{
    Guard,
    guard::Guarded,
    observe::Sent,
    remote::{Origin, Remote},
};
use crate::{Fail, tasks::Tasks, tls::Tls};

/// A role that can be called. Every generated client works over it: `JobsClient::new(peer)`. Cheap to clone; clones share
/// their connections.
#[derive(Clone)]
pub struct Peer(Way);

#[derive(Clone)]
enum Way {
    Local(Guarded<Routes>),
    Remote(Arc<Remote>),
}

impl Peer {
    /// A role in this process: calls go straight onto its generated servers, behind the same guard as from outside,
    /// with protobuf between them and neither HTTP/2 nor a socket.
    pub fn local(routes: Routes, guard: &Guard) -> Self {
        Self(Way::Local(guard.layer(routes.prepare())))
    }

    /// The role `name` across the network, at one or more `urls` (`http://host:port`, with `tls` `https://host:port`); a
    /// name may stand for several replicas. One connection is kept to each, made again when it breaks. A call goes to the
    /// replica with the fewest calls at work, and to another when it has certainly not reached that one; with none there it
    /// waits up to 3 s, then fails as `unavailable`.
    ///
    /// The connections end with the soft signal of `tasks`, which should therefore be a set of their own that is stopped
    /// after whoever calls.
    ///
    /// # Errors
    /// `config.peer_url`, as [`url_fault`](Self::url_fault) tells.
    pub fn remote(name: &'static str, urls: &[String], tls: Option<Tls>, tasks: &Tasks) -> Result<Self, Fail> {
        let wrong = |reason: String| Fail::invalid("config.peer_url", format!("A URL of `{name}` {reason}."));
        if urls.is_empty() {
            return Err(wrong("must be said".to_owned()));
        }
        let origins = urls.iter().map(|url| Origin::parse(url, tls.is_some())).collect::<Result<Vec<_>, _>>();
        Ok(Self(Way::Remote(Remote::open(name, origins.map_err(wrong)?, tls, tasks))))
    }

    /// What is wrong with a URL for [`remote`](Self::remote), as a clause: "must be ...".
    pub fn url_fault(url: &str, has_tls: bool) -> Option<String> {
        Origin::parse(url, has_tls).err()
    }

    /// Whether calls have somewhere to go: for a remote role, whether any replica is connected and serves.
    pub fn is_connected(&self) -> bool {
        match &self.0 {
            Way::Local(_) => true,
            Way::Remote(remote) => remote.is_connected(),
        }
    }

    /// Waits until calls have somewhere to go.
    pub async fn connected(&self) {
        if let Way::Remote(remote) = &self.0 {
            remote.connected().await;
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Way::Local(_) => f.write_str("Peer::Local"),
            Way::Remote(remote) => f.debug_tuple("Peer::Remote").field(remote).finish(),
        }
    }
}

impl Service<http::Request<Body>> for Peer {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Routes are always ready, and a remote call waits for its place by itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let sent = Sent::begin(&mut request);
        let answer: Self::Future = match &self.0 {
            Way::Local(service) => {
                let answer = service.clone().oneshot(request);
                Box::pin(async move { Ok(answer.await.unwrap_or_else(|never: Infallible| match never {})) })
            }
            Way::Remote(remote) => remote.clone().call(request),
        };
        if sent.is_told() { Box::pin(sent.until_answered(answer)) } else { answer }
    }
}
