//! What the server answers under `admin/`: two users, one of them disabled; two entries of the audit log; one parked event;
//! a process that is well and one that has gone.

#![expect(clippy::needless_pass_by_value, reason = "what is written here is JSON, made on the spot")]

use axum::{
    Json,
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{not_found, problem};

pub(crate) const ADA: &str = "0190a000-0000-7000-8000-00000000000a";
pub(crate) const BOB: &str = "0190a000-0000-7000-8000-00000000000b";
pub(crate) const PARKED: &str = "0190a000-0000-7000-8000-0000000000ee";

/// What it is to answer, and what it was asked.
#[derive(Default)]
pub(crate) struct Admin {
    /// Nobody is heard of for the role `worker`.
    pub(crate) is_ill: bool,
    /// Method, path and query under `admin/`, and the body.
    pub(crate) asked: Vec<(String, Value)>,
}

impl Admin {
    pub(super) fn answer(&mut self, method: &Method, path: &str, query: &str, body: Value) -> Response {
        let sign = if query.is_empty() { "" } else { "?" };
        self.asked.push((format!("{method} {path}{sign}{query}"), body.clone()));
        let segments: Vec<&str> = path.split('/').collect();
        match (method, segments.as_slice()) {
            (&Method::GET, ["users"]) if query.contains("email=") => {
                let found = query.contains("email=bob%40example.org").then(|| user(BOB, "bob@example.org", true));
                page(found.into_iter().collect())
            }
            (&Method::GET, ["users"]) => page(vec![
                user(BOB, "bob@example.org", true),
                user(ADA, "ada.lovelace.of.the.engine@example.org", false),
            ]),
            (&Method::PATCH, ["users", id]) => {
                let mut user = user(id, "bob@example.org", false);
                user["display_name"] = body["display_name"].clone();
                Json(user).into_response()
            }
            (&Method::GET, ["users", id]) => Json(user(id, "ada@example.org", false)).into_response(),
            (&Method::POST, ["users", id, "disable"]) if *id == ADA => {
                let detail = "You cannot disable yourself.";
                problem(StatusCode::CONFLICT, "auth.not_yourself", detail, &json!([]))
            }
            (&Method::POST, ["users", id, verb @ ("disable" | "enable")]) => {
                Json(user(id, "bob@example.org", *verb == "disable")).into_response()
            }
            (&Method::POST, ["users", _, "sign-out"]) => Json(json!({ "ended": 2 })).into_response(),
            (&Method::PUT, ["users", id, "roles"]) => {
                let mut user = user(id, "bob@example.org", false);
                user["roles"] = body["roles"].clone();
                Json(user).into_response()
            }
            (&Method::GET, ["audit"]) => page(vec![
                entry("user.disable", "done", json!(ADA), BOB),
                entry("session.create", "refused", Value::Null, ""),
            ]),
            (&Method::GET, ["events", "parked"]) => page(vec![parked(Value::Null)]),
            (&Method::POST, ["events", "parked", id, "replay"]) if *id == PARKED => {
                Json(parked(json!("2026-01-01T00:00:00Z"))).into_response()
            }
            (&Method::GET, ["health"]) => Json(self.health()).into_response(),
            _ => not_found(),
        }
    }

    fn health(&self) -> Value {
        let missing = if self.is_ill { json!(["worker"]) } else { json!([]) };
        let database = json!({ "name": "database", "ok": true, "duration_ms": 1.0, "error": null });
        let process = |id: &str, roles: Value, live: bool| {
            json!({ "id": id, "roles": roles, "version": "0.1.0", "host": "here", "pid": 4711,
                "started_at": "2026-01-01T00:00:00Z", "reported_at": "2026-01-01T00:00:00Z", "live": live,
                "dependencies": [database], "lags": [{ "service": "auth", "unpublished": 3, "seconds": 1.5 }] })
        };
        let replicas = json!([
            process("one", json!(["auth", "jobs", "admin", "gateway"]), true),
            process("two", json!(["worker"]), !self.is_ill)
        ]);
        json!({ "ok": !self.is_ill, "missing_roles": missing, "parked_events": 1, "replicas": replicas })
    }
}

fn page(items: Vec<Value>) -> Response {
    Json(json!({ "items": items, "next_cursor": null })).into_response()
}

fn user(id: &str, email: &str, is_disabled: bool) -> Value {
    json!({ "id": id, "email": email, "display_name": "Somebody", "roles": ["customer"],
        "created_at": "2026-01-01T00:00:00Z", "disabled_at": is_disabled.then_some("2026-01-02T00:00:00Z") })
}

fn entry(action: &str, outcome: &str, actor_id: Value, target_id: &str) -> Value {
    json!({ "id": format!("entry of {action}"), "at": "2026-01-01T12:34:56.789Z", "service": "auth",
        "actor_kind": if actor_id.is_null() { "anonymous" } else { "user" }, "actor_id": actor_id, "on_behalf_of": null,
        "credential": null, "remote_address": "192.0.2.7", "user_agent": null, "action": action, "target_kind": "user",
        "target_id": if target_id.is_empty() { Value::Null } else { json!(target_id) }, "outcome": outcome,
        "reason": null, "before": null, "after": null, "request_id": "request-1" })
}

fn parked(replayed_at: Value) -> Value {
    json!({ "id": PARKED, "event_id": "event-1", "type": "auth.act.recorded", "source": "/guildhall/auth",
        "subject": null, "consumer": "admin", "reason": "admin.invalid_act: The act has no time.",
        "parked_at": "2026-01-01T00:00:00Z", "replayed_at": replayed_at })
}
