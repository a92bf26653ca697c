//! The bound on requests at work. A queue in front of a busy door would only grow, so what comes beyond the bound is
//! told at once to come back. One address has half of the places at most: a body that trickles in, or a download that is
//! read a little at a time, is at work for as long as its client likes.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kit::Fail;

use super::{PROBES, RequestContext, proxies::network};
use crate::{door::Door, places::Place, problem::Refusal};

/// Left on the response of a live stream, which has a bound of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LongLived;

pub(super) async fn bound(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    if request.extensions().get::<MatchedPath>().is_some_and(|path| PROBES.contains(&path.as_str())) {
        return next.run(request).await;
    }
    let client = request.extensions().get::<RequestContext>().and_then(|context| context.client);
    let Some(place) = door.requests.take(client.map(network)) else {
        return Refusal(Fail::unavailable("busy", "Too many requests are at work: try again shortly.")).into_response();
    };
    let response = next.run(request).await;
    if response.extensions().get::<LongLived>().is_some() {
        return response;
    }
    response.map(|body| Body::new(Held { body, _place: place }))
}

/// A body that counts as work until it has been sent.
struct Held {
    body: Body,
    _place: Place<Option<IpAddr>>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
