//! Administrators and the users they find, disable, enable, sign out and give roles.

use std::sync::Arc;

use kit::{Fail, Kind};
use proto::auth::{
    CheckSessionRequest, DisableUserRequest, EnableUserRequest, GetUserRequest, ListUsersRequest, ListUsersResponse,
    SetUserRolesRequest, SignOutUserRequest, TokenPair, User,
};

use crate::support::{ADDRESS, EMAIL, PASSWORD, Service, answer, at_once, by, refused, soon};

const BOB: &str = "bob@example.com";

async fn list(service: &Service, token: &str, asked: ListUsersRequest) -> Result<ListUsersResponse, Fail> {
    answer(service.users().list(by(token, asked)).await)
}

async fn get(service: &Service, token: &str, id: &str) -> Result<User, Fail> {
    answer(service.users().get(by(token, GetUserRequest { id: id.to_owned() })).await)
}

async fn disable(service: &Service, token: &str, id: &str) -> Result<User, Fail> {
    let message = DisableUserRequest { id: id.to_owned(), reason: String::new() };
    answer(service.users().disable(by(token, message)).await)
}

async fn enable(service: &Service, token: &str, id: &str) -> Result<User, Fail> {
    let message = EnableUserRequest { id: id.to_owned(), reason: String::new() };
    answer(service.users().enable(by(token, message)).await)
}

async fn sign_out(service: &Service, token: &str, id: &str) -> Result<u32, Fail> {
    let message = SignOutUserRequest { id: id.to_owned(), reason: String::new() };
    answer(service.users().sign_out(by(token, message)).await).map(|answer| answer.ended)
}

async fn set_roles(service: &Service, token: &str, id: &str, roles: &[&str]) -> Result<User, Fail> {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let message = SetUserRolesRequest { id: id.to_owned(), roles, reason: String::new() };
    answer(service.users().set_roles(by(token, message)).await)
}

async fn is_live(service: &Service, who: &TokenPair) -> bool {
    answer(service.sessions().check(by(&who.access_token, CheckSessionRequest {})).await).expect("an answer").live
}

fn id(who: &TokenPair) -> String {
    who.user.as_ref().expect("a user").id.clone()
}

/// A user with the role of an administrator, signed in.
async fn another_admin(service: &Service, admin: &TokenPair, email: &str) -> TokenPair {
    let user = service.register(email).await;
    set_roles(service, &admin.access_token, &user.id, &["admin"]).await.expect("made one");
    service.login(email).await
}

#[tokio::test]
async fn users_are_found_by_address_part_role_and_standing_newest_first_and_page_by_page() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let mut users = Vec::new();
    for email in ["ada@example.com", "bob@example.com", "eve@sample.org", "ada@sample.org"] {
        users.push(service.register(email).await.id);
    }
    let token = admin.access_token.as_str();
    set_roles(&service, token, &users[1], &["customer", "operator"]).await.expect("set");
    disable(&service, token, &users[2]).await.expect("disabled");

    let found = async |asked: ListUsersRequest| {
        let page = list(&service, token, asked).await.expect("a list");
        page.items.into_iter().map(|user| user.id).collect::<Vec<_>>()
    };
    let all = ListUsersRequest::default;
    let (ada, bob, eve, other) = (&users[0], &users[1], &users[2], &users[3]);
    assert_eq!(found(all()).await, [other, eve, bob, ada, &id(&admin)].map(Clone::clone));
    assert_eq!(found(ListUsersRequest { email: " Ada@SAMPLE.org".into(), ..all() }).await, std::slice::from_ref(other));
    assert_eq!(found(ListUsersRequest { email: "ada".into(), ..all() }).await, [""; 0]);
    assert_eq!(found(ListUsersRequest { search: "SAMPLE".into(), ..all() }).await, [other, eve].map(Clone::clone));
    assert_eq!(found(ListUsersRequest { search: "administr".into(), ..all() }).await, [id(&admin)], "by name");
    assert_eq!(found(ListUsersRequest { search: "%".into(), ..all() }).await, [""; 0], "nothing is a pattern");
    assert_eq!(found(ListUsersRequest { role: "operator".into(), ..all() }).await, std::slice::from_ref(bob));
    assert_eq!(found(ListUsersRequest { disabled: Some(true), ..all() }).await, std::slice::from_ref(eve));
    assert_eq!(
        found(ListUsersRequest { disabled: Some(false), search: "sample".into(), ..all() }).await,
        std::slice::from_ref(other)
    );

    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&service, token, ListUsersRequest { limit: 2, cursor, ..all() }).await.expect("a page");
        assert!(page.items.len() <= 2);
        paged.extend(page.items.into_iter().map(|user| user.id));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(paged, found(all()).await);

    refused(
        list(&service, token, ListUsersRequest { role: "king".into(), ..all() }).await,
        Kind::Invalid,
        "auth.unknown_role",
    );
    for search in ["a\0b", &"x".repeat(101)] {
        let asked = ListUsersRequest { search: search.into(), ..all() };
        refused(list(&service, token, asked).await, Kind::Invalid, "auth.invalid_search");
    }
    let asked = ListUsersRequest { cursor: "nonsense".into(), ..all() };
    refused(list(&service, token, asked).await, Kind::Malformed, "invalid_cursor");
}

