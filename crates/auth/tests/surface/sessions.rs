//! The list of one's sessions, ending them, and what a stranger or nobody may do about them.

use kit::Kind;
use proto::{
    METHODS, Need,
    auth::{
        CheckSessionRequest, ListSessionsRequest, ListSessionsResponse, LogoutAllRequest, LogoutRequest,
        RevokeSessionRequest, TokenPair,
    },
};
use tonic::codegen::{Service as _, http};

use crate::support::{EMAIL, PASSWORD, Service, answer, by, refused};

async fn list(service: &Service, who: &TokenPair, limit: u32, cursor: &str) -> Result<ListSessionsResponse, kit::Fail> {
    let request = ListSessionsRequest { limit, cursor: cursor.to_owned() };
    answer(service.sessions().list(by(&who.access_token, request)).await)
}

async fn ids(service: &Service, who: &TokenPair) -> Vec<String> {
    list(service, who, 0, "").await.expect("a list").items.into_iter().map(|session| session.id).collect()
}

async fn logout(service: &Service, who: &TokenPair) -> Result<(), kit::Fail> {
    answer(service.sessions().logout(by(&who.access_token, LogoutRequest {})).await).map(drop)
}

async fn revoke(service: &Service, who: &TokenPair, id: &str) -> Result<(), kit::Fail> {
    answer(service.sessions().revoke(by(&who.access_token, RevokeSessionRequest { id: id.to_owned() })).await).map(drop)
}

async fn is_live(service: &Service, who: &TokenPair) -> bool {
    answer(service.sessions().check(by(&who.access_token, CheckSessionRequest {})).await).expect("an answer").live
}

async fn session_id(service: &Service, who: &TokenPair) -> String {
    service.caller(who).await.session.expect("a session").to_string()
}

#[tokio::test]
async fn the_list_shows_ones_own_live_sessions_newest_first_and_page_by_page() {
    let service = Service::start().await;
    service.person("bob@example.com").await;
    let mut mine = vec![service.person(EMAIL).await];
    for _ in 0..4 {
        mine.push(service.login(EMAIL).await);
    }
    logout(&service, &mine[2]).await.expect("signed out");
    let mut expected = Vec::new();
    for at in [4, 3, 1, 0] {
        expected.push(session_id(&service, &mine[at]).await);
    }
    assert_eq!(ids(&service, &mine[0]).await, expected);

    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&service, &mine[3], 2, &cursor).await.expect("a page");
        assert!(page.items.len() <= 2);
        for session in page.items {
            assert_eq!(session.current, session.id == expected[1]);
            assert_eq!(session.user_agent, "a test");
            assert_eq!(session.last_used_at, session.created_at);
            let lives = session.expires_at.unwrap().seconds - session.created_at.unwrap().seconds;
            assert_eq!(lives, 7 * 24 * 60 * 60, "it ends after a week without use");
            paged.push(session.id);
        }
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(paged, expected);
}

#[tokio::test]
async fn a_cursor_of_somebody_else_or_of_nobody_is_refused() {
    let service = Service::start().await;
    let (ada, bob) = (service.person(EMAIL).await, service.person("bob@example.com").await);
    service.login(EMAIL).await;
    let cursor = list(&service, &ada, 1, "").await.expect("a page").next_cursor;
    assert!(!cursor.is_empty());
    refused(list(&service, &bob, 1, &cursor).await, Kind::Malformed, "invalid_cursor");
    refused(list(&service, &ada, 1, "nonsense").await, Kind::Malformed, "invalid_cursor");
}

#[tokio::test]
async fn signing_out_ends_one_session_and_doing_it_again_changes_nothing() {
    let service = Service::start().await;
    let (here, there) = (service.person(EMAIL).await, service.login(EMAIL).await);
    assert!(is_live(&service, &here).await);
    for _ in 0..2 {
        logout(&service, &here).await.expect("signed out");
        assert!(!is_live(&service, &here).await);
    }
    assert!(is_live(&service, &there).await);
    assert_eq!(service.times_told("auth.session.revoked").await, 1);
    refused(list(&service, &here, 0, "").await, Kind::Unauthenticated, "auth.session_ended");
}

