//! What the commands of administrators take: users, the audit log, parked events, health.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use super::{Common, PageArgs};

/// What a user may be. The role `service` is of accounts alone.
const ROLES: [&str; 5] = ["customer", "vendor", "reviewer", "operator", "admin"];

#[derive(Debug, Args)]
pub(crate) struct UserArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: UserVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserVerb {
    /// List users, newest first
    List(UserList),
    /// Show one user
    Show {
        /// An id or an email address
        user: String,
    },
    /// Change the name that a user is shown by
    Rename {
        /// An id or an email address
        user: String,
        name: String,
        /// Why, for the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// End every session of a user, and let it sign in no more
    Disable(UserAct),
    /// Let a disabled user sign in again
    Enable(UserAct),
    /// End every session of a user
    SignOut(UserAct),
    /// Give a user exactly these roles
    Roles {
        /// An id or an email address
        user: String,
        #[arg(required = true, value_name = "ROLE", value_parser = ROLES)]
        roles: Vec<String>,
        /// Why, for the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UserAct {
    /// An id or an email address
    pub(crate) user: String,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UserList {
    /// Part of the address or of the name
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// Only those who have this role
    #[arg(long, value_parser = ROLES)]
    pub(crate) role: Option<String>,
    /// Only those who may not sign in
    #[arg(long, conflicts_with = "enabled")]
    pub(crate) disabled: bool,
    /// Only those who may sign in
    #[arg(long)]
    pub(crate) enabled: bool,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: AuditVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// List the entries of the audit log, newest first; --json tells all that is known of each
    List(AuditList),
}

#[derive(Debug, Args)]
pub(crate) struct AuditList {
    /// Only what this service recorded
    #[arg(long, value_parser = ["auth", "jobs", "admin"])]
    pub(crate) service: Option<String>,
    /// Only what this user or service account did: an id, or a user's email address
    #[arg(long, value_name = "USER")]
    pub(crate) actor: Option<String>,
    /// Only this kind of act, like user.disable
    #[arg(long)]
    pub(crate) action: Option<String>,
    /// Only what was done to this
    #[arg(long, value_name = "ID")]
    pub(crate) target: Option<String>,
    /// Only what was done, or only what was refused
    #[arg(long, value_parser = ["done", "refused"])]
    pub(crate) outcome: Option<String>,
    /// Only what came of this request
    #[arg(long, value_name = "ID")]
    pub(crate) request: Option<String>,
    /// Only what is later than this time, like 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) after: Option<DateTime<Utc>>,
    /// Only what is earlier than this time
    #[arg(long, value_name = "TIME")]
    pub(crate) before: Option<DateTime<Utc>>,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EventArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: EventVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventVerb {
    /// List the events that a consumer could not handle, newest first
    Parked(ParkedList),
    /// Hand parked events to their consumers again
    Replay {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ParkedList {
    /// Only those of this consumer
    #[arg(long)]
    pub(crate) consumer: Option<String>,
    /// Only those of this type, like auth.act.recorded
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Those that were replayed, too
    #[arg(long)]
    pub(crate) with_replayed: bool,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    pub(crate) common: Common,
}
