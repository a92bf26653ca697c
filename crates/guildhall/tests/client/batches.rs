//! Pictures in, models out, with everything that may break on the way.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    run::{Ended, Person},
    server::Server,
};

const PICTURES: [&str; 4] = ["cat.png", "broken.jpg", "dög (2).webp", "last.gif"];

#[test]
fn pictures_go_up_become_models_and_come_down_under_safe_names() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&PICTURES);
    let args =
        [["batch", "submit"].as_slice(), &PICTURES, &["--watch", "--out", "models", "--size-mm", "80", "--invert"]];
    let output = person.run(&args.concat());
    assert_eq!(output.code, 1, "one of them fails: {}", output.stderr);

    let submitted = server.script().submitted[0].clone();
    let ids = ["file-0", "file-1", "file-2", "file-3"];
    let args = json!({ "file_ids": ids, "params": { "size_mm": 80.0, "invert": true } });
    assert_eq!(submitted, json!({ "task": "process_batch", "args": args }));

    let directory = person.home.path().join("models");
    let found: BTreeSet<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let expected =
        ["001-cat", "003-dög-2", "004-last"].iter().flat_map(|stem| [format!("{stem}.glb"), format!("{stem}.png")]);
    assert_eq!(found, expected.chain(["manifest.json".into(), "contact-sheet.png".into()]).collect());
    assert_eq!(std::fs::read_to_string(directory.join("004-last.glb")).unwrap(), "model of last.gif");
    assert_eq!(std::fs::read_to_string(directory.join("004-last.png")).unwrap(), "preview of last.gif");

    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["name", "state", "seconds", "triangles", "bytes"]);
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["cat.png", "succeeded", "1.5", "130,050", "2,345,678"]
    );
    for said in [
        "4 models · 3 succeeded · 1 failed · 1 min 05 s",
        "broken.jpg  invalid_input: The picture ends early.",
        "models/manifest.json",
    ] {
        assert!(output.stdout.contains(said), "{said:?} is not in\n{}", output.stdout);
    }
    assert!(output.stderr.contains("[4/4] succeeded last.gif"), "{}", output.stderr);
    assert!(!output.stdout.contains('\u{1b}') && !output.stderr.contains('\u{1b}'), "colours in a pipe");
}

#[test]
fn a_batch_without_a_failure_ends_with_0_and_one_json_document() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png"]);
    let output = person.run(&["batch", "submit", "cat.png", "--watch", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let summary = output.json();
    assert_eq!((&summary["batch_id"], &summary["counts"]["succeeded"]), (&json!("batch-1"), &json!(1)));
    assert_eq!(summary["models"][0]["model_file_id"], "model-0");
}

#[test]
fn without_watching_the_id_is_all_that_a_pipe_gets_and_it_can_be_watched_by_it() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png"]);
    let output = person.run(&["batch", "submit", "cat.png"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "job-1\n"));
    for id in ["job-1", "batch-1"] {
        let output = person.run(&["batch", "watch", id, "--quiet"]);
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "batch-1\n", ""));
    }
}

#[test]
fn a_stream_that_breaks_again_and_again_is_heard_whole_and_once() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&PICTURES);
    person.run(&[["batch", "submit"].as_slice(), &PICTURES].concat());
    {
        let mut script = server.script();
        script.cuts = [3, 1, 0, 5].into();
        script.cuts_end_tokens = true;
    }
    let output = person.run(&["batch", "watch", "batch-1", "--json"]);
    let lines: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, events) = lines.split_last().unwrap();
    let offsets: Vec<_> = events.iter().map(|event| event["id"].as_str().unwrap().parse::<usize>().unwrap()).collect();
    assert_eq!(offsets, (1..=events.len()).collect::<Vec<_>>());
    assert_eq!(summary["data"]["counts"]["total"], 4);
    let script = server.script();
    let resumed: Vec<_> = script.resumed.iter().map(Option::as_deref).collect();
    assert_eq!(resumed, [None, Some("3"), Some("4"), Some("4"), Some("9")]);
    assert_eq!((script.refreshes, script.spent), (4, 0), "each break ended the token too");
}

#[test]
fn an_upload_whose_answer_is_lost_is_not_stored_twice() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png", "dog.png"]);
    server.script().loses_an_answer = true;
    assert_eq!(person.run(&["file", "upload", "cat.png", "dog.png"]).code, 0);
    let script = server.script();
    assert_eq!((script.uploads.as_slice(), script.files.len()), ([2].as_slice(), 2));
}

#[test]
fn many_pictures_go_up_in_bounded_groups() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let names: Vec<String> = (0..40).map(|number| format!("{number}.png")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    person.pictures(&names);
    let output = person.run(&[["batch", "submit", "--watch", "--json"].as_slice(), &names].concat());
    assert_eq!(server.script().uploads, [32, 8]);
    let told: Vec<_> = output.json()["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    assert_eq!(told, names, "in the order they were given");
}

#[test]
fn ctrl_c_where_nobody_can_be_asked_leaves_the_batch_running() {
    let server = Server::start();
    server.script().holds = true;
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png"]);
    let mut child = person.command(&["batch", "submit", "cat.png", "--watch"]).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.starts_with("Submitted")));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let rest: Vec<_> = said.collect();
    let output = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(output.code, 130);
    assert!(rest.iter().any(|line| line.contains("guildhall batch watch job-1")), "{rest:?}");
    assert!(server.script().cancelled.is_empty());
}

#[test]
fn a_batch_is_retried_by_its_id_or_its_jobs() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    person.pictures(&["cat.png"]);
    assert_eq!(person.run(&["batch", "submit", "cat.png", "--watch"]).code, 0);
    let output = person.run(&["batch", "retry", "batch-1"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout.trim(), "batch-1 is finished: 1 succeeded.");
    assert_eq!(person.run(&["batch", "retry", "job-1", "--state", "failed", "--state", "cancelled"]).code, 0);
    assert_eq!(person.run(&["batch", "retry", "batch-1", "--state", "succeeded"]).code, 64);
    assert_eq!(server.script().retried, [json!({}), json!({ "states": ["failed", "cancelled"] })]);
}
