//! One log line and two metrics a request. They name the route and never the path, the query, the address, a token or a
//! body; whose request it was, the line carries as every line does.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use super::{NO_ROUTE, PROBES};
use crate::problem::ProblemCode;

pub(super) async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, |path| path.as_str()).to_owned();
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
    if PROBES.contains(&route.as_str()) {
        tracing::debug!(
            http.method = method,
            http.route = route,
            http.status = status,
            duration_ms,
            "answered a probe"
        );
    } else {
        tracing::info!(
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
pub(super) fn known(method: &http::Method) -> &'static str {
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
