//! gRPC between roles: what travels with a call, the guard in front of every server, the port that it is served on, and
//! the [`Peer`] that a generated client talks to, whether the other role is in this process or across the network.

mod call;
mod credential;
mod deadline;
mod guard;
mod health;
mod observe;
mod peer;
mod reflection;
mod remote;
mod serve;

use std::time::Duration;

pub use call::{Call, IdempotencyKey};
pub use credential::Credential;
pub use guard::Guard;
pub use peer::Peer;
pub use reflection::with_reflection;
pub use serve::serve;

/// Largest message that a server takes, in bytes: 1,000 submissions with payloads, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A connection on which nothing is heard is asked for a sign of life this often, by both ends, calls at work or not.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
/// One that gives none within this time is given up, and its calls with it.
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(3);
/// Bytes on their way to a reader that does not read: of one call, and of a whole connection. The second is no bound, so
/// that a slow stream does not hold up the calls beside it; what bounds a connection is the first, times its calls.
const WINDOW_BYTES: (u32, u32) = (256 * 1024, (1 << 31) - 1);
