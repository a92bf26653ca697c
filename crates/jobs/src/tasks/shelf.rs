//! The tasks that are listed, and who offers them, as they were less than a second ago. However often a list is asked
//! for, the database is read once a second, and not at all while nobody asks. What a worker says to this replica is
//! listed at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use chrono::{DateTime, Utc};
use kit::Fail;
use parking_lot::RwLock;
use proto::jobs::Task;
use sqlx::PgPool;
use tokio::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long what was read is listed, counted from before it was read.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// A task, as it was read.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) name: String,
    queue: String,
    schema_json: String,
    description: String,
    concurrency: Option<i32>,
    /// The ends of the leases of the workers that offer it and go on working.
    leases: Vec<DateTime<Utc>>,
}

impl Shown {
    /// As it stands at `now`.
    pub(super) fn to_proto(&self, now: DateTime<Utc>) -> Task {
        Task {
            name: self.name.clone(),
            queue: self.queue.clone(),
            schema_json: self.schema_json.clone(),
            description: self.description.clone(),
            workers: self.workers(now),
            concurrency: self.concurrency.map(i32::unsigned_abs),
        }
    }

    /// Workers that offer it at `now`: one that has died since is not among them, read again or not.
    pub(super) fn workers(&self, now: DateTime<Utc>) -> u32 {
        let live = self.leases.iter().filter(|end| **end > now).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }
}

/// All tasks by name, as Rust compares names.
///
/// # Errors
/// As the database.
pub(super) async fn read(pool: &PgPool) -> Result<Vec<Shown>, Fail> {
    let rows = sqlx::query_as!(
        Shown,
        r##"select name, queue, schema_json, description, concurrency,
             array(select expires_at from jobs.worker where task.name = any(tasks) and not is_draining) as "leases!"
           from jobs.task
           order by name collate "C""##,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows)
}

/// What was read last. Whoever finds it too old reads, and those who come meanwhile wait for that.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    kept: RwLock<Option<Kept<T>>>,
    reading: Mutex<()>,
    /// Goes up with each change that has to be seen: what was read before is not listed after it.
    changes: AtomicU64,
}

#[derive(Debug)]
struct Kept<T> {
    value: Arc<T>,
    read_at: Instant,
    changes: u64,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { kept: RwLock::default(), reading: Mutex::default(), changes: AtomicU64::default() }
    }
}

impl<T> Shelf<T> {
    /// What is kept, or else what `read` finds.
    ///
    /// # Errors
    /// As `read`; nothing is kept then.
    pub(super) async fn get(&self, read: impl AsyncFnOnce() -> Result<T, Fail>) -> Result<Arc<T>, Fail> {
        if let Some(value) = self.fresh() {
            return Ok(value);
        }
        let _reading = self.reading.lock().await;
        if let Some(value) = self.fresh() {
            return Ok(value);
        }
        let (read_at, changes) = (Instant::now(), self.changes.load(Ordering::Acquire));
        let value = Arc::new(read().await?);
        *self.kept.write() = Some(Kept { value: Arc::clone(&value), read_at, changes });
        Ok(value)
    }

    /// Something has been committed that the next list has to show.
    pub(super) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn fresh(&self) -> Option<Arc<T>> {
        let kept = self.kept.read();
        let is_fresh = |kept: &&Kept<T>| {
            kept.read_at.elapsed() < FRESH_FOR && kept.changes == self.changes.load(Ordering::Acquire)
        };
        kept.as_ref().filter(is_fresh).map(|kept| Arc::clone(&kept.value))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Something to read that counts how often it is read.
    #[derive(Default)]
    struct Source(Cell<u32>);

    impl Source {
        async fn read(&self) -> Result<u32, Fail> {
            tokio::task::yield_now().await;
            self.0.set(self.0.get() + 1);
            Ok(self.0.get())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_read_once_a_second_however_often_it_is_asked_for() {
        let (shelf, source) = (Shelf::default(), Source::default());
        let ask = || async { *shelf.get(async || source.read().await).await.expect("it can be read") };
        assert_eq!(futures::future::join_all((0..100).map(|_| ask())).await, [1; 100]);
        tokio::time::advance(FRESH_FOR - Duration::from_millis(1)).await;
        assert_eq!(ask().await, 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(futures::future::join_all((0..100).map(|_| ask())).await, [2; 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_a_change_is_not_shown_after_it() {
        let (shelf, source) = (Shelf::default(), Source::default());
        let ask = || async { *shelf.get(async || source.read().await).await.expect("it can be read") };
        assert_eq!(ask().await, 1);
        shelf.forget();
        assert_eq!(ask().await, 2);
        // A change while it is being read, which may or may not have seen it.
        tokio::time::advance(FRESH_FOR).await;
        let meanwhile = shelf.get(async || {
            let read = source.read().await;
            shelf.forget();
            read
        });
        assert_eq!(*meanwhile.await.expect("it can be read"), 3);
        assert_eq!(ask().await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_fails_is_made_again_by_the_next() {
        let (shelf, source) = (Shelf::default(), Source::default());
        let failed = shelf.get(async || Err(Fail::unavailable("unavailable", "The database is away."))).await;
        assert_eq!(failed.expect_err("it failed").code(), "unavailable");
        assert_eq!(*shelf.get(async || source.read().await).await.expect("it can be read"), 1);
    }

    #[test]
    fn a_worker_whose_lease_is_over_is_not_counted_whenever_it_was_read() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let task = Shown {
            name: "work".to_owned(),
            queue: "default".to_owned(),
            schema_json: "{}".to_owned(),
            description: String::new(),
            concurrency: None,
            leases: vec![at(10), at(20)],
        };
        assert_eq!([9, 10, 19, 20].map(|second| task.workers(at(second))), [2, 1, 1, 0]);
    }
}
