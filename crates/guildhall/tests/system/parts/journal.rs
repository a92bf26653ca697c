//! Journals in files, outside of everything that is tested: what clients asked and were told, and what tasks did. A line is
//! one write at the end of its file, so that several processes may write into one, and whoever is killed has written a line
//! whole or not at all. It is not forced to the disk: it is processes that die here, and not the machine.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A journal that is open for writing.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    pub(super) fn open(path: &Path) -> Self {
        Self(File::options().create(true).append(true).open(path).expect("a file"))
    }

    /// Writes a line down; the time is added to it, in microseconds.
    pub(super) fn write(&self, mut line: Value) {
        line["at"] = kit::Clock::system().now().timestamp_micros().into();
        // One call, which the kernel appends as one.
        (&self.0).write_all(format!("{line}\n").as_bytes()).expect("the journal takes it");
    }
}

/// All that was written so far.
pub(super) fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

/// The journals of one test.
#[derive(Debug)]
pub(super) struct Journals {
    _dir: tempfile::TempDir,
    /// Of the clients: each request before it is made, each answer, and what the test has killed.
    pub(super) asked: PathBuf,
    /// Of the tasks: each attempt's start and end.
    pub(super) done: PathBuf,
}

impl Journals {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (asked, done) = (dir.path().join("asked"), dir.path().join("done"));
        Self { _dir: dir, asked, done }
    }
}

/// An attempt by the journal of the tasks.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) job: String,
    pub(super) number: u64,
    /// Differs between any two runs of a task.
    pub(super) stamp: String,
    pub(super) pid: u64,
    /// For each span, microseconds: from its start to its end, or to the death of its process.
    pub(super) from: i64,
    pub(super) until: i64,
    /// How the task ended; nothing where it did not.
    pub(super) said: Option<String>,
}

/// The attempts that were run, by their start. `deaths` says when each process that was killed had died.
pub(super) fn attempts(done: &[Value], deaths: &[(u64, i64)]) -> Vec<Attempt> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let at = |line: &Value| line["at"].as_i64().expect("a time");
    let ends = done.iter().filter(|line| line["event"] == "end");
    let ends: HashMap<String, &Value> = ends.map(|line| (text(line, "stamp"), line)).collect();
    let begun = done.iter().filter(|line| line["event"] == "start").map(|start| {
        let stamp = text(start, "stamp");
        let pid = start["pid"].as_u64().expect("a number");
        let death = deaths.iter().find(|(dead, _)| *dead == pid).map(|(_, at)| *at);
        let end = ends.get(&stamp);
        let until = end.map(|line| at(line)).or(death);
        Attempt {
            job: text(start, "job"),
            number: start["attempt"].as_u64().expect("a number"),
            pid,
            from: at(start),
            until: until.unwrap_or_else(|| panic!("an attempt ended without a word: {start}")),
            said: end.map(|line| text(line, "said")),
            stamp,
        }
    });
    let mut begun: Vec<Attempt> = begun.collect();
    begun.sort_by_key(|attempt| attempt.from);
    begun
}

/// The processes that have an attempt at work, as far as their journal goes.
pub(super) fn at_work(done: &[Value]) -> HashSet<u64> {
    let ended: HashSet<&Value> = done.iter().filter(|line| line["event"] == "end").map(|line| &line["stamp"]).collect();
    let begun = done.iter().filter(|line| line["event"] == "start" && !ended.contains(&line["stamp"]));
    begun.filter_map(|line| line["pid"].as_u64()).collect()
}

/// How many of these were at work at once, at most.
pub(super) fn most_at_once<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> usize {
    // At one instant an end comes before a start.
    let mut turns: Vec<(i64, i32)> =
        attempts.flat_map(|attempt| [(attempt.from, 1), (attempt.until.max(attempt.from), -1)]).collect();
    turns.sort_unstable();
    let mut at_once = 0;
    let counts = turns.into_iter().map(|(_, turn)| {
        at_once += turn;
        at_once
    });
    usize::try_from(counts.max().unwrap_or(0)).expect("no more end than have begun")
}

#[test]
fn what_was_at_work_at_once_is_counted_from_starts_to_ends_and_deaths() {
    let line = |event: &str, stamp: &str, pid: u64, at: i64| serde_json::json!({ "event": event, "job": "j", "attempt": 1, "stamp": stamp, "pid": pid, "at": at, "said": "done" });
    let done =
        [line("start", "a", 1, 10), line("start", "b", 2, 20), line("end", "b", 2, 30), line("start", "c", 2, 30)];
    let attempts = attempts(&done, &[(1, 25), (2, 40)]);
    let spans: Vec<_> = attempts.iter().map(|attempt| (attempt.from, attempt.until)).collect();
    assert_eq!(spans, [(10, 25), (20, 30), (30, 40)]);
    assert_eq!(most_at_once(attempts.iter()), 2);
    assert_eq!(most_at_once(attempts[1..].iter()), 1);
}
