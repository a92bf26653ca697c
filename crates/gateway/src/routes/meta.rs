//! What the gateway says of itself: whether it lives and is ready, the API's description, the keys of access tokens.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use kit::{Fail, Kind};
use proto::{auth as rpc, jobs};
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use tonic::Status;

use super::SMALL;
use crate::route::{Access, Answer, Ask, Described, Fails, Idempotency, Page, Reply, Route};

const TAG: &str = "meta";
/// How long a role may take to show that it is there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// The page runs its own script and nothing else.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Vec<Route> {
    let read = |path, summary, calls| {
        Route::get(path, TAG, summary)
            .access(Access::Public, calls)
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
    };
    vec![
        read("/livez", "Whether the process lives", &[]).by(livez),
        read("/readyz", "Whether the roles behind answer", &[]).by(readyz),
        read("/.well-known/jwks.json", "The keys that verify access tokens", &["/guildhall.auth.v1.SigningKeys/List"])
            .by(jwks),
        read("/api/openapi.json", "This description, as OpenAPI 3.1", &[]).by(openapi),
        read("/api/docs", "This description, as a page", &[]).by(page),
        read("/api/docs/page.css", "The page's looks", &[]).by(style),
        read("/api/docs/page.js", "The page's script", &[]).by(script),
    ]
}

/// The process answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Alive {
    /// Always `alive`.
    status: &'static str,
}

/// Whether the gateway can do its work.
#[derive(Debug, Serialize, JsonSchema)]
struct Readiness {
    ready: bool,
    /// The names of what it waits for.
    waiting_for: Vec<&'static str>,
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        let status = if self.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, axum::Json(self)).into_response()
    }
}

impl Answer for Readiness {
    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        let content = Some(("application/json", generator.subschema_for::<Self>().to_value()));
        vec![
            Described { status: 200, description: "Ready.", content: content.clone(), headers: &[] },
            Described { status: 503, description: "Not ready, or about to stop.", content, headers: &[] },
        ]
    }
}

async fn livez(_: Ask) -> Result<Reply<200, Alive>, Fail> {
    Ok(Reply::new(Alive { status: "alive" }))
}

async fn readyz(ask: Ask) -> Result<Readiness, Fail> {
    let (mut auth, mut jobs) = (ask.door.signing_keys(), ask.door.task_client());
    let (auth, jobs) = tokio::join!(
        answers(auth.list(ask.call.request(rpc::ListSigningKeysRequest {}))),
        // Without a token it refuses, which is an answer.
        answers(jobs.list(ask.call.request(jobs::ListTasksRequest { limit: 1, cursor: String::new() }))),
    );
    let stays = !ask.door.tasks.stopping().is_cancelled();
    let parts = [("auth", auth), ("jobs", jobs), ("gateway", stays)];
    let waiting_for: Vec<_> = parts.into_iter().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect();
    Ok(Readiness { ready: waiting_for.is_empty(), waiting_for })
}

/// A refusal is an answer too; silence, and failing inside, are none.
async fn answers<T>(call: impl Future<Output = Result<T, Status>>) -> bool {
    match tokio::time::timeout(ANSWERS_WITHIN, call).await {
        Ok(Ok(_)) => true,
        Ok(Err(status)) => !matches!(Fail::from(status).kind(), Kind::Unavailable | Kind::Timeout | Kind::Internal),
        Err(_) => false,
    }
}

async fn jwks(ask: Ask) -> Result<Page, Fail> {
    let keys = ask.door.signing_keys().list(ask.call.request(rpc::ListSigningKeysRequest {})).await?.into_inner();
    Ok(Page {
        kind: "application/jwk-set+json",
        body: keys.jwks_json.into(),
        cache: "public, max-age=300",
        policy: None,
    })
}

async fn openapi(ask: Ask) -> Result<Page, Fail> {
    Ok(Page { kind: "application/json", body: ask.door.openapi.clone(), cache: "no-cache", policy: None })
}

async fn page(_: Ask) -> Result<Page, Fail> {
    Ok(file("text/html; charset=utf-8", include_str!("../docs_page/page.html")))
}

async fn style(_: Ask) -> Result<Page, Fail> {
    Ok(file("text/css; charset=utf-8", include_str!("../docs_page/page.css")))
}

async fn script(_: Ask) -> Result<Page, Fail> {
    Ok(file("text/javascript; charset=utf-8", include_str!("../docs_page/page.js")))
}

fn file(kind: &'static str, text: &'static str) -> Page {
    let body = Bytes::from_static(text.as_bytes());
    Page { kind, body, cache: "no-cache", policy: Some(PAGE_POLICY) }
}
