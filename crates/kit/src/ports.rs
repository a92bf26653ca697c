//! Ports of 127.0.0.1 for servers that must be told their port before they listen.
//!
//! A port that was only found to be free is anybody's until its server listens, and again while its server restarts. So
//! each is held by a socket that is bound and never listens, which on Linux is enough: nobody is given a bound port, and
//! a server that asks for exactly this one with `SO_REUSEADDR`, as servers do, may listen beside a socket that allows it
//! likewise and does not listen. Elsewhere nothing is held: a second socket would be refused.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;

use tokio::net::TcpSocket;

/// Below the range from which the kernel takes the ports of outgoing connections (32768 and up on Linux). What holds a
/// port ends with its process, and its server may be given the same port in the next one: until then a connection
/// must not take it, nor a client that tries a closed port again and again meet itself there.
const RANGE: Range<u16> = 10_000..32_000;

const TRIES_MAX: usize = 1000;

/// A port for a server of ours, whether that listens or not, until this is dropped. Kept from [`free`] and from the kernel's
/// own choice; whoever asks for exactly this one while nobody listens gets it.
#[derive(Debug)]
pub struct Held {
    port: u16,
    /// Bound, not read.
    _socket: Option<TcpSocket>,
}

impl Held {
    fn new(port: u16, socket: TcpSocket) -> Self {
        Self { port, _socket: cfg!(target_os = "linux").then_some(socket) }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Ports that nobody has, all different.
///
/// # Errors
/// So many are taken that no free ones were met.
pub fn free<const N: usize>() -> io::Result<[Held; N]> {
    let mut held = Vec::with_capacity(N);
    for _ in 0..TRIES_MAX {
        if held.len() == N {
            break;
        }
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let port = RANGE.start + u16::from_le_bytes(random) % (RANGE.end - RANGE.start);
        if let Ok(one) = hold(port) {
            held.push(one);
        }
    }
    held.try_into().map_err(|_| io::Error::new(io::ErrorKind::AddrInUse, "no free ports were found"))
}

/// Bound first and opened to its server then: so it meets also what another process holds in this way.
fn hold(port: u16) -> io::Result<Held> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.set_reuseaddr(true)?;
    Ok(Held::new(port, socket))
}

/// Holds the port that a server had before, or was told to take. Connections of its last life that are not forgotten yet
/// do not count, and what another process holds and does not listen on is not seen.
///
/// # Errors
/// Somebody listens on it, or this process may not.
pub fn take(address: SocketAddr) -> io::Result<Held> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Held::new(address.port(), socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Whether [`free`] could give it to another.
    fn is_anybodys(port: u16) -> bool {
        hold(port).is_ok()
    }

    #[test]
    fn ports_are_different_and_not_those_of_outgoing_connections() {
        let mut ports = free::<20>().expect("free ports").map(|held| held.port());

        assert!(ports.iter().all(|port| RANGE.contains(port)), "{ports:?}");
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
    }

    #[test]
    fn a_held_port_is_given_to_nobody_else_however_often_its_server_restarts() {
        let [held] = free().expect("a free port");

        for _ in 0..2 {
            assert!(!is_anybodys(held.port()));
            // As tokio's, it asks for the address again.
            let server = TcpListener::bind(local(held.port())).expect("its server may listen");
            assert!(!is_anybodys(held.port()));
            drop(server);
        }
        let port = held.port();
        drop(held);
        assert!(is_anybodys(port));
    }

    #[test]
    fn what_a_server_had_is_taken_again_unless_somebody_listens_there() {
        let port = {
            let [held] = free().expect("a free port");
            held.port()
        };
        {
            let somebody = TcpListener::bind(local(port)).expect("it is free");
            let refused = take(local(port)).expect_err("somebody listens");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            // Closed by the server first, the connection stays known for a minute.
            let client = std::net::TcpStream::connect(local(port)).expect("a connection");
            drop(somebody.accept().expect("a connection"));
            drop(client);
        }
        assert!(!is_anybodys(port));

        let held = take(local(port)).expect("nobody listens");
        TcpListener::bind(local(held.port())).expect("its server may listen");
    }
}
