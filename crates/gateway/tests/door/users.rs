//! Users, as administrators manage them.

use kit::identity::Role;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::house::{House, good, pointers, problem};

const SOMEBODY: &str = "0190a000-0000-7000-8000-000000000001";
const NOBODY: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

#[tokio::test]
async fn users_are_listed_by_every_filter_and_shown_without_what_is_theirs_alone() {
    let house = House::open().await;
    let admin = house.person("admin");
    let query = "?limit=7&cursor=further&email=Ada@example.com&search=ad&role=customer&disabled=false";
    let page = good(house.get(&format!("/api/v1/admin/users{query}")), &admin).await;
    let asked = house.auth.listed.lock()[0].clone();
    assert_eq!((asked.limit, asked.cursor.as_str()), (7, "further"));
    assert_eq!((asked.email.as_str(), asked.search.as_str()), ("Ada@example.com", "ad"));
    assert_eq!((asked.role.as_str(), asked.disabled), ("customer", Some(false)));
    assert_eq!(page["next_cursor"], Value::Null);
    let names: Vec<&str> = page["items"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["created_at", "disabled_at", "display_name", "email", "id", "roles"]);
    good(house.get("/api/v1/admin/users"), &admin).await;
    assert_eq!(house.auth.listed.lock()[1].disabled, None, "nothing said is not `false`");

    let user = good(house.get(&format!("/api/v1/admin/users/{SOMEBODY}")), &admin).await;
    assert_eq!((user["id"].as_str().unwrap(), &user["disabled_at"]), (SOMEBODY, &Value::Null));
}

#[tokio::test]
async fn each_act_on_a_user_reaches_auth_with_its_reason_and_the_callers_own_token() {
    let house = House::open().await;
    let admin = house.person("admin");
    let path = |verb: &str| format!("/api/v1/admin/users/{SOMEBODY}/{verb}");
    let reason = json!({ "reason": "spam" });
    let disabled = good(house.post(&path("disable")).json(&reason), &admin).await;
    assert_eq!(disabled["disabled_at"], "2023-11-14T22:14:20Z");
    // The body may be left out.
    let enabled = good(house.post(&path("enable")), &admin).await;
    assert_eq!(enabled["disabled_at"], Value::Null);
    assert_eq!(good(house.post(&path("sign-out")).json(&json!({})), &admin).await, json!({ "ended": 2 }));
    let roles = json!({ "roles": ["operator", "customer"], "reason": "a new job" });
    let changed = good(house.client.put(format!("{}{}", house.url, path("roles"))).json(&roles), &admin).await;
    assert_eq!(changed["roles"], json!(["operator", "customer"]));
    let path = format!("{}/api/v1/admin/users/{SOMEBODY}", house.url);
    let named = json!({ "display_name": "Robert", "reason": "as asked" });
    assert_eq!(good(house.client.patch(&path).json(&named), &admin).await["display_name"], "Robert");
    assert_eq!(good(house.client.patch(&path).json(&json!({})), &admin).await["display_name"], "Ada", "as it was");
    let own = house.client.patch(format!("{}/api/v1/me", house.url)).json(&json!({ "display_name": "Countess" }));
    let own = good(own, &admin).await;
    assert_eq!((own["id"].clone(), &own["display_name"]), (json!(admin.id), &json!("Countess")));
    let told: Vec<_> = house
        .auth
        .acts
        .lock()
        .iter()
        .map(|(verb, reason, by)| format!("{verb} {reason} {}", *by == admin.id))
        .collect();
    assert_eq!(
        told,
        [
            "disable spam true",
            "enable  true",
            "sign-out  true",
            "roles a new job true",
            "update as asked true",
            "update  true",
        ]
    );
}

#[tokio::test]
async fn what_auth_refuses_of_a_user_is_passed_on_as_it_is() {
    let house = House::open().await;
    let admin = house.person("admin");
    let absent = house.get(&format!("/api/v1/admin/users/{NOBODY}")).bearer_auth(&admin.token).send().await.unwrap();
    problem(absent, 404, "auth.user_not_found").await;
    let no_id = house.get("/api/v1/admin/users/nobody").bearer_auth(&admin.token).send().await.unwrap();
    problem(no_id, 404, "not_found").await;
    let own = format!("/api/v1/admin/users/{}/disable", admin.id);
    let yourself = house.post(&own).bearer_auth(&admin.token).send().await.unwrap();
    problem(yourself, 403, "auth.not_yourself").await;
}

#[tokio::test]
async fn bad_input_is_refused_at_the_door_and_reaches_nobody() {
    let house = House::open().await;
    let admin = house.person("admin");
    let ask = async |request: RequestBuilder| request.bearer_auth(&admin.token).send().await.unwrap();
    problem(ask(house.get("/api/v1/admin/users?colour=red")).await, 400, "request.unknown_parameter").await;
    problem(ask(house.get("/api/v1/admin/users?disabled=perhaps")).await, 422, "request.invalid").await;
    let roles = house.client.put(format!("{}/api/v1/admin/users/{SOMEBODY}/roles", house.url));
    let one = problem(ask(roles.json(&json!({ "roles": "admin" }))).await, 422, "request.invalid").await;
    assert_eq!(pointers(&one), [("/roles".to_owned(), "type".to_owned())]);
    let disable = house.post(&format!("/api/v1/admin/users/{SOMEBODY}/disable"));
    problem(ask(disable.json(&json!({ "why": "spam" }))).await, 400, "request.unknown_field").await;
    for path in [format!("/api/v1/admin/users/{SOMEBODY}"), "/api/v1/me".to_owned()] {
        let patch = |body: Value| house.client.patch(format!("{}{path}", house.url)).json(&body);
        problem(ask(patch(json!({ "email": "eve@example.com" }))).await, 400, "request.unknown_field").await;
        problem(ask(patch(json!({ "display_name": 7 }))).await, 422, "request.invalid").await;
    }
    assert!(house.auth.listed.lock().is_empty() && house.auth.acts.lock().is_empty());
}

#[tokio::test]
async fn users_are_administrators_business_alone() {
    let house = House::open().await;
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Admin) {
        let caller = house.person(role.as_str());
        let list = house.get("/api/v1/admin/users").bearer_auth(&caller.token).send().await.unwrap();
        problem(list, 403, "forbidden").await;
        let disable = house.post(&format!("/api/v1/admin/users/{SOMEBODY}/disable")).bearer_auth(&caller.token);
        problem(disable.send().await.unwrap(), 403, "forbidden").await;
    }
    assert!(house.auth.listed.lock().is_empty() && house.auth.acts.lock().is_empty());
}
