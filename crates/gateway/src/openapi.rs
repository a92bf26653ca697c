//! The OpenAPI 3.1 document, made from the routes' declarations: nothing in it is written by hand twice.

use std::collections::BTreeMap;

use kit::Fail;
use serde_json::{Map, Value, json};

use crate::{
    problem::Problem,
    route::{Access, Declared, Idempotency, Route, Schemas, Signature},
};

const TAGS: &[(&str, &str)] = &[
    ("auth", "Accounts, sign-in and sessions."),
    ("files", "Bytes that jobs read and write."),
    ("jobs", "Work: one task, its arguments, its attempts and its result."),
    ("batches", "Many jobs, and one that runs when all of them are final."),
    ("tasks", "What can be asked for."),
    ("queues", "Where jobs wait."),
    ("schedules", "Jobs that are submitted again and again, or once at a later time."),
    ("workers", "Who does the work."),
    ("admin", "Users, the audit log, events that could not be handled, and how every process fares."),
    ("meta", "The gateway itself."),
];

/// # Errors
/// `internal` for two types that share a name and not a shape.
pub(crate) fn document(routes: &[Route], public_url: &str) -> Result<Value, Fail> {
    let mut schemas = Schemas::default();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let problem = schemas.given.subschema_for::<Problem>().to_value();
    for route in routes {
        let signature = route.signature(&mut schemas);
        let operation = operation(route.declared(), signature, &problem);
        let method = route.declared().method.as_str().to_ascii_lowercase();
        paths.entry(route.declared().path).or_default().insert(method, operation);
    }
    let mut components = schemas.taken.take_definitions(true);
    for (name, schema) in schemas.given.take_definitions(true) {
        if components.get(&name).is_some_and(|other| *other != schema) {
            return Err(Fail::internal(format!("two types of the API are called {name}")));
        }
        components.insert(name, schema);
    }
    let tags: Vec<Value> =
        TAGS.iter().map(|(name, description)| json!({"name": name, "description": description})).collect();
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Guildhall",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Jobs that are not lost, and what they make. Every refusal is a problem document (RFC 9457) \
                            with a stable `code`. Lists are paged by `limit` and `cursor`, newest first unless they say \
                            otherwise. `X-Request-Id` is taken and given back.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "servers": [{"url": public_url}],
        // Of no operation: what a path answers to a method that it has none for.
        "x-codes": {"405": ["request.method_not_allowed"]},
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "The access token of a session: see `POST /api/v1/auth/login`."}
            }
        }
    }))
}

fn operation(declared: &Declared, signature: Signature, problem: &Value) -> Value {
    let codes = codes(declared, &signature);
    let mut parameters: Vec<Value> = signature
        .parameters
        .iter()
        .map(|parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.is_required,
                "description": parameter.description,
                "schema": parameter.schema,
            })
        })
        .collect();
    if declared.idempotency == Idempotency::ByKey {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "description": "Names this request. A repeat with the same key and body within 24 hours acts once and gets \
                            the first answer again, with `Idempotent-Replayed: true`.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        }));
    }

    let mut responses = Map::new();
    for answer in &signature.answers {
        let mut response = json!({"description": answer.description});
        if let Some((kind, schema)) = &answer.content {
            response["content"] = json!({*kind: {"schema": schema}});
        }
        let mut headers: Map<String, Value> = answer
            .headers
            .iter()
            .map(|(name, description)| {
                ((*name).to_owned(), json!({"description": description, "schema": {"type": "string"}}))
            })
            .collect();
        if declared.idempotency == Idempotency::ByKey {
            let description = "`true` on an answer that was given before.";
            headers.insert(
                "Idempotent-Replayed".into(),
                json!({"description": description, "schema": {"type": "string", "const": "true"}}),
            );
        }
        if !headers.is_empty() {
            response["headers"] = headers.into();
        }
        responses.insert(answer.status.to_string(), response);
    }
    for (status, codes) in codes {
        let list = codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ");
        let content = json!({"application/problem+json": {"schema": problem}});
        let key = status.to_string();
        match responses.get_mut(&key) {
            // A status that an answer of its own has already.
            Some(response) => {
                response["content"]["application/problem+json"] = json!({"schema": problem});
                response["x-codes"] = json!(codes);
            }
            None => {
                responses.insert(
                    key,
                    json!({"description": format!("Refused: {list}."), "content": content, "x-codes": codes}),
                );
            }
        }
    }

    let mut operation = json!({
        "operationId": operation_id(declared),
        "tags": [declared.tag],
        "summary": declared.summary,
        "description": description(declared),
        "parameters": parameters,
        "responses": responses,
        "x-timeout-seconds": declared.limits.within.as_secs(),
        "x-idempotency": match declared.idempotency {
            Idempotency::ByNature => "by nature",
            Idempotency::ByKey => "by key",
            Idempotency::Never => "never",
        },
    });
    if let Some((kind, schema, is_required)) = signature.body {
        operation["requestBody"] = json!({"required": is_required, "content": {kind: {"schema": schema}}});
        if kind == "application/json" {
            operation["x-body-bytes-max"] = json!(declared.limits.body_bytes_max);
        }
    }
    operation["security"] = match declared.access {
        Access::Public => json!([]),
        Access::Authenticated | Access::Permission(_) => json!([{"token": []}]),
    };
    if let Access::Permission(permission) = declared.access {
        operation["x-permission"] = json!(permission);
    }
    operation
}

