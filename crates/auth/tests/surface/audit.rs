//! What goes into the audit log: each act once, with who did it and from where, in the transaction of the act, and nothing
//! that tells who a person is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kit::{Fail, Kind, bus::Event, grpc::Call};
use proto::{
    auth::{
        DisableUserRequest, EnableUserRequest, LoginRequest, LogoutAllRequest, LogoutRequest, RegisterRequest,
        RevokeSessionRequest, SetUserRolesRequest, SignOutUserRequest, TokenPair, UpdateUserRequest, User,
    },
    events::ActRecorded,
};
use serde_json::{Value, json};
use tonic::Request;

use crate::support::{ADDRESS, AGENT, EMAIL, PASSWORD, Service, answer, at_once, by, key, refused};

const REASON: &str = "as the board has decided";

fn id(who: &TokenPair) -> String {
    who.user.as_ref().expect("a user").id.clone()
}

async fn session(service: &Service, who: &TokenPair) -> String {
    service.caller(who).await.session.expect("a session").to_string()
}

async fn disable(service: &Service, who: &TokenPair, id: &str) -> Result<User, Fail> {
    let message = DisableUserRequest { id: id.to_owned(), reason: REASON.to_owned() };
    answer(service.users().disable(by(&who.access_token, message)).await)
}

async fn enable(service: &Service, who: &TokenPair, id: &str) -> Result<User, Fail> {
    let message = EnableUserRequest { id: id.to_owned(), reason: REASON.to_owned() };
    answer(service.users().enable(by(&who.access_token, message)).await)
}

async fn sign_out(service: &Service, who: &TokenPair, id: &str) -> Result<u32, Fail> {
    let message = SignOutUserRequest { id: id.to_owned(), reason: REASON.to_owned() };
    answer(service.users().sign_out(by(&who.access_token, message)).await).map(|answer| answer.ended)
}

async fn set_roles(service: &Service, who: &TokenPair, id: &str, roles: &[&str]) -> Result<User, Fail> {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let message = SetUserRolesRequest { id: id.to_owned(), roles, reason: REASON.to_owned() };
    answer(service.users().set_roles(by(&who.access_token, message)).await)
}

async fn rename(service: &Service, who: &TokenPair, id: &str, name: &str) -> Result<User, Fail> {
    let (id, reason) = (id.to_owned(), REASON.to_owned());
    let message = UpdateUserRequest { id, display_name: Some(name.to_owned()), reason };
    answer(service.users().update(by(&who.access_token, message)).await)
}

async fn logout(service: &Service, who: &TokenPair) -> Result<(), Fail> {
    answer(service.sessions().logout(by(&who.access_token, LogoutRequest {})).await).map(drop)
}

async fn logout_all(service: &Service, who: &TokenPair) -> Result<(), Fail> {
    answer(service.sessions().logout_all(by(&who.access_token, LogoutAllRequest {})).await).map(drop)
}

async fn revoke(service: &Service, who: &TokenPair, id: &str) -> Result<(), Fail> {
    answer(service.sessions().revoke(by(&who.access_token, RevokeSessionRequest { id: id.to_owned() })).await).map(drop)
}

/// The last entry, and that there is one more than `before`.
async fn newest(service: &Service, before: usize) -> ActRecorded {
    let mut acts = service.acts().await;
    assert_eq!(acts.len(), before + 1, "{acts:?}");
    acts.pop().expect("one")
}

fn facts(json: &str) -> Value {
    if json.is_empty() { Value::Null } else { serde_json::from_str(json).expect("JSON") }
}

