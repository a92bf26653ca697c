//! Waking the other replicas: what one has made durable, another hands out, stops or shows. The word goes by `notify`,
//! gathered over a few milliseconds and apart from the transactions it tells of. It is a wake-up and nothing more: each
//! replica looks by itself from time to time, so that a lost word costs a moment and no work.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kit::{Fail, tasks::Tasks};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Ground, steps::Aftermath};

const CHANNEL: &str = "jobs_wake";
/// Between two words of one replica: what happens meanwhile goes together.
const GATHER: Duration = Duration::from_millis(10);
/// Streams that one word names, below the 8,000 bytes that a notification takes; of more, all are looked at.
const STREAMS_MAX: usize = 150;

/// What this replica has to tell the others.
#[derive(Debug)]
pub(super) struct Wakes {
    replica: Uuid,
    word: Mutex<Option<Word>>,
    has_word: Notify,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Word {
    /// The replica that says it.
    from: Uuid,
    has_work: bool,
    has_cancels: bool,
    /// A replica of an earlier version says nothing of it.
    #[serde(default)]
    has_dependents: bool,
    /// Streams with news; none for more than can be named.
    streams: Option<BTreeSet<Uuid>>,
}

impl Word {
    fn add(&mut self, aftermath: &Aftermath) {
        self.has_work |= aftermath.has_work;
        self.has_cancels |= aftermath.has_cancels;
        self.has_dependents |= aftermath.has_dependents;
        if let Some(streams) = &mut self.streams {
            streams.extend(&aftermath.streams);
        }
        self.streams.take_if(|streams| streams.len() > STREAMS_MAX);
    }
}

impl Wakes {
    /// Of a replica that is alone on its database when `replica` is none: it has nobody to wake.
    pub(super) fn new(replica: Option<Uuid>) -> Option<Self> {
        replica.map(|replica| Self { replica, word: Mutex::default(), has_word: Notify::new() })
    }

    pub(super) fn tell(&self, aftermath: &Aftermath) {
        let mut word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Word { from: self.replica, streams: Some(BTreeSet::new()), ..Word::default() };
        word.get_or_insert_with(fresh).add(aftermath);
        drop(word);
        self.has_word.notify_one();
    }

    fn take(&self) -> Option<Word> {
        mem::take(&mut *self.word.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts telling and listening; nothing for a replica that is alone.
pub(super) fn start(ground: &Arc<Ground>, tasks: &Tasks) {
    if ground.wakes.is_none() {
        return;
    }
    let (on, stopping) = (Arc::clone(ground), tasks.stopping());
    tasks.spawn_restarting("jobs.wakes.tell", move || {
        let (ground, stopping) = (Arc::clone(&on), stopping.clone());
        async move { stopping.run_until_cancelled(tell(&ground)).await.unwrap_or(Ok(())) }
    });
    let (on, stopping) = (Arc::clone(ground), tasks.stopping());
    tasks.spawn_restarting("jobs.wakes.hear", move || {
        let (ground, stopping) = (Arc::clone(&on), stopping.clone());
        async move { stopping.run_until_cancelled(hear(&ground)).await.unwrap_or(Ok(())) }
    });
}

async fn tell(ground: &Ground) -> Result<(), Fail> {
    let Some(wakes) = &ground.wakes else { return Ok(()) };
    loop {
        wakes.has_word.notified().await;
        let Some(word) = wakes.take() else { continue };
        let word = serde_json::to_string(&word).map_err(Fail::internal)?;
        // A word need not outlive a crash, after which everyone looks by itself: the disk is not waited for.
        sqlx::query!("select pg_notify($1, $2) from set_config('synchronous_commit', 'off', true)", CHANNEL, word)
            .execute(&ground.pool)
            .await?;
        tokio::time::sleep(GATHER).await;
    }
}

async fn hear(ground: &Ground) -> Result<(), Fail> {
    let Some(wakes) = &ground.wakes else { return Ok(()) };
    let mut listener = PgListener::connect_with(&ground.pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // None when the connection was lost and is there again: what was said meanwhile is not known.
        let word = listener.try_recv().await?;
        let word = word.and_then(|word| serde_json::from_str::<Word>(word.payload()).ok());
        let word = word.unwrap_or(Word { has_work: true, has_cancels: true, has_dependents: true, ..Word::default() });
        if word.from != wakes.replica {
            let Word { has_work, has_cancels, has_dependents, .. } = word;
            match word.streams {
                Some(streams) => {
                    let streams = streams.into_iter().collect();
                    ground.wake_here(&Aftermath { streams, has_work, has_cancels, has_dependents });
                }
                None => {
                    ground.live.touch_all();
                    ground.wake_here(&Aftermath { has_work, has_cancels, has_dependents, ..Aftermath::default() });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_what_fits_and_gathers_the_rest() {
        let wakes = Wakes::new(Some(Uuid::nil())).expect("it is not alone");
        let of = |streams: Vec<Uuid>| Aftermath { streams, ..Aftermath::default() };
        wakes.tell(&of((0..STREAMS_MAX as u128).map(Uuid::from_u128).collect()));
        wakes.tell(&Aftermath { streams: vec![Uuid::nil()], has_work: true, ..Aftermath::default() });
        let word = wakes.take().expect("something was told");
        assert!(word.has_work && !word.has_cancels);
        assert_eq!(word.streams.as_ref().map(BTreeSet::len), Some(STREAMS_MAX));
        assert!(serde_json::to_string(&word).expect("it is JSON").len() < 8_000);
        wakes.tell(&of((0..=STREAMS_MAX as u128).map(Uuid::from_u128).collect()));
        assert_eq!(wakes.take().expect("something was told").streams, None);
        assert!(wakes.take().is_none());
    }
}