#[tokio::test]
async fn one_user_is_shown_with_roles_and_standing_and_an_unknown_one_is_not_there() {
    let service = Service::start().await;
    let (admin, user) = (service.admin().await, service.register(EMAIL).await);
    let token = &admin.access_token;
    assert_eq!(get(&service, token, &user.id).await.expect("shown"), user);
    let disabled = disable(&service, token, &user.id).await.expect("disabled");
    assert_eq!(disabled.disabled_at, Some(kit::clock::to_timestamp(service.clock.now())));
    assert_eq!(get(&service, token, &user.id).await.expect("shown"), disabled);
    for nobody in ["", "nonsense", "00000000-0000-7000-8000-000000000000"] {
        refused(get(&service, token, nobody).await, Kind::NotFound, "auth.user_not_found");
        refused(disable(&service, token, nobody).await, Kind::NotFound, "auth.user_not_found");
        refused(enable(&service, token, nobody).await, Kind::NotFound, "auth.user_not_found");
        refused(sign_out(&service, token, nobody).await, Kind::NotFound, "auth.user_not_found");
        refused(set_roles(&service, token, nobody, &[]).await, Kind::NotFound, "auth.user_not_found");
    }
}

#[tokio::test]
async fn who_is_no_administrator_neither_sees_nor_touches_anyone() {
    let service = Service::start().await;
    let (admin, ada, bob) = (service.admin().await, service.person(EMAIL).await, service.person(BOB).await);
    set_roles(&service, &admin.access_token, &id(&ada), &["customer", "operator", "reviewer"]).await.expect("set");
    let ada = service.login(EMAIL).await;
    let own = service.service_token(&["users:read", "users:write:own"]).await;
    for token in [&ada.access_token, &bob.access_token, &own] {
        for target in [id(&bob), id(&admin)] {
            refused(list(&service, token, ListUsersRequest::default()).await, Kind::Forbidden, "forbidden");
            refused(get(&service, token, &target).await, Kind::Forbidden, "forbidden");
            refused(disable(&service, token, &target).await, Kind::Forbidden, "forbidden");
            refused(enable(&service, token, &target).await, Kind::Forbidden, "forbidden");
            refused(sign_out(&service, token, &target).await, Kind::Forbidden, "forbidden");
            refused(set_roles(&service, token, &target, &["admin"]).await, Kind::Forbidden, "forbidden");
        }
    }
    assert!(is_live(&service, &bob).await && is_live(&service, &admin).await);
    let any = service.service_token(&["users:read:any"]).await;
    assert_eq!(list(&service, &any, ListUsersRequest::default()).await.expect("a list").items.len(), 3);
}

