//! Schedules, as a person asks for them.

use serde_json::json;

use crate::{
    run::Person,
    server::{RUN, SCHEDULE, Server},
};

#[test]
fn a_schedule_is_asked_for_in_its_words_and_told() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let when = ["--cron", "0 9 * * *", "--time-zone", "Europe/Berlin", "--args", r#"{"value": 1}"#];
    let manners =
        ["--name", "at nine", "--missed", "all", "--missed-max", "7", "--overlap", "queue_all", "--queue-max", "8"];
    let more = ["--jitter", "9", "--pause-after-failures", "3", "--priority", "60", "--queue", "default", "--tag", "a"];
    let keys =
        ["--concurrency-key", "mill", "--unique-key", "daily", "--unique-hold", "waiting", "--on-conflict", "refuse"];
    let output = person.run(&[["schedule", "create", "demo_echo"].as_slice(), &when, &manners, &more, &keys].concat());
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.contains("when     0 9 * * * (Europe/Berlin)\n"), "{}", output.stdout);
    assert!(output.stdout.contains("skipped  3\n"), "{}", output.stdout);
    let run = format!("2026-01-01 08:00:00 UTC  due       {RUN}  succeeded\n");
    assert!(output.stdout.ends_with(&run), "{}", output.stdout);
    let job = json!({ "task": "demo_echo", "args": { "value": 1 }, "priority": 60, "queue": "default", "tags": ["a"],
        "concurrency_key": "mill", "unique_key": "daily", "unique": { "hold": "waiting", "on_conflict": "refuse" } });
    let body = json!({ "name": "at nine", "cron": "0 9 * * *", "time_zone": "Europe/Berlin", "missed": "all",
        "missed_max": 7, "overlap": "queue_all", "queue_max": 8, "jitter_s": 9, "pause_after_failures": 3, "job": job });
    assert_eq!(server.script().schedules.asked, [("POST schedules".to_owned(), body)]);

    let every = ["schedule", "create", "demo_echo", "--every", "90", "--anchor", "2030-01-01T00:00:00Z", "--quiet"];
    assert_eq!(person.run(&every).stdout, format!("{SCHEDULE}\n"));
    let asked = server.script().schedules.asked[1].1.clone();
    assert_eq!((&asked["every_s"], &asked["anchor_at"]), (&json!(90), &json!("2030-01-01T00:00:00Z")));
    assert_eq!(person.run(&["schedule", "create", "demo_echo"]).code, 64);
    let no_key = ["schedule", "create", "demo_echo", "--every", "5", "--unique-hold", "live"];
    assert_eq!(person.run(&no_key).code, 64);
    assert_eq!(person.run(&["schedule", "create", "demo_echo", "--every", "5", "--cron", "@daily"]).code, 64);
}

#[test]
fn an_update_puts_back_what_was_there_but_for_what_is_given() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let output =
        person.run(&["schedule", "update", SCHEDULE, "--every", "60", "--overlap", "allow", "--max-attempts", "5"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let job = json!({ "task": "demo_echo", "args": { "value": 1 }, "priority": 60, "max_attempts": 5, "tags": [] });
    let body = json!({ "every_s": 60, "time_zone": "Europe/Berlin", "job": job, "missed": "once", "missed_max": 100,
        "overlap": "allow", "queue_max": 100, "jitter_s": 0 });
    let asked = std::mem::take(&mut server.script().schedules.asked);
    let path = format!("schedules/{SCHEDULE}");
    assert_eq!(asked, [(format!("GET {path}"), json!(null)), (format!("PUT {path}"), body)]);
    person.run(&["schedule", "update", SCHEDULE, "--task", "demo_sleep", "--args", r#"{"seconds": 2}"#]);
    let body = server.script().schedules.asked[1].1.clone();
    assert_eq!((&body["cron"], &body["job"]["task"]), (&json!("0 9 * * *"), &json!("demo_sleep")));
    assert_eq!(body["job"]["args"], json!({ "seconds": 2 }));
}

#[test]
fn each_verb_asks_for_what_it_says() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let preview =
        person.run(&["schedule", "preview", "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--count", "2"]);
    assert_eq!(preview.stdout, "2026-03-28T02:30:00+01:00\n2026-03-29T03:00:00+02:00  clock goes forward\n");
    let list = person.run(&["schedule", "list"]);
    let line: Vec<&str> = list.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(line[0], SCHEDULE);
    assert!(line.contains(&"active") && line.contains(&"succeeded"), "{line:?}");
    assert_eq!(person.run(&["schedule", "show", SCHEDULE, "--json"]).json()["skipped_count"], 3);
    let paused = person.run(&["schedule", "pause", SCHEDULE, "--reason", "the summer"]);
    assert!(paused.stdout.contains("paused for  the summer"), "{}", paused.stdout);
    assert_eq!(person.run(&["schedule", "resume", SCHEDULE, "-q"]).stdout, format!("{SCHEDULE}\n"));
    assert_eq!(person.run(&["schedule", "run", SCHEDULE]).stdout, format!("{RUN}\n"));
    let span = ["--from", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z"];
    let backfill = person.run(&[["schedule", "backfill", SCHEDULE].as_slice(), &span].concat());
    assert_eq!(backfill.stdout, "1 occurrence will run; 2 had run before.\n");
    assert_eq!(person.run(&["schedule", "remove", SCHEDULE]).code, 0);
    assert_eq!(person.run(&["schedule", "show", "nothing"]).code, 1);
    let asked: Vec<String> = server.script().schedules.asked.iter().map(|(asked, _)| asked.clone()).collect();
    let at = |rest: &str| format!("schedules/{SCHEDULE}{rest}");
    let expected = [
        "POST schedules/preview".to_owned(),
        "GET schedules?limit=50".to_owned(),
        format!("GET {}", at("")),
        format!("POST {}", at("/pause")),
        format!("POST {}", at("/resume")),
        format!("POST {}", at("/run")),
        format!("POST {}", at("/backfill")),
        format!("DELETE {}", at("")),
        "GET schedules/nothing".to_owned(),
    ];
    assert_eq!(asked, expected);
}
