//! The ports on which services answer other processes over gRPC.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use kit::{Fail, tasks::Tasks};
use tokio::net::TcpListener;

use super::{door::url_of, ops, services::Services, wiring::Ways};
use crate::{
    roles::{Role, Roles},
    settings::Settings,
};

/// Takes a port for every service of this process; in `up`, only where one is asked for.
///
/// # Errors
/// `up.port` for one that is taken.
pub(super) async fn listen(settings: &Settings, roles: &Roles) -> Result<Vec<(Role, TcpListener)>, Fail> {
    let mut ports = Vec::new();
    for role in roles.services() {
        if let Some(address) = address(settings.process.grpc_listen, role, roles.is_up) {
            ports.push((role, ops::listen("grpc_listen", address).await?));
        }
    }
    Ok(ports)
}

/// Where a service listens. An address that is said is for the one service of the process, or has port 0: the settings are
/// held to that.
pub(crate) fn address(said: Option<SocketAddr>, role: Role, is_up: bool) -> Option<SocketAddr> {
    match said {
        Some(address) => Some(address),
        None if is_up => None,
        None => role.grpc_port().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
    }
}

/// Answers on the ports; the URL of each.
///
/// # Errors
/// `internal` for a port whose service is not here.
pub(super) fn serve(
    ports: Vec<(Role, TcpListener)>,
    is_up: bool,
    services: &Services,
    ways: &Ways,
    tasks: &Tasks,
) -> Result<BTreeMap<&'static str, String>, Fail> {
    let mut urls = BTreeMap::new();
    for (role, listener) in ports {
        let routes = services.routes(role).ok_or_else(|| Fail::internal(format!("{} is not here", role.name())))?;
        // For whoever looks around with a tool; where roles stand alone, callers bring the contract with them.
        let routes = if is_up { kit::grpc::with_reflection(routes, role.packages())? } else { routes };
        let address = listener.local_addr().map_err(Fail::internal)?;
        urls.insert(role.name(), url_of(ways.scheme(), address));
        kit::grpc::serve(listener, routes, &services.guard, ways.tls(), tasks);
    }
    Ok(urls)
}
