//! The built-in roles and what each may do, in one table. Routes, gRPC methods, tasks and queues are checked against it,
//! and `docs/reference/permissions.md` is printed from it.

use std::{fmt, str::FromStr};

/// How far a permission reaches: the caller's own rows, or anyone's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Own,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Customer,
    Vendor,
    Reviewer,
    Operator,
    Admin,
    Service,
}

impl Role {
    pub const ALL: [Self; 6] =
        [Self::Customer, Self::Vendor, Self::Reviewer, Self::Operator, Self::Admin, Self::Service];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Vendor => "vendor",
            Self::Reviewer => "reviewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }

    /// What the role may do.
    pub const fn grants(self) -> &'static Grants {
        match self {
            // A vendor's and a reviewer's own rooms (payouts, review) are not built; until then both are customers.
            Self::Customer | Self::Vendor | Self::Reviewer => &CUSTOMER,
            Self::Operator => &OPERATOR,
            Self::Admin => &ADMIN,
            Self::Service => &SERVICE,
        }
    }

    pub fn reach(self, permission: &str) -> Option<Reach> {
        let grants = self.grants();
        if grants.everything {
            return Some(Reach::Any);
        }
        grants.permissions.iter().filter(|(granted, _)| *granted == permission).map(|(_, reach)| *reach).max()
    }

    pub fn may_run_task(self, task: &str) -> bool {
        self.grants().tasks.iter().any(|pattern| matches(pattern, task))
    }

    pub fn may_use_queue(self, queue: &str) -> bool {
        let grants = self.grants();
        grants.all_queues || (grants.uses_queues && !RESERVED_QUEUES.contains(&queue))
    }

    pub const fn priority_max(self) -> u32 {
        self.grants().priority_max
    }

    /// The services whose acts a reach of [`Own`](Reach::Own) over `audit:read` shows.
    pub const fn audits(self) -> &'static [&'static str] {
        self.grants().audits
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == word).ok_or_else(|| format!("`{word}` is not a role"))
    }
}

/// What one role may do.
#[derive(Debug)]
pub struct Grants {
    /// Every permission, at any reach.
    pub everything: bool,
    pub permissions: &'static [(&'static str, Reach)],
    /// Task names; a trailing `*` stands for any ending.
    pub tasks: &'static [&'static str],
    /// Whether it may submit to queues at all, and to [`RESERVED_QUEUES`] too.
    pub uses_queues: bool,
    pub all_queues: bool,
    pub priority_max: u32,
    /// Services whose part of the audit log it reads under `audit:read` as its own.
    pub audits: &'static [&'static str],
}

/// Queues that only operators and administrators submit to.
pub const RESERVED_QUEUES: [&str; 2] = ["priority", "maintenance"];

const CUSTOMER: Grants = Grants {
    everything: false,
    permissions: &[
        ("sessions:read", Reach::Own),
        ("sessions:revoke", Reach::Own),
        ("jobs:submit", Reach::Own),
        ("jobs:read", Reach::Own),
        ("jobs:cancel", Reach::Own),
        ("jobs:retry", Reach::Own),
        ("batches:create", Reach::Own),
        ("batches:read", Reach::Own),
        ("batches:cancel", Reach::Own),
        ("batches:retry", Reach::Own),
        ("files:write", Reach::Own),
        ("files:read", Reach::Own),
        ("tasks:read", Reach::Own),
        ("queues:read", Reach::Own),
        ("schedules:read", Reach::Own),
        ("schedules:write", Reach::Own),
        ("schedules:run", Reach::Own),
    ],
    tasks: &["process_batch", "generate_3d_model", "demo_*"],
    uses_queues: true,
    all_queues: false,
    priority_max: 60,
    audits: &[],
};

const OPERATOR: Grants = Grants {
    everything: false,
    permissions: &[
        ("sessions:read", Reach::Own),
        ("sessions:revoke", Reach::Own),
        ("jobs:submit", Reach::Own),
        ("jobs:read", Reach::Any),
        ("jobs:cancel", Reach::Any),
        ("jobs:retry", Reach::Any),
        ("batches:create", Reach::Own),
        ("batches:read", Reach::Any),
        ("batches:cancel", Reach::Any),
        ("batches:retry", Reach::Any),
        ("files:write", Reach::Own),
        ("files:read", Reach::Own),
        ("tasks:read", Reach::Any),
        ("queues:read", Reach::Any),
        ("queues:write", Reach::Any),
        ("schedules:read", Reach::Any),
        ("schedules:write", Reach::Any),
        ("schedules:run", Reach::Any),
        ("workers:read", Reach::Any),
        ("audit:read", Reach::Own),
        ("health:read", Reach::Any),
    ],
    tasks: &["*"],
    uses_queues: true,
    all_queues: true,
    priority_max: 100,
    // Who signed in when, and from where, is no operator's business.
    audits: &["jobs"],
};

