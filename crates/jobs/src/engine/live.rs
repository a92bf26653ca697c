//! Watching a job or a batch: everything kept after an offset, then each event as it is written, then the end. Where what
//! follows an offset is not kept any more, or never was, a `reset` with the state now says so and where the stream goes on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kit::Fail;
use proto::jobs::LiveEvent;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use super::Ground;

/// Without a wake-up, look this often: another replica may have written, and its word been lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events read at a time, and events that wait for a slow reader.
const PAGE: i64 = 500;
const WAITING_MAX: usize = 64;

/// A live stream of one watcher.
pub(crate) type Stream = ReceiverStream<Result<LiveEvent, Status>>;

/// Which streams are watched in this process, each with a counter that moves when there is news.
#[derive(Debug, Default)]
pub(crate) struct Live(Mutex<HashMap<Uuid, Arc<watch::Sender<u64>>>>);

impl Live {
    /// There is news in these streams.
    pub(crate) fn touch(&self, streams: &[Uuid]) {
        let watched = self.lock();
        if watched.is_empty() {
            return;
        }
        for news in streams.iter().filter_map(|stream| watched.get(stream)) {
            news.send_modify(|count| *count += 1);
        }
    }

    /// There may be news in any stream.
    pub(crate) fn touch_all(&self) {
        for news in self.lock().values() {
            news.send_modify(|count| *count += 1);
        }
    }

    fn subscribe(&self, stream: Uuid) -> watch::Receiver<u64> {
        self.lock().entry(stream).or_default().subscribe()
    }

    /// Forgets a stream that nobody watches any more.
    fn leave(&self, stream: Uuid) {
        let mut watched = self.lock();
        if watched.get(&stream).is_some_and(|news| news.receiver_count() == 0) {
            watched.remove(&stream);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<watch::Sender<u64>>>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Job,
    Batch,
}

/// Opens a stream of `id` after `offset`. The caller has checked that it is there and may be seen.
pub(crate) fn watch(
    ground: &Arc<Ground>,
    tasks: &kit::tasks::Tasks,
    subject: Subject,
    id: Uuid,
    offset: u64,
) -> Stream {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let ground = Arc::clone(ground);
    let stopping = tasks.stopping();
    tasks.detach("jobs.watch", async move {
        let news = ground.live.subscribe(id);
        let follow = follow(&ground, news, subject, id, offset, &sender);
        tokio::select! {
            result = follow => if let Err(fail) = result {
                let _gone = sender.send(Err(fail.into())).await;
            },
            () = sender.closed() => {}
            () = stopping.cancelled() => {}
        }
        ground.live.leave(id);
    });
    ReceiverStream::new(receiver)
}

async fn follow(
    ground: &Ground,
    mut news: watch::Receiver<u64>,
    subject: Subject,
    id: Uuid,
    offset: u64,
    sender: &mpsc::Sender<Result<LiveEvent, Status>>,
) -> Result<(), Fail> {
    let mut offset = i64::try_from(offset).unwrap_or(i64::MAX);
    loop {
        news.mark_unchanged();
        // Read before the events: a stream that is over now has no more than this.
        let Some((newest, is_over, state)) = newest(ground, subject, id).await? else { return Ok(()) };
        let reset = |offset: i64| {
            let data = serde_json::json!({ "snapshot": { "id": id, "state": state } }).to_string();
            LiveEvent { offset: offset.unsigned_abs(), event: "reset".to_owned(), data_json: data }
        };
        if offset > newest {
            offset = newest;
            if sender.send(Ok(reset(offset))).await.is_err() {
                return Ok(());
            }
        }
        while offset < newest {
            let page = sqlx::query!(
                r#"select at_offset as "at_offset!", kind as "kind!", data as "data!"
                   from jobs.any_event
                   where stream_id = $1 and at_offset > $2
                   order by at_offset
                   limit $3"#,
                id,
                offset,
                PAGE,
            )
            .fetch_all(&ground.pool)
            .await?;
            // Offsets have no gap: what is missing was dropped with its day.
            if page.is_empty() {
                offset = newest;
                if sender.send(Ok(reset(offset))).await.is_err() {
                    return Ok(());
                }
            }
            for row in page {
                if row.at_offset > offset + 1 && sender.send(Ok(reset(row.at_offset - 1))).await.is_err() {
                    return Ok(());
                }
                offset = row.at_offset;
                let event = LiveEvent { offset: offset.unsigned_abs(), event: row.kind, data_json: row.data };
                if sender.send(Ok(event)).await.is_err() {
                    return Ok(());
                }
            }
        }
        if is_over {
            let end = LiveEvent { offset: offset.unsigned_abs(), event: "end".to_owned(), data_json: "{}".to_owned() };
            let _gone = sender.send(Ok(end)).await;
            return Ok(());
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok(()); },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// The newest offset, whether nothing will follow, and the state now.
async fn newest(ground: &Ground, subject: Subject, id: Uuid) -> Result<Option<(i64, bool, String)>, Fail> {
    Ok(match subject {
        Subject::Job => sqlx::query!(
            r#"select events as "events!", finished_at, state as "state!" from jobs.any_job where id = $1"#,
            id
        )
        .fetch_optional(&ground.pool)
        .await?
        .map(|row| (row.events, row.finished_at.is_some(), row.state)),
        Subject::Batch => sqlx::query!("select events, finished_at, state from jobs.batch where id = $1", id)
            .fetch_optional(&ground.pool)
            .await?
            .map(|row| (row.events, row.finished_at.is_some(), row.state)),
    })
}
