//! Where a call goes, and what it is told when it goes nowhere.

use std::time::Duration;

use kit::{
    Kind,
    grpc::{MESSAGE_BYTES_MAX, Peer},
};

use crate::{
    replica::{Echo, Replica, all_answer, anonymous, ask, local, name, remote, token, worker},
    soon,
};

#[tokio::test]
async fn what_a_method_demands_is_demanded_at_the_port_as_in_the_process() {
    let replica = Replica::start("a").await;
    let (seen, local) = local();
    for (peer, seen) in [(&remote(&[replica.url()], None), &replica.seen), (&local, &seen)] {
        let refused = async |call| match Echo::open(peer, &call).await {
            Ok(mut echo) => echo.ended().await,
            Err(fail) => fail,
        };
        assert_eq!(refused(anonymous()).await.code(), "auth.required");
        let stranger = kit::grpc::Call::with_token(token("jobs:read"), "test");
        assert_eq!(refused(stranger).await.code(), "forbidden");
        let liar = kit::grpc::Call::with_token(kit::Secret::new("e30.e30.e30".to_owned()), "test");
        assert_eq!(refused(liar).await.kind(), Kind::Unauthenticated);
        assert_eq!(seen.calls(), 0, "a handler was reached");
        Echo::open(peer, &worker()).await.expect("a worker may").answers().await;
    }
}

#[tokio::test]
async fn calls_are_spread_over_the_replicas_and_spare_the_busy_one() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let peer = remote(&[a.url(), b.url()], None);
    all_answer(&peer, &[&a, &b]).await;
    let before = (a.seen.calls(), b.seen.calls());
    for _ in 0..20 {
        name(&peer).await.expect("an answer");
    }
    assert_eq!((a.seen.calls() - before.0, b.seen.calls() - before.1), (10, 10));

    let held = tokio::spawn({
        let peer = peer.clone();
        async move { ask(&peer, &anonymous(), "hold").await }
    });
    let (busy, idle) = tokio::select! {
        () = a.seen.held.notified() => (&a, "b"),
        () = b.seen.held.notified() => (&b, "a"),
    };
    for _ in 0..10 {
        assert_eq!(name(&peer).await.expect("an answer"), idle);
    }
    busy.seen.release.notify_one();
    held.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_killed_replica_is_called_no_more_and_one_that_is_back_is() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let peer = remote(&[a.url(), b.url()], None);
    all_answer(&peer, &[&a, &b]).await;
    let address = a.kill().await;
    soon("the other replica alone to be called", async {
        let mut in_a_row = 0;
        while in_a_row < 5 {
            match name(&peer).await {
                Ok(answer) => {
                    assert_eq!(answer, "b");
                    in_a_row += 1;
                }
                // One may have been on its way.
                Err(fail) => {
                    assert_eq!(fail.kind(), Kind::Unavailable);
                    in_a_row = 0;
                }
            }
        }
    })
    .await;
    let back = Replica::start_at("a", address, None).await;
    all_answer(&peer, &[&back]).await;
}

#[tokio::test]
async fn a_call_that_may_have_arrived_is_not_sent_again() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let peer = remote(&[a.url(), b.url()], None);
    all_answer(&peer, &[&a, &b]).await;
    let held = tokio::spawn({
        let peer = peer.clone();
        async move { ask(&peer, &anonymous(), "hold").await }
    });
    let (killed, other) = tokio::select! {
        () = a.seen.held.notified() => (a, b),
        () = b.seen.held.notified() => (b, a),
    };
    let before = other.seen.calls();
    killed.kill().await;
    let fail = soon("the call's end", held).await.expect("no panic").expect_err("its replica is dead");
    assert_eq!(fail.kind(), Kind::Unavailable);
    assert_eq!(other.seen.calls(), before);
}

#[tokio::test]
async fn with_nobody_there_a_call_is_told_so_within_the_bound() {
    let gone = Replica::start("a").await.kill().await;
    let peer = remote(&[format!("http://{gone}")], None);
    let answer = tokio::time::timeout(Duration::from_secs(4), name(&peer)).await.expect("an answer within the bound");
    let fail = answer.expect_err("nobody is there");
    assert_eq!((fail.kind(), fail.code()), (Kind::Unavailable, "unavailable"));
    assert!(fail.retry_after_hint().is_some());
    assert!(!peer.is_connected());
}

#[tokio::test]
async fn a_call_waits_for_a_replica_that_is_just_starting() {
    let address = Replica::start("a").await.kill().await;
    let peer = remote(&[format!("http://{address}")], None);
    let waiting = tokio::spawn({
        let peer = peer.clone();
        async move { name(&peer).await }
    });
    let _late = Replica::start_at("late", address, None).await;
    assert_eq!(soon("the answer", waiting).await.expect("no panic").expect("an answer"), "late");
}

#[tokio::test]
async fn a_name_is_looked_up_and_its_addresses_are_called() {
    let replica = Replica::start("a").await;
    let peer = remote(&[format!("http://localhost:{}", replica.address.port())], None);
    soon("the replica", peer.connected()).await;
    assert_eq!(name(&peer).await.expect("an answer"), "a");
}

#[tokio::test]
async fn messages_have_one_bound_on_both_wirings() {
    let replica = Replica::start("a").await;
    for peer in [remote(&[replica.url()], None), local().1] {
        let size_of = async |bytes: usize| ask(&peer, &anonymous(), &"x".repeat(bytes)).await;
        // A key, a length, and the text.
        let largest = MESSAGE_BYTES_MAX - 5;
        assert_eq!(size_of(largest).await.expect("it fits").access_token.len(), largest);
        assert!(size_of(largest + 1).await.is_err(), "{peer:?}");
    }
}

#[tokio::test]
async fn a_long_list_of_what_is_wrong_arrives() {
    let replica = Replica::start("a").await;
    for peer in [remote(&[replica.url()], None), local().1] {
        let fail = ask(&peer, &anonymous(), "details").await.expect_err("much is wrong");
        assert_eq!((fail.code(), fail.violations().len()), ("test.much", 50), "{peer:?}");
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_called_is_told() {
    let tasks = kit::tasks::Tasks::new();
    for urls in [&[][..], &["https://a:1".to_owned()], &["a:1".to_owned()]] {
        let fail = Peer::remote("testing", urls, None, &tasks).expect_err("it is wrong");
        assert_eq!(fail.code(), "config.peer_url", "{urls:?}");
    }
}
