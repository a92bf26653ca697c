//! Who is calling, behind the proxies that are trusted to say.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use kit::Fail;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The networks whose machines are believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies(Vec<Network>);

/// Addresses that share their first `bits`; IPv4 ones are held as mapped into IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: u128,
    bits: u32,
}

impl Proxies {
    /// # Errors
    /// `config.trusted_proxies`.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, Fail> {
        let network = |text: &String| {
            Network::parse(text).ok_or_else(|| {
                Fail::invalid(
                    "config.trusted_proxies",
                    format!("`{text}` in trusted_proxies is neither an address nor a network such as `10.0.0.0/8`."),
                )
            })
        };
        texts.iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    /// The client of a connection from `peer`: each proxy adds on the right whom it heard it from, so the list is walked
    /// from there for as long as the one who says it is trusted.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let said = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        for hop in said {
            if !self.trusts(client) {
                break;
            }
            // What is not an address ends what can be known.
            let Some(address) = parse_hop(hop.trim()) else { break };
            client = address.to_canonical();
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then(|| Self { address: number(address), bits: bits + (128 - width) })
    }

    fn contains(self, address: IpAddr) -> bool {
        let differs = self.address ^ number(address);
        differs.leading_zeros() >= self.bits
    }
}

/// The part of an address that one client has, as the throttle before sign-in counts it: all of an IPv4 address, of an IPv6
/// one the first half.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Some proxies add the port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let trusted: Vec<String> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().expect("a header value"));
        }
        let proxies = Proxies::parse(&trusted).expect("networks");
        proxies.client(peer.parse().expect("an address"), &headers).to_string()
    }

    #[test]
    fn a_stranger_who_claims_to_forward_is_not_believed() {
        assert_eq!(client(&["10.0.0.0/8"], "203.0.113.9", &["1.2.3.4"]), "203.0.113.9");
        assert_eq!(client(&[], "127.0.0.1", &["1.2.3.4"]), "127.0.0.1");
    }

    #[test]
    fn the_list_is_walked_from_the_right_over_trusted_proxies_alone() {
        // The leftmost entry is whatever the client wrote.
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.1.2.3"]), "198.51.100.7");
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["6.6.6.6", "198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(client(&["::1"], "::1", &["[2001:db8::5]:80"]), "2001:db8::5");
        assert_eq!(client(&["127.0.0.1"], "::ffff:127.0.0.1", &["192.0.2.1"]), "192.0.2.1");
    }

    #[test]
    fn what_is_no_address_ends_the_walk() {
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["198.51.100.7, unknown"]), "10.0.0.1");
    }

    #[test]
    fn a_network_with_too_many_bits_is_refused() {
        assert!(Proxies::parse(&["10.0.0.0/33".to_owned()]).is_err());
        assert!(Proxies::parse(&["proxy.example".to_owned()]).is_err());
        assert_eq!(client(&["0.0.0.0/0"], "10.0.0.1", &["2001:db8::5, 9.9.9.9"]), "2001:db8::5");
    }
}
