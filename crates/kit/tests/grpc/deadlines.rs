//! A deadline is the caller's, and every role that works for it is held to it.

use std::time::Duration;

use kit::{Kind, grpc::Call};
use proto::auth::ExchangeServiceKeyRequest;
use tokio::time::Instant;

use crate::{
    proxy::Proxy,
    replica::{Echo, Replica, anonymous, ask, local, remote, request, worker},
    soon,
};

fn within(time: Duration) -> Call {
    anonymous().with_deadline(Some(Instant::now() + time))
}

#[tokio::test]
async fn a_server_sees_what_is_left_and_tells_the_next_role_no_more() {
    let replica = Replica::start("a").await;
    for peer in [remote(&[replica.url()], None), local().1] {
        let told = ask(&peer, &within(Duration::from_secs(60)), "left").await.expect("an answer");
        assert!((1..=60_000).contains(&told.expires_in), "{peer:?}: {told:?}");
        let next: u64 = told.access_token.trim_end_matches('u').parse().expect("microseconds");
        assert!((1..=60_000_000).contains(&next), "{peer:?}: {told:?}");
        let told = ask(&peer, &anonymous(), "left").await.expect("an answer");
        assert_eq!((told.expires_in, told.access_token.as_str()), (0, "none"), "{peer:?}");
    }
}

#[tokio::test]
async fn the_nearer_of_two_deadlines_counts() {
    let (_, peer) = local();
    let message = || ExchangeServiceKeyRequest { key: "left".to_owned() };
    let far = within(Duration::from_secs(60)).request_within(Duration::from_secs(5), message());
    assert!(request(&peer, far).await.expect("an answer").expires_in <= 5_000);
    let near = within(Duration::from_secs(5)).request_within(Duration::from_secs(60), message());
    assert!(request(&peer, near).await.expect("an answer").expires_in <= 5_000);
}

#[tokio::test]
async fn a_handler_over_its_deadline_is_cut_off() {
    let replica = Replica::start("a").await;
    let (seen, local) = local();
    for (peer, seen) in [(remote(&[replica.url()], None), &replica.seen), (local, &seen)] {
        peer.connected().await;
        let fail = soon("the deadline", ask(&peer, &within(Duration::from_millis(300)), "hold")).await;
        let fail = fail.expect_err("nobody lets it go");
        assert_eq!((fail.kind(), fail.code()), (Kind::Timeout, "timeout"), "{peer:?}");
        soon("the handler's end", seen.dropped.cancelled()).await;
    }
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let replica = Replica::start("a").await;
    for peer in [remote(&[replica.url()], None), local().1] {
        peer.connected().await;
        let call = worker().with_deadline(Some(Instant::now() + Duration::from_millis(500)));
        let mut echo = Echo::open(&peer, &call).await.expect("it opens");
        echo.answers().await;
        assert_eq!(echo.ended().await.kind(), Kind::Timeout, "{peer:?}");
    }
}

#[tokio::test]
async fn a_caller_is_released_at_its_deadline_though_nothing_is_heard() {
    let replica = Replica::start("a").await;
    let proxy = Proxy::to(replica.address).await;
    let peer = remote(&[proxy.url()], None);
    ask(&peer, &anonymous(), "name").await.expect("an answer");
    proxy.freeze();
    // Well before the connection is given up.
    let call = within(Duration::from_millis(300));
    let answer = ask(&peer, &call, "name");
    let answer = tokio::time::timeout(Duration::from_millis(1_500), answer).await.expect("released in time");
    assert_eq!(answer.expect_err("nothing is heard").kind(), Kind::Timeout);
}
