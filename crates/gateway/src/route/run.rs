//! The way of one request through its route: who is it, may it, is it well-formed, do it, answer.

use std::{future::Future, sync::Arc};

use axum::{
    extract::{FromRequestParts as _, RawPathParams, Request},
    response::IntoResponse as _,
};
use kit::{
    Fail, Kind,
    grpc::{Call, IdempotencyKey},
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{Answer, Ask, BodyInput, Bounds, Declared, Handle, Idempotency, PathInput, QueryInput};
use crate::{door::Door, edge::RequestContext, problem::Refusal};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_KEY_MAX: usize = 255;

pub(super) fn handle<P, Q, B, A, H, F>(declared: Arc<Declared>, handler: H) -> Handle
where
    P: PathInput,
    Q: QueryInput,
    B: BodyInput,
    A: Answer,
    H: Fn(Ask<P, Q, B>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<A, Fail>> + Send + 'static,
{
    let query = Arc::new(Q::reader());
    let body = Arc::new(B::reader());
    Arc::new(move |door, request| {
        let (declared, handler, query, body) = (declared.clone(), handler.clone(), query.clone(), body.clone());
        Box::pin(async move {
            let deadline = Instant::now() + declared.limits.within;
            let work = async {
                let mut ask = ask::<P, Q, B>(&declared, door, request, &query, &body).await?;
                // The roles behind are told, so that none works on for a caller that is gone.
                ask.call.deadline = Some(deadline);
                handler(ask).await
            };
            match tokio::time::timeout_at(deadline, work).await {
                Ok(Ok(answer)) => answer.into_response(),
                Ok(Err(fail)) => Refusal(fail).into_response(),
                Err(_) => Refusal(Fail::new(Kind::Timeout, "timeout", "It took too long.")).into_response(),
            }
        })
    })
}

async fn ask<P: PathInput, Q: QueryInput, B: BodyInput>(
    declared: &Declared,
    door: Arc<Door>,
    request: Request,
    query: &Q::Reader,
    body: &B::Reader,
) -> Result<Ask<P, Q, B>, Fail> {
    let (mut head, bytes) = request.into_parts();
    let context = head.extensions.get::<RequestContext>().cloned().unwrap_or_default();
    let call = door.admit(declared.access, &head.headers, &context).await?;

    let params = RawPathParams::from_request_parts(&mut head, &()).await.map_err(|_| nothing_here())?;
    let path = P::read(params.iter()).ok_or_else(nothing_here)?;
    let query = Q::read(query, head.uri.query().unwrap_or_default())?;
    let key = idempotency_key(declared, &head.headers)?;
    let bounds = Bounds { bytes_max: declared.limits.body_bytes_max, stall: door.stall() };
    let (body, digest) = B::read(body, &head.headers, bytes, bounds).await?;

    let call = call.with_idempotency(
        key.map(|key| IdempotencyKey { key, digest: request_digest(&head.method, head.uri.path(), &digest) }),
    );
    Ok(Ask { door, call, headers: head.headers, path, query, body })
}

fn nothing_here() -> Fail {
    Fail::not_found("not_found", "There is nothing here.")
}

/// A key where the route takes one. Elsewhere the header says nothing.
fn idempotency_key(declared: &Declared, headers: &http::HeaderMap) -> Result<Option<String>, Fail> {
    if declared.idempotency != Idempotency::ByKey {
        return Ok(None);
    }
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let text = key.to_str().ok().filter(|text| {
        (1..=IDEMPOTENCY_KEY_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match (text, keys.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Fail::malformed(
            "idempotency.malformed",
            "`Idempotency-Key` must be given once, as 1 to 255 visible ASCII characters.",
        )),
    }
}

/// A key stands for one request: the same body on another route is another request.
fn request_digest(method: &http::Method, path: &str, body: &[u8; 32]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(method.as_str());
    digest.update(b" ");
    digest.update(path);
    digest.update(b"\n");
    digest.update(body);
    digest.finalize().into()
}

/// The digest that a body adds up to once it has been read whole, for a body that is streamed.
pub(crate) fn with_streamed_body(call: &Call, body: &[u8; 32]) -> Call {
    let mut call = call.clone();
    if let Some(idempotency) = &mut call.idempotency {
        let mut digest = Sha256::new();
        digest.update(idempotency.digest);
        digest.update(body);
        idempotency.digest = digest.finalize().into();
    }
    call
}
