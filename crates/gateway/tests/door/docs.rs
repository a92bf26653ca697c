//! What the gateway says of itself.

use std::collections::BTreeSet;

use gateway::{
    route::{Access, Idempotency},
    routes,
};
use serde_json::Value;

use crate::house::House;

async fn document() -> Value {
    let house = House::open().await;
    house.get("/api/openapi.json").send().await.unwrap().json().await.unwrap()
}

fn walk<'v>(value: &'v Value, visit: &mut impl FnMut(&'v Value)) {
    visit(value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| walk(value, visit)),
        Value::Array(items) => items.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert(format!("{} {path}", method.to_ascii_uppercase()));
        }
    }
    let declared: BTreeSet<String> =
        routes::all().iter().map(|route| format!("{} {}", route.declared().method, route.declared().path)).collect();
    assert_eq!(described, declared);
}

#[tokio::test]
async fn the_description_is_whole_and_its_schemas_are_valid() {
    let document = document().await;
    walk(&document, &mut |value| {
        if let Some(to) = value.get("$ref").and_then(Value::as_str) {
            let pointer = to.strip_prefix('#').expect("a reference within the document");
            assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
        }
        if let Some(schema) = value.get("schema") {
            jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
        }
    });
    for schema in document["components"]["schemas"].as_object().unwrap().values() {
        jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
    }
    let mut ids = BTreeSet::new();
    for route in routes::all() {
        let route = route.declared();
        let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
        let id = operation["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id.clone()), "{id} twice");
        assert!(document["tags"].as_array().unwrap().iter().any(|tag| tag["name"] == operation["tags"][0]), "{id}");
        match route.access {
            Access::Public => assert_eq!(operation["security"], serde_json::json!([])),
            Access::Authenticated => assert!(operation["responses"]["401"].is_object()),
            Access::Permission(permission) => {
                assert_eq!(operation["x-permission"], permission);
                assert!(operation["responses"]["403"].is_object());
            }
        }
        let takes_key = operation["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "Idempotency-Key");
        assert_eq!(takes_key, route.idempotency == Idempotency::ByKey, "{id}");
        // Every parameter in the path is described.
        for name in route.path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()) {
            let is_there =
                operation["parameters"].as_array().unwrap().iter().any(|p| p["name"] == name && p["in"] == "path");
            assert!(is_there, "{id} does not describe {name}");
        }
        for status in operation["responses"].as_object().unwrap().keys() {
            assert!(status.parse::<u16>().is_ok_and(|status| (200..600).contains(&status)), "{id} {status}");
        }
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let house = House::open().await;
    for (path, kind) in
        [("/api/docs", "text/html"), ("/api/docs/page.css", "text/css"), ("/api/docs/page.js", "text/javascript")]
    {
        let answer = house.get(path).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(kind), "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another place");
        assert!(text.len() > 1_000, "{path} is empty");
    }
}
