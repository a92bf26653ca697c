//! Paying what a consumer is owed after a loss: every producer is asked to send again what it keeps.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use proto::events::{ReplayRequest, ReplayResponse, outbox_client::OutboxClient};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Floor, Inbox, KEPT, KEPT_MARGIN, WAIT_FIRST, WAIT_MAX, store};
use crate::{
    Fail, Kind,
    clock::{from_timestamp, to_timestamp},
    grpc::{Credential, Peer},
};

/// A producer looks through all that it keeps.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How a producer is asked.
type Replay = Arc<dyn Fn(ReplayRequest) -> BoxFuture<'static, Result<ReplayResponse, Fail>> + Send + Sync>;

/// A service that tells events, and the way to have it tell them again.
#[derive(Clone)]
pub struct Producer {
    source: String,
    replay: Replay,
}

impl Producer {
    /// The service `name` (its schema's name), which `replay` asks.
    pub fn new<R>(name: &str, replay: R) -> Self
    where
        R: Fn(ReplayRequest) -> BoxFuture<'static, Result<ReplayResponse, Fail>> + Send + Sync + 'static,
    {
        Self { source: crate::outbox::source(name), replay: Arc::new(replay) }
    }

    /// The service `name` behind `peer`; the credential's scope has `events:replay`.
    pub fn over(name: &str, peer: Peer, credential: Credential) -> Self {
        Self::new(name, move |request| {
            let (mut client, credential) = (OutboxClient::new(peer.clone()), credential.clone());
            Box::pin(async move {
                let call = credential.call("catch-up").await?;
                let answer = client.replay(call.request_within(ANSWER_WITHIN, request)).await.map_err(Fail::from);
                if answer.as_ref().is_err_and(|fail| fail.kind() == Kind::Unauthenticated) {
                    credential.forget().await;
                }
                Ok(answer?.into_inner())
            })
        })
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Producer").field(&self.source).finish()
    }
}

impl Inbox {
    /// Says that the consumer is about to have its queue: whether that was lost, or was never there. To be called before
    /// the queue is made, so that a crash in between forgets nothing.
    pub(crate) async fn enroll(&self, is_queue_lost: bool) -> Result<(), Fail> {
        store::enroll(&self.setup, is_queue_lost).await
    }

    /// Has everything sent again that is owed. To be called once the queue is bound and before anything is taken from
    /// it. A producer that is away is waited for; false when the process stops meanwhile.
    pub(crate) async fn catch_up(&self, stopping: &CancellationToken) -> Result<bool, Fail> {
        if let Some(losses) = store::owed(&self.setup).await? {
            for producer in &self.setup.producers {
                let Some(answer) = self.ask(producer, stopping).await else { return Ok(false) };
                // One that keeps nothing sends nothing again.
                let kept_from = answer.kept_from.as_ref().and_then(from_timestamp).unwrap_or(DateTime::<Utc>::MAX_UTC);
                let floor = Floor { generation: answer.generation, kept_from };
                store::raise_floor(&self.setup, &producer.source, floor).await?;
                info!(
                    consumer = self.setup.consumer.name,
                    source = producer.source,
                    events = answer.events,
                    "a producer sends again what the consumer may have lost"
                );
            }
            store::settle(&self.setup, losses).await?;
        }
        *self.floors.write() = store::floors(&self.setup).await?;
        Ok(true)
    }

    async fn ask(&self, producer: &Producer, stopping: &CancellationToken) -> Option<ReplayResponse> {
        let mut wait: Duration = WAIT_FIRST;
        loop {
            let since = self.setup.clock.now() - (KEPT - KEPT_MARGIN);
            let request = ReplayRequest {
                types: self.setup.consumer.types.iter().map(|kind| (*kind).to_owned()).collect(),
                since: Some(to_timestamp(since)),
            };
            let fail = match (producer.replay)(request).await {
                Ok(answer) => return Some(answer),
                Err(fail) => fail,
            };
            warn!(source = producer.source, error = %fail, "a producer cannot be asked to send again, and will be");
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(WAIT_MAX),
            }
        }
    }
}
