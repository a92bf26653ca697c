//! Clients that ask for work of every kind, write down what they ask before they do and what they are told after, and ask
//! again under the same key until somebody answers. A new kind of job is one more line in [`KINDS`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    journal::{Journal, Journals},
    journalist::TASK,
};
use crate::{
    person::Person,
    wait::{SOON, until},
};

/// One kind of work.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Where the nth is asked for, and how.
    asks: fn(u64) -> (&'static str, Value),
    /// Whether its client thinks better of it as soon as it was accepted.
    is_cancelled: bool,
    /// How many of one client's may be at work at once.
    pub(super) at_once_max: Option<usize>,
    /// Whether several requests may be answered by one job.
    is_shared: bool,
}

const KIND: Kind = Kind {
    name: "succeeds",
    asks: |n| job(&json!({ "n": n })),
    is_cancelled: false,
    at_once_max: None,
    is_shared: false,
};

pub(super) const KINDS: &[Kind] = &[
    KIND,
    Kind { name: "fails once", asks: |n| job(&json!({ "n": n, "fails": 1 })), ..KIND },
    Kind { name: "batch", asks: batch, ..KIND },
    Kind { name: "chain", asks: chain, ..KIND },
    Kind { name: "one at a time", asks: keyed, at_once_max: Some(1), ..KIND },
    Kind { name: "unique", asks: unique, at_once_max: Some(1), is_shared: true, ..KIND },
    Kind { name: "gives up", asks: |n| job(&json!({ "n": n, "gives_up": true })), ..KIND },
    Kind { name: "slow", asks: |n| job(&json!({ "n": n, "seconds": 2 })), ..KIND },
    Kind { name: "cancelled", asks: |n| job(&json!({ "n": n, "seconds": 60 })), is_cancelled: true, ..KIND },
    Kind { name: "of a child", asks: |_| ("/api/v1/jobs", of("demo_spin", &json!({ "seconds": 0.2 }))), ..KIND },
];

/// Seconds between two occurrences of the schedule.
pub(super) const EVERY_S: i64 = 2;
/// What the schedule's jobs are known by.
pub(super) const SCHEDULED: &str = "scheduled";
/// Each so manieth answer is taken for lost, and asked for again.
const LOST: u64 = 5;

/// A job that is tried until it has ended by itself: what is killed must not use its attempts up.
fn of(task: &str, args: &Value) -> Value {
    let backoff = json!({ "kind": "fixed", "seconds": 0.2 });
    json!({ "task": task, "args": args, "max_attempts": 50, "backoff": backoff })
}

fn job(args: &Value) -> (&'static str, Value) {
    ("/api/v1/jobs", of(TASK, args))
}

/// Jobs of which there is one at a time; who asks meanwhile is told of that one.
fn unique(n: u64) -> (&'static str, Value) {
    let (path, mut body) = job(&json!({ "n": n, "seconds": 1 }));
    body["unique_key"] = json!("the report");
    (path, body)
}

/// Jobs under one key, of which one runs at a time.
fn keyed(n: u64) -> (&'static str, Value) {
    let (path, mut body) = job(&json!({ "n": n, "seconds": 0.5 }));
    body["concurrency_key"] = json!("the disk");
    (path, body)
}

fn batch(n: u64) -> (&'static str, Value) {
    let args = [json!({ "n": n }), json!({ "n": n, "gives_up": true }), json!({ "n": n, "fails": 1 })];
    let jobs = args.map(|args| of(TASK, &args));
    ("/api/v1/batches", json!({ "jobs": jobs, "finalize": { "task": TASK, "args": { "n": n } } }))
}

/// One after another, of which the second fails, so that the third never starts.
fn chain(n: u64) -> (&'static str, Value) {
    let (path, mut body) = batch(n);
    for (later, earlier) in [(1, "#0"), (2, "#1")] {
        body["jobs"][later]["after"] = json!([earlier]);
    }
    (path, body)
}

/// Somebody who asks.
pub(super) struct Client {
    pub(super) person: Person,
    journal: Journal,
    asked: u64,
    /// Counts what anybody was answered.
    answered: Arc<watch::Sender<usize>>,
}

impl Client {
    pub(super) fn new(person: Person, journals: &Journals, answered: &Arc<watch::Sender<usize>>) -> Self {
        let journal = Journal::open(&journals.asked);
        Self { person: person.patient(), journal, asked: 0, answered: Arc::clone(answered) }
    }

    /// Asks for so many things, one after another, of each kind in turn.
    pub(super) async fn ask(&mut self, count: usize) {
        for _ in 0..count {
            let n = self.asked;
            self.asked += 1;
            let kind = &KINDS[usize::try_from(n).expect("it is small") % KINDS.len()];
            let (path, body) = (kind.asks)(n);
            let id = self.ask_once(kind.name, path, &body, n).await;
            if n.is_multiple_of(LOST) {
                self.ask_once(kind.name, path, &body, n).await;
            }
            if kind.is_cancelled {
                let answer = self.person.post(&format!("{path}/{id}/cancel"), &json!({})).await;
                // What was cancelled before its answer was lost has ended.
                assert!([202, 409].contains(&answer.status.as_u16()), "{:#}", answer.body);
                self.journal.write(json!({ "event": "cancelled", "by": self.person.id, "id": id }));
            }
            self.answered.send_modify(|count| *count += 1);
        }
    }