#[tokio::test]
async fn registering_and_signing_in_are_written_down_with_where_they_came_from() {
    let service = Service::start().await;
    let user = service.register(EMAIL).await;
    let entry = newest(&service, 0).await;
    assert_eq!((entry.action.as_str(), entry.outcome.as_str()), ("user.register", "done"));
    assert_eq!(
        (entry.actor_kind.as_str(), entry.actor_id.as_str(), entry.credential.as_str()),
        ("anonymous", "", "none")
    );
    assert_eq!((entry.target_kind.as_str(), &entry.target_id), ("user", &user.id));
    assert_eq!(facts(&entry.after_json), json!({ "roles": ["customer"] }));

    let tokens = service.login(EMAIL).await;
    let entry = newest(&service, 1).await;
    assert_eq!((entry.action.as_str(), entry.outcome.as_str()), ("user.login", "done"));
    assert_eq!((entry.actor_kind.as_str(), &entry.actor_id, &entry.target_id), ("user", &user.id, &user.id));
    assert_eq!((entry.credential.as_str(), entry.request_id.as_str()), ("password", "a request of a test"));
    assert_eq!((entry.remote_address.as_str(), entry.user_agent.as_str()), (ADDRESS, AGENT));
    assert_eq!(facts(&entry.after_json), json!({ "session_id": session(&service, &tokens).await }));
    assert_eq!(entry.at, Some(kit::clock::to_timestamp(service.clock.now())));
}

#[tokio::test]
async fn the_first_administrator_is_guildhalls_own_act() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let acts = service.acts().await;
    let first = acts.first().expect("an entry");
    assert_eq!(
        (first.action.as_str(), first.actor_kind.as_str(), first.actor_id.as_str()),
        ("user.register", "system", "")
    );
    assert_eq!(first.target_id, id(&admin));
    assert_eq!(facts(&first.after_json), json!({ "roles": ["admin"] }));
}

#[tokio::test]
async fn each_end_of_a_session_is_written_down_once_and_an_exchange_is_not() {
    let service = Service::start().await;
    let (here, there) = (service.person(EMAIL).await, service.login(EMAIL).await);
    let before = service.acts().await.len();
    service.refresh(&there.refresh_token).await.expect("exchanged");
    assert_eq!(service.acts().await.len(), before);

    let (mine, other) = (session(&service, &here).await, session(&service, &there).await);
    revoke(&service, &here, &other).await.expect("ended");
    let entry = newest(&service, before).await;
    assert_eq!(
        (entry.action.as_str(), entry.target_kind.as_str(), &entry.target_id),
        ("session.revoke", "session", &other)
    );
    assert_eq!((&entry.credential, entry.on_behalf_of.as_str()), (&format!("session:{mine}"), ""));

    for _ in 0..2 {
        logout(&service, &here).await.expect("signed out");
    }
    let entry = newest(&service, before + 1).await;
    assert_eq!((entry.action.as_str(), &entry.target_id), ("session.logout", &mine));
    assert_eq!(facts(&entry.after_json), json!({ "end_reason": "logged_out" }));

    let sessions = [service.login(EMAIL).await, service.login(EMAIL).await];
    logout_all(&service, &sessions[0]).await.expect("signed out");
    let entry = newest(&service, before + 4).await;
    assert_eq!((entry.action.as_str(), entry.target_id), ("user.logout_all", id(&here)));
    assert_eq!(facts(&entry.after_json), json!({ "sessions_ended": 2 }));
}

