//! Live streams.

use proto::jobs::LiveEvent;
use reqwest::{RequestBuilder, Response};
use tokio::time::{Instant, timeout};

use crate::house::{House, PATIENCE, problem};

fn event(offset: u64, event: &str, data: &str) -> Result<LiveEvent, tonic::Status> {
    Ok(LiveEvent { offset, event: event.into(), data_json: data.into() })
}

/// Opens a stream, once its first bytes are there.
async fn open(request: RequestBuilder) -> Response {
    let mut stream = request.send().await.unwrap();
    assert_eq!(stream.status(), 200);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(next(&mut stream).await.as_deref(), Some("retry: 1000\n\n"));
    stream
}

async fn next(stream: &mut Response) -> Option<String> {
    let chunk = timeout(PATIENCE, stream.chunk()).await.expect("the stream says something").unwrap();
    chunk.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn events_come_as_they_happen_and_end_closes_the_stream() {
    let house = House::open().await;
    let ada = house.customer();
    let id = house.clock.new_id();
    for noun in ["jobs", "batches"] {
        let mut stream = open(house.get(&format!("/api/v1/{noun}/{id}/events")).bearer_auth(&ada.token)).await;
        let watched = house.jobs.watched.lock().take().unwrap();
        assert_eq!((watched.id, watched.after_offset), (id.to_string(), 0));
        let role = house.jobs.streaming();
        role.send(event(4, "state", r#"{"state":"running"}"#)).await.unwrap();
        assert_eq!(next(&mut stream).await.unwrap(), "id: 4\nevent: state\ndata: {\"state\":\"running\"}\n\n");
        role.send(event(5, "end", "{}")).await.unwrap();
        assert_eq!(next(&mut stream).await.unwrap(), "id: 5\nevent: end\ndata: {}\n\n");
        assert_eq!(next(&mut stream).await, None);
    }
}

#[tokio::test]
async fn a_stream_resumes_after_the_event_it_names() {
    let house = House::open().await;
    let ada = house.customer();
    let path = format!("/api/v1/jobs/{}/events", house.clock.new_id());
    open(house.get(&path).bearer_auth(&ada.token).header("last-event-id", "41")).await;
    assert_eq!(house.jobs.watched.lock().take().unwrap().after_offset, 41);
    for bad in ["x", "-1", "1.5", ""] {
        let answer = house.get(&path).bearer_auth(&ada.token).header("last-event-id", bad).send().await.unwrap();
        problem(answer, 400, "live.malformed_event_id").await;
    }
}

#[tokio::test]
async fn a_stream_ends_within_a_second_of_its_session_and_others_go_on() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    let path = format!("/api/v1/jobs/{}/events", house.clock.new_id());
    let mut theirs = open(house.get(&path).bearer_auth(&bob.token)).await;
    let role = house.jobs.streaming();
    let mut hers = open(house.get(&path).bearer_auth(&ada.token)).await;

    house.auth.end(ada.session).await;
    let ended_at = Instant::now();
    assert_eq!(next(&mut hers).await, None);
    assert!(ended_at.elapsed().as_millis() < 1_000);
    role.send(event(1, "progress", "{}")).await.unwrap();
    assert!(next(&mut theirs).await.unwrap().starts_with("id: 1\n"));
}

#[tokio::test]
async fn with_the_feed_lost_an_open_stream_asks_for_itself() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    let path = format!("/api/v1/jobs/{}/events", house.clock.new_id());
    let mut hers = open(house.get(&path).bearer_auth(&ada.token)).await;
    let mut theirs = open(house.get(&path).bearer_auth(&bob.token)).await;
    let role = house.jobs.streaming();
    house.auth.break_feed();
    house.auth.end(ada.session).await;
    assert_eq!(next(&mut hers).await, None);
    role.send(event(1, "progress", "{}")).await.unwrap();
    assert!(next(&mut theirs).await.unwrap().starts_with("id: 1\n"));
    house.auth.cannot_check();
    assert_eq!(next(&mut theirs).await, None, "what cannot be known is not believed");
}

#[tokio::test]
async fn a_role_that_goes_away_ends_the_stream_and_the_client_comes_back() {
    let house = House::open().await;
    let ada = house.customer();
    let path = format!("/api/v1/jobs/{}/events", house.clock.new_id());
    let mut stream = open(house.get(&path).bearer_auth(&ada.token)).await;
    house.jobs.streaming().send(Err(tonic::Status::unavailable("gone"))).await.unwrap();
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_and_closing_one_makes_room() {
    let settings = gateway::Settings { live_streams_max: 1, http_requests_max: 1, ..gateway::Settings::default() };
    let house = House::with(settings).await;
    let ada = house.customer();
    let path = format!("/api/v1/jobs/{}/events", house.clock.new_id());
    let first = open(house.get(&path).bearer_auth(&ada.token)).await;
    let answer = house.get(&path).bearer_auth(&ada.token).send().await.unwrap();
    problem(answer, 503, "busy").await;
    // A stream does not count as a request at work.
    assert_eq!(house.get("/api/v1/me").bearer_auth(&ada.token).send().await.unwrap().status(), 200);
    drop(first);
    let until = Instant::now() + PATIENCE;
    while house.get(&path).bearer_auth(&ada.token).send().await.unwrap().status() != 200 {
        assert!(Instant::now() < until, "a closed stream keeps its place");
    }
}
