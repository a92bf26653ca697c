//! The gateway's own settings.

use crate::edge::{self, Proxies};

kit::settings! {
    /// What the public door is told from outside.
    pub struct Settings {
        /// Where the public API listens, as address and port. On this machine alone by default: what faces a network stands
        /// behind a server that speaks TLS. Port 0 picks a free one.
        pub http_listen: std::net::SocketAddr = "127.0.0.1:8080",
        /// Addresses or networks (`10.0.0.0/8`), with commas between, of the proxies in front of the gateway. Only these
        /// are believed when they say in `X-Forwarded-For` who is calling.
        pub trusted_proxies: Vec<String> = "",
        /// Origins (`https://app.example.com`), with commas between, whose pages may call the API from a browser. None by
        /// default.
        pub cors_origins: Vec<String> = "",
        /// Most connections at once; more wait in the system's own queue. Each costs some 100 KiB while it is busy.
        pub http_connections_max: u32 = "4096",
        /// Most requests at work at once, and half as many from one address; more are answered 503 at once, since a queue of
        /// them would only grow. Behind a proxy that `trusted_proxies` does not name, all come from one address.
        pub http_requests_max: u32 = "1024",
        /// Most live streams at once, and half as many for one user; more are answered 503. They are long and cheap, so
        /// they are counted apart.
        pub live_streams_max: u32 = "2048",
        /// Most uploads at once, and half as many for one user; more are answered 503. Each holds up to 5 MiB in memory.
        pub uploads_max: u32 = "32",
        /// Seconds a client has to send the head of a request. Short, because a connection is held meanwhile.
        pub header_read_s: u32 = "15",
        /// Seconds without a byte, in either direction, after which a request's body, or the reader of an answer, is given
        /// up. Long enough for a link that falters, short because a place among the requests is held meanwhile.
        pub stall_s: u32 = "30",
    }
}

impl Settings {
    /// What is wrong with the values, a sentence each; nothing with good ones.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, value) in [
            ("http_connections_max", self.http_connections_max),
            ("http_requests_max", self.http_requests_max),
            ("live_streams_max", self.live_streams_max),
            ("uploads_max", self.uploads_max),
            ("header_read_s", self.header_read_s),
            ("stall_s", self.stall_s),
        ] {
            if value == 0 {
                faults.push(format!("{name} must be at least 1"));
            }
        }
        let parsed = [Proxies::parse(&self.trusted_proxies).err(), edge::cors(&self.cors_origins).err()];
        faults.extend(parsed.into_iter().flatten().map(|fail| fail.message().trim_end_matches('.').to_owned()));
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault_and_each_wrong_value_is_told() {
        assert_eq!(Settings::default().faults(), Vec::<String>::new());
        let settings = Settings {
            stall_s: 0,
            trusted_proxies: vec!["proxy".to_owned()],
            cors_origins: vec!["everyone".to_owned()],
            ..Settings::default()
        };
        assert_eq!(settings.faults().len(), 3, "{:?}", settings.faults());
    }
}
