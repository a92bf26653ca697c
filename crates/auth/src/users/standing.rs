//! What administrators do to users: disable, enable, sign out, set roles. Each holds from its commit on: whatever takes
//! something from a user ends its sessions in the same transaction, and every gateway hears of that within a second.
//!
//! There is always an administrator who may sign in, and nobody takes that from himself. Whoever may take it from anyone
//! waits for one lock, so that two administrators who disable each other at once do not both succeed.

use kit::{
    Fail,
    audit::{Act, Action},
    grpc::Call,
    identity::Role,
    outbox::Event,
    telemetry::span,
};
use proto::{
    auth::{DisableUserRequest, EnableUserRequest, SetUserRolesRequest, SignOutUserRequest, SignOutUserResponse, User},
    events::{RoleChanged, UserStanding},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Account, known_roles, list::unknown_role, not_found};
use crate::{
    Auth, SCHEMA, acts,
    revocations::{self, EndReason},
};

/// Longest reason that an administrator gives, in characters.
const REASON_CHARS_MAX: usize = 1000;
/// More roles than there are were named by mistake.
const ROLES_MAX: usize = 50;

impl Auth {
    /// Lets a user sign in no more.
    ///
    /// # Errors
    /// `auth.user_not_found`, `auth.not_yourself` (403), `auth.last_admin` (409), `auth.invalid_reason`.
    pub(super) async fn disable_user(&self, call: &Call, asked: &DisableUserRequest) -> Result<User, Fail> {
        let (user, act) = self.asked(call, &acts::DISABLE, &asked.id, &asked.reason).await?;
        let came_to = self.try_disable(call, user, act.clone()).await;
        self.0.audit.witness(&self.0.pool, act, came_to).await
    }

    async fn try_disable(&self, call: &Call, user: Uuid, act: Act) -> Result<User, Fail> {
        self.administers(call.caller()?, "users:write").await?;
        if user == call.caller()?.subject {
            return Err(not_yourself("disable yourself"));
        }
        let _told = span::transaction("auth.disable");
        let mut transaction = self.0.pool.begin().await?;
        let account = lock(&mut transaction, user).await?;
        if account.is_disabled() {
            return Ok(account.into_message());
        }
        keep_an_admin(&mut transaction, &account).await?;
        sqlx::query!("update auth.user set disabled_at = $2 where id = $1", user, self.0.clock.now())
            .execute(&mut *transaction)
            .await?;
        let trace = call.traceparent.as_deref();
        let ended = self.end_sessions_of(&mut transaction, user, EndReason::UserDisabled, trace).await?;
        self.tell_standing(&mut transaction, user, true, trace).await?;
        let act = act.before("is_disabled", false).after("is_disabled", true).after("sessions_ended", u64::from(ended));
        self.0.audit.record(&mut transaction, act).await?;
        let account = Account::get(&mut transaction, user).await?;
        transaction.commit().await?;
        revocations::tell(&self.0).await;
        Ok(account.into_message())
    }

    /// Lets a disabled user sign in again.
    ///
    /// # Errors
    /// `auth.user_not_found`, `auth.invalid_reason`.
    pub(super) async fn enable_user(&self, call: &Call, asked: &EnableUserRequest) -> Result<User, Fail> {
        let (user, act) = self.asked(call, &acts::ENABLE, &asked.id, &asked.reason).await?;
        let came_to = self.try_enable(call, user, act.clone()).await;
        self.0.audit.witness(&self.0.pool, act, came_to).await
    }

    async fn try_enable(&self, call: &Call, user: Uuid, act: Act) -> Result<User, Fail> {
        self.administers(call.caller()?, "users:write").await?;
        let _told = span::transaction("auth.enable");
        let mut transaction = self.0.pool.begin().await?;
        let account = lock(&mut transaction, user).await?;
        if !account.is_disabled() {
            return Ok(account.into_message());
        }
        sqlx::query!("update auth.user set disabled_at = null where id = $1", user).execute(&mut *transaction).await?;
        self.tell_standing(&mut transaction, user, false, call.traceparent.as_deref()).await?;
        let act = act.before("is_disabled", true).after("is_disabled", false);
        self.0.audit.record(&mut transaction, act).await?;
        let account = Account::get(&mut transaction, user).await?;
        transaction.commit().await?;
        Ok(account.into_message())
    }

