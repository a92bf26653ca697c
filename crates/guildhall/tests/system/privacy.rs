//! Who sees what, and who may do what: generated over every route of the OpenAPI document, every task and every queue, so
//! that a new one is tested from the day it exists.

use std::collections::BTreeSet;

use kit::identity::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    person::{Answer, Person, answer},
    pictures,
    place::{Place, in_both_shapes},
    wait::SOON,
};

in_both_shapes! {
    a_second_user_sees_nothing_of_the_first
    every_route_but_the_public_ones_asks_who_one_is
    each_role_may_do_what_the_table_says_and_nothing_else
}

/// An id that nothing has.
const NOBODYS: &str = "01890000-0000-7000-8000-000000000000";

/// One operation of the document.
#[derive(Debug)]
struct Operation {
    method: Method,
    path: String,
    permission: Option<String>,
    is_public: bool,
    takes_json: bool,
}

impl Operation {
    /// Every operation there is.
    async fn all(place: &Place) -> Vec<Self> {
        let document = Person::stranger(place.http()).get("/api/openapi.json").await.expect(200);
        let paths = document["paths"].as_object().expect("paths");
        let mut all = Vec::new();
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().expect("methods") {
                all.push(Self {
                    method: method.to_uppercase().parse().expect("a method"),
                    path: path.clone(),
                    permission: operation["x-permission"].as_str().map(str::to_owned),
                    is_public: operation["security"].as_array().is_some_and(Vec::is_empty),
                    takes_json: operation["requestBody"]["content"]["application/json"].is_object(),
                });
            }
        }
        assert!(all.len() > 30, "{} operations are too few to be all", all.len());
        all
    }

    fn has_id(&self) -> bool {
        self.path.contains("{id}")
    }

    fn is_closed_to(&self, role: Role) -> bool {
        self.permission.as_deref().is_some_and(|permission| role.reach(permission).is_none())
    }

    /// The path with `id` in its place, and a name that no queue has.
    fn with(&self, id: &str) -> String {
        self.path.replace("{id}", id).replace("{name}", "nowhere")
    }

    async fn ask(&self, person: &Person, id: &str) -> Answer {
        let request = person.request(self.method.clone(), &self.with(id)).await;
        answer(if self.takes_json { request.json(&json!({})) } else { request }).await
    }
}

