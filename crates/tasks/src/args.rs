//! Arguments as types: the JSON Schema that submissions are held to, and the parsing of what has passed it.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use worker::Failure;

/// JSON Schema 2020-12 of a task's arguments.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// The arguments. What the schema admits parses, unless the job was submitted under an older schema.
pub(crate) fn parse<T: DeserializeOwned>(args: Value) -> Result<T, Failure> {
    serde_json::from_value(args).map_err(|error| Failure::invalid_input(format!("The arguments do not fit: {error}.")))
}

/// What a file id looks like: without it a schema would take any string, since formats are annotations there.
pub(crate) const UUID: &str = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$";