#[tokio::test]
async fn what_administrators_do_is_written_down_with_before_after_and_why() {
    let service = Service::start().await;
    let (admin, user) = (service.admin().await, service.person(EMAIL).await);
    let user = id(&user);
    let mut count = service.acts().await.len();
    let mut next = async |action: &str, before: Value, after: Value| {
        let entry = newest(&service, count).await;
        count += 1;
        assert_eq!((entry.action.as_str(), entry.outcome.as_str(), &entry.target_id), (action, "done", &user));
        assert_eq!((facts(&entry.before_json), facts(&entry.after_json)), (before, after), "{action}");
        assert_eq!((entry.actor_kind.as_str(), entry.actor_id), ("user", id(&admin)));
        assert_eq!(entry.credential, format!("session:{}", session(&service, &admin).await));
        assert_eq!(
            (entry.reason.as_str(), entry.remote_address.as_str(), entry.user_agent.as_str()),
            (REASON, ADDRESS, AGENT)
        );
    };
    // Each is done twice: there is nothing left to do for the second, and nothing to write down.
    for _ in 0..2 {
        set_roles(&service, &admin, &user, &["customer", "operator"]).await.expect("given");
    }
    let (given, now) =
        (json!({ "roles": ["customer"] }), json!({ "roles": ["customer", "operator"], "sessions_ended": 0 }));
    next("user.set_roles", given, now).await;
    for _ in 0..2 {
        sign_out(&service, &admin, &user).await.expect("signed out");
    }
    next("user.sign_out", Value::Null, json!({ "sessions_ended": 1 })).await;
    for _ in 0..2 {
        disable(&service, &admin, &user).await.expect("disabled");
    }
    next("user.disable", json!({ "is_disabled": false }), json!({ "is_disabled": true, "sessions_ended": 0 })).await;
    for _ in 0..2 {
        enable(&service, &admin, &user).await.expect("enabled");
    }
    next("user.enable", json!({ "is_disabled": true }), json!({ "is_disabled": false })).await;
}

#[tokio::test]
async fn a_program_is_known_by_its_account_and_its_key() {
    let service = Service::start().await;
    let user = service.register(EMAIL).await;
    let program = service.service_token(&["users:write:any"]).await;
    let account: sqlx::types::Uuid =
        sqlx::query_scalar("select id from auth.service_account").fetch_one(service.pool()).await.expect("an account");
    let message = DisableUserRequest { id: user.id, reason: String::new() };
    answer(service.users().disable(by(&program, message)).await).expect("disabled");
    let entry = newest(&service, 1).await;
    assert_eq!((entry.actor_kind.as_str(), entry.actor_id), ("service", account.to_string()));
    assert_eq!(entry.credential, "service_key");
}

#[tokio::test]
async fn a_refused_sign_in_says_to_the_log_alone_why() {
    let service = Service::start().await;
    let (admin, user) = (service.admin().await, service.register(EMAIL).await);
    disable(&service, &admin, &user.id).await.expect("disabled");
    let other = service.register("bob@example.com").await;
    let mut count = service.acts().await.len();
    let attempts = [
        (EMAIL, PASSWORD, user.id.as_str(), "auth.user_disabled"),
        (EMAIL, "wrong horse battery", &user.id, "auth.invalid_credentials"),
        ("bob@example.com", "wrong horse battery", &other.id, "auth.invalid_credentials"),
        ("nobody@example.com", PASSWORD, "", "auth.invalid_credentials"),
        ("no address", PASSWORD, "", "auth.invalid_credentials"),
    ];
    for (email, password, target, reason) in attempts {
        let refusal = service.try_login(email, password, ADDRESS).await;
        refused(refusal, Kind::Unauthenticated, "auth.invalid_credentials");
        let entry = newest(&service, count).await;
        count += 1;
        assert_eq!((entry.action.as_str(), entry.outcome.as_str()), ("user.login", "refused"));
        assert_eq!((entry.target_id.as_str(), entry.reason.as_str()), (target, reason));
        assert_eq!((entry.actor_kind.as_str(), entry.credential.as_str()), ("anonymous", "password"));
        assert_eq!((entry.remote_address.as_str(), entry.after_json.as_str()), (ADDRESS, ""));
    }
}

