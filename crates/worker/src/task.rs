//! What a task is: a name, a queue, a schema of its arguments, and a function. Writing one is implementing [`Task`] and
//! adding it to a [`Registry`]; the runtime does the rest.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Context, Failure};

/// Where a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the worker process, beside everything else: for tasks that mostly wait. Such a task never blocks a thread,
    /// and can be ended only where it awaits.
    Worker,
    /// In a child process of its own, one a slot, bounded in memory and killable: for what burns a core, reads what
    /// strangers sent, or may burst its memory. Such a task may block as it likes.
    Child,
}

/// How a task ends that did not fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Done, with the job's result. Files that the attempt stored become the owner's with it.
    Done(Value),
    /// The job waits for this batch of children and holds no worker meanwhile; its result will be the finalize's.
    AwaitBatch(String),
}

/// A task. It may run again after a crash, a lost worker or a drain, with the same arguments and the same
/// [`Context::job_id`]: what it does outside must be recognisable by that id.
pub trait Task: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// The queue of jobs whose submission names none.
    fn queue(&self) -> &'static str;
    /// One line for people.
    fn description(&self) -> &'static str;
    /// JSON Schema 2020-12 of the arguments. Submissions are held to it, so that [`run`](Self::run) sees only what fits.
    fn schema(&self) -> Value;
    fn place(&self) -> Place;
    /// One attempt.
    ///
    /// # Errors
    /// A [`Failure`] that says what kind it is and whether trying again can help.
    fn run<'a>(&'a self, context: &'a Context, args: Value) -> BoxFuture<'a, Result<Ending, Failure>>;
}

/// The tasks a worker was built with, by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Arc<dyn Task>>);

impl Registry {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task, in place of an earlier one of the same name.
    #[must_use]
    pub fn with(mut self, task: impl Task) -> Self {
        self.0.insert(task.name(), Arc::new(task));
        self
    }

    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<dyn Task>> {
        self.0.get(name).cloned()
    }

    /// Every task, by name.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Task> {
        self.0.values().map(AsRef::as_ref)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
