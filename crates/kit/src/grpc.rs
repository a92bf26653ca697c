//! gRPC between roles: what travels with a call, the guard in front of every server, and the [`Peer`] that a generated
//! client talks to, whether the other role is in this process or across the network.

mod call;
mod guard;
mod peer;

pub use call::{Call, IdempotencyKey};
pub use guard::Guard;
pub use peer::Peer;

/// Largest message that a server takes, in bytes: 1,000 submissions with payloads, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