fn description(declared: &Declared) -> String {
    let who = match declared.access {
        Access::Public => "Open to anyone.".to_owned(),
        Access::Authenticated => "Needs an access token.".to_owned(),
        Access::Permission(permission) => format!("Needs the permission `{permission}`."),
    };
    let again = match declared.idempotency {
        Idempotency::ByNature => "A repeat does no more than the first call.",
        Idempotency::ByKey => "A repeat with the same `Idempotency-Key` does no more than the first call.",
        Idempotency::Never => "A repeat acts again.",
    };
    format!("{who} {again}")
}

/// Every refusal, by status: the route's own, and those that follow from what it declares.
fn codes(declared: &Declared, signature: &Signature) -> BTreeMap<u16, Vec<&'static str>> {
    let mut all: Vec<(u16, &'static str)> = declared.fails.0.to_vec();
    if declared.access != Access::Public {
        all.extend([
            (401, "auth.required"),
            (401, "auth.invalid_token"),
            (401, "auth.token_expired"),
            (401, "auth.session_ended"),
        ]);
    }
    if matches!(declared.access, Access::Permission(_)) {
        all.push((403, "forbidden"));
    }
    all.push((400, "request.unknown_parameter"));
    if signature.parameters.iter().any(|parameter| parameter.place == "query") {
        all.extend([(400, "request.repeated_parameter"), (422, "request.invalid")]);
    }
    if signature.parameters.iter().any(|parameter| parameter.name == "cursor") {
        all.push((400, "invalid_cursor"));
    }
    if signature.parameters.iter().any(|parameter| parameter.place == "path") {
        all.push((404, "not_found"));
    }
    match &signature.body {
        Some(("application/json", ..)) => all.extend([
            (400, "request.malformed_json"),
            (400, "request.unknown_field"),
            (400, "request.incomplete"),
            (408, "request.stalled"),
            (413, "request.too_large"),
            (415, "request.unsupported_media_type"),
            (422, "request.invalid"),
        ]),
        Some(_) => all.push((415, "request.unsupported_media_type")),
        None => {}
    }
    if declared.idempotency == Idempotency::ByKey {
        all.extend([(400, "idempotency.malformed"), (409, "idempotency.in_flight"), (422, "idempotency.mismatch")]);
    }
    all.extend([(500, "internal"), (503, "busy"), (503, "unavailable"), (504, "timeout")]);

    let mut by_status: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for (status, code) in all {
        let codes = by_status.entry(status).or_default();
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    by_status
}

/// `post_jobs_id_cancel`: what a generated client calls the method.
fn operation_id(declared: &Declared) -> String {
    let path = declared.path.trim_start_matches("/api/v1").replace(['{', '}'], "");
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    format!("{}_{}", declared.method.as_str().to_ascii_lowercase(), words.join("_"))
}