const ADMIN: Grants = Grants {
    everything: true,
    permissions: &[],
    tasks: &["*"],
    uses_queues: true,
    all_queues: true,
    priority_max: 100,
    audits: &[],
};

/// Nothing by itself: a service account may do what its key's scope names.
const SERVICE: Grants = Grants {
    everything: false,
    permissions: &[],
    tasks: &[],
    uses_queues: false,
    all_queues: false,
    priority_max: 0,
    audits: &[],
};

/// How far a scope such as `workers:connect` or `jobs:read:any` carries a permission. A scope without a reach is `own`.
pub fn scope_reach(scope: &[String], permission: &str) -> Option<Reach> {
    scope
        .iter()
        .filter_map(|entry| match entry.strip_prefix(permission)? {
            "" | ":own" => Some(Reach::Own),
            ":any" => Some(Reach::Any),
            _ => None,
        })
        .max()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The table as Markdown, for the reference in `docs/`.
pub fn markdown() -> String {
    use std::fmt::Write as _;
    let mut permissions: Vec<&str> = proto::METHODS
        .iter()
        .filter_map(|method| match method.need {
            proto::Need::Permission(permission) => Some(permission),
            proto::Need::Public | proto::Need::Authenticated => None,
        })
        .collect();
    permissions.sort_unstable();
    permissions.dedup();
    let mut page = String::from("| permission |");
    for role in Role::ALL {
        let _ = write!(page, " {role} |");
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(Role::ALL.len()));
    page.push('\n');
    for permission in permissions {
        let _ = write!(page, "| `{permission}` |");
        for role in Role::ALL {
            let cell = match role.reach(permission) {
                Some(Reach::Any) => "any",
                Some(Reach::Own) => "own",
                None if role == Role::Service => "by scope",
                None => "",
            };
            let _ = write!(page, " {cell} |");
        }
        page.push('\n');
    }
    let mut row = |title: &str, cell: &dyn Fn(Role) -> String| {
        let _ = write!(page, "| {title} |");
        for role in Role::ALL {
            let _ = write!(page, " {} |", cell(role));
        }
        page.push('\n');
    };
    row("tasks", &|role| role.grants().tasks.iter().map(|task| format!("`{task}`")).collect::<Vec<_>>().join(" "));
    row("queues", &|role| match (role.grants().all_queues, role.grants().uses_queues) {
        (true, _) => "all".into(),
        (false, true) => format!("all but `{}`", RESERVED_QUEUES.join("`, `")),
        (false, false) => String::new(),
    });
    row("highest priority", &|role| role.priority_max().to_string());
    row("audit entries of", &|role| match role.reach("audit:read") {
        Some(Reach::Any) => "all services".into(),
        Some(Reach::Own) => role.audits().iter().map(|service| format!("`{service}`")).collect::<Vec<_>>().join(" "),
        None => String::new(),
    });
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_reaches_its_own_rows_and_no_operators_tool() {
        assert_eq!(Role::Customer.reach("jobs:read"), Some(Reach::Own));
        assert_eq!(Role::Customer.reach("queues:write"), None);
        assert!(Role::Customer.may_run_task("demo_echo"));
        assert!(!Role::Customer.may_run_task("finalize_batch"));
        assert!(!Role::Customer.may_use_queue("priority"));
        assert!(Role::Operator.may_use_queue("priority"));
    }

    #[test]
    fn an_operator_reads_the_audit_of_jobs_and_manages_neither_users_nor_events() {
        assert_eq!(
            (Role::Operator.reach("audit:read"), Role::Operator.audits()),
            (Some(Reach::Own), ["jobs"].as_slice())
        );
        for permission in ["users:read", "users:write", "events:read", "events:replay", "health:report"] {
            assert_eq!(Role::Operator.reach(permission), None, "{permission}");
            assert_eq!(Role::Admin.reach(permission), Some(Reach::Any), "{permission}");
        }
    }

    #[test]
    fn a_scope_grants_what_it_names_and_nothing_that_merely_starts_like_it() {
        let scope = ["workers:connect".to_owned(), "jobs:submit:any".to_owned()];
        assert_eq!(scope_reach(&scope, "workers:connect"), Some(Reach::Own));
        assert_eq!(scope_reach(&scope, "jobs:submit"), Some(Reach::Any));
        assert_eq!(scope_reach(&scope, "workers:conn"), None);
    }
}
