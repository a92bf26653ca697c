//! Users as administrators find them: by address, by part of it or of the name, by role, by standing. Changes nothing.

use kit::{
    Fail,
    cursor::page_rows,
    grpc::Call,
    identity::{Caller, Reach, Role},
};
use proto::auth::{ListUsersRequest, ListUsersResponse, User};
use uuid::Uuid;

use super::{Account, not_found};
use crate::{Auth, email::Email};

const LIST: &str = "users";
/// Longest part of an address or a name that is looked for, in characters.
const SEARCH_CHARS_MAX: usize = 100;

impl Auth {
    /// One page of users.
    ///
    /// # Errors
    /// `auth.unknown_role`, `auth.invalid_search`, `invalid_cursor`; `forbidden` for who may read none but itself.
    pub(super) async fn list_users(&self, call: &Call, asked: &ListUsersRequest) -> Result<ListUsersResponse, Fail> {
        self.administers(call.caller()?, "users:read").await?;
        let rows_max = page_rows(asked.limit);
        let before: Option<Uuid> = self.0.keys.cursor.place(LIST, &asked.cursor)?;
        let role = match asked.role.as_str() {
            "" => None,
            role => Some(role.parse::<Role>().map_err(|_| unknown_role("/role", role))?.as_str()),
        };
        let search = parse_search(&asked.search)?;
        let email = match asked.email.as_str() {
            "" => None,
            text => match Email::parse(text) {
                Ok(email) => Some(email),
                // Nobody has what is no address.
                Err(_) => return Ok(ListUsersResponse::default()),
            },
        };
        let mut rows = sqlx::query_as!(
            Account,
            r#"select id, email, display_name, created_at, disabled_at,
                 array(select role from auth.user_role where user_id = id order by role) as "roles!"
               from auth.user
               where ($1::uuid is null or id < $1)
                 and ($2::text is null or email = $2)
                 and ($3::text is null
                   or position(lower($3) in email) > 0
                   or position(lower($3) in lower(display_name)) > 0)
                 and ($4::text is null or exists (select from auth.user_role where user_id = id and role = $4))
                 and ($5::boolean is null or (disabled_at is not null) = $5)
               order by id desc
               limit $6"#,
            before,
            email.as_ref().map(Email::as_str),
            search,
            role,
            asked.disabled,
            rows_max + 1,
        )
        .fetch_all(&self.0.pool)
        .await?;
        let next_cursor = self.0.keys.cursor.close_page(LIST, &mut rows, rows_max, |row| row.id.to_string());
        Ok(ListUsersResponse { items: rows.into_iter().map(Account::into_message).collect(), next_cursor })
    }

    /// One user.
    ///
    /// # Errors
    /// `auth.user_not_found`; `forbidden` as above.
    pub(super) async fn get_user(&self, call: &Call, id: &str) -> Result<User, Fail> {
        self.administers(call.caller()?, "users:read").await?;
        let id = id.parse().map_err(|_| not_found())?;
        Ok(Account::get(&mut *self.0.pool.acquire().await?, id).await?.into_message())
    }

    /// Lets a caller pass who may do it to any user. Oneself has other methods.
    ///
    /// # Errors
    /// `auth.session_ended`, `forbidden`.
    pub(super) async fn administers(&self, caller: &Caller, permission: &str) -> Result<(), Fail> {
        self.live(caller).await?;
        match caller.require(permission)? {
            Reach::Any => Ok(()),
            Reach::Own => Err(Fail::forbidden("forbidden", "Your permission does not reach other users.")),
        }
    }
}

/// What to look for; `None` for all.
fn parse_search(text: &str) -> Result<Option<&str>, Fail> {
    if text.chars().count() > SEARCH_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(Fail::invalid("auth.invalid_search", "Users cannot be looked for by this.").at(
            "/search",
            "max_length",
            "must be at most 100 characters, none of them control characters",
        ));
    }
    Ok(Some(text.trim()).filter(|text| !text.is_empty()))
}

pub(super) fn unknown_role(pointer: &str, role: &str) -> Fail {
    // What was asked for is the caller's own text; a bounded part of it is shown.
    let role: String = role.chars().filter(|c| !c.is_control()).take(40).collect();
    Fail::invalid("auth.unknown_role", "There is no such role for a user.").at(
        pointer,
        "enum",
        format!("`{role}` is no role of a user"),
    )
}
