//! Streams last: as long as both ends live, and no longer.

use std::time::Duration;

use kit::Kind;
use tokio::time::Instant;

use crate::{
    proxy::Proxy,
    replica::{Echo, Replica, all_answer, anonymous, ask, name, remote, worker},
    soon,
};

/// Longer than a silent connection is left alone and then given up when it stays silent.
const IDLE: Duration = Duration::from_secs(7);

#[tokio::test]
async fn an_idle_stream_lives() {
    let replica = Replica::start("a").await;
    let peer = remote(&[replica.url()], None);
    let mut echo = Echo::open(&peer, &worker()).await.expect("it opens");
    echo.answers().await;
    // Time itself is what must not end it.
    tokio::time::sleep(IDLE).await;
    echo.answers().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_server() {
    let replica = Replica::start("a").await;
    let peer = remote(&[replica.url()], None);
    let mut echo = Echo::open(&peer, &worker()).await.expect("it opens");
    echo.answers().await;
    replica.kill().await;
    assert_eq!(echo.ended().await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_stream_to_a_machine_that_vanished_ends_and_the_next_goes_elsewhere() {
    let (vanishing, staying) = (Replica::start("a").await, Replica::start("b").await);
    let proxy = Proxy::to(vanishing.address).await;
    let peer = remote(&[proxy.url()], None);
    let mut echo = Echo::open(&peer, &worker()).await.expect("it opens");
    echo.answers().await;
    let both = remote(&[proxy.url(), staying.url()], None);
    all_answer(&both, &[&staying]).await;
    proxy.freeze();
    assert_eq!(echo.ended().await.kind(), Kind::Unavailable);
    soon("calls to go to the other alone", async {
        let mut in_a_row = 0;
        while in_a_row < 5 {
            in_a_row = if name(&both).await.is_ok_and(|answer| answer == "b") { in_a_row + 1 } else { 0 };
        }
    })
    .await;
}

#[tokio::test]
async fn a_crowd_of_callers_that_give_up_at_once_costs_no_stream_beside_it() {
    let replica = Replica::start("a").await;
    let peer = remote(&[replica.url()], None);
    let mut echo = Echo::open(&peer, &worker()).await.expect("it opens");
    let soon_over = anonymous().with_deadline(Some(Instant::now() + Duration::from_millis(200)));
    let crowd = (0..500).map(|_| ask(&peer, &soon_over, "hold"));
    for answer in futures::future::join_all(crowd).await {
        assert_eq!(answer.expect_err("nobody lets it go").kind(), Kind::Timeout);
    }
    echo.answers().await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_no_call_beside_it() {
    let replica = Replica::start("a").await;
    let peer = remote(&[replica.url()], None);
    let echo = Echo::open(&peer, &worker()).await.expect("it opens");
    // More than a stream's window, and nobody reads what comes back.
    let flood = tokio::spawn(async move {
        let message = proto::worker::FromWorker {
            message: Some(proto::worker::from_worker::Message::Hello(proto::worker::Hello {
                host: "x".repeat(64 * 1024),
                ..proto::worker::Hello::default()
            })),
        };
        let _blocked = tokio::time::timeout(Duration::from_secs(1), async {
            while echo.sender.send(message.clone()).await.is_ok() {}
        })
        .await;
        echo
    });
    for _ in 0..50 {
        soon("an answer beside the flood", name(&peer)).await.expect("an answer");
    }
    drop(flood.await);
}