    /// Ends every session of a user, who may sign in again at once.
    ///
    /// # Errors
    /// `auth.user_not_found`, `auth.invalid_reason`.
    pub(super) async fn sign_user_out(
        &self,
        call: &Call,
        asked: &SignOutUserRequest,
    ) -> Result<SignOutUserResponse, Fail> {
        let (user, act) = self.asked(call, &acts::SIGN_OUT, &asked.id, &asked.reason).await?;
        let came_to = self.try_sign_out(call, user, act.clone()).await;
        let ended = self.0.audit.witness(&self.0.pool, act, came_to).await?;
        Ok(SignOutUserResponse { ended })
    }

    async fn try_sign_out(&self, call: &Call, user: Uuid, act: Act) -> Result<u32, Fail> {
        self.administers(call.caller()?, "users:write").await?;
        let _told = span::transaction("auth.sign_user_out");
        let mut transaction = self.0.pool.begin().await?;
        lock(&mut transaction, user).await?;
        let trace = call.traceparent.as_deref();
        let ended = self.end_sessions_of(&mut transaction, user, EndReason::SignedOut, trace).await?;
        if ended > 0 {
            self.0.audit.record(&mut transaction, act.after("sessions_ended", u64::from(ended))).await?;
        }
        transaction.commit().await?;
        revocations::tell(&self.0).await;
        Ok(ended)
    }

    /// Gives a user exactly these roles.
    ///
    /// # Errors
    /// `auth.unknown_role` at the role, `auth.user_not_found`, `auth.not_yourself` (403), `auth.last_admin` (409),
    /// `auth.invalid_reason`.
    pub(super) async fn set_user_roles(&self, call: &Call, asked: &SetUserRolesRequest) -> Result<User, Fail> {
        let (user, act) = self.asked(call, &acts::SET_ROLES, &asked.id, &asked.reason).await?;
        let roles = parse_roles(&asked.roles)?;
        let came_to = self.try_set_roles(call, user, &roles, act.clone()).await;
        self.0.audit.witness(&self.0.pool, act, came_to).await
    }

    async fn try_set_roles(&self, call: &Call, user: Uuid, roles: &[String], act: Act) -> Result<User, Fail> {
        self.administers(call.caller()?, "users:write").await?;
        let _told = span::transaction("auth.set_roles");
        let mut transaction = self.0.pool.begin().await?;
        let account = lock(&mut transaction, user).await?;
        if account.roles == roles {
            return Ok(account.into_message());
        }
        let is_taken = |role: &String| !roles.contains(role);
        let takes_any = account.roles.iter().any(is_taken);
        if takes_any && user == call.caller()?.subject {
            return Err(not_yourself("take a role from yourself"));
        }
        if account.roles.iter().any(|role| role == Role::Admin.as_str() && is_taken(role)) {
            keep_an_admin(&mut transaction, &account).await?;
        }
        sqlx::query!("delete from auth.user_role where user_id = $1 and role <> all($2)", user, roles)
            .execute(&mut *transaction)
            .await?;
        sqlx::query!(
            "insert into auth.user_role (user_id, role, granted_at)
             select $1, role, $3 from unnest($2::text[]) as given (role)
             on conflict (user_id, role) do nothing",
            user,
            roles,
            self.0.clock.now(),
        )
        .execute(&mut *transaction)
        .await?;
        let trace = call.traceparent.as_deref();
        let ended = match takes_any {
            true => self.end_sessions_of(&mut transaction, user, EndReason::RoleTaken, trace).await?,
            // What is given shows in the tokens of the next refresh.
            false => 0,
        };
        let word = RoleChanged { user_id: user.to_string(), roles: roles.to_vec() };
        let word = Event::new("auth.role.changed", user, &word);
        kit::outbox::write(&mut transaction, SCHEMA, &[word], &self.0.clock, trace).await?;
        let act = act.before("roles", known_roles(&account.roles)).after("roles", known_roles(roles));
        self.0.audit.record(&mut transaction, act.after("sessions_ended", u64::from(ended))).await?;
        let account = Account::get(&mut transaction, user).await?;
        transaction.commit().await?;
        if ended > 0 {
            revocations::tell(&self.0).await;
        }
        Ok(account.into_message())
    }