#[tokio::test]
async fn the_throttle_is_told_of_once_a_minute_however_many_it_refuses() {
    let service = Service::start().await;
    let user = service.register(EMAIL).await;
    let throttled = async || {
        let acts = service.acts().await;
        let told: Vec<_> = acts.into_iter().filter(|act| act.reason == "auth.too_many_attempts").collect();
        assert!(
            told.iter().all(|act| act.outcome == "refused" && act.action == "user.login" && act.target_id == user.id)
        );
        told.len()
    };
    for attempt in 0..30 {
        let refusal = service.try_login(EMAIL, "wrong horse battery", ADDRESS).await.expect_err("wrong");
        assert_eq!(refusal.kind() == Kind::Limited, attempt >= 10);
    }
    assert_eq!(throttled().await, 1);
    assert_eq!(service.acts().await.len(), 1 + 10 + 1, "the registration, what passed the throttle, and the throttle");
    service.clock.advance(Duration::from_secs(59));
    service.try_login(EMAIL, PASSWORD, ADDRESS).await.expect_err("a second too early");
    assert_eq!(throttled().await, 1);
    service.clock.advance(Duration::from_secs(1));
    service.try_login(EMAIL, "wrong horse battery", ADDRESS).await.expect_err("the one that passes");
    for _ in 0..5 {
        service.try_login(EMAIL, PASSWORD, ADDRESS).await.expect_err("full again");
    }
    assert_eq!(throttled().await, 2);
}

#[tokio::test]
async fn a_spent_refresh_token_that_comes_back_is_written_down_once() {
    let service = Service::start().await;
    let parent = service.person(EMAIL).await;
    let child = service.refresh(&parent.refresh_token).await.expect("exchanged");
    service.refresh(&child.refresh_token).await.expect("exchanged");
    let before = service.acts().await.len();
    for _ in 0..3 {
        refused(service.refresh(&parent.refresh_token).await, Kind::Unauthenticated, "auth.token_reused");
    }
    let entry = newest(&service, before).await;
    assert_eq!((entry.action.as_str(), entry.outcome.as_str()), ("session.refresh", "refused"));
    assert_eq!((entry.reason.as_str(), entry.target_id), ("auth.token_reused", session(&service, &parent).await));
    assert_eq!((entry.actor_kind.as_str(), entry.credential.as_str()), ("anonymous", "refresh_token"));
    assert_eq!(entry.on_behalf_of, id(&parent));
    assert_eq!(facts(&entry.after_json), json!({ "end_reason": "token_reused" }));
}

#[tokio::test]
async fn a_refused_act_is_written_down_and_one_on_nothing_is_not() {
    let service = Service::start().await;
    let (admin, ada, bob) =
        (service.admin().await, service.person(EMAIL).await, service.person("bob@example.com").await);
    let mut count = service.acts().await.len();
    let mut next = async |who: &TokenPair, action: &str, reason: &str| {
        let entry = newest(&service, count).await;
        count += 1;
        assert_eq!((entry.action.as_str(), entry.outcome.as_str(), entry.reason.as_str()), (action, "refused", reason));
        assert_eq!((entry.actor_id, entry.before_json + &entry.after_json), (id(who), String::new()));
        entry.on_behalf_of
    };
    let bobs = session(&service, &bob).await;
    revoke(&service, &ada, &bobs).await.expect_err("a stranger's");
    assert_eq!(next(&ada, "session.revoke", "auth.session_not_found").await, id(&bob));
    disable(&service, &admin, &id(&admin)).await.expect_err("himself");
    next(&admin, "user.disable", "auth.not_yourself").await;
    set_roles(&service, &admin, &id(&admin), &[]).await.expect_err("himself");
    next(&admin, "user.set_roles", "auth.not_yourself").await;

    let nobody = "00000000-0000-7000-8000-000000000000";
    revoke(&service, &ada, nobody).await.expect_err("not there");
    disable(&service, &admin, nobody).await.expect_err("not there");
    set_roles(&service, &admin, &id(&ada), &["king"]).await.expect_err("no role");
    // The guard refuses before anything of ours runs.
    disable(&service, &ada, &id(&bob)).await.expect_err("no administrator");
    assert_eq!(service.acts().await.len(), count);
}

