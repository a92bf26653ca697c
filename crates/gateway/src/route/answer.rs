//! What a handler answers with, each kind with its status and its schema.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::edge::LongLived;

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// One possible answer, as OpenAPI lists it.
#[derive(Debug)]
pub struct Described {
    pub status: u16,
    pub description: &'static str,
    /// Media type and schema; an answer without a body has none.
    pub content: Option<(&'static str, Value)>,
    /// Headers it carries: name and description.
    pub headers: &'static [(&'static str, &'static str)],
}

/// Something that a handler may answer with.
pub trait Answer: IntoResponse + Send + 'static {
    fn describe(generator: &mut SchemaGenerator) -> Vec<Described>;
}

/// A JSON body under the status `STATUS`.
#[derive(Debug)]
pub struct Reply<const STATUS: u16, T> {
    body: T,
    replayed: bool,
}

impl<const STATUS: u16, T> Reply<STATUS, T> {
    pub fn new(body: T) -> Self {
        Self { body, replayed: false }
    }
    /// Marks an answer that was given before, to the same idempotency key.
    #[must_use]
    pub fn replayed(mut self, replayed: bool) -> Self {
        self.replayed = replayed;
        self
    }
}

impl<const STATUS: u16, T: Serialize> IntoResponse for Reply<STATUS, T> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).unwrap_or(StatusCode::OK);
        let mut response = (status, axum::Json(self.body)).into_response();
        if self.replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl<const STATUS: u16, T: Serialize + JsonSchema + Send + 'static> Answer for Reply<STATUS, T> {
    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        let description = match STATUS {
            201 => "Created.",
            202 => "Accepted.",
            _ => "Done.",
        };
        let schema = generator.subschema_for::<T>().to_value();
        vec![Described { status: STATUS, description, content: Some(("application/json", schema)), headers: &[] }]
    }
}

/// A JSON body: of what was accepted (202), or of what was there before (200).
#[derive(Debug)]
pub struct AcceptedOrThere<T> {
    body: T,
    was_there: bool,
    replayed: bool,
}

impl<T> AcceptedOrThere<T> {
    pub fn new(body: T, was_there: bool) -> Self {
        Self { body, was_there, replayed: false }
    }
    /// Marks an answer that was given before, to the same idempotency key.
    #[must_use]
    pub fn replayed(mut self, replayed: bool) -> Self {
        self.replayed = replayed;
        self
    }
}

impl<T: Serialize> IntoResponse for AcceptedOrThere<T> {
    fn into_response(self) -> Response {
        let Self { body, was_there, replayed } = self;
        match was_there {
            true => Reply::<200, T>::new(body).replayed(replayed).into_response(),
            false => Reply::<202, T>::new(body).replayed(replayed).into_response(),
        }
    }
}

impl<T: Serialize + JsonSchema + Send + 'static> Answer for AcceptedOrThere<T> {
    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        let mut content = || Some(("application/json", generator.subschema_for::<T>().to_value()));
        vec![
            Described { status: 200, description: "It was there before.", content: content(), headers: &[] },
            Described { status: 202, description: "Accepted.", content: content(), headers: &[] },
        ]
    }
}

/// Done, and nothing to say.
#[derive(Debug)]
pub struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl Answer for NoContent {
    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        vec![Described { status: 204, description: "Done.", content: None, headers: &[] }]
    }
}

/// A live stream of server-sent events.
#[derive(Debug)]
pub struct Events(pub(crate) Body);

impl IntoResponse for Events {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // nginx would otherwise hold events back until its buffer is full.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        let mut response = (headers, self.0).into_response();
        response.extensions_mut().insert(LongLived);
        response
    }
}

impl Answer for Events {
    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        vec![Described {
            status: 200,
            description: "Server-sent events: each with an `id` that `Last-Event-ID` takes back, an `event` (`state`, \
                          `progress`, `log`, `batch`, `reset`, `end`) and a JSON object as `data`. A comment every 15 \
                          seconds. `end` is the last of them; a stream that ends without it is resumed.",
            content: Some(("text/event-stream", json!({"type": "string"}))),
            headers: &[],
        }]
    }
}

/// A file's bytes, or a part of them.
#[derive(Debug)]
pub struct Content(pub(crate) Response);

impl IntoResponse for Content {
    fn into_response(self) -> Response {
        self.0
    }
}

const CONTENT_HEADERS: &[(&str, &str)] = &[
    ("ETag", "Strong; the SHA-256 of the whole file."),
    ("Accept-Ranges", "`bytes`."),
    ("Content-Disposition", "`attachment` with the file's name."),
];

impl Answer for Content {
    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        let bytes = || Some(("application/octet-stream", json!({"type": "string", "format": "binary"})));
        vec![
            Described { status: 200, description: "The whole file.", content: bytes(), headers: CONTENT_HEADERS },
            Described {
                status: 206,
                description: "The part that `Range` asks for; `Content-Range` says which.",
                content: bytes(),
                headers: CONTENT_HEADERS,
            },
            Described {
                status: 304,
                description: "The file is the one that `If-None-Match` names.",
                content: None,
                headers: CONTENT_HEADERS,
            },
        ]
    }
}

/// Something that is given as it is: a document, a page, a script.
#[derive(Debug)]
pub struct Page {
    /// Its media type.
    pub(crate) kind: &'static str,
    pub(crate) body: bytes::Bytes,
    /// What caches may do with it.
    pub(crate) cache: &'static str,
    /// For a page that runs something, instead of the policy that lets nothing run.
    pub(crate) policy: Option<&'static str>,
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.kind)),
            (header::CACHE_CONTROL, HeaderValue::from_static(self.cache)),
        ];
        let mut response = (headers, self.body).into_response();
        if let Some(policy) = self.policy {
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        }
        response
    }
}

impl Answer for Page {
    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        let content = Some(("*/*", json!({"type": "string"})));
        vec![Described { status: 200, description: "The document.", content, headers: &[] }]
    }
}