#[tokio::test]
async fn a_disabled_user_is_out_at_once_and_is_answered_like_a_stranger() {
    let service = Service::start().await;
    let (admin, bob) = (service.admin().await, service.person(BOB).await);
    let sessions = [service.person(EMAIL).await, service.login(EMAIL).await];
    let wrong = service.try_login(EMAIL, "wrong horse battery", ADDRESS).await.expect_err("wrong");
    disable(&service, &admin.access_token, &id(&sessions[0])).await.expect("disabled");

    for tokens in &sessions {
        assert!(!is_live(&service, tokens).await);
        refused(service.get_self(&tokens.access_token).await, Kind::Unauthenticated, "auth.session_ended");
        refused(service.refresh(&tokens.refresh_token).await, Kind::Unauthenticated, "auth.session_ended");
    }
    let fail =
        refused(service.try_login(EMAIL, PASSWORD, ADDRESS).await, Kind::Unauthenticated, "auth.invalid_credentials");
    assert_eq!(fail.message(), wrong.message());
    assert_eq!(service.times_told("auth.session.revoked").await, 2);
    assert_eq!(service.times_told("auth.login.failed").await, 2);
    assert_eq!(service.told().await.iter().filter(|told| told.0 == "auth.user.disabled").count(), 1);
    assert!(is_live(&service, &bob).await);

    let enabled = enable(&service, &admin.access_token, &id(&sessions[0])).await.expect("enabled");
    assert_eq!(enabled.disabled_at, None);
    assert_eq!(service.times_told("auth.user.enabled").await, 1);
    assert!(!is_live(&service, &sessions[0]).await, "what has ended stays so");
    service.login(EMAIL).await;
}

#[tokio::test]
async fn a_session_that_an_older_replica_opened_for_a_disabled_user_opens_nothing() {
    let service = Service::start().await;
    let tokens = service.person(EMAIL).await;
    // What is left when a replica that knows nothing of disabling signs somebody in.
    sqlx::query("update auth.user set disabled_at = now()").execute(service.pool()).await.expect("disabled");
    assert!(!is_live(&service, &tokens).await);
    refused(service.get_self(&tokens.access_token).await, Kind::Unauthenticated, "auth.session_ended");
    refused(service.refresh(&tokens.refresh_token).await, Kind::Unauthenticated, "auth.session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_meets_a_disabling_on_its_way_leaves_no_session() {
    let service = Arc::new(Service::start().await);
    let user = service.register(EMAIL).await;
    // Holds the user's row as a disabling does, after which the sign-in arrives with a password that was right.
    let mut disabling = service.pool().begin().await.expect("a transaction");
    sqlx::query("select from auth.user where id = $1::uuid for no key update")
        .bind(&user.id)
        .execute(&mut *disabling)
        .await
        .expect("locked");
    let beside = Arc::clone(&service);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    let sign_in = tokio::spawn(async move { beside.try_login(EMAIL, PASSWORD, ADDRESS).await });
    let waits = async {
        while !sqlx::query_scalar::<_, bool>("select exists(select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')")
            .fetch_one(service.pool())
            .await
            .expect("an answer")
        {
            assert!(!sign_in.is_finished(), "the sign-in has not waited for the disabling");
        }
    };
    soon(waits).await;
    sqlx::query("update auth.user set disabled_at = now() where id = $1::uuid")
        .bind(&user.id)
        .execute(&mut *disabling)
        .await
        .expect("disabled");
    disabling.commit().await.expect("durable");
    refused(sign_in.await.expect("it ran"), Kind::Unauthenticated, "auth.invalid_credentials");
    assert_eq!(service.count("session").await, 0);
}

#[tokio::test]
async fn signing_a_user_out_ends_what_is_open_and_shuts_nobody_out() {
    let service = Service::start().await;
    let (admin, bob) = (service.admin().await, service.person(BOB).await);
    let sessions = [service.person(EMAIL).await, service.login(EMAIL).await];
    assert_eq!(sign_out(&service, &admin.access_token, &id(&sessions[0])).await.expect("signed out"), 2);
    assert!(!is_live(&service, &sessions[0]).await && !is_live(&service, &sessions[1]).await);
    assert!(is_live(&service, &bob).await);
    assert_eq!(sign_out(&service, &admin.access_token, &id(&sessions[0])).await.expect("as once"), 0);
    assert!(is_live(&service, &service.login(EMAIL).await).await);
}

#[tokio::test]
async fn a_role_that_is_taken_ends_the_sessions_and_one_that_is_given_does_not() {
    let service = Service::start().await;
    let (admin, ada) = (service.admin().await, service.person(EMAIL).await);
    let token = admin.access_token.as_str();
    let user = set_roles(&service, token, &id(&ada), &["operator", "customer", "operator"]).await.expect("given");
    assert_eq!(user.roles, ["customer", "operator"]);
    assert!(is_live(&service, &ada).await);
    let refreshed = service.refresh(&ada.refresh_token).await.expect("refreshed");
    assert_eq!(service.caller(&refreshed).await.roles.len(), 2, "the next tokens have it");

    let user = set_roles(&service, token, &id(&ada), &["customer"]).await.expect("taken");
    assert_eq!(user.roles, ["customer"]);
    assert!(!is_live(&service, &refreshed).await);
    refused(service.refresh(&refreshed.refresh_token).await, Kind::Unauthenticated, "auth.session_ended");
    assert_eq!(service.caller(&service.login(EMAIL).await).await.roles.len(), 1);

    let told = service.times_told("auth.role.changed").await;
    set_roles(&service, token, &id(&ada), &["customer"]).await.expect("as it is");
    assert_eq!(service.times_told("auth.role.changed").await, told, "nothing has changed");
    for (roles, at) in [(&["customer", "king"][..], "/roles/1"), (&["service"], "/roles/0"), (&[""], "/roles/0")] {
        let fail = refused(set_roles(&service, token, &id(&ada), roles).await, Kind::Invalid, "auth.unknown_role");
        assert_eq!(fail.violations()[0].pointer, at);
    }
}

#[tokio::test]
async fn nobody_disables_or_demotes_himself() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let other = another_admin(&service, &admin, EMAIL).await;
    let (token, me) = (other.access_token.as_str(), id(&other));
    refused(disable(&service, token, &me).await, Kind::Forbidden, "auth.not_yourself");
    for roles in [&["customer"][..], &[]] {
        refused(set_roles(&service, token, &me, roles).await, Kind::Forbidden, "auth.not_yourself");
    }
    assert!(is_live(&service, &other).await);
    assert_eq!(service.get_self(token).await.expect("shown").roles, ["admin"]);
    let more = set_roles(&service, token, &me, &["admin", "operator"]).await.expect("to have more is no harm");
    assert_eq!(more.roles, ["admin", "operator"]);
}