async fn a_second_user_sees_nothing_of_the_first(place: Place) {
    let owner = place.newcomer("ada").await;
    let other = place.newcomer("mallory").await;
    let file_id = owner.upload(vec![("hers.png".to_owned(), pictures::small_png())]).await.remove(0);
    let job_id = owner.submit("process_batch", json!({ "file_ids": [file_id] })).await;
    let batch_id = owner.field(&job_id, "child_batch_id").await.as_str().expect("an id").to_owned();
    owner.finished(&job_id, SOON).await;
    let schedule = json!({ "cron": "@yearly", "job": { "task": "demo_echo", "args": { "value": 1 } } });
    let made = owner.post("/api/v1/schedules", &schedule).await.expect(201);
    let schedule_id = made["id"].as_str().expect("an id");
    let sessions = owner.list("/api/v1/auth/sessions").await;
    let session_id = sessions[0]["id"].as_str().expect("an id");

    let mut asked = 0;
    for operation in Operation::all(&place).await.iter().filter(|operation| operation.has_id()) {
        if operation.is_closed_to(Role::Customer) {
            // Refused before anything is looked up: that there is such an id is not told either.
            assert_eq!(operation.ask(&other, NOBODYS).await.status, StatusCode::FORBIDDEN, "{operation:?}");
            continue;
        }
        let noun = operation.path.split("/{id}").next().and_then(|path| path.rsplit('/').next());
        let id = match noun {
            Some("jobs") => job_id.as_str(),
            Some("batches") => batch_id.as_str(),
            Some("files") => file_id.as_str(),
            Some("schedules") => schedule_id,
            Some("sessions") => session_id,
            _ => panic!("whose id does {} {} take? Give this test one", operation.method, operation.path),
        };
        // Where the body is judged before the id is looked up, a good one is needed to get that far.
        let body = match operation.path.as_str() {
            "/api/v1/batches/{id}/jobs" => json!({ "jobs": [{ "task": "demo_echo", "args": { "value": 1 } }] }),
            "/api/v1/schedules/{id}" => schedule.clone(),
            "/api/v1/schedules/{id}/backfill" => {
                json!({ "from": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z" })
            }
            _ => json!({}),
        };
        let request = other.request(operation.method.clone(), &operation.with(id)).await;
        let refused = answer(if operation.takes_json { request.json(&body) } else { request }).await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{operation:?}: {:#}", refused.body);
        // And it is the same answer as for what is not there at all.
        let request = other.request(operation.method.clone(), &operation.with(NOBODYS)).await;
        let absent = answer(if operation.takes_json { request.json(&body) } else { request }).await;
        assert_eq!(refused.body["code"], absent.body["code"], "{operation:?}");
        asked += 1;
    }
    assert!(asked > 10, "{asked} routes with an id are too few to be all");

    // What everybody sees: the tasks and queues that there are, and one's own session.
    let shared = ["/api/v1/tasks", "/api/v1/queues", "/api/v1/auth/sessions"];
    let mut lists = 0;
    for operation in Operation::all(&place).await {
        let is_list =
            operation.method == Method::GET && operation.permission.is_some() && !operation.path.contains('{');
        if !is_list || shared.contains(&operation.path.as_str()) {
            continue;
        }
        let answer = operation.ask(&other, NOBODYS).await;
        if answer.status == StatusCode::FORBIDDEN {
            continue;
        }
        assert_eq!(answer.body["items"], json!([]), "{operation:?}");
        // The owner named in a filter is not believed.
        let path = format!("{}?owner_id={}", operation.path, owner.id);
        let asked = other.get(&path).await;
        assert!(asked.status != StatusCode::OK || asked.body["items"] == json!([]), "{path}: {:#}", asked.body);
        lists += 1;
    }
    assert!(lists >= 3, "{lists} lists are too few to be all");
    let sessions = other.list("/api/v1/auth/sessions").await;
    assert!(sessions.iter().all(|session| session["id"] != session_id), "{sessions:#?}");
    for queue in queues_of(&other).await {
        let depths = queue["depth"].as_object().cloned().unwrap_or_default();
        assert!(depths.values().all(|depth| depth == 0), "the depth of {queue:#} tells of another's jobs");
    }
    // Nothing of what was asked has done the owner any harm.
    owner.download(&file_id).await;
    owner.get("/api/v1/me").await.expect(200);
    place.close().await;
}

async fn every_route_but_the_public_ones_asks_who_one_is(place: Place) {
    let stranger = Person::stranger(place.http());
    let mut public = BTreeSet::new();
    for operation in Operation::all(&place).await {
        let answer = operation.ask(&stranger, NOBODYS).await;
        if operation.is_public {
            public.insert(operation.path.clone());
        } else {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{operation:?}");
            assert_eq!(answer.body["code"], "auth.required", "{operation:?}");
        }
    }
    let expected = [
        "/.well-known/jwks.json",
        "/api/docs",
        "/api/docs/page.css",
        "/api/docs/page.js",
        "/api/openapi.json",
        "/api/v1/auth/login",
        "/api/v1/auth/refresh",
        "/api/v1/auth/register",
        "/livez",
        "/readyz",
    ];
    assert_eq!(public, expected.map(str::to_owned).into(), "what is public is a decision, written here");
    place.close().await;
}

async fn each_role_may_do_what_the_table_says_and_nothing_else(place: Place) {
    let operations = Operation::all(&place).await;
    let administrator = place.administrator().await;
    let tasks = names(&administrator.list("/api/v1/tasks").await);
    let queues = names(&queues_of(&administrator).await);
    assert!(tasks.contains("generate_3d_model") && queues.contains("priority"), "{tasks:?} {queues:?}");

    for role in Role::ALL.into_iter().filter(|role| *role != Role::Service) {
        let mut person = place.newcomer(role.as_str()).await;
        give_role(&place, &person, role).await;
        person.sign_in().await;

        for operation in &operations {
            let Some(permission) = &operation.permission else { continue };
            let answer = operation.ask(&person, NOBODYS).await;
            let may = role.reach(permission).is_some();
            assert_eq!(answer.status != StatusCode::FORBIDDEN, may, "{role}: {operation:?}: {:#}", answer.body);
            assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{role}: {operation:?}");
            assert!(!answer.status.is_server_error(), "{role}: {operation:?}: {:#}", answer.body);
        }

        let seen = names(&person.list("/api/v1/tasks").await);
        assert_eq!(seen, tasks.iter().filter(|task| role.may_run_task(task)).cloned().collect(), "{role}: tasks");
        // Far off, so that nothing of what is accepted runs.
        let run_at = kit::Clock::system().now() + chrono::Duration::days(300);
        let asked = async |mut job: Value, pointer: &str| {
            job["run_at"] = json!(run_at);
            let answer = person.post("/api/v1/jobs", &job).await;
            match answer.status.as_u16() {
                202 => true,
                403 if answer.body["errors"][0]["pointer"] == pointer => false,
                _ => panic!("{role}: {job}: {} {:#}", answer.status, answer.body),
            }
        };
        for task in tasks.iter().filter(|task| *task != "finalize_batch") {
            let may = asked(json!({ "task": task, "args": arguments(task) }), "/task").await;
            assert_eq!(may, role.may_run_task(task), "{role}: {task}");
        }
        for queue in &queues {
            let may = asked(json!({ "task": "demo_echo", "args": { "value": 1 }, "queue": queue }), "/queue").await;
            assert_eq!(may, role.may_use_queue(queue), "{role}: {queue}");
        }
        for priority in [0, 50, 60, 61, 100] {
            let job = json!({ "task": "demo_echo", "args": { "value": 1 }, "priority": priority });
            let may = asked(job, "/priority").await;
            assert_eq!(may, priority <= role.priority_max(), "{role}: priority {priority}");
        }
    }
    place.close().await;
}

/// There are few queues, so they come on one page.
async fn queues_of(person: &Person) -> Vec<Value> {
    person.get("/api/v1/queues").await.expect(200)["items"].as_array().expect("items").clone()
}

fn names(items: &[Value]) -> BTreeSet<String> {
    items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

/// Arguments that the task's schema takes. A finalize takes none from outside: it belongs to its batch.
fn arguments(task: &str) -> Value {
    match task {
        "demo_echo" => json!({ "value": 1 }),
        "demo_sleep" | "demo_spin" => json!({ "seconds": 1 }),
        "demo_fail" => json!({ "times": 1 }),
        "demo_grow" => json!({ "width": 1, "levels": 1 }),
        "demo_hog" => json!({ "mib": 1 }),
        "generate_3d_model" => json!({ "file_id": NOBODYS }),
        "process_batch" => json!({ "file_ids": [NOBODYS] }),
        other => panic!("which arguments does {other} take? Tell this test"),
    }
}

/// There is no route for it yet, so the database is told.
async fn give_role(place: &Place, person: &Person, role: Role) {
    let mut database = sqlx::PgConnection::connect(&place.database_url()).await.expect("the database answers");
    let id: sqlx::types::Uuid = person.id.parse().expect("an id");
    sqlx::query("update auth.user_role set role = $2 where user_id = $1")
        .bind(id)
        .bind(role.as_str())
        .execute(&mut database)
        .await
        .expect("the role is given");
}
