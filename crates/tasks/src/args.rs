//! Arguments as types: the JSON Schema that submissions are held to, and the parsing of what has passed it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;
use worker::Failure;

/// JSON Schema 2020-12 of a task's arguments.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// The arguments. What the schema admits parses, unless the job was submitted under an older schema.
pub(crate) fn parse<T: DeserializeOwned>(args: Value) -> Result<T, Failure> {
    serde_json::from_value(args).map_err(|error| Failure::invalid_input(format!("The arguments do not fit: {error}.")))
}

/// A file's id among arguments. The pattern is what makes a schema refuse other strings: formats are annotations there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
pub(crate) struct FileId(Uuid);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
