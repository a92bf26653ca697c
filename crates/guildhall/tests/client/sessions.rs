//! Signing in, staying in, getting out.

use std::os::unix::fs::PermissionsExt as _;

use crate::{
    run::Person,
    server::{EMAIL, PASSWORD, Server},
};

#[test]
fn signing_in_keeps_a_session_that_only_its_owner_reads_and_never_the_password() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let kept = std::fs::read_to_string(person.session_file()).unwrap();
    assert!(kept.contains(&server.url()) && !kept.contains(PASSWORD), "{kept}");
    let mode = std::fs::metadata(person.session_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(person.run(&["job", "list"]).code, 0);
}

#[test]
fn the_password_may_come_from_the_environment() {
    let server = Server::start();
    let person = Person::at(&server.url());
    let output =
        person.command(&["login", "--email", EMAIL, "--json"]).env("GUILDHALL_PASSWORD", PASSWORD).output().unwrap();
    let output = crate::run::Ended::from(output);
    assert_eq!(output.json()["email"], EMAIL);
}

#[test]
fn a_wrong_password_is_one_sentence_with_its_request() {
    let server = Server::start();
    let person = Person::at(&server.url());
    let output = person.run_with_input(&["login", "--email", EMAIL], "wrong\n");
    assert_eq!(output.code, 1);
    let said = "error: The email address or the password is wrong. (auth.invalid_credentials, request request-7)\n";
    assert_eq!(output.stderr, said);
    assert!(!person.session_file().exists());
}

#[test]
fn a_refused_token_is_exchanged_and_the_new_one_kept() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    server.script().end_tokens();
    assert_eq!(person.run(&["job", "list"]).code, 0);
    assert_eq!(person.run(&["job", "list"]).code, 0);
    assert_eq!(server.script().refreshes, 1);
}

#[test]
fn commands_that_refresh_at_once_exchange_the_token_once() {
    let server = Server::start();
    server.script().first_token_s = 1;
    let person = Person::signed_in(&server);
    let running: Vec<_> = (0..6).map(|_| person.command(&["job", "list"]).spawn().unwrap()).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let script = server.script();
    assert_eq!((script.refreshes, script.spent), (1, 0));
}

#[test]
fn a_session_that_has_ended_says_how_to_sign_in_again() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    let other = Person::at(&server.url());
    // Somebody else's sign-in makes the kept refresh token a spent one.
    assert_eq!(other.run_with_input(&["login", "--email", EMAIL], PASSWORD).code, 0);
    server.script().end_tokens();
    let output = person.run(&["job", "list"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("guildhall login"), "{}", output.stderr);
    assert!(!std::fs::read_to_string(person.session_file()).unwrap().contains("refresh-1"));
}

#[test]
fn signing_out_ends_the_session_and_forgets_it() {
    let server = Server::start();
    let person = Person::signed_in(&server);
    assert_eq!(person.run(&["logout"]).code, 0);
    assert!(!std::fs::read_to_string(person.session_file()).unwrap().contains("refresh-1"));
    let output = person.run(&["job", "list"]);
    assert!(output.code == 1 && output.stderr.contains("guildhall login"), "{output:?}");
    assert_eq!(person.run(&["logout"]).code, 0, "twice is the same as once");
}

#[test]
fn a_server_that_is_not_there_says_how_to_start_one() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let person = Person::at(&format!("http://{closed}"));
    let output = person.run_with_input(&["login", "--email", EMAIL], PASSWORD);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("./dev up") && output.stderr.contains(&closed.to_string()), "{}", output.stderr);
}

#[test]
fn an_address_that_is_none_is_wrong_usage() {
    assert_eq!(Person::at("nowhere").run(&["job", "list"]).code, 64);
}
