//! The ground every role stands on. `kit` knows no noun of the product: it gives services their failures, settings,
//! clocks, identities, database pools, gRPC wiring, outbox and telemetry, and gives tests real servers.

pub mod audit;
pub mod bus;
pub mod clock;
pub mod config;
mod crash;
pub mod cursor;
pub mod db;
pub mod fail;
pub mod grpc;
pub mod health;
pub mod idempotency;
pub mod identity;
pub mod inbox;
pub mod outbox;
pub mod ports;
pub mod private_postgres;
pub mod private_rabbitmq;
pub mod private_server;
pub mod secret;
pub mod storage;
pub mod tasks;
pub mod telemetry;
pub mod testing;
pub mod tls;

pub use clock::Clock;
pub use crash::crash_point;
pub use fail::{Fail, Kind};
pub use secret::{Personal, Secret};
