//! One RabbitMQ for this test process, with a virtual host a test.

use std::sync::atomic::{AtomicUsize, Ordering};

use kit::private_rabbitmq::PrivateRabbitMq;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

const VHOSTS: usize = 64;

static BROKER: OnceCell<PrivateRabbitMq> = OnceCell::const_new();
static NEXT_VHOST: AtomicUsize = AtomicUsize::new(1);
/// Held by a test that does something to the broker as a whole, and shared by those that only use it.
static CALM: RwLock<()> = RwLock::const_new(());

/// The broker, for a test that leaves it as it is.
pub(crate) async fn calm() -> RwLockReadGuard<'static, ()> {
    CALM.read().await
}

/// The broker, for a test that stops, freezes or kills it.
pub(crate) async fn storm() -> RwLockWriteGuard<'static, ()> {
    CALM.write().await
}

pub(crate) async fn broker() -> &'static PrivateRabbitMq {
    BROKER
        .get_or_init(|| async {
            let broker = kit::testing::rabbitmq().await;
            let vhosts = format!(
                "[begin V = list_to_binary(\"t\" ++ integer_to_list(N)), rabbit_vhost:add(V, <<\"test\">>), \
                 rabbit_auth_backend_internal:set_permissions(<<\"guildhall\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, \
                 <<\"test\">>) end || N <- lists:seq(1, {VHOSTS})], ok."
            );
            broker.ctl(&["eval", &vhosts]).await.expect("virtual hosts");
            broker
        })
        .await
}

/// Has the broker save what it knows of its queues' elections. A quorum queue that 3.10 was ended within the first moments
/// of never finds its leader again: that stands in tables which it saves now and then.
pub(crate) async fn save_elections() {
    broker().await.ctl(&["eval", "[dets:sync(T) || T <- dets:all()], ok."]).await.expect("saved tables");
}

/// The name of a virtual host that no other test uses.
pub(crate) fn vhost() -> String {
    let number = NEXT_VHOST.fetch_add(1, Ordering::Relaxed);
    assert!(number <= VHOSTS, "more tests than virtual hosts");
    format!("t{number}")
}
