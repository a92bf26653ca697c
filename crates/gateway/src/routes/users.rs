//! Users, as administrators manage them: found, let in or kept out, given roles. What somebody does with their own account
//! is in `auth`.

use kit::Fail;
use proto::auth as rpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SMALL, auth::Ended};
use crate::{
    route::{Access, Ask, Fails, Id, Idempotency, Json, JsonOrNothing, Nothing, Query, Reply, Route},
    wire::{LIMIT, List, Time, maybe_time, time},
};

const TAG: &str = "admin";
const READ: Access = Access::Permission("users:read");
const WRITE: Access = Access::Permission("users:write");
const NOT_FOUND: Fails = Fails(&[(404, "auth.user_not_found")]);
const ACT_FAILS: Fails = Fails(&[(404, "auth.user_not_found"), (422, "auth.invalid_reason")]);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/admin/users", TAG, "List the users, newest first")
            .access(READ, &["/guildhall.auth.v1.Users/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(422, "auth.unknown_role"), (422, "auth.invalid_search")]))
            .by(list),
        Route::get("/api/v1/admin/users/{id}", TAG, "Show a user")
            .access(READ, &["/guildhall.auth.v1.Users/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(show),
        Route::patch("/api/v1/admin/users/{id}", TAG, "Change what is said of a user")
            .access(WRITE, &["/guildhall.auth.v1.Users/Update"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[(404, "auth.user_not_found"), (422, "auth.invalid_user"), (422, "auth.invalid_reason")]))
            .by(update),
        Route::post("/api/v1/admin/users/{id}/disable", TAG, "End every session of a user, and let it sign in no more")
            .access(WRITE, &["/guildhall.auth.v1.Users/Disable"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[
                (403, "auth.not_yourself"),
                (404, "auth.user_not_found"),
                (409, "auth.last_admin"),
                (422, "auth.invalid_reason"),
            ]))
            .by(disable),
        Route::post("/api/v1/admin/users/{id}/enable", TAG, "Let a disabled user sign in again")
            .access(WRITE, &["/guildhall.auth.v1.Users/Enable"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(ACT_FAILS)
            .by(enable),
        Route::post("/api/v1/admin/users/{id}/sign-out", TAG, "End every session of a user")
            .access(WRITE, &["/guildhall.auth.v1.Users/SignOut"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(ACT_FAILS)
            .by(sign_out),
        Route::put("/api/v1/admin/users/{id}/roles", TAG, "Give a user exactly these roles")
            .access(WRITE, &["/guildhall.auth.v1.Users/SetRoles"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[
                (403, "auth.not_yourself"),
                (404, "auth.user_not_found"),
                (409, "auth.last_admin"),
                (422, "auth.unknown_role"),
                (422, "auth.invalid_reason"),
            ]))
            .by(set_roles),
    ]
}

/// A user, as administrators see it.
#[derive(Debug, Serialize, JsonSchema)]
struct AnyUser {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    email: String,
    display_name: String,
    roles: Vec<String>,
    created_at: Time,
    /// `null` for one that may sign in.
    disabled_at: Option<Time>,
}

/// Which users are asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UserFilter {
    /// Most items in the answer; 50 unless said.
    #[serde(default)]
    #[schemars(range(min = 1, max = 200), extend("default" = 50))]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// Exactly this address, in any case.
    #[serde(default)]
    email: Option<String>,
    /// Part of the address or of the display name; ASCII letters in any case.
    #[serde(default)]
    #[schemars(length(max = 100))]
    search: Option<String>,
    #[serde(default)]
    role: Option<String>,
    /// Only those who may not sign in, or only those who may.
    #[serde(default)]
    disabled: Option<bool>,
}

/// Why something is done.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ActReason {
    /// For the audit log.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: Option<String>,
}

/// What is to change of a user; what is left out stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UserChanges {
    #[serde(default)]
    display_name: Option<String>,
    /// For the audit log.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: Option<String>,
}

/// The roles that a user is to have.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewRoles {
    #[schemars(length(max = 50))]
    roles: Vec<String>,
    /// For the audit log.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: Option<String>,
}

async fn list(ask: Ask<Nothing, Query<UserFilter>>) -> Result<Reply<200, List<AnyUser>>, Fail> {
    let Query(filter) = ask.query;
    let message = rpc::ListUsersRequest {
        limit: filter.limit.unwrap_or(LIMIT),
        cursor: filter.cursor.unwrap_or_default(),
        email: filter.email.unwrap_or_default(),
        search: filter.search.unwrap_or_default(),
        role: filter.role.unwrap_or_default(),
        disabled: filter.disabled,
    };
    let page = ask.door.users().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, AnyUser::read)?))
}

async fn show(ask: Ask<Id>) -> Result<Reply<200, AnyUser>, Fail> {
    let message = rpc::GetUserRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(AnyUser::read(ask.door.users().get(ask.call.request(message)).await?.into_inner())?))
}

async fn update(ask: Ask<Id, Nothing, Json<UserChanges>>) -> Result<Reply<200, AnyUser>, Fail> {
    let Json(UserChanges { display_name, reason }) = ask.body;
    let (id, reason) = (ask.path.0.to_string(), reason.unwrap_or_default());
    let message = rpc::UpdateUserRequest { id, display_name, reason };
    Ok(Reply::new(AnyUser::read(ask.door.users().update(ask.call.request(message)).await?.into_inner())?))
}

async fn disable(ask: Ask<Id, Nothing, JsonOrNothing<ActReason>>) -> Result<Reply<200, AnyUser>, Fail> {
    let (id, reason) = (ask.path.0.to_string(), ask.body.0.reason.unwrap_or_default());
    let message = rpc::DisableUserRequest { id, reason };
    Ok(Reply::new(AnyUser::read(ask.door.users().disable(ask.call.request(message)).await?.into_inner())?))
}

async fn enable(ask: Ask<Id, Nothing, JsonOrNothing<ActReason>>) -> Result<Reply<200, AnyUser>, Fail> {
    let (id, reason) = (ask.path.0.to_string(), ask.body.0.reason.unwrap_or_default());
    let message = rpc::EnableUserRequest { id, reason };
    Ok(Reply::new(AnyUser::read(ask.door.users().enable(ask.call.request(message)).await?.into_inner())?))
}

async fn sign_out(ask: Ask<Id, Nothing, JsonOrNothing<ActReason>>) -> Result<Reply<200, Ended>, Fail> {
    let (id, reason) = (ask.path.0.to_string(), ask.body.0.reason.unwrap_or_default());
    let message = rpc::SignOutUserRequest { id, reason };
    let answer = ask.door.users().sign_out(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(Ended { ended: answer.ended }))
}

async fn set_roles(ask: Ask<Id, Nothing, Json<NewRoles>>) -> Result<Reply<200, AnyUser>, Fail> {
    let Json(NewRoles { roles, reason }) = ask.body;
    let message = rpc::SetUserRolesRequest { id: ask.path.0.to_string(), roles, reason: reason.unwrap_or_default() };
    Ok(Reply::new(AnyUser::read(ask.door.users().set_roles(ask.call.request(message)).await?.into_inner())?))
}

impl AnyUser {
    fn read(user: rpc::User) -> Result<Self, Fail> {
        Ok(Self {
            id: user.id,
            email: user.email,
            display_name: user.display_name,
            roles: user.roles,
            created_at: time(user.created_at)?,
            disabled_at: maybe_time(user.disabled_at),
        })
    }
}