    /// The user that an administrator's request is about, and its entry in the audit log.
    ///
    /// # Errors
    /// `auth.user_not_found` for what is no id, `auth.invalid_reason`.
    pub(super) async fn asked(
        &self,
        call: &Call,
        action: &'static Action,
        id: &str,
        reason: &str,
    ) -> Result<(Uuid, Act), Fail> {
        let user: Uuid = id.parse().map_err(|_| not_found())?;
        if reason.chars().count() > REASON_CHARS_MAX || reason.contains('\0') {
            return Err(Fail::invalid("auth.invalid_reason", "The reason cannot be taken as it is.").at(
                "/reason",
                "max_length",
                "must be text of at most 1000 characters",
            ));
        }
        Ok((user, Act::of(call, action, user).because(reason)))
    }

    async fn tell_standing(
        &self,
        transaction: &mut PgConnection,
        user: Uuid,
        is_disabled: bool,
        traceparent: Option<&str>,
    ) -> Result<(), Fail> {
        let kind = if is_disabled { "auth.user.disabled" } else { "auth.user.enabled" };
        let word = Event::new(kind, user, &UserStanding { user_id: user.to_string(), is_disabled });
        kit::outbox::write(transaction, SCHEMA, &[word], &self.0.clock, traceparent).await
    }
}

/// Locks who is administrator, then the user: a sign-in that has begun is waited for, and one that begins waits.
async fn lock(transaction: &mut PgConnection, user: Uuid) -> Result<Account, Fail> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('guildhall.auth.admins', 0))")
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("select id from auth.user where id = $1 for no key update", user)
        .fetch_optional(&mut *transaction)
        .await?;
    Account::get(transaction, user).await
}

/// Refuses to take the last administrator who may sign in. Under the [`lock`].
async fn keep_an_admin(transaction: &mut PgConnection, account: &Account) -> Result<(), Fail> {
    let admin = Role::Admin.as_str();
    if account.is_disabled() || !account.roles.iter().any(|role| role == admin) {
        return Ok(());
    }
    let has_another = sqlx::query_scalar!(
        r#"select exists(
             select from auth.user_role
             join auth.user as other on other.id = user_id
             where role = $2 and user_id <> $1 and disabled_at is null
           ) as "has_another!""#,
        account.id,
        admin,
    )
    .fetch_one(transaction)
    .await?;
    if has_another {
        return Ok(());
    }
    Err(Fail::conflict("auth.last_admin", "This is the last administrator. Make another first."))
}

/// The roles as they are stored: each once, in order.
fn parse_roles(asked: &[String]) -> Result<Vec<String>, Fail> {
    if asked.len() > ROLES_MAX {
        return Err(Fail::invalid("auth.unknown_role", "There are not so many roles.").at(
            "/roles",
            "max_items",
            format!("must have at most {ROLES_MAX} items"),
        ));
    }
    let mut roles = Vec::with_capacity(asked.len());
    for (at, role) in asked.iter().enumerate() {
        match role.parse() {
            // A service's rights are those of its key, and a user has none.
            Ok(Role::Service) | Err(_) => return Err(unknown_role(&format!("/roles/{at}"), role)),
            Ok(role) => roles.push(role.as_str().to_owned()),
        }
    }
    roles.sort_unstable();
    roles.dedup();
    Ok(roles)
}

fn not_yourself(what: &str) -> Fail {
    Fail::forbidden("auth.not_yourself", format!("You cannot {what}. Ask another administrator."))
}
