//! Which processes there are, and on which ports. Ports are of 127.0.0.1, free ones, and stay those of a process however
//! often it is started again, so that the others find it.

use std::io;

use kit::ports::{self, Held};

/// What `guildhall serve` runs, each alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Auth,
    Jobs,
    Admin,
    Gateway,
    Worker,
}

/// How many there are of each.
const COUNTS: [(Role, usize); 5] =
    [(Role::Auth, 2), (Role::Jobs, 2), (Role::Admin, 2), (Role::Gateway, 2), (Role::Worker, 3)];

/// Ports in all: one for operations each, and one more for every role but the worker's.
const PORTS: usize = 19;

/// One process of a role.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) role: Role,
    /// From 1.
    pub(crate) number: usize,
    pub(crate) ops: u16,
    pub(crate) grpc: Option<u16>,
    pub(crate) http: Option<u16>,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Jobs => "jobs",
            Self::Admin => "admin",
            Self::Gateway => "gateway",
            Self::Worker => "worker",
        }
    }
}

impl Instance {
    /// `auth-1`: in file names and sentences.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.role.as_str(), self.number)
    }
}

/// All of them, with ports of their own, which are theirs for as long as they are held.
///
/// # Errors
/// No free ports.
pub(crate) fn instances() -> io::Result<(Vec<Instance>, [Held; PORTS])> {
    let held = ports::free::<PORTS>()?;
    let mut ports = held.iter().map(Held::port);
    let mut port = || ports.next().ok_or_else(|| io::Error::other("there are more processes than ports"));
    let mut instances = Vec::new();
    for (role, count) in COUNTS {
        for number in 1..=count {
            let is_service = matches!(role, Role::Auth | Role::Jobs | Role::Admin);
            instances.push(Instance {
                role,
                number,
                ops: port()?,
                grpc: if is_service { Some(port()?) } else { None },
                http: if role == Role::Gateway { Some(port()?) } else { None },
            });
        }
    }
    Ok((instances, held))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_process_has_ports_of_its_own() {
        let (instances, _held) = instances().expect("free ports");

        let ports = instances.iter().flat_map(|i| [Some(i.ops), i.grpc, i.http]).flatten();
        assert_eq!(ports.collect::<BTreeSet<_>>().len(), PORTS);
        let names: BTreeSet<_> = instances.iter().map(Instance::name).collect();
        assert_eq!(names.len(), COUNTS.iter().map(|(_, count)| count).sum::<usize>());
    }
}
