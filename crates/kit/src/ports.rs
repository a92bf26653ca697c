//! Ports of 127.0.0.1 for servers that must be told their port before they listen.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

/// Below the range from which the kernel takes the ports of outgoing connections (32768 and up on Linux). A port from
/// that range could be taken while its server restarts, and a client that tries a closed one again and again can even
/// meet itself there.
const RANGE: Range<u16> = 10_000..32_000;

const TRIES_MAX: usize = 1000;

/// Ports that nobody listened on a moment ago, all different. Whoever is quicker may still take one.
///
/// # Errors
/// So many are taken that no free ones were met.
pub fn free<const N: usize>() -> io::Result<[u16; N]> {
    // Each is held until all are found, so that none is found twice.
    let mut held = Vec::with_capacity(N);
    for _ in 0..TRIES_MAX {
        if held.len() == N {
            break;
        }
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let port = RANGE.start + u16::from_le_bytes(random) % (RANGE.end - RANGE.start);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    ports.try_into().map_err(|_| io::Error::new(io::ErrorKind::AddrInUse, "no free ports were found"))
}

/// Whether nobody listens on the port now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_not_those_of_outgoing_connections() {
        let mut ports = free::<20>().expect("free ports");

        assert!(ports.iter().all(|port| RANGE.contains(port) && is_free(*port)), "{ports:?}");
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, ports[0])).expect("it is free");
        assert!(!is_free(ports[0]));
    }
}
