//! The reckoning at the end of a run: what clients were told and what tasks have done, by their journals, is held against
//! what the public API shows. Nothing here looks into the database.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{
    clients::{Accepted, Client, KINDS},
    journal::{self, Attempt, Journals, most_at_once},
    journalist::{SLOTS, TASK},
};
use crate::wait::until;

/// A job whose worker was lost so often while it was at work is left alone.
const CRASHES_MAX: usize = 3;
/// What a client asks for at a time.
const AT_ONCE: usize = 8;

/// How many of what there were.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) jobs: usize,
    pub(super) batches: usize,
    pub(super) attempts: usize,
    /// Attempts that did not count, and their job ran again.
    pub(super) fenced: usize,
    /// Jobs that were given up after their worker was lost again and again.
    pub(super) given_up: usize,
}

/// Waits until nothing of a client's is at work any more. What is stuck is named.
pub(super) async fn all_has_ended(client: &Client, limit: Duration) {
    for state in ["waiting", "scheduled", "queued", "running", "suspended", "cancelling"] {
        until(&format!("the end of what is {state}"), limit, async || {
            let page = client.person.get(&format!("/api/v1/jobs?state={state}&limit=1")).await.expect(200);
            page["items"].as_array().expect("items").is_empty().then_some(())
        })
        .await;
    }
}

/// All of the jobs that a client has, as the API shows them, each with its attempts by their numbers.
pub(super) async fn jobs_of(client: &Client) -> Vec<(Value, BTreeMap<u64, String>)> {
    let jobs = client.person.list("/api/v1/jobs").await;
    let with_attempts = stream::iter(jobs).map(|job| async move {
        let path = format!("/api/v1/jobs/{}/attempts", text(&job, "id"));
        let attempts = client.person.list(&path).await;
        let number = |attempt: &Value| attempt["number"].as_u64().expect("a number");
        let outcome = |attempt: &Value| match attempt["error"]["kind"].as_str() {
            Some(kind) => format!("{} {kind}", text(attempt, "outcome")),
            None => text(attempt, "outcome"),
        };
        let by_number: BTreeMap<u64, String> = attempts.iter().map(|one| (number(one), outcome(one))).collect();
        assert_eq!(by_number.len(), attempts.len(), "an attempt has two ends: {attempts:#?}");
        (job, by_number)
    });
    with_attempts.buffer_unordered(AT_ONCE).collect().await
}

/// Holds everything against everything. `scheduled` are the jobs that belong to a schedule, of which clients knew nothing
/// beforehand.
pub(super) async fn reckon(clients: &[Client], journals: &Journals, scheduled: &BTreeSet<String>) -> Totals {
    let accepted = Accepted::read(&journals.asked);
    let attempts = journal::attempts(&journal::read(&journals.done), &accepted.deaths);
    let mut totals = Totals { attempts: attempts.len(), ..Totals::default() };
    let mut by_job: HashMap<&str, Vec<&Attempt>> = HashMap::new();
    let mut by_process: HashMap<u64, Vec<&Attempt>> = HashMap::new();
    for attempt in &attempts {
        by_job.entry(&attempt.job).or_default().push(attempt);
        by_process.entry(attempt.pid).or_default().push(attempt);
    }
    for (pid, attempts) in by_process {
        assert!(most_at_once(attempts.into_iter()) <= SLOTS, "the process {pid} had more at work than it has slots");
    }
    let mut shown = BTreeSet::new();
    for client in clients {
        let jobs = jobs_of(client).await;
        let mut by_batch: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        let mut counting: HashMap<&str, Vec<&Attempt>> = HashMap::new();
        let by_id: HashMap<String, &Value> = jobs.iter().map(|(job, _)| (text(job, "id"), job)).collect();
        for (job, ends) in &jobs {
            let (id, batch) = (text(job, "id"), text(job, "batch_id"));
            let is_known =
                accepted.ids.contains_key(&id) || accepted.ids.contains_key(&batch) || scheduled.contains(&id);
            assert!(is_known, "nobody asked for {job:#}");
            let run = by_job.remove(id.as_str()).unwrap_or_default();
            let before: Vec<&Value> = after(job).iter().map(|id| by_id[id]).collect();
            check_order(job, &before, &run, &attempts);
            let is_met = before.iter().all(|before| before["state"] == "succeeded");
            let is_cancelled = accepted.cancelled.contains(&id) || !is_met;
            check_job(job, ends, &run, is_cancelled, &mut totals);
            if let Some((_, kind)) = accepted.ids.get(&id) {
                let of_kind = counting.entry(kind.as_str()).or_default();
                of_kind.extend(run.iter().copied().filter(|attempt| !is_fenced(attempt, ends)));
            }
            if !batch.is_empty() {
                by_batch.entry(batch).or_default().push(job);
            }
            shown.insert(id);
        }
        for (kind, at_once_max) in KINDS.iter().filter_map(|kind| Some((kind.name, kind.at_once_max?))) {
            let at_once = most_at_once(counting.remove(kind).unwrap_or_default().into_iter());
            assert!(at_once <= at_once_max, "{at_once} of `{kind}` were at work at once");
        }
        for (id, jobs) in by_batch {
            let batch = client.person.get(&format!("/api/v1/batches/{id}")).await.expect(200);
            check_batch(&batch, &jobs);
            shown.insert(id);
            totals.batches += 1;
        }
        totals.jobs += jobs.len();
    }
    let lost: Vec<_> = accepted.ids.keys().filter(|id| !shown.contains(*id)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    assert!(by_job.is_empty(), "run for nobody: {by_job:?}");
    totals
}

/// One final state, which is the one that its task leads to, and one result, which is the accepted attempt's; no two
/// attempts at a time, unless the earlier was fenced.
fn check_job(job: &Value, ends: &BTreeMap<u64, String>, run: &[&Attempt], is_cancelled: bool, totals: &mut Totals) {
    let (id, state) = (text(job, "id"), text(job, "state"));
    let all = || format!("{job:#}\nends: {ends:#?}\nrun: {run:#?}");
    let is_lost = |end: &&String| ["failed heartbeat_lost", "failed worker_crashed"].contains(&end.as_str());
    let lost = ends.values().filter(is_lost).count();
    let may_end = match &state {
        _ if is_cancelled => state == "cancelled",
        _ if state == "failed" && job["error"]["kind"] == "worker_crashed" && lost >= CRASHES_MAX => {
            totals.given_up += 1;
            true
        }
        _ if job["args"]["gives_up"] == true => state == "failed" && job["error"]["kind"] == "journal",
        _ => state == "succeeded",
    };
    assert!(may_end, "{id} ended as it may not: {}", all());
    let accepted: Vec<u64> = ends.iter().filter(|(_, end)| *end == "succeeded").map(|(number, _)| *number).collect();
    assert_eq!(accepted.len(), usize::from(state == "succeeded"), "{id} has not one result: {}", all());
    assert_eq!(ends.keys().copied().collect::<Vec<_>>(), (1..=ends.len() as u64).collect::<Vec<_>>(), "{}", all());

    if job["task"] != TASK {
        return;
    }
    if let Some(number) = accepted.first() {
        assert_eq!(job["result"]["attempt"], *number, "{}", all());
        let by = run.iter().find(|attempt| job["result"]["stamp"] == attempt.stamp);
        let is_so = by.is_some_and(|by| by.number == *number && by.said.as_deref() == Some("succeeded"));
        assert!(is_so, "{id} has a result that no attempt has reached: {}", all());
    }
    let mut numbers: Vec<u64> = run.iter().map(|attempt| attempt.number).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), run.len(), "an attempt of {id} ran twice: {}", all());
    totals.fenced += run.iter().filter(|attempt| is_fenced(attempt, ends)).count();
    for pair in run.windows(2) {
        let is_after = pair[1].from >= pair[0].until && pair[1].number > pair[0].number;
        assert!(is_after || is_fenced(pair[0], ends), "{id} was run twice at a time: {}", all());
    }
    let counted = most_at_once(run.iter().copied().filter(|attempt| !is_fenced(attempt, ends)));
    assert!(counted <= 1, "{id} had {counted} attempts that count at a time: {}", all());
}

