//! What attempts say about themselves, gathered before it is written. However often an attempt speaks, it is written
//! about at most once in [`EVERY`]: of its progress the last of each stage, and all its log lines together. What it says
//! after a silence is written at once, and what it said before its outcome stands before that.
//!
//! The bounds are kept here, and not only by whoever runs the task, since any worker may speak to this service.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kit::{Fail, Kind, tasks::Tasks};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;
use uuid::Uuid;

use super::{
    group::Group,
    progress::{Line, Note, Progress, Said},
};

/// Between two writes about one attempt.
const EVERY: Duration = Duration::from_millis(250);
/// Between two looks for what is to be written, so that attempts which speak at about the same time share a commit.
const GATHER: Duration = Duration::from_millis(10);
/// Stages whose progress one write keeps; over it the oldest goes.
const STAGES_MAX: usize = 8;
/// Log lines of one write, and their bytes; over either, lines are counted and dropped.
const LINES_MAX: usize = 4_096;
const BYTES_MAX: usize = 1024 * 1024;
/// Attempts that may be spoken of at a time. A service has fewer; the bound holds against made-up ones.
const PAGES_MAX: usize = 50_000;

/// Which attempt: its job and fencing token.
type Attempt = (Uuid, i64);

/// What one attempt has said since it was last written about.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Page {
    pub(super) job: Uuid,
    pub(super) token: i64,
    lines: Vec<Line>,
    bytes: usize,
    /// Each with the number of lines before it.
    progress: VecDeque<(usize, Progress)>,
    pub(super) lines_dropped: u64,
}

impl Page {
    fn of((job, token): Attempt) -> Self {
        Self { job, token, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.progress.is_empty() && self.lines_dropped == 0
    }

    fn add(&mut self, said: Said) {
        match said {
            Said::Log(line) => {
                let bytes = self.bytes + line.message.len();
                if self.lines.len() == LINES_MAX || bytes > BYTES_MAX {
                    self.lines_dropped += 1;
                } else {
                    self.bytes = bytes;
                    self.lines.push(line);
                }
            }
            Said::Progress(progress) => {
                if self.progress.back().is_some_and(|(_, last)| last.stage == progress.stage) {
                    self.progress.pop_back();
                }
                if self.progress.len() == STAGES_MAX {
                    self.progress.pop_front();
                }
                self.progress.push_back((self.lines.len(), progress));
            }
        }
    }

    /// What was said, in its order.
    pub(super) fn said(&self) -> impl Iterator<Item = Said> {
        let mut progress = self.progress.iter().peekable();
        let mut said = Vec::with_capacity(self.lines.len() + self.progress.len());
        for at in 0..=self.lines.len() {
            while let Some((_, update)) = progress.next_if(|(lines, _)| *lines == at) {
                said.push(Said::Progress(update.clone()));
            }
            said.extend(self.lines.get(at).cloned().map(Said::Log));
        }
        said.into_iter()
    }
}

#[derive(Debug)]
struct Open {
    page: Page,
    /// Not to be written before.
    due: Instant,
    is_being_written: bool,
}

/// The open pages of this replica. Cheap to clone; clones are the same notebook.
#[derive(Debug, Clone)]
pub(super) struct Notebook {
    pages: Arc<Mutex<HashMap<Attempt, Open>>>,
    news: Arc<Notify>,
    writer: Group<Arc<Page>, ()>,
}

type Written = (Attempt, Arc<Page>, Result<(), Fail>);

impl Notebook {
    /// Starts writing what is due through `writer`.
    pub(super) fn start(tasks: &Tasks, writer: Group<Arc<Page>, ()>) -> Self {
        let notebook = Self { pages: Arc::default(), news: Arc::default(), writer };
        let (on, stopping) = (notebook.clone(), tasks.stopping());
        tasks.spawn_restarting("jobs.notebook", move || {
            let (notebook, stopping) = (on.clone(), stopping.clone());
            async move {
                let ended = stopping.run_until_cancelled(notebook.run()).await;
                // What is open when the process stops is written by whoever writes groups, which goes on until the end.
                notebook.hand_in_all();
                ended.unwrap_or(Ok(()))
            }
        });
        notebook
    }

    /// Takes down what an attempt says.
    pub(super) fn note(&self, note: Note) {
        let attempt = (note.job, note.token);
        let mut pages = self.lock();
        if pages.len() >= PAGES_MAX && !pages.contains_key(&attempt) {
            return;
        }
        let open = pages.entry(attempt).or_insert_with(|| Open {
            page: Page::of(attempt),
            due: Instant::now(),
            is_being_written: false,
        });
        let was_empty = open.page.is_empty();
        open.page.add(note.said);
        drop(pages);
        if was_empty {
            self.news.notify_one();
        }
    }

