//! The built-in tasks and their providers.
//!
//! ```text
//! process_batch      one job a picture, and one at the end      -> generate_3d_model, finalize_batch
//! generate_3d_model  one picture becomes one model              -> providers/<name>
//! finalize_batch     what a batch leaves behind                 -> archive, manifest, contact_sheet
//! demo               tasks to try the house with
//! samples            pictures that the project draws itself
//! ```
//!
//! A new task is one file that implements [`worker::Task`] and one line in [`registry`].

pub mod archive;
mod args;
pub mod contact_sheet;
mod demo;
mod finalize_batch;
mod generate_3d_model;
pub mod manifest;
mod process_batch;
pub mod providers;
pub mod samples;

use worker::Registry;

/// Every built-in task; those of [`demo`] only where they are asked for, since they misbehave on purpose.
#[must_use]
pub fn registry(demo_tasks: bool) -> Registry {
    let registry = Registry::new()
        .with(process_batch::ProcessBatch)
        .with(generate_3d_model::Generate3dModel)
        .with(finalize_batch::FinalizeBatch);
    if !demo_tasks {
        return registry;
    }
    registry.with(demo::Echo).with(demo::Sleep).with(demo::Fail).with(demo::Grow).with(demo::Spin).with(demo::Hog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_tasks_are_there_only_where_they_are_asked_for() {
        let names = |demo_tasks| registry(demo_tasks).iter().map(|task| task.name()).collect::<Vec<_>>();
        assert_eq!(names(false), ["finalize_batch", "generate_3d_model", "process_batch"]);
        assert!(names(true).contains(&"demo_hog"));
    }
}
