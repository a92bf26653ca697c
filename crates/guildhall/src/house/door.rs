//! The public port, taken before anything is made: one that is taken already is told at once, and a free one that the
//! system picks is known when the issuer of tokens is. Nobody listens on it until the gateway opens, so that connections
//! are refused until then and not left to wait.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kit::Fail;
use tokio::net::TcpSocket;

use super::ops::port_fail;
use crate::settings::Settings;

/// A port that is kept free for the gateway for as long as this lives. The gateway can listen there meanwhile.
#[derive(Debug)]
pub(super) struct Door {
    _socket: TcpSocket,
    pub(super) address: SocketAddr,
    /// As people reach it; the issuer of access tokens.
    pub(super) public_url: String,
}

impl Door {
    /// # Errors
    /// `up.port` for a port that is taken.
    pub(super) fn reserve(settings: &Settings) -> Result<Self, Fail> {
        let said = settings.gateway.http_listen;
        let reserve = || {
            let socket = if said.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // Lets another socket of ours listen there, and a restart begin before old connections are forgotten.
            socket.set_reuseaddr(true)?;
            socket.bind(said)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = reserve().map_err(|error| port_fail("http_listen", said, &error))?;
        let public_url = settings.process.public_url.clone().unwrap_or_else(|| url_of("http", address));
        Ok(Self { _socket: socket, address, public_url })
    }
}

/// A listener's URL for this machine: one that listens everywhere is told as loopback.
pub(super) fn url_of(scheme: &str, address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_told_as_loopback() {
        let url = |text: &str| url_of("http", text.parse().expect("an address"));
        assert_eq!(url("0.0.0.0:8080"), "http://127.0.0.1:8080");
        assert_eq!(url("[::]:8080"), "http://[::1]:8080");
        assert_eq!(url("10.1.2.3:80"), "http://10.1.2.3:80");
    }
}
