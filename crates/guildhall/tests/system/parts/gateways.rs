//! Somebody is disabled while they are at work at both gateways.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use super::Parts;
use crate::{
    person::Person,
    wait::{SOON, until},
};

/// What is promised between the act and its effect.
const EFFECT_WITHIN: Duration = Duration::from_secs(1);
/// A machine that is so busy that a plain request takes long is allowed as many times as long on top.
const REQUESTS: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disabled_is_shut_out_at_every_gateway_within_a_second() {
    let parts = Parts::open(&[]).await;
    let administrator = parts.administrator().await;
    let person = parts.newcomer("mallory").await;
    let job_id = person.submit("demo_sleep", json!({ "seconds": 600 })).await;
    let refresh_token = person.refresh_token().await;
    let gateways = parts.gateways();
    assert_eq!(gateways.len(), 2);
    let at_each: Vec<Person> = gateways.iter().map(|url| person.by_way_of(url)).collect();
    let path = format!("/api/v1/jobs/{job_id}/events");
    let streams = join_all(at_each.iter().map(|person| person.open_stream(&path))).await;

    let mut slowest = Duration::ZERO;
    for person in at_each.iter().cycle().take(20) {
        let asked_at = Instant::now();
        person.get("/api/v1/me").await.expect(200);
        slowest = slowest.max(asked_at.elapsed());
    }

    let path = format!("/api/v1/admin/users/{}/disable", person.id);
    administrator.post(&path, &json!({ "reason": "told the test" })).await.expect(200);
    let disabled_at = Instant::now();

    let streams_end = join_all(streams.into_iter().map(|mut stream| async move {
        while let Ok(Some(_)) = stream.chunk().await {}
        disabled_at.elapsed()
    }));
    let requests_end = join_all(at_each.iter().map(|person| async {
        until("requests to be refused", SOON, async || {
            (person.get("/api/v1/me").await.status.as_u16() == 401).then_some(())
        })
        .await;
        disabled_at.elapsed()
    }));
    let (streams_end, requests_end) = tokio::join!(streams_end, requests_end);
    for url in &gateways {
        let body = json!({ "refresh_token": refresh_token });
        Person::stranger(url).post("/api/v1/auth/refresh", &body).await.expect(401);
        let body = json!({ "email": person.email, "password": person.password });
        let refused = Person::stranger(url).post("/api/v1/auth/login", &body).await.expect(401);
        assert_eq!(refused["code"], "auth.invalid_credentials");
    }
    println!(
        "after the answer, streams ended within {streams_end:?} and requests within {requests_end:?}; \
         the slowest plain request took {slowest:?}"
    );
    for took in streams_end.into_iter().chain(requests_end) {
        assert!(took < EFFECT_WITHIN + slowest * REQUESTS, "{took:?}");
    }
    parts.close().await;
}