    /// One request under the key of its own, until it was answered; the id that was given.
    async fn ask_once(&self, kind: &str, path: &str, body: &Value, n: u64) -> String {
        let key = format!("{}-{n}", self.person.id);
        self.journal.write(json!({ "event": "asks", "by": self.person.id, "key": key, "kind": kind, "path": path }));
        let answer = until(&format!("an answer to {key}"), SOON, async || {
            let answer = self.person.post_as(path, body, &key).await;
            // An earlier try of the same may still be at work somewhere.
            (answer.body["code"] != "idempotency.in_flight").then_some(answer)
        })
        .await;
        assert!(answer.status.is_success(), "{key}: {:#}", answer.body);
        let id = answer.body["id"].as_str().expect("an id").to_owned();
        self.journal.write(json!({
            "event": "answered", "by": self.person.id, "key": key, "kind": kind, "path": path, "id": id,
        }));
        id
    }

    /// Makes a schedule, and waits for its first run; the id, and when that was due.
    pub(super) async fn schedule(&self) -> (String, String) {
        let mut job = of(TASK, &json!({ "n": 0 }));
        job["tags"] = json!([SCHEDULED]);
        let asked = json!({ "every_s": EVERY_S, "missed": "all", "missed_max": 1000, "overlap": "allow", "job": job });
        let made = self.person.post("/api/v1/schedules", &asked).await.expect(201);
        let id = made["id"].as_str().expect("an id").to_owned();
        let first = until("the first run", SOON, async || Some(self.runs(&id).await.last()?.0.clone())).await;
        (id, first)
    }

    /// The newest runs of a schedule, the newest first: when each was due, and its job.
    pub(super) async fn runs(&self, id: &str) -> Vec<(String, String)> {
        let schedule = self.person.get(&format!("/api/v1/schedules/{id}")).await.expect(200);
        let runs = schedule["runs"].as_array().expect("runs").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        runs.iter().map(|run| (text(&run["occurrence_at"]), text(&run["job_id"]))).collect()
    }

    /// Ends the schedule once another occurrence has come; the newest run.
    pub(super) async fn end_schedule(&self, id: &str) -> Vec<(String, String)> {
        let before = self.runs(id).await;
        until("another run", SOON, async || (self.runs(id).await.first() != before.first()).then_some(())).await;
        self.person.post(&format!("/api/v1/schedules/{id}/pause"), &json!({})).await.expect(200);
        self.runs(id).await
    }
}

/// What was accepted, by the clients' journal alone.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Each job and batch that a client was told of: whose it is, and of which kind.
    pub(super) ids: BTreeMap<String, (String, String)>,
    pub(super) cancelled: BTreeSet<String>,
    /// Processes of ours that were killed, and when they had died.
    pub(super) deaths: Vec<(u64, i64)>,
}

impl Accepted {
    /// # Panics
    /// Something was asked and never answered, or one key was answered by two ids.
    pub(super) fn read(asked: &Path) -> Self {
        let mut accepted = Self::default();
        let mut by_key: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut kinds: BTreeMap<String, String> = BTreeMap::new();
        for line in super::journal::read(asked) {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            match line["event"].as_str() {
                Some("asks") => {
                    by_key.entry(text("key")).or_default();
                    kinds.insert(text("key"), text("kind"));
                }
                Some("answered") => {
                    let known = by_key.get_mut(&text("key")).expect("it was asked").get_or_insert_with(|| text("id"));
                    assert_eq!(*known, text("id"), "{} was answered in two ways", text("key"));
                    accepted.ids.insert(text("id"), (text("by"), text("kind")));
                }
                Some("cancelled") => {
                    accepted.cancelled.insert(text("id"));
                }
                Some("died") => {
                    let number = |name: &str| line[name].as_i64().expect("a number");
                    accepted.deaths.push((number("pid").unsigned_abs(), number("at")));
                }
                _ => panic!("a line of nobody's: {line}"),
            }
        }
        let unanswered: Vec<_> = by_key.iter().filter(|(_, id)| id.is_none()).map(|(key, _)| key).collect();
        assert!(unanswered.is_empty(), "nobody answered {unanswered:?}");
        let is_shared = |kind: &str| KINDS.iter().any(|known| known.name == kind && known.is_shared);
        let alone = kinds.iter().filter(|(_, kind)| !is_shared(kind)).count();
        let answers = accepted.ids.values().filter(|(_, kind)| !is_shared(kind)).count();
        assert_eq!(alone, answers, "two keys were answered by one id");
        accepted
    }
}
