//! What a handler is asked: the verified call, and the path, query and body as types.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, header};
use kit::{Fail, Kind, grpc::Call};
use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Shape;
use crate::door::Door;

/// One request, parsed and admitted.
#[derive(Debug)]
pub struct Ask<P = Nothing, Q = Nothing, B = Nothing> {
    pub(crate) door: Arc<Door>,
    pub(crate) call: Call,
    pub(crate) headers: HeaderMap,
    pub(crate) path: P,
    pub(crate) query: Q,
    pub(crate) body: B,
}

/// A parameter in path or query, as OpenAPI lists it.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    /// `path` or `query`.
    pub place: &'static str,
    pub is_required: bool,
    pub description: String,
    pub schema: serde_json::Value,
}

/// The parameters in a path.
pub trait PathInput: Sized + Send + 'static {
    fn describe() -> Vec<Parameter>;
    /// `None` where no such thing can exist, which is answered like one that does not.
    fn read<'a>(params: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self>;
}

/// The parameters in a query.
pub trait QueryInput: Sized + Send + 'static {
    type Reader: Send + Sync + 'static;
    fn reader() -> Self::Reader;
    fn describe() -> Vec<Parameter>;
    /// # Errors
    /// `request.unknown_parameter` (400), `request.invalid` (422).
    fn read(reader: &Self::Reader, query: &str) -> Result<Self, Fail>;
}

/// A request's body.
pub trait BodyInput: Sized + Send + 'static {
    type Reader: Send + Sync + 'static;
    fn reader() -> Self::Reader;
    /// Media type, schema, and whether it must be there.
    fn describe(generator: &mut SchemaGenerator) -> Option<(&'static str, serde_json::Value, bool)>;
    /// The body and the SHA-256 of its bytes, which is that of nothing for one that is streamed.
    fn read(
        reader: &Self::Reader,
        headers: &HeaderMap,
        body: Body,
        bounds: Bounds,
    ) -> impl Future<Output = Result<(Self, [u8; 32]), Fail>> + Send;
}

/// How much may arrive, and how long it may stay away.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes_max: usize,
    /// Longest time without a byte.
    pub stall: Duration,
}

/// No parameters, or no body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl PathInput for Nothing {
    fn describe() -> Vec<Parameter> {
        Vec::new()
    }
    fn read<'a>(_: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        Some(Self)
    }
}

impl QueryInput for Nothing {
    type Reader = ();
    fn reader() {}
    fn describe() -> Vec<Parameter> {
        Vec::new()
    }
    fn read((): &(), query: &str) -> Result<Self, Fail> {
        match url::form_urlencoded::parse(query.as_bytes()).next() {
            None => Ok(Self),
            Some((name, _)) => Err(unknown_parameter(&name)),
        }
    }
}

impl BodyInput for Nothing {
    type Reader = ();
    fn reader() {}
    fn describe(_: &mut SchemaGenerator) -> Option<(&'static str, serde_json::Value, bool)> {
        None
    }
    async fn read((): &(), _: &HeaderMap, _: Body, _: Bounds) -> Result<(Self, [u8; 32]), Fail> {
        Ok((Self, Sha256::digest([]).into()))
    }
}

/// The `{id}` of a path.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub Uuid);

impl PathInput for Id {
    fn describe() -> Vec<Parameter> {
        vec![Parameter {
            name: "id".into(),
            place: "path",
            is_required: true,
            description: String::new(),
            schema: serde_json::json!({"type": "string", "format": "uuid"}),
        }]
    }
    fn read<'a>(mut params: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        params.find(|(name, _)| *name == "id").and_then(|(_, text)| Uuid::parse_str(text).ok()).map(Self)
    }
}

/// The `{name}` of a path.
#[derive(Debug, Clone)]
pub struct Named(pub String);

impl PathInput for Named {
    fn describe() -> Vec<Parameter> {
        vec![Parameter {
            name: "name".into(),
            place: "path",
            is_required: true,
            description: String::new(),
            schema: serde_json::json!({"type": "string"}),
        }]
    }
    fn read<'a>(mut params: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        params.find(|(name, _)| *name == "name").map(|(_, text)| Self(text.to_owned()))
    }
}

/// Query parameters as a type that refuses unknown fields.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned + JsonSchema + Send + 'static> QueryInput for Query<T> {
    type Reader = Shape;
    fn reader() -> Shape {
        Shape::of::<T>()
    }
    fn describe() -> Vec<Parameter> {
        Shape::of::<T>().parameters()
    }
    fn read(shape: &Shape, query: &str) -> Result<Self, Fail> {
        shape.read_query(query).map(Self)
    }
}

