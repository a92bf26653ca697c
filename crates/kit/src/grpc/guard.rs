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
use tracing::Instrument as _;

use super::{
    call::{Call, unauthenticated},
    deadline,
    observe::Served,
    reflection,
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
        let need = match METHODS.iter().find(|method| method.path == path) {
            Some(method) => method.need,
            // Where a port has it; elsewhere there is no such method for those who are signed in either.
            None if path == reflection::PATH => Need::Authenticated,
            None => return Err(Status::unimplemented("there is no such method")),
        };
        if need == Need::Public {
            // A token on a public method is neither needed nor believed.
            return Ok(Call::read(headers, None)?);
        }
        let token = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(unauthenticated)?;
        let caller = self.verifier.verify(token).await?;
        if let Need::Permission(permission) = need {
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
            let served = Served::begin(&path, request.headers());
            let deadline = deadline::read(request.headers());
            let answer = async {
                match served.span().within(guard.admit(&path, request.headers())).await {
                    Ok(call) => {
                        let mut call = call.with_deadline(deadline);
                        let ids = served.admitted(&mut call);
                        request.extensions_mut().insert(call);
                        served.span().within(inner.call(request).instrument(ids)).await
                    }
                    Err(status) => Ok(status.into_http()),
                }
            };
            let response = match deadline::within(deadline, answer).await {
                Ok(response) => response?,
                Err(over) => over.into_http(),
            };
            Ok(served.end(deadline::cut(response, deadline)))
        })
    }
}