#[tokio::test]
async fn signing_out_everywhere_ends_every_session_of_the_caller_and_of_nobody_else() {
    let service = Service::start().await;
    let mine = [service.person(EMAIL).await, service.login(EMAIL).await, service.login(EMAIL).await];
    let bob = service.person("bob@example.com").await;
    let ended = answer(service.sessions().logout_all(by(&mine[0].access_token, LogoutAllRequest {})).await);
    assert_eq!(ended.expect("signed out").ended, 3);
    for tokens in &mine {
        assert!(!is_live(&service, tokens).await);
    }
    assert!(is_live(&service, &bob).await);
    assert_eq!(service.times_told("auth.session.revoked").await, 3);
    let again = answer(service.sessions().logout_all(by(&mine[0].access_token, LogoutAllRequest {})).await);
    refused(again, Kind::Unauthenticated, "auth.session_ended");
}

#[tokio::test]
async fn one_of_ones_own_sessions_can_be_ended_and_is_then_not_there() {
    let service = Service::start().await;
    let (here, there) = (service.person(EMAIL).await, service.login(EMAIL).await);
    let id = session_id(&service, &there).await;
    revoke(&service, &here, &id).await.expect("ended");
    assert!(!is_live(&service, &there).await && is_live(&service, &here).await);
    refused(revoke(&service, &here, &id).await, Kind::NotFound, "auth.session_not_found");
    assert_eq!(service.times_told("auth.session.revoked").await, 1);
}

#[tokio::test]
async fn a_strangers_session_is_not_there() {
    let service = Service::start().await;
    let (ada, bob) = (service.person(EMAIL).await, service.person("bob@example.com").await);
    let bobs = session_id(&service, &bob).await;
    for id in [bobs.as_str(), "00000000-0000-7000-8000-000000000000", "nonsense", ""] {
        refused(revoke(&service, &ada, id).await, Kind::NotFound, "auth.session_not_found");
    }
    assert!(is_live(&service, &bob).await);
    assert!(!ids(&service, &ada).await.contains(&bobs));
}

#[tokio::test]
async fn an_administrator_may_end_anyones_session_and_lists_only_the_own() {
    let service = Service::start().await;
    let bob = service.person("bob@example.com").await;
    let password = kit::Secret::new(PASSWORD.to_owned());
    let first = service.auth.ensure_first_admin(&password).await.expect("made").expect("the first");
    let admin = service.login(&first.email).await;
    assert_eq!(ids(&service, &admin).await, [session_id(&service, &admin).await]);
    revoke(&service, &admin, &session_id(&service, &bob).await).await.expect("ended");
    assert!(!is_live(&service, &bob).await);
}

#[tokio::test]
async fn a_service_account_has_no_session_to_end_and_is_live() {
    let service = Service::start().await;
    let token = service.service_token(&["workers:connect"]).await;
    let answered = answer(service.sessions().logout(by(&token, LogoutRequest {})).await);
    refused(answered, Kind::Conflict, "auth.no_session");
    let checked = answer(service.sessions().check(by(&token, CheckSessionRequest {})).await);
    assert!(checked.expect("an answer").live);
    let listed = answer(service.sessions().list(by(&token, ListSessionsRequest::default())).await);
    refused(listed, Kind::Forbidden, "forbidden");
}

/// Made of the table that `proto/` is compiled to, so that a method which is added is tried too.
#[tokio::test]
async fn nobody_gets_past_the_guard_of_a_method_that_is_not_public() {
    let service = Service::start().await;
    let methods = METHODS.iter().filter(|method| method.path.starts_with("/guildhall.auth.v1."));
    let mut guarded = 0;
    for method in methods.filter(|method| method.need != Need::Public) {
        // An empty message in its five-byte frame.
        let body = tonic::body::Body::new(http_body_util::Full::from(&[0_u8; 5][..]));
        let request = http::Request::post(method.path).header("content-type", "application/grpc").body(body).unwrap();
        let response = service.peer.clone().call(request).await.expect("an answer");
        let status = response.headers().get("grpc-status").expect("a refusal before any body");
        assert_eq!(status, "16", "{} let an anonymous caller in", method.path);
        guarded += 1;
    }
    assert!(guarded >= 7, "the table has lost methods");
}