#[tokio::test]
async fn a_flood_of_refused_acts_is_cut_off_until_the_next_minute() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let before = service.acts().await.len();
    let flood = async || {
        for _ in 0..30 {
            refused(disable(&service, &admin, &id(&admin)).await, Kind::Forbidden, "auth.not_yourself");
        }
    };
    flood().await;
    assert_eq!(service.acts().await.len(), before + 10);
    service.clock.advance(Duration::from_secs(60));
    flood().await;
    assert_eq!(service.acts().await.len(), before + 20);
}

#[tokio::test]
async fn the_same_registration_under_one_key_is_one_act() {
    let service = Service::start().await;
    for _ in 0..3 {
        service.try_register(EMAIL, key("k", 1)).await.expect("a user");
    }
    newest(&service, 0).await;
    service.try_register(EMAIL, None).await.expect_err("taken");
    newest(&service, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_disable_a_user_at_once_one_did_it() {
    let service = Arc::new(Service::start().await);
    let (admin, user) = (service.admin().await, service.person(EMAIL).await);
    let before = service.acts().await.len();
    let disablings = (0..6).map(|_| {
        let (service, admin, user) = (Arc::clone(&service), admin.clone(), id(&user));
        async move { disable(&service, &admin, &user).await }
    });
    assert!(at_once(disablings).await.iter().all(Result::is_ok));
    assert_eq!(newest(&service, before).await.action, "user.disable");
    assert_eq!(service.times_told("auth.user.disabled").await, 1);
}

/// The outbox takes no entry from now on: an act that could not be written down must not have happened.
async fn shut(service: &Service) {
    sqlx::query("alter table auth.outbox add constraint shut check (type <> 'auth.act.recorded') not valid")
        .execute(service.pool())
        .await
        .expect("the superuser may");
}

#[tokio::test]
async fn what_cannot_be_written_down_does_not_happen() {
    let service = Service::start().await;
    let (admin, user) = (service.admin().await, service.person(EMAIL).await);
    let disabled = service.register("eve@example.com").await.id;
    disable(&service, &admin, &disabled).await.expect("disabled");
    let spent = service.person("bob@example.com").await;
    service.refresh(&spent.refresh_token).await.expect("exchanged");
    shut(&service).await;
    let picture = async || {
        let sql = "select row_to_json(all_of) from (
                     select (select json_agg(u order by id) from auth.user as u) as users,
                       (select json_agg(r order by user_id, role) from auth.user_role as r) as roles,
                       (select json_agg(s order by id) from auth.session as s) as sessions,
                       (select count(*) from auth.outbox) as told
                   ) as all_of";
        sqlx::query_scalar::<_, Value>(sql).fetch_one(service.pool()).await.expect("a picture")
    };
    let before = picture().await;
    service.clock.advance(Duration::from_secs(61));
    let id = id(&user);
    let failures = [
        service.try_register("new@example.com", None).await.err(),
        service.try_login(EMAIL, PASSWORD, ADDRESS).await.err(),
        service.try_login(EMAIL, "wrong horse battery", ADDRESS).await.err(),
        service.refresh(&spent.refresh_token).await.err(),
        logout(&service, &user).await.err(),
        logout_all(&service, &user).await.err(),
        revoke(&service, &admin, &session(&service, &user).await).await.err(),
        disable(&service, &admin, &id).await.err(),
        enable(&service, &admin, &disabled).await.err(),
        sign_out(&service, &admin, &id).await.err(),
        set_roles(&service, &admin, &id, &["operator"]).await.err(),
        rename(&service, &admin, &id, "Somebody else").await.err(),
    ];
    for (at, failure) in failures.into_iter().enumerate() {
        assert_eq!(failure.map(|fail| fail.kind()), Some(Kind::Internal), "number {at}");
    }
    assert_eq!(picture().await, before);
}

#[tokio::test]
async fn entries_tell_what_the_table_lists_and_every_line_of_it_is_used() {
    let service = Service::start().await;
    everything(&service, "ada").await;
    let mut seen = BTreeSet::new();
    for entry in service.acts().await {
        let line = auth::ACTS.iter().find(|line| line.name == entry.action).expect("a line of the table");
        assert_eq!(line.target, entry.target_kind);
        for json in [&entry.before_json, &entry.after_json] {
            let Value::Object(told) = facts(json) else { continue };
            assert!(told.keys().all(|field| line.fields.contains(&field.as_str())), "{}: {json}", line.name);
        }
        seen.insert(line.name);
    }
    assert_eq!(seen, auth::ACTS.iter().map(|line| line.name).collect());
}

#[tokio::test]
async fn nothing_that_is_told_holds_an_address_a_name_a_password_or_a_token() {
    const MARK: &str = "zyxmark";
    let service = Service::start().await;
    let secrets = everything(&service, MARK).await;
    let events = service.kept().await;
    assert!(events.len() > 20);
    for Event { kind, subject, data, .. } in events {
        let raw = [subject.as_bytes(), &data].concat();
        let holds = |text: &str| raw.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()));
        assert!(!holds(MARK), "{kind} holds what a person is known by: {:?}", String::from_utf8_lossy(&raw));
        assert!(!secrets.iter().any(|secret| holds(secret)), "{kind} holds a secret");
    }
}

