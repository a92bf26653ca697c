//! The edge: what happens to every request before its route sees it, and to every answer after. The order stands in
//! [`layered`]; what differs from route to route (identity, permission, size, time) is done by the route itself.

mod context;
mod in_flight;
mod listen;
mod observe;
mod proxies;
mod stall;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware};
use http::{HeaderName, HeaderValue, Method, header};
use kit::Fail;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
    set_header::SetResponseHeaderLayer,
};

pub(crate) use context::RequestContext;
pub(crate) use in_flight::LongLived;
pub(crate) use listen::{Listener, PeerAddress};
pub(crate) use proxies::Proxies;

use crate::{door::Door, problem, route::Route};

/// Asked every few seconds by whatever watches the process: not worth a log line, and answered however busy the door is,
/// since a process that is restarted for being busy makes the others busier.
const PROBES: [&str; 2] = ["/livez", "/readyz"];
/// A path that no route has must not become a label, or the name of a span: it is the caller's text.
const NO_ROUTE: &str = "none";
const PREFLIGHT_LIVES: Duration = Duration::from_secs(60 * 60);

/// What a browser may do with an answer, unless the answer says so itself: an API's answers are kept nowhere, shown
/// nowhere and load nothing.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// The whole door: the routes inside their layers.
pub(crate) fn layered(routes: &[Route], door: &Arc<Door>) -> Result<Router, Fail> {
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.declared().path, route.router(door.clone()));
    }
    // The innermost first: a request comes from the bottom up, its answer goes from the top down.
    let mut router = router
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(door.clone(), in_flight::bound))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn_with_state(door.clone(), problem::render));
    if let Some(cors) = cors(&door.settings.cors_origins)? {
        router = router.layer(cors);
    }
    for (name, value) in SECURITY_HEADERS {
        router = router.layer(SetResponseHeaderLayer::if_not_present(name, value));
    }
    Ok(router
        .layer(middleware::from_fn(observe::observe))
        .layer(middleware::from_fn_with_state(door.clone(), context::attach)))
}

/// Lets the pages of the listed origins call and read. Without any, there is nothing to say to a browser.
pub(crate) fn cors(origins: &[String]) -> Result<Option<CorsLayer>, Fail> {
    if origins.is_empty() {
        return Ok(None);
    }
    let mut listed = Vec::new();
    for origin in origins {
        let is_origin = url::Url::parse(origin).is_ok_and(|url| url.origin().ascii_serialization() == *origin);
        let value = HeaderValue::from_str(origin).ok().filter(|_| is_origin).ok_or_else(|| {
            Fail::invalid(
                "config.cors_origins",
                format!("`{origin}` in cors_origins is not an origin such as `https://app.example.com`."),
            )
        })?;
        listed.push(value);
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(listed))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            header::IF_NONE_MATCH,
            header::IF_RANGE,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("x-request-id"),
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers([
            header::ETAG,
            header::RETRY_AFTER,
            header::CONTENT_RANGE,
            header::CONTENT_DISPOSITION,
            HeaderName::from_static("idempotent-replayed"),
            HeaderName::from_static("x-request-id"),
        ])
        .max_age(PREFLIGHT_LIVES);
    Ok(Some(layer))
}
