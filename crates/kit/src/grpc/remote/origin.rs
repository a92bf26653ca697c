//! Where a role is reached: `http://host:port`, or `https://host:port` with TLS.

use http::uri::{Authority, Scheme};
use rustls::pki_types::ServerName;
use url::{Host, Url};

/// The parts of one URL of a role.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct Origin {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// What the other's certificate must be for; set when the scheme is `https`.
    pub(super) server_name: Option<ServerName<'static>>,
}

impl Origin {
    /// # Errors
    /// A clause that says what the URL must be.
    pub(in crate::grpc) fn parse(text: &str, has_tls: bool) -> Result<Self, String> {
        let scheme = if has_tls { Scheme::HTTPS } else { Scheme::HTTP };
        let wrong = || {
            let why = if has_tls { "where there are certificates" } else { "where there are no certificates" };
            format!("must be `{scheme}://host:port` {why}, not `{text}`")
        };
        let url = Url::parse(text).map_err(|_| wrong())?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username() == "";
        if url.scheme() != scheme.as_str() || !is_bare || url.password().is_some() {
            return Err(wrong());
        }
        let port = url.port_or_known_default().ok_or_else(wrong)?;
        let (host, shown) = match url.host().ok_or_else(wrong)? {
            Host::Domain(name) => (name.to_owned(), name.to_owned()),
            Host::Ipv4(ip) => (ip.to_string(), ip.to_string()),
            Host::Ipv6(ip) => (ip.to_string(), format!("[{ip}]")),
        };
        let server_name = match has_tls {
            true => Some(ServerName::try_from(host.clone()).map_err(|_| wrong())?),
            false => None,
        };
        let authority = format!("{shown}:{port}").parse().map_err(|_| wrong())?;
        Ok(Self { scheme, authority, host, port, server_name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_else() {
        let origin = Origin::parse("http://[::1]:7001", false).expect("an origin");
        assert_eq!((origin.host.as_str(), origin.authority.as_str(), origin.port), ("::1", "[::1]:7001", 7001));
        let origin = Origin::parse("https://auth.internal/", true).expect("an origin");
        assert_eq!((origin.authority.as_str(), origin.server_name.is_some()), ("auth.internal:443", true));
        for text in ["", "auth:7001", "https://a:1", "http://a:1/b", "http://a:1?b", "http://u@a:1", "http://u:p@a:1"] {
            assert!(Origin::parse(text, false).is_err(), "{text}");
        }
        assert!(Origin::parse("http://a:1", true).is_err(), "certificates are not left unused in silence");
    }
}
