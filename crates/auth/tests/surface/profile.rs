//! What a user says of itself: changed by itself and by administrators, refused as it is anywhere, and written down without
//! being repeated.

use kit::{Fail, Kind};
use proto::{
    auth::{
        CheckSessionRequest, GetUserRequest, SignOutUserRequest, TokenPair, UpdateSelfRequest, UpdateUserRequest, User,
    },
    events::ActRecorded,
};
use serde_json::{Value, json};

use crate::support::{EMAIL, Service, answer, by, refused};

const REASON: &str = "as asked";

fn id(who: &TokenPair) -> String {
    who.user.as_ref().expect("a user").id.clone()
}

async fn get(service: &Service, who: &TokenPair, id: &str) -> User {
    answer(service.users().get(by(&who.access_token, GetUserRequest { id: id.to_owned() })).await).expect("shown")
}

async fn rename(service: &Service, who: &TokenPair, id: &str, name: Option<&str>) -> Result<User, Fail> {
    let (id, display_name) = (id.to_owned(), name.map(str::to_owned));
    let message = UpdateUserRequest { id, display_name, reason: REASON.to_owned() };
    answer(service.users().update(by(&who.access_token, message)).await)
}

async fn rename_oneself(service: &Service, who: &TokenPair, name: Option<&str>) -> Result<User, Fail> {
    let message = UpdateSelfRequest { display_name: name.map(str::to_owned) };
    answer(service.users().update_self(by(&who.access_token, message)).await)
}

#[tokio::test]
async fn a_user_changes_its_name_an_administrator_anyones_and_nothing_else_changes() {
    let service = Service::start().await;
    let (admin, ada) = (service.admin().await, service.person(EMAIL).await);
    let before = get(&service, &admin, &id(&ada)).await;

    let own = rename_oneself(&service, &ada, Some("  Countess of Lovelace ")).await.expect("changed");
    assert_eq!(own, User { display_name: "Countess of Lovelace".to_owned(), ..before.clone() });
    assert_eq!(rename_oneself(&service, &ada, None).await.expect("nothing is to change"), own);
    let changed = rename(&service, &admin, &id(&ada), Some("Ada")).await.expect("changed");
    assert_eq!(changed, User { display_name: "Ada".to_owned(), ..before });
    assert_eq!(rename(&service, &admin, &id(&ada), None).await.expect("nothing is to change"), changed);
    assert_eq!(get(&service, &admin, &id(&ada)).await, changed);
    let check = service.sessions().check(by(&ada.access_token, CheckSessionRequest {})).await;
    assert!(answer(check).expect("an answer").live, "a name ends no session");
}

#[tokio::test]
async fn what_is_no_name_whoever_is_no_administrator_and_whoever_is_not_there_is_refused() {
    let service = Service::start().await;
    let (admin, ada) = (service.admin().await, service.person(EMAIL).await);
    let long = "x".repeat(101);
    for (name, code) in [("", "required"), (" ", "required"), ("A\nB", "characters"), (&long, "max_length")] {
        for came_to in
            [rename(&service, &admin, &id(&ada), Some(name)).await, rename_oneself(&service, &ada, Some(name)).await]
        {
            let fail = came_to.expect_err("it is no name");
            assert_eq!((fail.kind(), fail.code()), (Kind::Invalid, "auth.invalid_user"));
            let told = &fail.violations()[0];
            assert_eq!((told.pointer.as_str(), told.code.as_str()), ("/display_name", code));
        }
    }
    for nobody in ["", "nonsense", "00000000-0000-7000-8000-000000000000"] {
        refused(rename(&service, &admin, nobody, Some("Bob")).await, Kind::NotFound, "auth.user_not_found");
    }
    for target in [id(&ada), id(&admin)] {
        refused(rename(&service, &ada, &target, Some("Eve")).await, Kind::Forbidden, "forbidden");
    }
    let message = SignOutUserRequest { id: id(&ada), reason: String::new() };
    answer(service.users().sign_out(by(&admin.access_token, message)).await).expect("signed out");
    refused(rename_oneself(&service, &ada, Some("Eve")).await, Kind::Unauthenticated, "auth.session_ended");
    let shown = get(&service, &admin, &id(&ada)).await;
    assert_eq!(shown.display_name, ada.user.as_ref().expect("a user").display_name);
}

#[tokio::test]
async fn a_change_is_written_down_once_with_who_did_it_and_without_the_name() {
    let service = Service::start().await;
    let (admin, ada) = (service.admin().await, service.person(EMAIL).await);
    let before = service.acts().await.len();
    rename_oneself(&service, &ada, Some("Countess")).await.expect("changed");
    rename_oneself(&service, &ada, Some("Countess")).await.expect("as it is");
    rename(&service, &admin, &id(&ada), Some("Ada")).await.expect("changed");
    rename(&service, &admin, &id(&ada), None).await.expect("nothing is to change");
    let acts = service.acts().await.split_off(before);
    let told = |act: &ActRecorded| {
        (act.action.clone(), act.actor_id.clone(), act.target_id.clone(), act.reason.clone(), act.outcome.clone())
    };
    let expected = |by: &TokenPair, reason: &str| {
        ("user.update".to_owned(), id(by), id(&ada), reason.to_owned(), "done".to_owned())
    };
    assert_eq!(acts.iter().map(told).collect::<Vec<_>>(), [expected(&ada, ""), expected(&admin, REASON)]);
    for act in &acts {
        let after: Value = serde_json::from_str(&act.after_json).expect("JSON");
        assert_eq!((act.before_json.as_str(), after), ("", json!({ "changed": ["display_name"] })));
    }
}
