//! Users: making one, and reading one's own. How administrators find users stands in `users/list.rs`, what they do to them
//! in `users/standing.rs`, and how a user's own words about itself are changed in `users/profile.rs`.

mod list;
mod profile;
mod standing;

use chrono::{DateTime, Utc};
use kit::{
    Fail, Personal,
    audit::Act,
    clock::to_timestamp,
    fail::{Violation, on_constraint},
    grpc::{Call, IdempotencyKey},
    identity::Role,
    outbox::Event,
    telemetry::span,
};
use proto::{
    auth::{
        DisableUserRequest, EnableUserRequest, GetSelfRequest, GetUserRequest, ListUsersRequest, ListUsersResponse,
        RegisterRequest, SetUserRolesRequest, SignOutUserRequest, SignOutUserResponse, UpdateSelfRequest,
        UpdateUserRequest, User, users_server::Users,
    },
    events::UserRegistered,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Auth, SCHEMA, acts, email::Email, passwords::Password, random::sha256_of_parts};

/// Longest display name in characters.
const DISPLAY_NAME_CHARS_MAX: usize = 100;

#[tonic::async_trait]
impl Users for Auth {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<User>, Status> {
        let call = Call::of(&request)?;
        let registration = Registration::parse(request.get_ref())?;
        Ok(Response::new(self.create_user(registration, call).await?))
    }

