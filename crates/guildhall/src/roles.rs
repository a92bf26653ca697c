//! The roles that a process can have, and what each of them stands on. A role is added here, in `House::open`, and in the
//! settings of where it is reached.

use std::{collections::BTreeSet, fmt};

use clap::ValueEnum;
use kit::db::Schema;
use sqlx::migrate::Migrator;

/// One role, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Role {
    Gateway,
    Auth,
    Jobs,
    Admin,
    Worker,
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [Self::Gateway, Self::Auth, Self::Jobs, Self::Admin, Self::Worker];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Auth => "auth",
            Self::Jobs => "jobs",
            Self::Admin => "admin",
            Self::Worker => "worker",
        }
    }

    /// Where a service listens for gRPC when nothing is said. The others serve none.
    pub(crate) const fn grpc_port(self) -> Option<u16> {
        match self {
            Self::Auth => Some(7001),
            Self::Jobs => Some(7002),
            Self::Admin => Some(7005),
            Self::Gateway | Self::Worker => None,
        }
    }

    /// The packages of `proto/` whose services are served at this role's port.
    pub(crate) const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Auth => &["auth", "events"],
            Self::Jobs => &["jobs", "worker", "events"],
            Self::Admin => &["admin", "events"],
            Self::Gateway | Self::Worker => &[],
        }
    }

    /// A service's place in the database.
    pub(crate) fn schema(self) -> Option<(Schema, &'static Migrator)> {
        match self {
            Self::Auth => Some((auth::SCHEMA, &auth::MIGRATOR)),
            Self::Jobs => Some((jobs::SCHEMA, &jobs::MIGRATOR)),
            Self::Admin => Some((admin::SCHEMA, &admin::MIGRATOR)),
            Self::Gateway | Self::Worker => None,
        }
    }

    /// Whom it calls: every service asks `auth` for the keys that verify tokens, and tells `admin` how its process fares;
    /// `admin` has the others send events again that were lost on their way to it.
    pub(crate) const fn calls(self) -> &'static [Self] {
        match self {
            Self::Auth => &[Self::Admin],
            Self::Jobs => &[Self::Auth, Self::Admin],
            Self::Admin => &[Self::Auth, Self::Jobs],
            Self::Gateway | Self::Worker => &[Self::Auth, Self::Jobs, Self::Admin],
        }
    }

    /// Whether the bytes of files pass through it, or are swept by it.
    pub(crate) const fn needs_storage(self) -> bool {
        matches!(self, Self::Gateway | Self::Jobs | Self::Worker)
    }

    /// Whether it shows the service key. A worker shows its own, which is worth less: what it works on came from strangers.
    pub(crate) const fn shows_service_key(self) -> bool {
        !matches!(self, Self::Worker)
    }

    /// Whether it makes or verifies access tokens, whose issuer is the public URL.
    pub(crate) const fn needs_issuer(self) -> bool {
        !matches!(self, Self::Worker)
    }
}

/// The roles of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roles {
    set: BTreeSet<Role>,
    /// Whether this process is all there is: `up`, with its embedded defaults.
    pub(crate) is_up: bool,
}

impl Roles {
    /// Every role there is, and nothing elsewhere.
    pub(crate) fn up() -> Self {
        Self { set: Role::ALL.into(), is_up: true }
    }

    /// Some roles, beside other processes.
    pub(crate) fn serve(roles: &[Role]) -> Self {
        Self { set: roles.iter().copied().collect(), is_up: false }
    }

    /// As an operator's command is told them: none for `up`, some for `serve` with those.
    pub(crate) fn said(roles: &[Role]) -> Self {
        if roles.is_empty() { Self::up() } else { Self::serve(roles) }
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.set.contains(&role)
    }

    pub(crate) fn any(&self, is: impl Fn(Role) -> bool) -> bool {
        self.set.iter().any(|role| is(*role))
    }

    /// The services among them, which answer over gRPC.
    pub(crate) fn services(&self) -> impl Iterator<Item = Role> {
        self.set.iter().copied().filter(|role| role.grpc_port().is_some())
    }

    /// Those that they call and that are in other processes.
    pub(crate) fn elsewhere(&self) -> BTreeSet<Role> {
        let called = self.set.iter().flat_map(|role| role.calls()).copied();
        called.filter(|role| !self.has(*role)).collect()
    }

    /// Whether services have to tell each other what happened from one process to another.
    pub(crate) fn are_split(&self) -> bool {
        let (here, all) = (self.services().count(), Role::ALL.iter().filter(|role| role.grpc_port().is_some()).count());
        here != 0 && here != all
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.set.iter().map(|role| role.name()).collect()
    }
}

/// As a sentence tells them: `auth, jobs`.
impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_elsewhere_is_what_is_called_and_not_here() {
        let elsewhere = |roles: &[Role]| Vec::from_iter(Roles::serve(roles).elsewhere());
        assert_eq!(elsewhere(&[Role::Gateway]), [Role::Auth, Role::Jobs, Role::Admin]);
        assert_eq!(elsewhere(&[Role::Gateway, Role::Jobs, Role::Admin]), [Role::Auth]);
        assert_eq!(elsewhere(&[Role::Auth]), [Role::Admin]);
        assert!(Roles::up().elsewhere().is_empty() && !Roles::up().are_split());
        assert!(Roles::serve(&[Role::Auth, Role::Worker]).are_split());
        assert!(!Roles::serve(&[Role::Worker]).are_split());
    }
}
