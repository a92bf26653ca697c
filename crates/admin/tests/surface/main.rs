//! What administrators see, as callers meet it over gRPC: the real service on a database of its own, fed over the bus
//! within the process.

mod audit;
mod health;
mod parked;
mod support;
