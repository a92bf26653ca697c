//! A replica that is asked to stop.

use kit::{Kind, grpc::Peer, tasks::Tasks};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    SOON,
    replica::{Echo, Replica, all_answer, anonymous, ask, name, remote, worker},
    soon,
};

/// A connection of a foreign client, which knows nothing of ours.
async fn health(replica: &Replica) -> HealthClient<tonic::transport::Channel> {
    let channel = tonic::transport::Endpoint::try_from(replica.url()).expect("a URL").connect().await;
    HealthClient::new(channel.expect("it connects"))
}

#[tokio::test]
async fn health_says_serving_until_the_drain_and_then_not_also_to_who_connects_meanwhile() {
    let replica = Replica::start("a").await;
    let peer = remote(&[replica.url()], None);
    let held = tokio::spawn(async move { ask(&peer, &anonymous(), "hold").await });
    soon("the call", replica.seen.held.notified()).await;
    let mut early = health(&replica).await;
    let status = early.check(HealthCheckRequest::default()).await.expect("an answer").into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    let mut watch = early.watch(HealthCheckRequest::default()).await.expect("a stream").into_inner();
    assert_eq!(watch.message().await.expect("no failure").expect("the present").status(), ServingStatus::Serving);

    replica.tasks.stop();
    let told = soon("word of the drain", watch.message()).await.expect("no failure").expect("word");
    assert_eq!(told.status(), ServingStatus::NotServing);
    let late = health(&replica).await.check(HealthCheckRequest::default()).await.expect("an answer");
    assert_eq!(late.into_inner().status(), ServingStatus::NotServing);

    replica.seen.release.notify_one();
    held.await.expect("no panic").expect("a call at work ends well");
    assert!(replica.tasks.join(SOON).await, "the drain did not end by itself");
}

#[tokio::test]
async fn while_one_replica_drains_no_call_fails_and_new_ones_go_to_the_other() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let peer = remote(&[a.url(), b.url()], None);
    all_answer(&peer, &[&a, &b]).await;
    let held = tokio::spawn({
        let peer = peer.clone();
        async move { ask(&peer, &anonymous(), "hold").await }
    });
    let (draining, other) = tokio::select! {
        () = a.seen.held.notified() => (a, "b"),
        () = b.seen.held.notified() => (b, "a"),
    };
    draining.tasks.stop();
    soon("new calls to go to the other", async {
        let mut in_a_row = 0;
        while in_a_row < 20 {
            let answer = name(&peer).await.expect("no call fails for a drain");
            in_a_row = if answer == other { in_a_row + 1 } else { 0 };
        }
    })
    .await;
    draining.seen.release.notify_one();
    held.await.expect("no panic").expect("a call at work ends well");
    assert!(draining.tasks.join(SOON).await);
}

#[tokio::test]
async fn a_stream_is_sent_away_by_a_drain_and_finds_the_other_replica() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let peer = remote(&[a.url(), b.url()], None);
    all_answer(&peer, &[&a, &b]).await;
    let before = a.seen.calls();
    let mut echo = Echo::open(&peer, &worker()).await.expect("it opens");
    echo.answers().await;
    let (draining, other) = if a.seen.calls() > before { (a, b) } else { (b, a) };
    assert!(draining.tasks.join(SOON).await, "a stream held up the drain");
    assert_eq!(echo.ended().await.kind(), Kind::Unavailable);
    let before = other.seen.calls();
    Echo::open(&peer, &worker()).await.expect("it opens again").answers().await;
    assert_eq!(other.seen.calls(), before + 1);
}

#[tokio::test]
async fn the_connections_of_a_peer_end_with_its_tasks() {
    let replica = Replica::start("a").await;
    let tasks = Tasks::new();
    let peer = Peer::remote("testing", &[replica.url()], None, &tasks).expect("a good URL");
    soon("the replica", peer.connected()).await;
    assert!(tasks.join(SOON).await);
    assert!(replica.tasks.join(SOON).await, "a connection was left");
}
