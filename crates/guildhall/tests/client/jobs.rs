//! Single jobs, and what is said when one is refused or fails.

use serde_json::json;

use crate::{run::Person, server::Server};

#[test]
fn a_job_is_submitted_as_asked_and_its_id_is_what_a_pipe_gets() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    std::fs::write(person.home.path().join("args.json"), r#"{"value": 3}"#).unwrap();
    let options = ["--queue", "default", "--priority", "60", "--run-at", "2030-01-31T12:00:00Z", "--max-attempts", "5"];
    let tags = ["--tag", "a", "--tag", "b", "--args", "@args.json"];
    let output = person.run(&[["job", "submit", "demo_echo"].as_slice(), &options, &tags].concat());
    assert_eq!((output.code, output.stdout.as_str()), (0, "job-1\n"));
    let body = json!({ "task": "demo_echo", "args": { "value": 3 }, "queue": "default", "priority": 60,
        "run_at": "2030-01-31T12:00:00Z", "max_attempts": 5, "tags": ["a", "b"] });
    assert_eq!(server.script().submitted, [body]);
}

#[test]
fn a_unique_job_is_asked_for_as_said_and_the_one_that_is_there_is_told() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let how = ["--unique-hold", "waiting", "--unique-window", "60", "--on-conflict", "replace", "--unique-for-all"];
    let output = person.run(&[["job", "submit", "demo_echo", "--unique-key", "free"].as_slice(), &how].concat());
    assert_eq!((output.code, output.stdout.as_str()), (0, "job-1\n"));
    let unique = json!({ "hold": "waiting", "window_s": 60.0, "on_conflict": "replace", "for_all": true });
    let body = json!({ "task": "demo_echo", "args": {}, "unique_key": "free", "unique": unique });
    assert_eq!(server.script().submitted, [body]);
    let output = person.run(&["job", "submit", "demo_echo", "--unique-key", "held"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "job-1\n"));
    assert_eq!(output.stderr, "The job job-1 holds this key; no other was submitted.\n");
    assert_eq!(server.script().submitted[1], json!({ "task": "demo_echo", "args": {}, "unique_key": "held" }));
    let output = person.run(&["job", "show", "job-1"]);
    assert!(output.stdout.contains("unique key  held"), "{}", output.stdout);
}

#[test]
fn a_watched_job_ends_with_its_result() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let output = person.run_with_input(&["job", "submit", "demo_echo", "--args", "-", "--watch"], r#"{"value": "x"}"#);
    assert_eq!((output.code, output.json()), (0, json!({ "value": "x" })));
    assert!(
        output.stderr.contains("info  At it.") && output.stderr.contains("succeeded in 3.0 s"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_watched_job_that_fails_says_why_and_ends_with_1() {
    let server = Server::start();
    let output = Person::signed_in(&server).run(&["job", "submit", "demo_fail", "--watch"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.ends_with("provider: It was told to.\n"), "{}", output.stderr);
}

#[test]
fn watching_as_json_is_a_line_an_event_and_a_last_one_for_the_end() {
    let server = Server::start();
    let output = Person::signed_in(&server).run(&["job", "submit", "demo_fail", "--watch", "--json"]);
    let lines: Vec<serde_json::Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["state", "log", "state", "final"]);
    assert_eq!(lines[3]["data"]["error"]["kind"], "provider");
}

#[test]
fn a_refusal_shows_its_pointers_and_as_json_the_problem() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let output = person.run(&["job", "submit", "nothing"]);
    assert_eq!(output.code, 1);
    let said =
        "error: There is no such task.\n  /task: No worker offers it.\n  (jobs.unknown_task, request request-7)\n";
    assert_eq!(output.stderr, said);
    let output = person.run(&["job", "submit", "nothing", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["status"]), (&json!("jobs.unknown_task"), &json!(422)));
}

#[test]
fn wrong_usage_is_64_before_anything_is_sent() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    for wrong in [
        ["job", "submit", "demo_echo", "--args", "{"].as_slice(),
        &["job", "submit", "demo_echo", "--args", "[1]"],
        &["job", "submit", "demo_echo", "--priority", "101"],
        &["job", "submit", "demo_echo", "--on-conflict", "refuse"],
        &["job"],
        &["batch", "submit"],
        &["batch", "submit", "none.png"],
        &["batch", "submit", "none.png", "--out", "models"],
    ] {
        let output = person.run(wrong);
        assert_eq!(output.code, 64, "{wrong:?}: {}", output.stderr);
    }
    assert!(server.script().submitted.is_empty());
}
