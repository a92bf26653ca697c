//! Users, the audit log, parked events and health, as an administrator asks for them.

use serde_json::json;

use crate::{
    run::Person,
    server::{ADA, BOB, PARKED, Server},
};

#[test]
fn users_are_listed_by_filters_and_shown_with_what_keeps_them_out() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let output = person.run(&["user", "list", "--search", "ad", "--role", "customer", "--disabled", "--limit", "5"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let lines: Vec<Vec<&str>> = output.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["email", "name", "roles", "is", "made"]);
    assert_eq!(lines[1][..4], ["bob@example.org", "Somebody", "customer", "disabled"]);
    assert_eq!(lines[2][..4], ["ada.lovelace.of.the.engine@example.org", "Somebody", "customer", "enabled"]);
    assert_eq!(person.run(&["user", "list", "--quiet"]).stdout, format!("{BOB}\n{ADA}\n"));
    assert_eq!(server.script().admin.asked[0].0, "GET users?search=ad&role=customer&disabled=true&limit=5");

    let shown = person.run(&["user", "show", ADA]);
    assert!(
        shown.stdout.contains("email    ada@example.org") && !shown.stdout.contains("disabled"),
        "{}",
        shown.stdout
    );
    assert_eq!(person.run(&["user", "show", ADA, "--json"]).json()["id"], ADA);
}

#[test]
fn a_user_is_named_by_id_or_address_and_the_reason_goes_along() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let disabled = person.run(&["user", "disable", "bob@example.org", "--reason", "spam"]);
    assert_eq!((disabled.code, disabled.stdout.as_str()), (0, "bob@example.org may sign in no more.\n"));
    let enabled = person.run(&["user", "enable", BOB]);
    assert_eq!(enabled.stdout, "bob@example.org may sign in.\n");
    assert_eq!(person.run(&["user", "sign-out", BOB]).stdout, "Ended 2 sessions.\n");
    let roles = person.run(&["user", "roles", BOB, "operator", "customer"]);
    assert_eq!(roles.stdout, "bob@example.org is operator, customer.\n");
    let renamed = person.run(&["user", "rename", BOB, "Robert", "--reason", "as asked"]);
    assert_eq!(renamed.stdout, "bob@example.org is shown as Robert.\n");
    let asked = std::mem::take(&mut server.script().admin.asked);
    let expected = [
        ("GET users?email=bob%40example.org".to_owned(), json!(null)),
        (format!("POST users/{BOB}/disable"), json!({ "reason": "spam" })),
        (format!("POST users/{BOB}/enable"), json!({})),
        (format!("POST users/{BOB}/sign-out"), json!({})),
        (format!("PUT users/{BOB}/roles"), json!({ "roles": ["operator", "customer"] })),
        (format!("PATCH users/{BOB}"), json!({ "display_name": "Robert", "reason": "as asked" })),
    ];
    assert_eq!(asked, expected);

    let nobody = person.run(&["user", "disable", "eve@example.org"]);
    assert_eq!(
        (nobody.code, nobody.stderr.as_str()),
        (1, "error: There is no user with the address eve@example.org.\n")
    );
    let refused = person.run(&["user", "disable", ADA]);
    let said = "error: You cannot disable yourself. (auth.not_yourself, request request-7)\n";
    assert_eq!((refused.code, refused.stderr.as_str()), (1, said));
}

#[test]
fn the_audit_log_is_a_line_an_act_and_every_filter_is_passed_on() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let filters = [
        ["--service", "auth"],
        ["--actor", "bob@example.org"],
        ["--action", "user.disable"],
        ["--target", BOB],
        ["--outcome", "done"],
        ["--request", "request-1"],
        ["--after", "2026-01-01T13:00:00+01:00"],
        ["--before", "2026-01-02T00:00:00.5Z"],
    ];
    let output = person.run(&[["audit", "list"].as_slice(), &filters.concat()].concat());
    assert_eq!(output.code, 0, "{}", output.stderr);
    let expected = format!(
        "at (UTC)             action          outcome  by                                    on\n\
         2026-01-01 12:34:56  user.disable    done     {ADA}  {BOB}\n\
         2026-01-01 12:34:56  session.create  refused  anonymous\n"
    );
    assert_eq!(output.stdout, expected);
    let asked = format!(
        "GET audit?service=auth&actor_id={BOB}&action=user.disable&target_id={BOB}&outcome=done&request_id=request-1\
         &after=2026-01-01T12%3A00%3A00Z&before=2026-01-02T00%3A00%3A00.500Z&limit=50"
    );
    assert_eq!(server.script().admin.asked[1].0, asked);
    assert_eq!(person.run(&["audit", "list", "--json"]).json()["items"][0]["remote_address"], "192.0.2.7");
    for (option, wrong) in [("--outcome", "perhaps"), ("--service", "cellar"), ("--actor", "123")] {
        assert_eq!(person.run(&["audit", "list", option, wrong]).code, 64);
    }
}

#[test]
fn parked_events_are_listed_and_handed_back_one_after_the_other() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let output = person.run(&["event", "parked", "--consumer", "admin", "--with-replayed"]);
    let line = format!("{PARKED}  admin     auth.act.recorded  admin.invalid_act: The act has no time.\n");
    assert!(output.stdout.ends_with(&line), "{}", output.stdout);
    assert_eq!(server.script().admin.asked[0].0, "GET events/parked?consumer=admin&with_replayed=true&limit=50");
    let replayed = person.run(&["event", "replay", PARKED]);
    assert_eq!(replayed.stdout, format!("{PARKED} was handed to admin again.\n"));
    let partly = person.run(&["event", "replay", PARKED, "nothing", PARKED]);
    assert_eq!((partly.code, partly.stdout.lines().count()), (1, 1));
}

#[test]
fn health_ends_with_0_when_all_is_well_and_with_1_and_the_reason_when_it_is_not() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let well = person.run(&["health"]);
    assert_eq!(well.code, 0, "{}", well.stderr);
    let expected = "roles                       host   pid  version    lag  fares\n\
                    auth, jobs, admin, gateway  here  4711  0.1.0    1.5 s  well\n\
                    worker                      here  4711  0.1.0    1.5 s  well\n\
                    All is well. 1 event could not be handled: see `guildhall event parked`.\n";
    assert_eq!(well.stdout, expected);
    server.script().admin.is_ill = true;
    let ill = person.run(&["health"]);
    assert!(ill.stdout.contains("gone ") && ill.stdout.contains("nobody is heard of for worker"), "{}", ill.stdout);
    assert_eq!(ill.code, 1);
    assert_eq!(person.run(&["health", "--quiet"]).code, 1);
    let as_json = person.run(&["health", "--json"]);
    assert_eq!((as_json.code, &as_json.json()["ok"]), (1, &json!(false)));
}
