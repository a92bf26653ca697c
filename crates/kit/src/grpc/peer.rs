//! The other end of a generated client.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tonic::{body::Body, service::Routes};
use tower::{BoxError, Layer as _, Service, ServiceExt as _, util::BoxCloneSyncService};

use super::Guard;

/// A role that can be called. Every generated client works over it: `JobsClient::new(peer)`.
#[derive(Clone)]
pub struct Peer(BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>);

impl Peer {
    /// A role in this process: calls go straight onto its generated servers, behind the same guard as from outside,
    /// with protobuf between them and neither HTTP/2 nor a socket.
    pub fn local(routes: Routes, guard: &Guard) -> Self {
        let service = guard.layer(routes.prepare());
        Self(BoxCloneSyncService::new(service.map_err(|never: Infallible| -> BoxError { match never {} })))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peer")
    }
}

impl Service<http::Request<Body>> for Peer {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}
