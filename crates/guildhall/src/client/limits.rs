//! Setting the limits of queues and tasks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Outcome,
    api::Api,
    args::QueueLimit,
    error::Error,
    screen::{Manner, Screen},
    words,
};

/// What is said of limits, and nothing of what is not.
pub(super) fn asked(asked: &QueueLimit) -> Value {
    let mut body = serde_json::Map::new();
    let mut set = |field: &str, value: Option<Value>| drop(value.map(|value| body.insert(field.to_owned(), value)));
    set("concurrency", asked.concurrency.map(|bound| json!(bound)));
    set("key_concurrency", asked.key_concurrency.map(|bound| json!(bound)));
    set("rate", asked.rate.map(|bound| json!(bound)));
    set("key_rate", asked.key_rate.map(|bound| json!(bound)));
    set("share", asked.share.as_ref().map(|share| json!(share)));
    let weights = || asked.weight.iter().cloned().collect::<BTreeMap<String, f64>>();
    set("weights", (!asked.weight.is_empty()).then(|| json!(weights())));
    Value::Object(body)
}

/// Sets limits of a queue or task, and shows what is so now.
pub(super) async fn set(api: &Api, path: &[&str], body: &Value, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.patch(path, body).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Told => {
            let name = path.last().copied().unwrap_or_default();
            let limits =
                answer.get("limits").cloned().unwrap_or_else(|| json!({ "concurrency": answer["concurrency"] }));
            let set = limits.as_object().into_iter().flatten().filter(|(_, limit)| {
                !limit.is_null() && **limit != json!("none") && limit.as_object().is_none_or(|map| !map.is_empty())
            });
            let set: Vec<String> = set.map(|(field, limit)| format!("{field} {limit}")).collect();
            let told = if set.is_empty() { "no limits".to_owned() } else { set.join(", ") };
            screen.print(&words::plain(&format!("{name}: {told}.")));
        }
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}
