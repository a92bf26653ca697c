//! What `auth` writes into the audit log: its table of acts. An act that found everything done already, as disabling a
//! disabled user, changes nothing and leaves no entry.

use kit::audit::Action;

/// The type of the entries' events.
pub(crate) const RECORDED: &str = "auth.act.recorded";

pub(crate) static REGISTER: Action = Action {
    name: "user.register",
    target: "user",
    fields: &["roles"],
    when: "A user was made: by registering, or, by `system`, as the first administrator.",
};
pub(crate) static LOGIN: Action = Action {
    name: "user.login",
    target: "user",
    fields: &["session_id"],
    when: "Somebody signed in. Refused: with a wrong credential, `auth.invalid_credentials`; with the right one of a \
           disabled user, `auth.user_disabled`; and, at most once a minute for a full bucket of the throttle, \
           `auth.too_many_attempts`. Without a target where there is no such user.",
};
pub(crate) static LOGOUT: Action =
    Action { name: "session.logout", target: "session", fields: &["end_reason"], when: "Somebody signed out." };
pub(crate) static LOGOUT_ALL: Action = Action {
    name: "user.logout_all",
    target: "user",
    fields: &["sessions_ended"],
    when: "Somebody signed out everywhere.",
};
pub(crate) static REFRESH: Action = Action {
    name: "session.refresh",
    target: "session",
    fields: &["end_reason"],
    when: "Refused alone, and critical: a spent refresh token came back, so somebody holds a copy of it, and its \
           session was ended (`auth.token_reused`).",
};
pub(crate) static REVOKE_SESSION: Action = Action {
    name: "session.revoke",
    target: "session",
    fields: &["end_reason"],
    when: "A session was ended from the list of sessions. Refused: another's.",
};
pub(crate) static DISABLE: Action = Action {
    name: "user.disable",
    target: "user",
    fields: &["is_disabled", "sessions_ended"],
    when: "A user may sign in no more, and its sessions ended. Refused: oneself, the last administrator.",
};
pub(crate) static ENABLE: Action =
    Action { name: "user.enable", target: "user", fields: &["is_disabled"], when: "A user may sign in again." };
pub(crate) static SIGN_OUT: Action = Action {
    name: "user.sign_out",
    target: "user",
    fields: &["sessions_ended"],
    when: "An administrator ended all sessions of a user.",
};
pub(crate) static SET_ROLES: Action = Action {
    name: "user.set_roles",
    target: "user",
    fields: &["roles", "sessions_ended"],
    when: "A user's roles were changed; where one was taken, its sessions ended. Refused: one's own roles, the last \
           administrator's.",
};
pub(crate) static UPDATE: Action = Action {
    name: "user.update",
    target: "user",
    fields: &["changed"],
    when: "What a user says of itself was changed, by itself or by an administrator. What it said is not told.",
};

/// All of them.
pub static ACTS: [&Action; 11] = [
    &REGISTER,
    &LOGIN,
    &LOGOUT,
    &LOGOUT_ALL,
    &REFRESH,
    &REVOKE_SESSION,
    &DISABLE,
    &ENABLE,
    &SIGN_OUT,
    &SET_ROLES,
    &UPDATE,
];
