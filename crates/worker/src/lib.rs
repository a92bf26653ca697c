//! The runtime to build a worker on. It knows how work is handed out and how it may end; it knows no task.
//!
//! ```text
//! worker     starts and drains          stream    the one connection to `jobs`
//! settings, profile, hooks              lease     ends attempts before their lease does
//! task, context, failure                ledger    what is held, told, and not receipted yet
//!   what a task is written against      attempt   an assignment from start to outcome
//! calls                                   supervise   ask, grace, let go
//!   how jobs is asked                      desk        what a context's wishes come to
//! scratch    folders of slots              slot        children: started, talked to, killed
//! ```
//!
//! A program that runs workers implements [`Task`] for each of its tasks, collects them in a [`Registry`], calls
//! [`slot::main`] when it is started as a slot's child, and [`Worker::start`] otherwise.

mod attempt;
mod calls;
mod context;
mod desk;
mod failure;
mod hooks;
mod lease;
mod ledger;
mod profile;
mod scratch;
mod settings;
pub mod slot;
mod stream;
mod supervise;
mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use context::{
    CHILDREN_PAGE_MAX, Child, ChildJob, Children, Context, FileFacts, Finalize, Input, Level, Policy, Stored,
};
pub use failure::{Failure, kind};
pub use hooks::{Ended, Hooks, Metrics, Run};
pub use profile::{PROFILES, Profile};
pub use settings::{SLOTS_MAX, Settings};
pub use slot::SlotCommand;
pub use task::{Ending, Place, Registry, Task};
pub use worker::{Setup, Worker};
