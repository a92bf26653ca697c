//! What a worker promises to whoever hands it work.

#[path = "support/tasks.rs"]
mod tasks;

use std::path::Path;

use proto::worker::{Failed, outcome::End};
use serde_json::{Value, json};
use worker::testing::{BATCH_ID, House, Shape};

fn house(shape: &Shape) -> House {
    House::new(shape, tasks::registry(), env!("CARGO_BIN_EXE_worker-test-slot"))
}

fn result_of(end: End) -> Value {
    match end {
        End::Succeeded(succeeded) => serde_json::from_str(&succeeded.result_json).expect("JSON"),
        other => panic!("it did not succeed: {other:?}"),
    }
}

fn failure_of(end: End) -> Failed {
    match end {
        End::Failed(failed) => failed,
        other => panic!("it did not fail: {other:?}"),
    }
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_what_it_offers_and_gives_credit_for_its_slots() {
    let mut house = house(&Shape { slots: 3, ..Shape::default() });
    let mut jobs = house.accept().await;
    assert_eq!((jobs.hello.profile.as_str(), jobs.hello.slots), ("all", 3));
    assert!(jobs.hello.tasks.iter().any(|task| task.name == "echo" && task.schema_json.contains("object")));
    jobs.read_until(|jobs| jobs.credit == 3).await;
    let echo = jobs.assign("a", "echo", json!({ "value": 7 })).await;
    assert_eq!(result_of(jobs.outcome(&echo).await), json!({ "value": 7 }));
    jobs.read_until(|jobs| jobs.credit == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_reads_and_stores_files_through_its_worker_and_leaves_no_scratch() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    house.add_file("f1", "../name.bin", b"abc").await;
    let mut jobs = house.accept().await;
    let copy = jobs.assign("a", "copy", json!({ "file_id": "f1" })).await;
    let End::Succeeded(succeeded) = jobs.outcome(&copy).await else { panic!("it succeeds") };
    let written = &succeeded.files[0];
    let row = house.files.lock().rows[&written.file_id].clone();
    assert_eq!((row.name.as_str(), written.size_bytes), ("twice.bin", 6));
    assert_eq!(jobs.logs, ["read ../name.bin"]);
    let to = house.folder.path().join("copy");
    house.storage.download_to(&row.storage_key, &to).await.expect("the object");
    assert_eq!(std::fs::read(to).expect("a file"), b"abcabc");

    jobs.read_until(|jobs| jobs.credit == 2).await;
    assert_eq!(house.scratch_leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_fails_its_attempt_alone_as_not_found() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    let copy = jobs.assign("a", "copy", json!({ "file_id": "missing" })).await;
    let failed = failure_of(jobs.outcome(&copy).await);
    assert_eq!((failed.kind.as_str(), failed.retryable), ("not_found", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hog_ends_with_memory_exceeded_while_its_neighbour_goes_on() {
    let mut house = house(&Shape { slots: 2, ..Shape::default() });
    let mut jobs = house.accept().await;
    let neighbour = jobs.assign("neighbour", "spin", json!({})).await;
    let pid = jobs.started(&neighbour).await;
    let hog = jobs.assign("hog", "hog", json!({ "mib": 1000 })).await;
    let failed = failure_of(jobs.outcome(&hog).await);
    assert_eq!((failed.kind.as_str(), failed.retryable), ("memory_exceeded", false));
    assert!(failed.message.contains("64 MiB"), "{}", failed.message);
    assert!(is_alive(&pid));
    let small = jobs.assign("small", "hog", json!({ "mib": 8 })).await;
    assert_eq!(result_of(jobs.outcome(&small).await), json!({ "mib": 8 }));
    assert!(is_alive(&pid));
    jobs.stop(&neighbour, "cancel").await;
    assert!(matches!(jobs.outcome(&neighbour).await, End::Stopped(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_spin_is_killed_and_its_slot_serves_the_next() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    let spin = jobs.assign("a", "spin", json!({})).await;
    let pid = jobs.started(&spin).await;
    assert!(is_alive(&pid));
    jobs.stop(&spin, "cancel").await;
    assert!(matches!(jobs.outcome(&spin).await, End::Stopped(_)));
    assert!(!is_alive(&pid), "the child is killed and reaped before its outcome is told");
    jobs.read_until(|jobs| jobs.credit == 2).await;
    let next = jobs.assign("b", "pid", json!({})).await;
    let next_pid = result_of(jobs.outcome(&next).await)["pid"].to_string();
    assert_ne!(next_pid, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_child_serves_one_attempt_after_another() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    let mut pids = Vec::new();
    for job in ["a", "b"] {
        let attempt = jobs.assign(job, "pid", json!({})).await;
        pids.push(result_of(jobs.outcome(&attempt).await)["pid"].clone());
    }
    assert_eq!(pids[0], pids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_in_the_workers_process_finds_its_scratch_empty_whatever_was_left_there() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    for (job, task) in [("a", "litter"), ("b", "litter"), ("c", "echo"), ("d", "litter")] {
        let attempt = jobs.assign(job, task, json!({ "found": 0 })).await;
        assert_eq!(result_of(jobs.outcome(&attempt).await)["found"], json!(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_dies_is_a_crash_that_is_tried_again_and_one_that_panics_is_replaced() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    let crash = jobs.assign("a", "crash", json!({})).await;
    let failed = failure_of(jobs.outcome(&crash).await);
    assert_eq!((failed.kind.as_str(), failed.retryable), ("worker_crashed", true));
    assert!(failed.message.contains("code 3"), "{}", failed.message);
    let panic = jobs.assign("b", "crash", json!({ "panic": true })).await;
    let failed = failure_of(jobs.outcome(&panic).await);
    assert_eq!((failed.kind.as_str(), failed.message.as_str()), ("internal", "The task panicked."));
    let after = jobs.assign("c", "pid", json!({})).await;
    result_of(jobs.outcome(&after).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_over_its_time_fails_as_timeout_wherever_it_runs() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    for task in ["spin", "wait", "deaf"] {
        let attempt = jobs.assign_with(task, task, json!({}), |assignment| assignment.timeout_s = 0.2).await;
        let failed = failure_of(jobs.outcome(&attempt).await);
        assert_eq!((failed.kind.as_str(), failed.retryable), ("timeout", true), "{task}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_told_again_on_the_next_stream_until_a_receipt_names_it() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    jobs.receipts = false;
    let echo = jobs.assign("a", "echo", json!(1)).await;
    result_of(jobs.outcome(&echo).await);
    drop(jobs);

    let mut jobs = house.accept().await;
    assert_eq!(jobs.hello.worker_id, "w1", "the worker comes back under its id");
    assert_eq!(result_of(jobs.outcome(&echo).await), json!(1));
    assert_eq!(jobs.heartbeats[0].holding, std::slice::from_ref(&echo), "what is not receipted is still held");
    let next = jobs.assign("b", "echo", json!(2)).await;
    assert_eq!(result_of(jobs.outcome(&next).await), json!(2));
    drop(jobs);

    let mut jobs = house.accept().await;
    jobs.read_until(|jobs| jobs.credit > 0).await;
    let again = jobs.outcomes.iter().find(|outcome| outcome.attempt.as_ref() == Some(&echo));
    assert_eq!(again, None, "its receipt came before the next assignment");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_over_a_broken_stream() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    let wait = jobs.assign("a", "wait", json!({})).await;
    jobs.started(&wait).await;
    drop(jobs);
    let mut jobs = house.accept().await;
    jobs.read_until(|jobs| jobs.credit > 0).await;
    assert_eq!(jobs.heartbeats[0].holding, std::slice::from_ref(&wait));
    assert_eq!(jobs.credit, 1, "the slot at work is not offered");
    jobs.stop(&wait, "cancel").await;
    assert!(matches!(jobs.outcome(&wait).await, End::Stopped(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_attempt_is_ended_at_once_and_reports_nothing() {
    let mut house = house(&Shape { slots: 1, grace_s: 60, ..Shape::default() });
    let mut jobs = house.accept().await;
    let spin = jobs.assign("a", "spin", json!({})).await;
    let pid = jobs.started(&spin).await;
    jobs.stop(&spin, "fenced").await;
    jobs.read_until(|jobs| jobs.credit == 2).await;
    assert_eq!(jobs.outcomes, []);
    assert!(!is_alive(&pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_learns_from_a_call_that_it_is_fenced_reports_nothing() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    jobs.assign("fenced", "fan", json!({})).await;
    jobs.read_until(|jobs| jobs.credit == 2).await;
    assert_eq!(jobs.outcomes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_fanned_out_is_suspended_on_its_batch() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    let fan = jobs.assign("a", "fan", json!({})).await;
    let End::Suspended(suspended) = jobs.outcome(&fan).await else { panic!("it is suspended") };
    assert_eq!(suspended.batch_id, BATCH_ID);
    let files = house.files.lock();
    assert_eq!(files.fan_outs[0].attempt, Some(fan));
    assert_eq!(files.fan_outs[0].jobs[0].args_json, r#"{"n":0}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_batch_adds_others_to_it_and_learns_their_ids() {
    let mut house = house(&Shape::default());
    let mut jobs = house.accept().await;
    let grow = jobs.assign("a", "grow", json!({})).await;
    let End::Succeeded(succeeded) = jobs.outcome(&grow).await else { panic!("it succeeds") };
    assert_eq!(succeeded.result_json, r#"{"job_ids":["sibling-0","sibling-3"]}"#);
    let asked = house.files.lock().siblings.remove(0);
    assert_eq!(asked.attempt, Some(grow));
    let jobs: Vec<_> =
        asked.jobs.iter().map(|job| (job.number, job.args_json.as_str(), job.after.as_slice())).collect();
    assert_eq!(jobs, [(0, r#"{"n":7}"#, [].as_slice()), (3, r#"{"n":7}"#, [0].as_slice())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_heartbeats_end_every_attempt_before_the_lease_does() {
    let mut house = house(&Shape { slots: 1, lease_s: 3.0, ..Shape::default() });
    let mut jobs = house.accept().await;
    let spin = jobs.assign("a", "spin", json!({})).await;
    let pid = jobs.started(&spin).await;
    jobs.renews = false;
    // The worker gives the stream up as well, and comes back with nothing in its hands.
    assert_eq!(jobs.read_to_end().await, []);
    let mut jobs = house.accept().await;
    jobs.read_until(|jobs| jobs.credit > 0).await;
    assert_eq!(jobs.outcomes, []);
    assert_eq!(jobs.heartbeats[0].holding, []);
    assert!(!is_alive(&pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_takes_no_more_waits_and_gives_back_what_does_not_end() {
    let mut house = house(&Shape { slots: 3, drain_s: 0, ..Shape::default() });
    let mut jobs = house.accept().await;
    let spin = jobs.assign("a", "spin", json!({})).await;
    let wait = jobs.assign("b", "wait", json!({})).await;
    jobs.started(&spin).await;
    jobs.started(&wait).await;
    house.tasks.stop();
    for attempt in [spin, wait] {
        assert!(matches!(jobs.outcome(&attempt).await, End::Interrupted(_)));
    }
    assert!(jobs.heartbeats.iter().any(|heartbeat| heartbeat.draining));
    assert_eq!(jobs.read_to_end().await, []);
    house.worker.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_lets_what_runs_reach_its_end_and_returns_late_assignments() {
    let mut house = house(&Shape { slots: 2, ..Shape::default() });
    let mut jobs = house.accept().await;
    let wait = jobs.assign("a", "wait", json!({})).await;
    jobs.started(&wait).await;
    house.tasks.stop();
    jobs.read_until(|jobs| jobs.heartbeats.iter().any(|heartbeat| heartbeat.draining)).await;
    let late = jobs.assign("b", "echo", json!(1)).await;
    assert!(matches!(jobs.outcome(&late).await, End::Interrupted(_)));
    jobs.stop(&wait, "cancel").await;
    assert!(matches!(jobs.outcome(&wait).await, End::Stopped(_)));
    jobs.read_to_end().await;
    house.worker.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_is_credit_for_is_given_back() {
    let mut house = house(&Shape { slots: 1, ..Shape::default() });
    let mut jobs = house.accept().await;
    let wait = jobs.assign("a", "wait", json!({})).await;
    let more = jobs.assign_anyway("b", "echo", json!(1), |_| {}).await;
    assert!(matches!(jobs.outcome(&more).await, End::Interrupted(_)));
    jobs.stop(&wait, "cancel").await;
    jobs.outcome(&wait).await;
}
