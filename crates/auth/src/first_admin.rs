//! The first administrator: who can let anyone else in on an installation where nobody is.
//!
//! The password is the caller's, so that it is known before the account is. A caller that shows a generated one writes it
//! to a file of its own (mode 0600) first, then calls [`Auth::ensure_first_admin`] and shows it. Wherever that is cut short,
//! the file is found at the next start and the same steps are taken again: the password in it either opens the account,
//! and is shown, or belongs to another process that came second, and opens nothing.

use kit::{Fail, Personal, Secret, audit::Act, fail::Kind, identity::Role, outbox::Event};
use proto::events::RoleChanged;

use crate::{
    Auth, SCHEMA, acts,
    email::Email,
    passwords::{Password, Verified},
    random,
    users::{NewUser, known_roles},
};

/// The letters of generated passwords: none is mistaken for another when read aloud or copied by hand. 32 of them, so
/// that five random bits are one letter.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// An administrator whose password is known to the process that holds this.
#[derive(Debug)]
pub struct FirstAdmin {
    pub email: String,
    pub password: Secret,
}

/// A password of 100 random bits in four groups of five letters.
///
/// # Errors
/// `internal` without randomness.
pub fn new_password() -> Result<Secret, Fail> {
    let letters = random::bytes::<20>()?.map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
    let groups: Vec<String> = letters.chunks(5).map(String::from_iter).collect();
    Ok(Secret::new(groups.join("-")))
}

impl Auth {
    /// Whether anyone is administrator.
    ///
    /// # Errors
    /// As the database.
    pub async fn has_admin(&self) -> Result<bool, Fail> {
        let mut connection = self.0.pool.acquire().await?;
        has_admin(&mut connection).await
    }

    /// Makes the first administrator with this password, at the address of the setting `admin_email`, unless there is an
    /// administrator. However many processes call at once, one account is made.
    ///
    /// `Some` when `password` opens the account at that address: because it was made just now, or by a call with the same
    /// password before. `None` when there are administrators and this password is not that one's.
    ///
    /// # Errors
    /// `config.admin_password` for one that breaks the rules for passwords, `config.admin_email_taken` when somebody who is
    /// no administrator has that address: rights are not given to whoever came first.
    pub async fn ensure_first_admin(&self, password: &Secret) -> Result<Option<FirstAdmin>, Fail> {
        let email = Email::parse(&self.0.settings.admin_email)
            .map_err(|reason| Fail::invalid("config.admin_email", format!("admin_email {reason}.")))?;
        let chosen = Password::choose(password.expose(), Some(&email)).map_err(|violation| {
            Fail::invalid("config.admin_password", format!("admin_password {}.", violation.message))
        })?;
        let first = FirstAdmin { email: email.as_str().to_owned(), password: password.clone() };
        if self.has_admin().await? {
            return Ok(self.opens_admin(&email, &chosen).await?.then_some(first));
        }
        let password_hash = self.0.hasher.hash(&chosen).await?;
        let mut transaction = self.0.pool.begin().await?;
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended('guildhall.auth.first_admin', 0))")
            .execute(&mut *transaction)
            .await?;
        if has_admin(&mut transaction).await? {
            transaction.rollback().await?;
            return Ok(self.opens_admin(&email, &chosen).await?.then_some(first));
        }
        let new = NewUser {
            email,
            display_name: Personal::new("Administrator".to_owned()),
            password_hash,
            role: Role::Admin,
        };
        let account = self.insert_user(&mut transaction, new, None).await.map_err(|fail| match fail.kind() {
            Kind::Conflict => Fail::conflict(
                "config.admin_email_taken",
                "The address in admin_email belongs to a user who is no administrator. Set another.",
            ),
            _ => fail,
        })?;
        let act = Act::by_system(&acts::REGISTER, account.id).after("roles", known_roles(&account.roles));
        self.0.audit.record(&mut transaction, act).await?;
        let changed = RoleChanged { user_id: account.id.to_string(), roles: account.roles };
        let changed = Event::new("auth.role.changed", account.id, &changed);
        kit::outbox::write(&mut transaction, SCHEMA, &[changed], &self.0.clock, None).await?;
        transaction.commit().await?;
        Ok(Some(first))
    }

    async fn opens_admin(&self, email: &Email, password: &Password) -> Result<bool, Fail> {
        let stored = sqlx::query_scalar!(
            "select password_hash
             from auth.user
             join auth.user_role on user_role.user_id = auth.user.id
             where email = $1 and role = $2",
            email.as_str(),
            Role::Admin.as_str(),
        )
        .fetch_optional(&self.0.pool)
        .await?;
        Ok(self.0.hasher.verify(password, stored.as_deref()).await? != Verified::No)
    }
}

async fn has_admin(connection: &mut sqlx::PgConnection) -> Result<bool, Fail> {
    let has_admin = sqlx::query_scalar!(
        r#"select exists(select from auth.user_role where role = $1) as "has_admin!""#,
        Role::Admin.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(has_admin)
}
