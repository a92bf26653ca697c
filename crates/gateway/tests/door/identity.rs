//! Who may come in.

use std::str::FromStr as _;

use gateway::{route::Access, routes};
use kit::identity::Role;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::house::{House, problem};

/// A path of the route with its parameters filled in.
fn sample(path: &str) -> String {
    path.replace("{id}", "0190a000-0000-7000-8000-000000000001").replace("{name}", "default")
}

#[test]
fn every_route_declares_what_the_methods_it_calls_declare() {
    for route in routes::all() {
        let route = route.declared();
        let needs: Vec<Access> = route
            .calls
            .iter()
            .map(|call| {
                let method = proto::METHODS.iter().find(|method| method.path == *call);
                let method = method.unwrap_or_else(|| panic!("{} calls {call}, which does not exist", route.path));
                Access::from(method.need)
            })
            .collect();
        // One that goes on with what another began takes what that one answered with for its credential.
        assert!(needs.first().is_none_or(|need| *need == route.access), "{} {}", route.method, route.path);
        let mut further = needs.iter().skip(1);
        assert!(further.all(|need| [route.access, Access::Public].contains(need)), "{} {}", route.method, route.path);
        if route.calls.is_empty() {
            assert_eq!(route.access, Access::Public, "{} guards nothing", route.path);
        }
    }
}

#[tokio::test]
async fn every_route_that_is_not_public_refuses_a_caller_without_a_token() {
    let house = House::open().await;
    for route in routes::all() {
        let route = route.declared();
        let method = Method::from_str(route.method.as_str()).unwrap();
        let answer = house.client.request(method, format!("{}{}", house.url, sample(route.path))).send().await.unwrap();
        if route.access == Access::Public {
            assert_ne!(answer.status(), StatusCode::UNAUTHORIZED, "{}", route.path);
        } else {
            problem(answer, 401, "auth.required").await;
        }
    }
}

#[tokio::test]
async fn the_role_table_is_held_to_on_every_route() {
    let house = House::open().await;
    for role in Role::ALL {
        let caller = house.person(role.as_str());
        for route in routes::all() {
            let route = route.declared();
            let Access::Permission(permission) = route.access else { continue };
            let method = Method::from_str(route.method.as_str()).unwrap();
            let url = format!("{}{}", house.url, sample(route.path));
            // A stream is opened and let go of.
            let answer = house.client.request(method, url).bearer_auth(&caller.token).send().await.unwrap();
            if role.reach(permission).is_none() {
                problem(answer, 403, "forbidden").await;
            } else {
                assert_ne!(answer.status(), StatusCode::FORBIDDEN, "{role} {} {}", route.method, route.path);
            }
        }
    }
}

#[tokio::test]
async fn a_token_that_is_not_ours_or_is_over_lets_nobody_in() {
    let house = House::open().await;
    let ada = house.customer();
    let ask = |header: String| house.get("/api/v1/me").header("authorization", header).send();
    assert_eq!(ask(format!("bEARER {}", ada.token)).await.unwrap().status(), 200);
    problem(ask("Basic YTpi".into()).await.unwrap(), 401, "auth.required").await;
    problem(ask("Bearer nonsense".into()).await.unwrap(), 401, "auth.invalid_token").await;
    let mut forged = ada.token.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    problem(ask(format!("Bearer {forged}")).await.unwrap(), 401, "auth.invalid_token").await;
    let old = house.token(ada.id, ada.session, "customer", -60);
    problem(ask(format!("Bearer {old}")).await.unwrap(), 401, "auth.token_expired").await;
}

#[tokio::test]
async fn an_ended_session_is_refused_within_a_second() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    let ask = |token: &str| house.get("/api/v1/me").bearer_auth(token).send();
    assert_eq!(ask(&ada.token).await.unwrap().status(), 200);
    let answer = house.post("/api/v1/auth/logout").bearer_auth(&ada.token).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    let ended_at = Instant::now();
    loop {
        let answer = ask(&ada.token).await.unwrap();
        if answer.status() == 401 {
            problem(answer, 401, "auth.session_ended").await;
            break;
        }
        assert!(ended_at.elapsed().as_millis() < 1_000, "the session goes on");
    }
    assert_eq!(ask(&bob.token).await.unwrap().status(), 200);
    assert_eq!(*house.auth.checks.borrow(), 0, "with the feed heard, nobody is asked");
}

#[tokio::test]
async fn with_the_feed_lost_auth_is_asked_about_each_request_and_503_is_the_answer_when_it_cannot_be() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    let ask = |token: &str| house.get("/api/v1/me").bearer_auth(token).send();
    house.auth.break_feed();
    // Once the loss is noticed, auth is asked.
    loop {
        assert_eq!(ask(&bob.token).await.unwrap().status(), 200);
        if *house.auth.checks.borrow() > 0 {
            break;
        }
    }
    house.auth.end(ada.session).await;
    problem(ask(&ada.token).await.unwrap(), 401, "auth.session_ended").await;
    assert_eq!(ask(&bob.token).await.unwrap().status(), 200);

    house.auth.cannot_check();
    let answer = ask(&bob.token).await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503, "unavailable").await;

    // With the feed back, what was missed meanwhile is known and nobody need be asked.
    let before = house.auth.feeds_opened();
    house.auth.mend_feed();
    house.auth.followed_again(before).await;
    let until = Instant::now() + crate::house::PATIENCE;
    while ask(&bob.token).await.unwrap().status() != 200 {
        assert!(Instant::now() < until, "the feed is not heard again");
    }
    problem(ask(&ada.token).await.unwrap(), 401, "auth.session_ended").await;
}

#[tokio::test]
async fn the_list_of_sessions_and_the_own_account_are_shown() {
    let house = House::open().await;
    let ada = house.customer();
    let me: Value = house.get("/api/v1/me").bearer_auth(&ada.token).send().await.unwrap().json().await.unwrap();
    assert_eq!(me["id"], ada.id.to_string());
    let answer = house.get("/api/v1/auth/sessions").bearer_auth(&ada.token).send().await.unwrap();
    let page: Value = answer.json().await.unwrap();
    assert_eq!(page["next_cursor"], Value::Null);
    assert_eq!(page["items"][0]["created_at"], "2023-11-14T22:13:20.500Z");
}