    async fn list(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        Ok(Response::new(self.list_users(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn get(&self, request: Request<GetUserRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.get_user(Call::of(&request)?, &request.get_ref().id).await?))
    }

    async fn disable(&self, request: Request<DisableUserRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.disable_user(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn enable(&self, request: Request<EnableUserRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.enable_user(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn sign_out(&self, request: Request<SignOutUserRequest>) -> Result<Response<SignOutUserResponse>, Status> {
        Ok(Response::new(self.sign_user_out(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn set_roles(&self, request: Request<SetUserRolesRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.set_user_roles(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn update(&self, request: Request<UpdateUserRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.update_user(Call::of(&request)?, request.get_ref()).await?))
    }

    async fn get_self(&self, request: Request<GetSelfRequest>) -> Result<Response<User>, Status> {
        let user = self.live(Call::of(&request)?.caller()?).await?;
        let mut connection = self.0.pool.acquire().await.map_err(Fail::from)?;
        Ok(Response::new(Account::get(&mut connection, user).await?.into_message()))
    }

    async fn update_self(&self, request: Request<UpdateSelfRequest>) -> Result<Response<User>, Status> {
        Ok(Response::new(self.update_own_user(Call::of(&request)?, request.get_ref()).await?))
    }
}

/// What makes a user, every part of it checked.
#[derive(Debug)]
struct Registration {
    email: Email,
    password: Password,
    display_name: Personal,
}

impl Registration {
    fn parse(request: &RegisterRequest) -> Result<Self, Fail> {
        let mut violations = Vec::new();
        let email =
            Email::parse(&request.email).map_err(|message| violations.push(violation("/email", "email", message))).ok();
        let display_name = parse_display_name(&request.display_name).map_err(|found| violations.push(found)).ok();
        let password = Password::choose(&request.password, email.as_ref()).map_err(|found| violations.push(found)).ok();
        match (email, password, display_name) {
            (Some(email), Some(password), Some(display_name)) => Ok(Self { email, password, display_name }),
            _ => Err(Fail::invalid("auth.invalid_registration", "A user cannot be made of this.")
                .with_violations(violations)),
        }
    }
}

fn parse_display_name(text: &str) -> Result<Personal, Violation> {
    let name = text.trim();
    if name.is_empty() {
        return Err(violation("/display_name", "required", "must not be empty"));
    }
    if name.chars().count() > DISPLAY_NAME_CHARS_MAX {
        return Err(violation("/display_name", "max_length", "must be at most 100 characters"));
    }
    if name.chars().any(char::is_control) {
        return Err(violation("/display_name", "characters", "must not contain control characters"));
    }
    Ok(name.to_owned().into())
}

fn violation(pointer: &str, code: &str, message: &str) -> Violation {
    Violation { pointer: pointer.into(), code: code.into(), message: message.into() }
}

impl Auth {
    /// Makes the user, once for an idempotency key.
    async fn create_user(&self, registration: Registration, call: &Call) -> Result<User, Fail> {
        let email = registration.email.as_str();
        let idempotency = match &call.idempotency {
            Some(idempotency) => Some(self.veil(email, idempotency).await?),
            None => None,
        };
        // Nobody is signed in, and keys belong to a caller: to the address, so that two people's keys do not meet.
        let caller = uuid_of(&sha256_of_parts(&[b"register", email.as_bytes()]));
        // Hashed before the transaction begins: a core's work must not hold a connection.
        let password_hash = self.0.hasher.hash(&registration.password).await?;
        let (auth, call, now) = (self.clone(), call.clone(), self.0.clock.now());
        let _told = span::transaction("auth.register");
        let transaction = self.0.pool.begin().await?;
        let made = kit::idempotency::once(transaction, SCHEMA, caller, idempotency.as_ref(), now, move |transaction| {
            Box::pin(async move {
                let Registration { email, display_name, .. } = registration;
                let new = NewUser { email, display_name, password_hash, role: Role::Customer };
                let account = auth.insert_user(transaction, new, call.traceparent.as_deref()).await?;
                let act = Act::of(&call, &acts::REGISTER, account.id).after("roles", known_roles(&account.roles));
                auth.0.audit.record(transaction, act).await?;
                Ok(account.into_message())
            })
        });
        let (user, replayed) = made.await?;
        Ok(User { replayed, ..user })
    }

    /// The digest of a registration covers its password, and a plain SHA-256 of one is guessed at a rate of billions.
    /// What is stored is therefore as costly to guess as the password's own hash.
    async fn veil(&self, email: &str, idempotency: &IdempotencyKey) -> Result<IdempotencyKey, Fail> {
        let salt = sha256_of_parts(&[b"idempotency", email.as_bytes(), idempotency.key.as_bytes()]);
        let digest = self.0.hasher.stretch(idempotency.digest, salt).await?;
        Ok(IdempotencyKey { key: idempotency.key.clone(), digest })
    }

    /// Makes a user in the caller's transaction, with its first role and its event.
    ///
    /// # Errors
    /// `auth.email_taken` (409).
    pub(crate) async fn insert_user(
        &self,
        transaction: &mut PgConnection,
        new: NewUser,
        traceparent: Option<&str>,
    ) -> Result<Account, Fail> {
        let (id, created_at) = (self.0.clock.new_id(), self.0.clock.now());
        sqlx::query!(
            "insert into auth.user (id, email, display_name, password_hash, created_at)
             values ($1, $2, $3, $4, $5)",
            id,
            new.email.as_str(),
            new.display_name.expose(),
            new.password_hash,
            created_at,
        )
        .execute(&mut *transaction)
        .await
        .map_err(|error| {
            on_constraint(error, "user_email_key", || {
                Fail::conflict("auth.email_taken", "There is a user with this e-mail address already.")
            })
        })?;
        sqlx::query!(
            "insert into auth.user_role (user_id, role, granted_at) values ($1, $2, $3)",
            id,
            new.role.as_str(),
            created_at,
        )
        .execute(&mut *transaction)
        .await?;
        let event = Event::new("auth.user.registered", id, &UserRegistered { user_id: id.to_string() });
        kit::outbox::write(transaction, SCHEMA, &[event], &self.0.clock, traceparent).await?;
        Ok(Account {
            id,
            email: new.email.into(),
            display_name: new.display_name,
            roles: vec![new.role.as_str().to_owned()],
            created_at,
            disabled_at: None,
        })
    }
}

/// A user to be made.
#[derive(Debug)]
pub(crate) struct NewUser {
    pub(crate) email: Email,
    pub(crate) display_name: Personal,
    pub(crate) password_hash: String,
    pub(crate) role: Role,
}

/// A user as it is shown, without its credential.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: Uuid,
    email: Personal,
    display_name: Personal,
    pub(crate) roles: Vec<String>,
    created_at: DateTime<Utc>,
    disabled_at: Option<DateTime<Utc>>,
}

impl Account {
    /// # Errors
    /// `auth.user_not_found` (404), as for a service account, which is no user.
    pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Self, Fail> {
        sqlx::query_as!(
            Self,
            r#"select id, email, display_name, created_at, disabled_at,
                 array(select role from auth.user_role where user_id = $1 order by role) as "roles!"
               from auth.user
               where id = $1"#,
            id,
        )
        .fetch_optional(connection)
        .await?
        .ok_or_else(not_found)
    }

    /// As [`get`](Self::get), and holds who the user is and what it may do until the transaction ends: nobody disables it
    /// or takes a role from it meanwhile. Two statements, since roles that were read with the waiting one would be those
    /// of before the wait.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn get_held(transaction: &mut PgConnection, id: Uuid) -> Result<Self, Fail> {
        sqlx::query!("select id from auth.user where id = $1 for share", id).fetch_optional(&mut *transaction).await?;
        Self::get(transaction, id).await
    }

    /// Whether it may sign in no more.
    pub(crate) fn is_disabled(&self) -> bool {
        self.disabled_at.is_some()
    }

    pub(crate) fn into_message(self) -> User {
        User {
            id: self.id.to_string(),
            email: self.email.into_exposed(),
            display_name: self.display_name.into_exposed(),
            roles: self.roles,
            created_at: Some(to_timestamp(self.created_at)),
            replayed: false,
            disabled_at: self.disabled_at.map(to_timestamp),
        }
    }
}

fn not_found() -> Fail {
    Fail::not_found("auth.user_not_found", "There is no such user.")
}

/// The roles among these that this version knows: the words of the code and not of the table.
pub(crate) fn known_roles(roles: &[String]) -> Vec<&'static str> {
    roles.iter().filter_map(|role| role.parse().ok()).map(Role::as_str).collect()
}

/// A UUIDv8 (RFC 9562, section 5.8) of a hash.
fn uuid_of(hash: &[u8; 32]) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