#[tokio::test]
async fn the_last_administrator_who_may_sign_in_stays_one() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let other = another_admin(&service, &admin, EMAIL).await;
    // A program is nobody among users, so that nothing but the rule stands in its way.
    let program = service.service_token(&["users:write:any"]).await;
    disable(&service, &program, &id(&other)).await.expect("there is one left");
    refused(disable(&service, &program, &id(&admin)).await, Kind::Conflict, "auth.last_admin");
    refused(set_roles(&service, &program, &id(&admin), &["customer"]).await, Kind::Conflict, "auth.last_admin");
    set_roles(&service, &program, &id(&admin), &["admin", "customer"]).await.expect("it stays one");
    assert!(is_live(&service, &admin).await);

    enable(&service, &program, &id(&other)).await.expect("enabled");
    set_roles(&service, &program, &id(&admin), &["customer"]).await.expect("there is another again");
    refused(disable(&service, &program, &id(&other)).await, Kind::Conflict, "auth.last_admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_administrators_who_are_all_taken_at_once_one_stays() {
    let service = Arc::new(Service::start().await);
    let admin = service.admin().await;
    let mut admins = vec![id(&admin)];
    for name in ["a", "b", "c"] {
        admins.push(id(&another_admin(&service, &admin, &format!("{name}@example.com")).await));
    }
    let program = service.service_token(&["users:write:any"]).await;
    let takings = admins.into_iter().enumerate().map(|(at, user)| {
        let (service, program) = (Arc::clone(&service), program.clone());
        async move {
            match at % 2 {
                0 => disable(&service, &program, &user).await,
                _ => set_roles(&service, &program, &user, &["customer"]).await,
            }
        }
    });
    let answers = at_once(takings).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3, "{answers:?}");
    for answer in answers.into_iter().filter(Result::is_err) {
        refused(answer, Kind::Conflict, "auth.last_admin");
    }
    let left: i64 = sqlx::query_scalar(
        "select count(*) from auth.user_role join auth.user on id = user_id where role = 'admin' and disabled_at is null",
    )
    .fetch_one(service.pool())
    .await
    .expect("a count");
    assert_eq!(left, 1);
}