/// Does and is refused everything there is, by people whose addresses, names and passwords hold `mark`; the tokens.
async fn everything(service: &Service, mark: &str) -> Vec<String> {
    let (email, password) = (format!("{mark}@{mark}.example"), format!("{mark} horse battery"));
    let message =
        RegisterRequest { email: email.clone(), password: password.clone(), display_name: format!("Lady {mark}") };
    answer(service.users().register(Call::anonymous("r").request(message)).await).expect("a user");
    let admin = service.admin().await;
    let login = async |password: &str| {
        let message = LoginRequest { email: email.clone(), password: password.to_owned() };
        let call = Call::anonymous("r").with_origin(ADDRESS, AGENT);
        answer(service.sessions().login(call.request(message)).await)
    };
    let first = login(&password).await.expect("signed in");
    let user = id(&first);
    let second = service.refresh(&first.refresh_token).await.expect("exchanged");
    let third = service.refresh(&second.refresh_token).await.expect("exchanged");
    service.refresh(&first.refresh_token).await.expect_err("reused");
    let tokens =
        [login(&password).await, login(&password).await, login(&password).await].map(|pair| pair.expect("signed in"));
    revoke(service, &tokens[0], &session(service, &tokens[1]).await).await.expect("ended");
    revoke(service, &tokens[0], &session(service, &admin).await).await.expect_err("a stranger's");
    logout(service, &tokens[0]).await.expect("signed out");
    logout_all(service, &tokens[2]).await.expect("signed out");
    let last = login(&password).await.expect("signed in");
    sign_out(service, &admin, &user).await.expect("signed out");
    set_roles(service, &admin, &user, &["reviewer"]).await.expect("set");
    rename(service, &admin, &user, &format!("Countess {mark}")).await.expect("changed");
    disable(service, &admin, &user).await.expect("disabled");
    login(&password).await.expect_err("disabled");
    enable(service, &admin, &user).await.expect("enabled");
    for _ in 0..12 {
        login(&format!("not {password}")).await.expect_err("wrong, and at last throttled");
    }
    let pairs = [first, second, third, last, admin].into_iter().chain(tokens);
    pairs.flat_map(|pair| [pair.access_token, pair.refresh_token]).chain([password]).collect()
}

#[tokio::test]
async fn who_calls_without_a_gateway_is_from_nowhere() {
    let service = Service::start().await;
    service.register(EMAIL).await;
    let message = LoginRequest { email: EMAIL.to_owned(), password: PASSWORD.to_owned() };
    answer(service.sessions().login(Request::new(message)).await).expect("signed in");
    let entry = newest(&service, 1).await;
    assert_eq!((entry.remote_address.as_str(), entry.user_agent.as_str(), entry.request_id.as_str()), ("", "", ""));
}