    /// What ends once everything that an attempt has said is written, as its outcome is to come after it; none where it has
    /// said nothing.
    pub(super) fn settle(&self, attempt: Attempt) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut pages = self.lock();
        // Also an empty page: it is answered when those before it are written.
        let written = self.hand_in(attempt, pages.remove(&attempt)?.page);
        drop(pages);
        Some(async move {
            if let (_, _, Err(fail)) = written.await {
                warn!(job.id = %attempt.0, error = %fail, "progress or log lines were not written");
            }
        })
    }

    async fn run(&self) -> Result<(), Fail> {
        let mut writes: FuturesUnordered<BoxFuture<'static, Written>> = FuturesUnordered::new();
        loop {
            let next = self.hand_in_due(&mut writes);
            let due = async {
                let next = async {
                    match next {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = next => {}
                    () = self.news.notified() => {}
                }
                tokio::time::sleep(GATHER).await;
            };
            tokio::pin!(due);
            loop {
                tokio::select! {
                    () = &mut due => break,
                    Some(written) = writes.next() => self.written(written),
                }
            }
        }
    }

    /// Hands in what is due and forgets who is silent; when the next look is worth while.
    fn hand_in_due(&self, writes: &mut FuturesUnordered<BoxFuture<'static, Written>>) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        let mut pages = self.lock();
        pages.retain(|attempt, open| {
            if open.due <= now && !open.is_being_written {
                if open.page.is_empty() {
                    return false;
                }
                let page = std::mem::replace(&mut open.page, Page::of(*attempt));
                open.due = now + EVERY;
                open.is_being_written = true;
                writes.push(self.hand_in(*attempt, page));
            }
            next = Some(next.map_or(open.due, |next: Instant| next.min(open.due)));
            true
        });
        next
    }

    fn hand_in_all(&self) {
        for (attempt, open) in self.lock().drain() {
            if !open.page.is_empty() {
                drop(self.hand_in(attempt, open.page));
            }
        }
    }

    fn hand_in(&self, attempt: Attempt, page: Page) -> BoxFuture<'static, Written> {
        let page = Arc::new(page);
        let written = self.writer.hand_in(Arc::clone(&page));
        Box::pin(async move { (attempt, page, written.await) })
    }

    /// A page that could not be written because the database is away is written with what was said since.
    fn written(&self, (attempt, page, written): Written) {
        let mut pages = self.lock();
        let open = pages.get_mut(&attempt);
        match (open, written) {
            (Some(open), Err(fail)) if fail.kind() == Kind::Unavailable => {
                let mut whole = Arc::unwrap_or_clone(page);
                let since = std::mem::replace(&mut open.page, Page::of(attempt));
                whole.lines_dropped += since.lines_dropped;
                since.said().for_each(|said| whole.add(said));
                open.page = whole;
                open.is_being_written = false;
            }
            (open, written) => {
                if let Err(fail) = written {
                    warn!(job.id = %attempt.0, error = %fail, "progress or log lines were not written");
                }
                if let Some(open) = open {
                    open.is_being_written = false;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Attempt, Open>> {
        // A page is never left half changed in a way that matters, so a panic elsewhere does not spoil it.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(percent: f64, stage: &str) -> Said {
        Said::Progress(Progress { percent, stage: stage.to_owned(), message: String::new() })
    }

    fn line(message: &str) -> Said {
        Said::Log(Line { level: "info".to_owned(), message: message.to_owned(), at: chrono::DateTime::UNIX_EPOCH })
    }

    #[test]
    fn a_page_keeps_the_last_of_each_stage_and_every_line_in_order() {
        let mut page = Page::default();
        for said in
            [progress(1.0, "a"), line("x"), progress(2.0, "a"), progress(3.0, "b"), line("y"), progress(4.0, "c")]
        {
            page.add(said);
        }
        let kept = [line("x"), progress(2.0, "a"), progress(3.0, "b"), line("y"), progress(4.0, "c")];
        assert_eq!(page.said().collect::<Vec<_>>(), kept);
        let names: Vec<String> = (0..STAGES_MAX).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| page.add(progress(5.0, name)));
        let stages = page.said().filter(|said| matches!(said, Said::Progress(_))).collect::<Vec<_>>();
        assert_eq!(stages, names.iter().map(|name| progress(5.0, name)).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_takes_so_many_lines_and_bytes_and_counts_the_others() {
        let mut page = Page::default();
        (0..LINES_MAX + 3).for_each(|_| page.add(line("x")));
        assert_eq!((page.said().count(), page.lines_dropped), (LINES_MAX, 3));
        let mut page = Page::default();
        let half = "x".repeat(BYTES_MAX / 2);
        (0..3).for_each(|_| page.add(line(&half)));
        assert_eq!((page.said().count(), page.lines_dropped), (2, 1));
    }
}
