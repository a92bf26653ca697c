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
        /// Days that an event stays in the outbox once it was sent.
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

impl Settings {
    /// What is wrong with the values, a sentence each; nothing with good ones.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut range = |name: &str, value: f64, least: f64, most: f64| {
            // Written so that what is no number at all is a fault too.
            if !(least..=most).contains(&value) {
                faults.push(format!("{name} must be {least} to {most}, not {value}"));
            }
        };
        range("jobs_connections_max", self.jobs_connections_max.into(), 4.0, 1000.0);
        range("lease_s", self.lease_s, 1.0, 3600.0);
        // One that comes late must still be in time.
        range("heartbeat_s", self.heartbeat_s, 0.1, self.lease_s / 2.0);
        range("attempt_timeout_s", self.attempt_timeout_s, 0.001, 604_800.0);
        range("cancel_grace_s", self.cancel_grace_s, 0.0, 3600.0);
        range("history_days", self.history_days.into(), 1.0, 3650.0);
        range("outbox_days", self.outbox_days.into(), 1.0, 365.0);
        range("upload_lease_s", self.upload_lease_s.into(), 60.0, 86_400.0);
        for (name, value) in [("file_bytes_max", self.file_bytes_max), ("owner_bytes_max", self.owner_bytes_max)] {
            if value.0 == 0 {
                faults.push(format!("{name} must be at least one byte"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault_and_each_wrong_value_is_told() {
        assert_eq!(Settings::default().faults(), Vec::<String>::new());
        let settings = Settings { lease_s: 20.0, heartbeat_s: 15.0, cancel_grace_s: f64::NAN, ..Settings::default() };
        assert_eq!(settings.faults().len(), 2, "{:?}", settings.faults());
    }
}
