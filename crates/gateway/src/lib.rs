//! The only public door: REST, live streams, OpenAPI, limits and the errors people see.
//!
//! It has no tables and decides nothing about the product: it knows who is asking, whether the route may be asked by
//! them, and whether what they sent is well-formed; then it calls `auth`, `jobs` and `admin` with the caller's own
//! token, and they check again. The bytes of files go straight between the client and object storage.
//!
//! Its map: [`routes`] declares every route, by means of [`route`]; `edge` is what surrounds them all; `problem` turns
//! faults into HTTP; `revocations` knows which sessions have ended; `live` streams events; `upload` and `download` move
//! bytes, and `places` bounds what is held for long; `openapi` describes it all.

mod content_type;
mod door;
mod download;
mod edge;
mod live;
mod openapi;
mod places;
pub mod problem;
mod revocations;
pub mod route;
pub mod routes;
mod settings;
mod upload;
mod wire;

use std::{net::SocketAddr, sync::Arc};

use kit::Fail;

pub use door::{Door, Parts};
pub use settings::Settings;

/// A gateway that is serving.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens; the port is real even if 0 was asked for.
    pub address: SocketAddr,
}

impl Gateway {
    /// Opens the door. It serves until the soft signal of `parts.tasks`; then it takes no more connections, ends its live
    /// streams, and finishes the requests at work.
    ///
    /// # Errors
    /// `config.*` for settings that cannot work, such as an address that cannot be listened on.
    pub async fn start(parts: Parts) -> Result<Self, Fail> {
        let routes = routes::all();
        let document = openapi::document(&routes, parts.public_url.trim_end_matches('/'))?;
        let listener = edge::Listener::bind(&parts.settings).await?;
        let address = listener.address()?;
        let credential = parts.credential.clone();
        let door = Arc::new(Door::new(parts, document.to_string().into())?);
        let router = edge::layered(&routes, &door)?;

        let tasks = door.tasks.clone();
        let follower = door.clone();
        tasks.spawn_restarting("follow revocations", move || {
            revocations::follow(follower.clone(), credential.clone(), follower.tasks.stopping())
        });
        tasks.spawn("serve http", listener.serve(router, tasks.clone()));
        Ok(Self { address })
    }

    /// Where a client on this machine reaches it: a wildcard listener is told as 127.0.0.1.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        format!("http://{address}")
    }
}
