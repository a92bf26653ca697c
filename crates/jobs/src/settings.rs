//! What an operator may set about jobs and files.

use kit::config::Bytes;

kit::settings! {
    /// Settings of the role `jobs`.
    pub struct Settings {
        /// Connections to Postgres that this role holds at most.
        pub jobs_connections_max: u32 = "20",
        /// Seconds without a heartbeat after which a worker's attempts are given to others. Long enough for a pause of
        /// the machine, short enough that lost work is soon taken up again.
        pub lease_s: f64 = "30",
        /// Seconds between two heartbeats of a worker. A third of the lease, so that two may be lost.
        pub heartbeat_s: f64 = "10",
        /// Seconds an attempt may run when its submission names no `attempt_timeout_s`.
        pub attempt_timeout_s: f64 = "900",
        /// Seconds between asking an attempt to end and killing it.
        pub cancel_grace_s: f64 = "10",
        /// Days that a final job, its attempts, events and logs are kept. Counted from its submission.
        pub history_days: u32 = "30",
        /// Days that a written event stays in the outbox.
        pub outbox_days: u32 = "7",
        /// Largest single file, in bytes.
        pub file_bytes_max: Bytes = "2GiB",
        /// Seconds an upload may stand still before its files are dropped; also the age from which stored bytes that
        /// nothing refers to are removed. Longer than any pause of a connection that is still alive.
        pub upload_lease_s: u32 = "900",
        /// Bytes of whole files that one owner may store.
        pub owner_bytes_max: Bytes = "50GiB",
    }
}
