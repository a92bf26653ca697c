//! Who is calling, and what they may do. Tokens are verified here, by every role for itself; which role may do what
//! stands in [`roles`]. Nothing here mints a token: only `auth` holds private keys.

pub mod roles;
mod verifier;

use uuid::Uuid;

use crate::{Fail, Secret};
pub use roles::{Reach, Role};
pub use verifier::{ACCESS_TOKEN_TYPE, AUDIENCE, Claims, FetchKeys, Verifier};

/// A caller whose token was verified: the subject, the session, and the grants they carry.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user, or the service account.
    pub subject: Uuid,
    /// The session the token belongs to; a service account has none.
    pub session: Option<Uuid>,
    /// Counts the session's refreshes; tells a used child token from an unused one.
    pub generation: u64,
    /// When the token ends, in seconds since the epoch.
    pub expires_at: i64,
    pub roles: Vec<Role>,
    /// Permissions a service key was given by name. Only the role `service` reads them.
    pub scope: Vec<String>,
    token: Secret,
}

impl Caller {
    /// One who is not here now, as they were known when they asked for what is done now. There is no token to show on.
    pub fn standing_in(subject: Uuid, roles: Vec<Role>) -> Self {
        let token = Secret::new(String::new());
        Self { subject, session: None, generation: 0, expires_at: 0, roles, scope: Vec::new(), token }
    }

    /// How far the caller's permission `<noun>:<verb>` reaches, or `None` where it has none at all.
    pub fn reach(&self, permission: &str) -> Option<Reach> {
        let by_role = self.roles.iter().filter_map(|role| role.reach(permission)).max();
        let by_scope =
            self.roles.contains(&Role::Service).then(|| roles::scope_reach(&self.scope, permission)).flatten();
        by_role.max(by_scope)
    }

    /// Whether the caller may read or touch a row of `owner` under `permission`.
    pub fn may_touch(&self, permission: &str, owner: Uuid) -> bool {
        match self.reach(permission) {
            Some(Reach::Any) => true,
            Some(Reach::Own) => owner == self.subject,
            None => false,
        }
    }

    /// The owner that a list must be narrowed to: `None` for a caller who may see any.
    pub fn narrowed_to(&self, permission: &str) -> Option<Uuid> {
        (self.reach(permission) != Some(Reach::Any)).then_some(self.subject)
    }

    /// Refuses a caller who lacks `permission` altogether.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn require(&self, permission: &str) -> Result<Reach, Fail> {
        self.reach(permission).ok_or_else(|| {
            Fail::forbidden("forbidden", format!("Your roles do not include the permission `{permission}`."))
        })
    }

    pub fn may_run_task(&self, task: &str) -> bool {
        self.roles.iter().any(|role| role.may_run_task(task))
    }

    pub fn may_use_queue(&self, queue: &str) -> bool {
        self.roles.iter().any(|role| role.may_use_queue(queue))
    }

    /// The services that a list of the audit log must be narrowed to: `None` for a caller who may read of all.
    pub fn audit_narrowed_to(&self) -> Option<Vec<&'static str>> {
        let is_narrowed = self.reach("audit:read") != Some(Reach::Any);
        is_narrowed.then(|| self.roles.iter().flat_map(|role| role.audits()).copied().collect())
    }

    /// Highest priority the caller may give a job, 0 to 100.
    pub fn priority_max(&self) -> u32 {
        self.roles.iter().map(|role| role.priority_max()).max().unwrap_or(0)
    }

    /// The access token as it came, to be shown on to the next role.
    pub fn token(&self) -> &Secret {
        &self.token
    }
}
