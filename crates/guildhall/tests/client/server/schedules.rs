//! What the server answers under `schedules`: one schedule, changed as it is asked to be.

use axum::{
    Json,
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::not_found;

pub(crate) const SCHEDULE: &str = "0190a000-0000-7000-8000-0000000000cc";
pub(crate) const RUN: &str = "0190a000-0000-7000-8000-0000000000dd";

/// What it was asked: method, path and query, and the body.
#[derive(Default)]
pub(crate) struct Schedules {
    pub(crate) asked: Vec<(String, Value)>,
}

impl Schedules {
    pub(super) fn answer(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> Response {
        let sign = if query.is_empty() { "" } else { "?" };
        self.asked.push((format!("{method} {path}{sign}{query}"), body.clone()));
        let segments: Vec<&str> = path.split('/').collect();
        match (method, segments.as_slice()) {
            (&Method::POST, ["schedules"]) => (StatusCode::CREATED, Json(schedule())).into_response(),
            (&Method::GET, ["schedules"]) => {
                Json(json!({ "items": [schedule()], "next_cursor": null })).into_response()
            }
            (&Method::POST, ["schedules", "preview"]) => {
                let items = json!([
                    { "at": "2026-03-28T01:30:00Z", "local": "2026-03-28T02:30:00+01:00", "utc_offset": "+01:00", "note": null },
                    { "at": "2026-03-29T01:00:00Z", "local": "2026-03-29T03:00:00+02:00", "utc_offset": "+02:00",
                        "note": "clock goes forward" },
                ]);
                Json(json!({ "items": items, "time_zone_data": "2025b" })).into_response()
            }
            (_, ["schedules", id, ..]) if *id != SCHEDULE => not_found(),
            (&Method::DELETE, ["schedules", _]) => StatusCode::NO_CONTENT.into_response(),
            (&Method::GET | &Method::PUT, ["schedules", _]) => Json(schedule()).into_response(),
            (&Method::POST, ["schedules", _, "run"]) => {
                (StatusCode::ACCEPTED, Json(json!({ "job_id": RUN }))).into_response()
            }
            (&Method::POST, ["schedules", _, "backfill"]) => {
                (StatusCode::ACCEPTED, Json(json!({ "job_ids": [RUN], "existing": 2 }))).into_response()
            }
            (&Method::POST, ["schedules", _, verb]) => {
                let mut schedule = schedule();
                if *verb == "pause" {
                    (schedule["state"], schedule["next_at"]) = (json!("paused"), Value::Null);
                    schedule["pause_reason"] = body["reason"].clone();
                }
                Json(schedule).into_response()
            }
            _ => not_found(),
        }
    }
}

fn schedule() -> Value {
    let job = json!({ "task": "demo_echo", "args": { "value": 1 }, "queue": null, "priority": 60, "max_attempts": null,
        "backoff": null, "attempt_timeout_s": null, "tags": [] });
    json!({ "id": SCHEDULE, "owner_id": RUN, "name": null, "cron": "0 9 * * *", "every_s": null, "anchor_at": null,
        "at": null, "time_zone": "Europe/Berlin", "job": job, "missed": "once", "missed_max": 100, "overlap": "skip",
        "queue_max": 100, "jitter_s": 0, "pause_after_failures": null, "state": "active",
        "next_at": "2030-01-01T08:00:00Z", "paused_at": null, "paused_by": null, "pause_reason": null, "failures": 0,
        "last_error": null, "last_error_at": null, "missed_count": 0, "skipped_count": 3,
        "runs": [{ "occurrence_at": "2026-01-01T08:00:00Z", "kind": "due", "job_id": RUN, "state": "succeeded" }],
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z" })
}
