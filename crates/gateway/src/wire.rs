//! Between protobuf and JSON: times, JSON that is passed on unread, lists.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use kit::{Fail, clock::from_timestamp};
use prost_types::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A time as JSON shows it.
pub(crate) type Time = DateTime<Utc>;

/// A time that another role must have set.
pub(crate) fn time(at: Option<Timestamp>) -> Result<Time, Fail> {
    maybe_time(at).ok_or_else(|| Fail::internal("a role answered without a time that must be there"))
}

pub(crate) fn maybe_time(at: Option<Timestamp>) -> Option<Time> {
    from_timestamp(&at?)
}

/// What protobuf cannot leave out, it leaves empty.
pub(crate) fn maybe(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// For a field that may be absent, null or something: what is there, null as `Some(None)`. With `#[serde(default)]`.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// JSON that another role made, written out as it came.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Raw(Box<RawValue>);

impl Raw {
    /// # Errors
    /// `internal` for text that is not JSON.
    pub(crate) fn parse(text: String) -> Result<Self, Fail> {
        RawValue::from_string(text).map(Self).map_err(Fail::internal)
    }

    /// `None` for no text at all.
    pub(crate) fn maybe(text: String) -> Result<Option<Self>, Fail> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }
}

impl JsonSchema for Raw {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paging {
    /// Most items in the answer; 50 unless said.
    #[schemars(range(min = 1, max = 200), extend("default" = 50))]
    #[serde(default)]
    pub(crate) limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
}

pub(crate) const LIMIT: u32 = 50;

/// One page of a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
    /// Asks for the page after this one; `null` on the last.
    pub(crate) next_cursor: Option<String>,
}

impl<T> List<T> {
    /// # Errors
    /// As `read`, for an item that makes no sense.
    pub(crate) fn of<P>(
        items: Vec<P>,
        next_cursor: String,
        read: impl FnMut(P) -> Result<T, Fail>,
    ) -> Result<Self, Fail> {
        Ok(Self { items: items.into_iter().map(read).collect::<Result<_, _>>()?, next_cursor: maybe(next_cursor) })
    }
}
