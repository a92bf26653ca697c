//! One log line and two metrics a request. They name the route and never the path, the address, a token or a body.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use super::{PROBES, RequestContext};
use crate::problem::ProblemCode;

/// A path that no route has must not become a label: it is the caller's text.
const NO_ROUTE: &str = "none";

pub(super) async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, |path| path.as_str()).to_owned();
    let context = request.extensions().get::<RequestContext>().cloned().unwrap_or_default();
    let response = next.run(request).await;

    let elapsed = started.elapsed();
    let status = response.status().as_u16();
    metrics::counter!(
        "guildhall_http_requests_total",
        "method" => method, "route" => route.clone(), "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!("guildhall_http_request_duration_seconds", "method" => method, "route" => route.clone())
        .record(elapsed.as_secs_f64());

    let code = response.extensions().get::<ProblemCode>().map(ProblemCode::code);
    let duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let (id, trace) = (&context.id, context.traceparent.as_deref());
    if PROBES.contains(&route.as_str()) {
        tracing::debug!(
            request.id = id,
            http.method = method,
            http.route = route,
            http.status = status,
            duration_ms,
            "answered a probe"
        );
    } else {
        tracing::info!(
            request.id = id,
            traceparent = trace,
            http.method = method,
            http.route = route,
            http.status = status,
            error.code = code,
            duration_ms,
            "answered a request"
        );
    }
    response
}

/// A method is the caller's text too.
fn known(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
