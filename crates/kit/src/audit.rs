//! The audit log, as a service writes it: who did or was refused what, on what, by which credential and from where. An
//! [`Act`] is made from the [`Call`](crate::grpc::Call) it came with and becomes one event, `<service>.act.recorded`, in
//! the transaction of the act itself; its entry can neither be lost nor tell of what did not happen. Who reads and keeps
//! the entries is no matter of this module.
//!
//! Each service lists its acts in a table of [`Action`]s, and `docs/reference/audit.md` is printed from those tables.
//! What before and after may say stands there, field by field, and a [`Fact`] cannot carry what a person typed: neither
//! an address nor a name nor a secret gets in (docs/adr/0017-what-is-audited.md).

mod act;
mod log;

pub use act::{Act, Credential, Fact};
pub use log::Log;

/// One kind of act, a line of its service's table.
#[derive(Debug)]
pub struct Action {
    /// `<noun>.<verb>`, as `queue.pause`.
    pub name: &'static str,
    /// What it is done to: the noun whose id an entry names.
    pub target: &'static str,
    /// What `before` and `after` may tell, and nothing else.
    pub fields: &'static [&'static str],
    /// When there is an entry, for people who read the log.
    pub when: &'static str,
}

/// The services' tables as Markdown, for the reference in `docs/`.
pub fn markdown(services: &[(&str, &[&Action])]) -> String {
    use std::fmt::Write as _;
    let mut page = String::from("| action | recorded by | target | before and after | when |\n|---|---|---|---|---|\n");
    for (service, actions) in services {
        for Action { name, target, fields, when } in *actions {
            let fields = fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(" ");
            // Writing to a string cannot fail.
            let _ = writeln!(page, "| `{name}` | {service} | {target} | {fields} | {when} |");
        }
    }
    page
}
