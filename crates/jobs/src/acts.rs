//! What `jobs` writes into the audit log: its table of acts. What the engine does by itself is no act, but for the cancel of a
//! schedule's run that a later one replaces, which is `system`'s; nor is handing jobs in: `jobs.job.submitted` tells of that.
//! An act that found everything done already, as pausing a paused queue, changes nothing and leaves no entry.

use kit::audit::Action;

/// The type of the entries' events.
pub(crate) const RECORDED: &str = "jobs.act.recorded";

pub(crate) static CANCEL_JOB: Action = Action {
    name: "job.cancel",
    target: "job",
    fields: &["state"],
    when: "A job was asked to stop, or replaced by another of its unique key. Refused: another's, one that has ended.",
};
pub(crate) static RETRY_JOB: Action = Action {
    name: "job.retry",
    target: "job",
    fields: &["state"],
    when: "A job that had ended was queued again. Refused: another's, one in no state for it.",
};
pub(crate) static CANCEL_BATCH: Action = Action {
    name: "batch.cancel",
    target: "batch",
    fields: &["is_cancel_asked"],
    when: "A batch was asked to stop; its jobs, or the job that fans it out, have no entries of their own. Refused: \
           another's, one that has ended.",
};
pub(crate) static RETRY_BATCH: Action = Action {
    name: "batch.retry",
    target: "batch",
    fields: &["retried", "state"],
    when: "Jobs of a batch that had ended were queued again, by the states in `retried`; they have no entries of their own. \
           Refused: another's, one in no state for it.",
};
pub(crate) static PAUSE_QUEUE: Action =
    Action { name: "queue.pause", target: "queue", fields: &["is_paused"], when: "A queue gives out no more jobs." };
pub(crate) static RESUME_QUEUE: Action =
    Action { name: "queue.resume", target: "queue", fields: &["is_paused"], when: "A queue gives out jobs again." };
pub(crate) static LIMIT_QUEUE: Action = Action {
    name: "queue.limit",
    target: "queue",
    fields: &[
        "concurrency",
        "key_concurrency",
        "rate_starts",
        "rate_milliseconds",
        "key_rate_starts",
        "key_rate_milliseconds",
        "share",
    ],
    when: "What a queue allows was changed: how much runs at once, how often it starts, how it is shared.",
};
pub(crate) static LIMIT_TASK: Action = Action {
    name: "task.limit",
    target: "task",
    fields: &["concurrency"],
    when: "How much of a task may run at once was changed.",
};
pub(crate) static REMOVE_FILE: Action = Action {
    name: "file.remove",
    target: "file",
    fields: &["size_bytes"],
    when: "A file was removed. Refused: another's.",
};
pub(crate) static CREATE_SCHEDULE: Action =
    Action { name: "schedule.create", target: "schedule", fields: &[], when: "A schedule was made." };
pub(crate) static UPDATE_SCHEDULE: Action = Action {
    name: "schedule.update",
    target: "schedule",
    fields: &["is_timing_changed"],
    when: "A schedule was given another spec. Refused: another's.",
};
pub(crate) static REMOVE_SCHEDULE: Action = Action {
    name: "schedule.remove",
    target: "schedule",
    fields: &[],
    when: "A schedule was removed. Refused: another's.",
};
pub(crate) static PAUSE_SCHEDULE: Action = Action {
    name: "schedule.pause",
    target: "schedule",
    fields: &["is_paused"],
    when: "A schedule was paused; one that pauses itself leaves no entry. Refused: another's.",
};
pub(crate) static RESUME_SCHEDULE: Action = Action {
    name: "schedule.resume",
    target: "schedule",
    fields: &["is_paused"],
    when: "A schedule was resumed. Refused: another's.",
};
pub(crate) static RUN_SCHEDULE: Action = Action {
    name: "schedule.run",
    target: "schedule",
    fields: &["job_id"],
    when: "A schedule's job was run by hand. Refused: another's.",
};
pub(crate) static BACKFILL_SCHEDULE: Action = Action {
    name: "schedule.backfill",
    target: "schedule",
    fields: &["occurrences"],
    when: "Occurrences of a past span that had not run are run. Refused: another's.",
};

/// All of them.
pub static ACTS: [&Action; 16] = [
    &CANCEL_JOB,
    &RETRY_JOB,
    &CANCEL_BATCH,
    &RETRY_BATCH,
    &PAUSE_QUEUE,
    &RESUME_QUEUE,
    &LIMIT_QUEUE,
    &LIMIT_TASK,
    &REMOVE_FILE,
    &CREATE_SCHEDULE,
    &UPDATE_SCHEDULE,
    &REMOVE_SCHEDULE,
    &PAUSE_SCHEDULE,
    &RESUME_SCHEDULE,
    &RUN_SCHEDULE,
    &BACKFILL_SCHEDULE,
];
