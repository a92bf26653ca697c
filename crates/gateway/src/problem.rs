//! The one place that turns a [`Fail`] into HTTP: a problem document (RFC 9457), its status, and the headers that belong
//! to it. Whatever refuses, a handler, a layer or the router itself, answers with a [`Refusal`], which [`render`] writes
//! out on the way to the client. Nothing of a cause is ever in it: that goes to the log.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use kit::{Fail, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{door::Door, edge::RequestContext};

/// What HTTP has a status for and a [`Kind`] has not.
const STATUS_BY_CODE: &[(&str, StatusCode)] = &[
    ("request.method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
    ("request.unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ("request.stalled", StatusCode::REQUEST_TIMEOUT),
    ("files.range_not_satisfiable", StatusCode::RANGE_NOT_SATISFIABLE),
];

/// When to come back, where the fault does not say: soon, but not at once.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status that a fault is answered with.
pub fn status(fail: &Fail) -> StatusCode {
    if let Some((_, status)) = STATUS_BY_CODE.iter().find(|(code, _)| *code == fail.code()) {
        return *status;
    }
    match fail.kind() {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A response that still is a fault.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Fail);

#[derive(Clone)]
struct Carried(Arc<Fail>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = status(&self.0).into_response();
        if let Some(wait) = self
            .0
            .retry_after_hint()
            .or_else(|| matches!(self.0.kind(), Kind::Unavailable | Kind::Limited).then_some(RETRY_AFTER))
        {
            // Whole seconds, rounded up: coming back too early is a wasted call.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.kind() == Kind::Unauthenticated {
            // RFC 6750, section 3.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Carried(Arc::new(self.0)));
        response
    }
}

/// A problem document, as every refusal is answered.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// A page that tells more about `code`.
    #[serde(rename = "type")]
    #[schemars(extend("format" = "uri"))]
    kind: String,
    /// What the status means.
    title: &'static str,
    status: u16,
    /// What happened, for a person.
    detail: String,
    /// The path that was asked for.
    instance: String,
    /// What happened, for a program: it stays the same where `detail` may change.
    code: String,
    /// What to tell whoever looks after the system.
    request_id: String,
    /// The faults of the input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<InputError>,
}

/// One fault of the input.
#[derive(Debug, Serialize, JsonSchema)]
struct InputError {
    /// Where in the body (a JSON pointer, RFC 6901), or the name of a query parameter after a `/`.
    pointer: String,
    code: String,
    message: String,
}

/// Writes refusals out as problem documents, and logs those that are our fault.
pub(crate) async fn render(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let context = request.extensions().get::<RequestContext>().cloned().unwrap_or_default();
    let instance = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let Some(Carried(fail)) = response.extensions_mut().remove::<Carried>() else { return response };
    match fail.kind() {
        Kind::Internal => tracing::error!(error = %fail, "a request failed on our side"),
        Kind::Unavailable | Kind::Timeout => {
            tracing::warn!(error = %fail, "a request could not be served for now");
        }
        _ => {}
    }
    let status = response.status();
    let problem = Problem {
        kind: format!("{}/api/docs#error-{}", door.public_url, fail.code()),
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: fail.message().to_owned(),
        instance,
        code: fail.code().to_owned(),
        request_id: context.id,
        errors: fail
            .violations()
            .iter()
            .map(|v| InputError { pointer: v.pointer.clone(), code: v.code.clone(), message: v.message.clone() })
            .collect(),
    };
    let (head, _) = response.into_parts();
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut written = Response::from_parts(head, body.into());
    // The router may have promised an empty body.
    written.headers_mut().remove(header::CONTENT_LENGTH);
    written.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    written.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    written.extensions_mut().insert(ProblemCode(fail));
    written
}

/// Left on the response for the access log.
#[derive(Clone)]
pub(crate) struct ProblemCode(Arc<Fail>);

impl ProblemCode {
    pub(crate) fn code(&self) -> &str {
        self.0.code()
    }
}

/// The router's answer to a path that no route has.
pub(crate) async fn no_such_route() -> Refusal {
    Refusal(Fail::not_found("not_found", "There is nothing here."))
}

/// The router's answer to a method that the path does not take; it adds `Allow` itself.
pub(crate) async fn no_such_method() -> Refusal {
    Refusal(Fail::malformed("request.method_not_allowed", "This path does not take that method."))
}

/// The answer to a handler that panicked. The panic itself was logged where it happened.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over like this")]
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Refusal(Fail::internal(format!("a handler panicked: {}", text.unwrap_or_default()))).into_response()
}
