//! gRPC between processes, over real sockets: replicas that are killed, drained and brought back, certificates that are
//! renewed, deadlines and streams. What is true of both wirings is held against a role in this process, too.
//!
//! | file | promises |
//! |---|---|
//! | `calls` | a call goes to a replica that is there, once, and is told when there is none |
//! | `deadlines` | what is left of a deadline goes along, and a call over it is cut off |
//! | `drains` | who is asked to stop says so, lets calls end, and sends streams away |
//! | `streams` | an idle stream lives, and one whose other end is gone ends |
//! | `tls` | certificates are demanded, checked and renewed |

#![expect(clippy::disallowed_methods, reason = "a test's own tasks end with it")]

mod calls;
mod certificates;
mod deadlines;
mod drains;
mod proxy;
mod replica;
mod streams;
mod tls;

use std::time::Duration;

/// What a test waits at most for something that is to happen soon, on a slow machine.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: it did not happen"))
}
