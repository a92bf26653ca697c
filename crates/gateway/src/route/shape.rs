//! JSON held to the schema that is published for it: what OpenAPI says of a body is what the door enforces, and every
//! fault is told at once with its pointer.

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use kit::{Fail, fail::Violation};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Parameter, ask::unknown_parameter};

/// Bodies of up to so many bytes are told all their faults, larger ones the first: to collect millions of faults, of which
/// a few are told, would hold a core for seconds and take gigabytes.
const ALL_FAULTS_BYTES_MAX: usize = 64 * 1024;

/// A type's JSON Schema, compiled.
#[derive(Debug)]
pub struct Shape {
    schema: Value,
    validator: Validator,
}

impl Shape {
    /// The shape of `T` as it is read.
    pub fn of<T: JsonSchema>() -> Self {
        let schema = SchemaGenerator::new(SchemaSettings::draft2020_12()).into_root_schema_for::<T>().to_value();
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .should_validate_formats(true)
            .should_ignore_unknown_formats(true)
            .build(&schema)
            .expect("a schema that was derived from a type is valid");
        Self { schema, validator }
    }

    /// # Errors
    /// 400: `request.malformed_json`, `request.unknown_field`; 422: `request.invalid`.
    pub fn read_json<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Fail> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            let place = format!("The body is not valid JSON (line {}, column {}).", error.line(), error.column());
            Fail::malformed("request.malformed_json", place)
        })?;
        let tells_all = bytes.len() <= ALL_FAULTS_BYTES_MAX;
        self.check(&value, tells_all).map_err(|(violations, has_unknown)| {
            let fail = if has_unknown {
                Fail::malformed("request.unknown_field", "The body has a field that does not exist here.")
            } else {
                Fail::invalid("request.invalid", "The body does not fit.")
            };
            fail.with_violations(violations)
        })?;
        serde_json::from_value(value).map_err(|error| {
            Fail::invalid("request.invalid", "The body does not fit.").at("", "invalid", error.to_string())
        })
    }

    /// # Errors
    /// 400: `request.unknown_parameter`; 422: `request.invalid`.
    pub fn read_query<T: DeserializeOwned>(&self, query: &str) -> Result<T, Fail> {
        let mut read = Map::new();
        for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
            let Some(schema) = self.schema.pointer(&format!("/properties/{}", escape(&name))) else {
                return Err(unknown_parameter(&name));
            };
            match read.get_mut(&*name) {
                None if is_a(schema, "array") => drop(read.insert(name.into(), Value::Array(vec![text.into()]))),
                None => drop(read.insert(name.into(), scalar(schema, &text))),
                Some(Value::Array(items)) => items.push(text.into()),
                Some(_) => {
                    return Err(Fail::malformed("request.repeated_parameter", "A parameter is given more than once.")
                        .at(format!("/{}", escape(&name)), "repeated", "May be given once."));
                }
            }
        }
        let value = Value::Object(read);
        let refuse = || Fail::invalid("request.invalid", "The query does not fit.");
        self.check(&value, query.len() <= ALL_FAULTS_BYTES_MAX)
            .map_err(|(violations, _)| refuse().with_violations(violations))?;
        serde_json::from_value(value).map_err(|error| refuse().at("", "invalid", error.to_string()))
    }

    /// Its fields as query parameters.
    pub fn parameters(&self) -> Vec<Parameter> {
        let required: Vec<&str> =
            self.schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let fields = self.schema["properties"].as_object().into_iter().flatten();
        fields
            .map(|(name, schema)| {
                let mut schema = inlined(schema, &self.schema["$defs"]);
                let description = match schema.as_object_mut().and_then(|schema| schema.remove("description")) {
                    Some(Value::String(text)) => text,
                    _ => String::new(),
                };
                Parameter {
                    name: name.clone(),
                    place: "query",
                    is_required: required.contains(&name.as_str()),
                    description,
                    schema,
                }
            })
            .collect()
    }

    /// Every fault or the first, and whether a field that does not exist is among them.
    fn check(&self, value: &Value, tells_all: bool) -> Result<(), (Vec<Violation>, bool)> {
        let Err(first) = self.validator.validate(value) else { return Ok(()) };
        let mut violations = Vec::new();
        let mut has_unknown = false;
        if tells_all {
            for error in self.validator.iter_errors(value) {
                has_unknown |= tell(&error, &mut violations);
            }
        } else {
            has_unknown = tell(&first, &mut violations);
        }
        Err((violations, has_unknown))
    }
}

/// Adds what one schema error says, at the field it is about; whether that field does not exist.
fn tell(error: &ValidationError<'_>, violations: &mut Vec<Violation>) -> bool {
    let at = error.instance_path().as_str().to_owned();
    let mut add = |pointer: String, code: &str, message: String| {
        violations.push(Violation { pointer, code: code.to_owned(), message });
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            for name in unexpected {
                add(format!("{at}/{}", escape(name)), "unknown", "There is no such field.".into());
            }
            return true;
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            add(format!("{at}/{}", escape(name)), "required", "Must be given.".into());
        }
        // An optional field is `null` or its type: the caller gave something, so what its type says is told.
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let told = context.iter().flatten().filter(|inner| !is_null_branch(inner)).collect::<Vec<_>>();
            if told.is_empty() {
                add(at, error.kind().keyword(), sentence(error));
            }
            return told.into_iter().fold(false, |unknown, inner| tell(inner, violations) | unknown);
        }
        _ => add(at, error.kind().keyword(), sentence(error)),
    }
    false
}

fn is_null_branch(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Type { .. }) && error.schema_path().as_str().contains("anyOf/1")
}

/// What is wrong, without the value: a value may be a password.
fn sentence(error: &ValidationError<'_>) -> String {
    let mut text = error.masked_with("The value").to_string();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// A name as one step of a JSON pointer (RFC 6901).
pub(super) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn is_a(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    }
}

/// A parameter's text as the type its schema asks for; text that is not of it stays text and is refused as such.
fn scalar(schema: &Value, text: &str) -> Value {
    if (is_a(schema, "integer") || is_a(schema, "number"))
        && let Ok(number) = text.parse::<serde_json::Number>()
    {
        return Value::Number(number);
    }
    match text {
        "true" | "false" if is_a(schema, "boolean") => Value::Bool(text == "true"),
        _ => Value::String(text.to_owned()),
    }
}

/// A parameter's schema stands alone in OpenAPI, so what it refers to is put in its place.
fn inlined(schema: &Value, definitions: &Value) -> Value {
    match schema {
        Value::Object(object) => {
            if let Some(name) =
                object.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"))
            {
                return inlined(&definitions[name], definitions);
            }
            Value::Object(object.iter().map(|(key, value)| (key.clone(), inlined(value, definitions))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| inlined(item, definitions)).collect()),
        other => other.clone(),
    }
}
