//! What a user says of itself: changed by the user, or by an administrator. The address is not among it, since who has it
//! can take the account.

use kit::{Fail, Personal, audit::Act, grpc::Call, telemetry::span};
use proto::auth::{UpdateSelfRequest, UpdateUserRequest, User};
use uuid::Uuid;

use super::{Account, parse_display_name};
use crate::{Auth, acts};

impl Auth {
    /// Changes a user for an administrator.
    ///
    /// # Errors
    /// `auth.invalid_user` at the field, `auth.user_not_found`, `auth.invalid_reason`.
    pub(super) async fn update_user(&self, call: &Call, asked: &UpdateUserRequest) -> Result<User, Fail> {
        let (user, act) = self.asked(call, &acts::UPDATE, &asked.id, &asked.reason).await?;
        let change = Change::parse(asked.display_name.as_deref())?;
        let came_to = async {
            self.administers(call.caller()?, "users:write").await?;
            self.change_user(user, change, act.clone()).await
        };
        let came_to = came_to.await;
        self.0.audit.witness(&self.0.pool, act, came_to).await
    }

    /// Changes the caller's own user.
    ///
    /// # Errors
    /// `auth.invalid_user` at the field, `auth.session_ended`; `auth.user_not_found` for a service account.
    pub(super) async fn update_own_user(&self, call: &Call, asked: &UpdateSelfRequest) -> Result<User, Fail> {
        let change = Change::parse(asked.display_name.as_deref())?;
        let user = self.live(call.caller()?).await?;
        self.change_user(user, change, Act::of(call, &acts::UPDATE, user)).await
    }

    async fn change_user(&self, user: Uuid, change: Change, act: Act) -> Result<User, Fail> {
        let _told = span::transaction("auth.update_user");
        let mut transaction = self.0.pool.begin().await?;
        if let Some(name) = &change.display_name {
            let changed = sqlx::query!(
                "update auth.user set display_name = $2 where id = $1 and display_name <> $2",
                user,
                name.expose(),
            )
            .execute(&mut *transaction)
            .await?;
            if changed.rows_affected() > 0 {
                self.0.audit.record(&mut transaction, act.after("changed", vec!["display_name"])).await?;
            }
        }
        let account = Account::get(&mut transaction, user).await?;
        transaction.commit().await?;
        Ok(account.into_message())
    }
}

/// What is to change; what is absent stays.
#[derive(Debug)]
struct Change {
    display_name: Option<Personal>,
}

impl Change {
    fn parse(display_name: Option<&str>) -> Result<Self, Fail> {
        let display_name = display_name.map(parse_display_name).transpose().map_err(|found| {
            Fail::invalid("auth.invalid_user", "The user cannot be changed to this.").with_violations(vec![found])
        })?;
        Ok(Self { display_name })
    }
}