/// A JSON body that must be there.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + JsonSchema + Send + 'static> BodyInput for Json<T> {
    type Reader = Shape;
    fn reader() -> Shape {
        Shape::of::<T>()
    }
    fn describe(generator: &mut SchemaGenerator) -> Option<(&'static str, serde_json::Value, bool)> {
        Some(("application/json", generator.subschema_for::<T>().to_value(), true))
    }
    async fn read(shape: &Shape, headers: &HeaderMap, body: Body, bounds: Bounds) -> Result<(Self, [u8; 32]), Fail> {
        require_json(headers)?;
        let bytes = whole(headers, body, bounds).await?;
        Ok((Self(shape.read_json(&bytes)?), Sha256::digest(&bytes).into()))
    }
}

/// A JSON body that may be left out.
#[derive(Debug)]
pub struct JsonOrNothing<T>(pub T);

impl<T: DeserializeOwned + JsonSchema + Default + Send + 'static> BodyInput for JsonOrNothing<T> {
    type Reader = Shape;
    fn reader() -> Shape {
        Shape::of::<T>()
    }
    fn describe(generator: &mut SchemaGenerator) -> Option<(&'static str, serde_json::Value, bool)> {
        Some(("application/json", generator.subschema_for::<T>().to_value(), false))
    }
    async fn read(shape: &Shape, headers: &HeaderMap, body: Body, bounds: Bounds) -> Result<(Self, [u8; 32]), Fail> {
        let bytes = whole(headers, body, bounds).await?;
        let digest = Sha256::digest(&bytes).into();
        if bytes.is_empty() {
            return Ok((Self(T::default()), digest));
        }
        require_json(headers)?;
        Ok((Self(shape.read_json(&bytes)?), digest))
    }
}

/// A multipart body that the handler reads as it arrives. Its bounds are those of its files.
#[derive(Debug)]
pub struct UploadBody {
    pub(crate) boundary: String,
    pub(crate) body: Body,
}

impl BodyInput for UploadBody {
    type Reader = ();
    fn reader() {}
    fn describe(_: &mut SchemaGenerator) -> Option<(&'static str, serde_json::Value, bool)> {
        let schema = serde_json::json!({
            "type": "object",
            "required": ["file"],
            "properties": {
                "file": { "type": "array", "minItems": 1, "items": { "type": "string", "format": "binary" } }
            },
            "additionalProperties": false
        });
        Some(("multipart/form-data", schema, true))
    }
    async fn read((): &(), headers: &HeaderMap, body: Body, _: Bounds) -> Result<(Self, [u8; 32]), Fail> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(kind).map_err(|_| unsupported("multipart/form-data"))?;
        Ok((Self { boundary, body }, Sha256::digest([]).into()))
    }
}

async fn whole(headers: &HeaderMap, body: Body, bounds: Bounds) -> Result<Bytes, Fail> {
    let Bounds { bytes_max, stall } = bounds;
    let too_large =
        || Fail::too_large("request.too_large", format!("The body may have at most {bytes_max} bytes here."));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large());
    }
    let mut body = body.into_data_stream();
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(stall, body.next()).await {
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Ok(chunk))) if whole.len() + chunk.len() > bytes_max => return Err(too_large()),
            Ok(Some(Ok(chunk))) => whole.extend_from_slice(&chunk),
            Ok(Some(Err(error))) => {
                return Err(Fail::malformed("request.incomplete", "The body did not arrive whole.").caused_by(error));
            }
            Err(_) => return Err(stalled()),
        }
    }
}

/// What a body is refused with that stopped arriving.
pub(crate) fn stalled() -> Fail {
    Fail::new(Kind::Timeout, "request.stalled", "Nothing arrived for too long.")
}

fn require_json(headers: &HeaderMap) -> Result<(), Fail> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(unsupported("application/json"))
    }
}

fn unsupported(wanted: &str) -> Fail {
    Fail::malformed("request.unsupported_media_type", format!("The body must be sent as `{wanted}`."))
}

pub(super) fn unknown_parameter(name: &str) -> Fail {
    Fail::malformed("request.unknown_parameter", "The query has a parameter that does not exist here.").at(
        format!("/{}", super::shape::escape(name)),
        "unknown",
        "There is no such parameter.",
    )
}
