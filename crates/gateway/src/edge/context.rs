//! What is known about a request before anything else: its id, the trace it belongs to, and where it came from. Whatever
//! is done or logged for it is done inside the span and the ids that begin here.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderName, HeaderValue};
use kit::telemetry::{
    Ids, Span,
    context::{TRACEPARENT, is_traceparent},
    span,
};
use tracing::Instrument as _;

use super::{NO_ROUTE, PROBES, PeerAddress, observe};
use crate::{door::Door, problem::ProblemCode};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_MAX: usize = 128;

/// Travels in the request's extensions.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestContext {
    /// The caller's own `X-Request-Id` if it is a sensible one, else made here; it is in the answer too.
    pub(crate) id: String,
    /// Where its calls go on from, as W3C trace context.
    pub(crate) traceparent: Option<String>,
    /// What the lines of its log carry.
    ids: Option<tracing::Span>,
    /// The client behind the trusted proxies.
    pub(crate) client: Option<IpAddr>,
}

pub(super) async fn attach(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_request_id(id));
    let id = given.map_or_else(|| door.clock.new_id().to_string(), str::to_owned);
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let client = peer.map(|peer| door.proxies.client(peer, headers));
    let traceparent =
        headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).filter(|text| is_traceparent(text));
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str);
    let span = if PROBES.contains(&route) {
        Span::none()
    } else {
        span::request(observe::known(request.method()), route, traceparent)
    };
    span.set("guildhall.request_id", id.clone());
    let ids = Ids { request: Some(&id), trace: span.trace_id().as_deref(), ..Ids::default() }.span();
    let shown = HeaderValue::from_str(&id);
    let context = RequestContext { traceparent: span.traceparent(), client, id, ids: Some(ids.clone()) };
    request.extensions_mut().insert(context);
    let mut response = span.within(next.run(request).instrument(ids)).await;
    span.set("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        // What the caller did wrong is no failure of the server (HTTP conventions, "status").
        let code = response.extensions().get::<ProblemCode>().map(|code| code.code().to_owned());
        span.fail(code.unwrap_or_else(|| response.status().as_str().to_owned()));
    }
    if let Ok(id) = shown {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

impl RequestContext {
    /// Its caller is known from here on.
    pub(crate) fn is_by(&self, caller: &kit::identity::Caller) {
        if let Some(ids) = &self.ids {
            ids.record("user.id", caller.subject.to_string());
        }
    }
}

/// Ids end up in logs and headers: letters, digits and a little punctuation, and not too long.
fn is_request_id(id: &str) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}
