//! The guard in front of every gRPC server: it looks up what the method declares in `proto/`, verifies the caller's
//! token, and refuses before a handler runs; and it holds the call to its caller's deadline. A method that is not in the
//! table does not exist.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use proto::{METHODS, Need};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    call::{Call, unauthenticated},
    deadline,
};
use crate::identity::Verifier;

/// The layer to put around a role's gRPC services.
#[derive(Debug, Clone)]
pub struct Guard {
    verifier: Verifier,
}

impl Guard {
    pub fn new(verifier: Verifier) -> Self {
        Self { verifier }
    }

    async fn admit(&self, path: &str, headers: &http::HeaderMap) -> Result<Call, Status> {
        let method = METHODS
            .iter()
            .find(|method| method.path == path)
            .ok_or_else(|| Status::unimplemented("there is no such method"))?;
        if method.need == Need::Public {
            // A token on a public method is neither needed nor believed.
            return Ok(Call::read(headers, None)?);
        }
        let token = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(unauthenticated)?;
        let caller = self.verifier.verify(token).await?;
        if let Need::Permission(permission) = method.need {
            caller.require(permission)?;
        }
        Ok(Call::read(headers, Some(caller))?)
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Guarded { guard: self.clone(), inner }
    }
}

/// A server behind its [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let guard = self.guard.clone();
        // The clone takes the place of the service that was polled ready, which goes into the future.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let started = tokio::time::Instant::now();
            let deadline = deadline::read(request.headers());
            let answer = async {
                match guard.admit(&path, request.headers()).await {
                    Ok(call) => {
                        request.extensions_mut().insert(call.with_deadline(deadline));
                        inner.call(request).await
                    }
                    Err(status) => Ok(status.into_http()),
                }
            };
            let response = match deadline::within(deadline, answer).await {
                Ok(response) => response?,
                Err(over) => over.into_http(),
            };
            observe(&path, started, &response);
            Ok(deadline::cut(response, deadline))
        })
    }
}

/// Counts the call by its method and status. A status that comes in trailers, after a body, is not seen here and counts
/// as `0` (ok): streams count when they open.
fn observe(path: &str, started: tokio::time::Instant, response: &http::Response<Body>) {
    // An unknown path must not become a label: it is the caller's text.
    let method = METHODS.iter().find(|method| method.path == path).map_or("unknown", |method| method.path);
    let code = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()).unwrap_or("0").to_owned();
    metrics::counter!("guildhall_grpc_requests_total", "method" => method, "code" => code).increment(1);
    metrics::histogram!("guildhall_grpc_request_duration_seconds", "method" => method)
        .record(started.elapsed().as_secs_f64());
}