/// The jobs that this one was to run after.
fn after(job: &Value) -> Vec<String> {
    let names = job["after"].as_array().expect("a list");
    names.iter().map(|name| name.as_str().expect("an id").to_owned()).collect()
}

/// What runs after others begins when their accepted attempts have ended, or never.
fn check_order(job: &Value, before: &[&Value], run: &[&Attempt], attempts: &[Attempt]) {
    for before in before {
        let all = || format!("{job:#}\nruns after {before:#}\nrun: {run:#?}");
        if before["state"] != "succeeded" {
            assert!(run.is_empty() && job["error"]["kind"] == "dependency", "{}", all());
            continue;
        }
        let accepted = attempts.iter().find(|attempt| before["result"]["stamp"] == attempt.stamp);
        let until = accepted.expect("it has run").until;
        assert!(run.iter().all(|attempt| attempt.from >= until), "{}", all());
    }
}

/// Whether the service had given the attempt up before it ended.
fn is_fenced(attempt: &Attempt, ends: &BTreeMap<u64, String>) -> bool {
    ends.get(&attempt.number).is_some_and(|end| end == "failed heartbeat_lost" || end == "interrupted")
}

/// One finalize, and its numbers, the batch's counters and what its jobs came to are the same.
fn check_batch(batch: &Value, jobs: &[&Value]) {
    let (finalizes, children): (Vec<&Value>, Vec<&Value>) =
        jobs.iter().copied().partition(|job| job["id"] == batch["finalize_job_id"]);
    assert_eq!((&batch["state"], finalizes.len()), (&json!("finished"), 1), "{batch:#}\n{jobs:#?}");
    let count = |state: &str| children.iter().filter(|job| job["state"] == state).count();
    let counts = &batch["counts"];
    let counted = json!({ "total": children.len(), "succeeded": count("succeeded"), "failed": count("failed") });
    assert_eq!(counts["cancelled"], count("cancelled"), "{batch:#}\n{jobs:#?}");
    for name in ["total", "succeeded", "failed"] {
        assert_eq!(counts[name], counted[name], "{batch:#}\n{jobs:#?}");
    }
    // Three children were asked for, and no finalize beside the one.
    assert_eq!(children.len(), 3, "{jobs:#?}");
    if finalizes[0]["state"] == "succeeded" {
        assert_eq!(finalizes[0]["result"]["counts"], counted, "{batch:#}\n{jobs:#?}");
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}
