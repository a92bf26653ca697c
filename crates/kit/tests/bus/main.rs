//! Events from one service's outbox into another's inbox, over both kinds of bus. `conformance` is what both promise;
//! `outages` is what RabbitMQ and everything around it may do meanwhile; `relay` is what the outbox promises by itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;
mod conformance;
mod house;
mod line;
mod outages;
mod relay;
