//! The whole house, as people meet it: the real binary with its private Postgres, worker and children, started in a
//! directory of its own for each test, spoken to over its public API, killed where the test says so. What people do is
//! tried in both shapes: all roles in one process, and each in processes of its own (`place`).
//!
//! | file | promises |
//! |---|---|
//! | `main_job` | pictures become models, each fit to be printed; bad input fails alone; memory stays bounded |
//! | `faults` | whatever is killed and whenever, each job ends once and nothing is left behind |
//! | `schedules` | an occurrence runs once, wherever the process is killed that submits it |
//! | `administration` | who is kept out is out at once; every act is told once, to those who may read it; health is seen |
//! | `privacy` | nobody sees or does what is not theirs, on any route there is |
//! | `privacy_marks` | nothing given in confidence is in a log, a trace or a metric |
//! | `traces` | one request is one trace; a collector that does not answer holds up nothing |
//! | `parts` | the production shape: killed, stopped and asked one by one, it loses, doubles and lets in nothing |
//! | `life` | starting, stopping and being asked wrongly |
//!
//! `GUILDHALL_TEST_LONG` runs the long form: 200 pictures, some 3,800 mixed jobs and more kills. `GUILDHALL_TEST_SEED`
//! chooses the kills of `parts/mixed.rs`, as it prints.

#![expect(clippy::print_stdout, reason = "a test tells what it measured, and the log of a house that failed it")]

mod administration;
mod batches;
mod collector;
mod faults;
mod glb;
mod house;
mod life;
mod main_job;
mod parts;
mod person;
mod pictures;
mod place;
mod privacy;
mod privacy_marks;
mod schedules;
mod traces;
mod wait;

/// Whether this is the long form.
fn is_long() -> bool {
    variable("GUILDHALL_TEST_LONG").is_some()
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variables, which no service knows")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
