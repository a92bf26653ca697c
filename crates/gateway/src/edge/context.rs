//! What is known about a request before anything else: its id, the trace it belongs to, and where it came from.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::PeerAddress;
use crate::door::Door;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_MAX: usize = 128;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Travels in the request's extensions.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestContext {
    /// The caller's own `X-Request-Id` if it is a sensible one, else made here; it is in the answer too.
    pub(crate) id: String,
    /// W3C trace context, as it came.
    pub(crate) traceparent: Option<String>,
    /// The client behind the trusted proxies.
    pub(crate) client: Option<IpAddr>,
}

pub(super) async fn attach(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_request_id(id));
    let id = given.map_or_else(|| door.clock.new_id().to_string(), str::to_owned);
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let context = RequestContext {
        traceparent: traceparent(headers),
        client: peer.map(|peer| door.proxies.client(peer, headers)),
        id,
    };
    let shown = HeaderValue::from_str(&context.id);
    request.extensions_mut().insert(context);
    let mut response = next.run(request).await;
    if let Ok(id) = shown {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Ids end up in logs and headers: letters, digits and a little punctuation, and not too long.
fn is_request_id(id: &str) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// `version-trace_id-parent_id-flags` in lower-case hexadecimal, neither id all zeros (W3C Trace Context, section 3.2).
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return None };
    let is_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let is_valid = version == "00" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    is_valid.then(|| text.to_owned())
}
