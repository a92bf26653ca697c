//! What a worker may use of its machine, and how long it waits for what. Nothing here is read anywhere but at the start
//! of a [`Worker`](crate::Worker).

use std::time::Duration;

use kit::config::Bytes;

use crate::Profile;

kit::settings! {
    /// The settings of a worker.
    pub struct Settings {
        /// Which queues this worker serves: `all`, `models` (models alone), `batches` (batches and their finalize),
        /// `light` (all but models). The default fits a machine that runs everything.
        pub worker_profile: String = "all",
        /// The queues to serve, separated by commas, in place of the profile's; empty: the profile's.
        pub worker_queues: Vec<String> = "",
        /// Attempts at once; 0 is one for each processor, since a task that computes keeps one busy.
        pub worker_slots: u32 = "0",
        /// Memory that the child process of one slot may use for its data, in bytes. A task over it ends with
        /// `memory_exceeded`. The default holds a picture of 100 megapixels and leaves two slots below 1 GiB.
        pub worker_slot_bytes_max: Bytes = "400MiB",
        /// Seconds between asking an attempt to stop and ending it, for a timeout or a drain; a cancel brings its own.
        pub worker_grace_s: u32 = "5",
        /// Seconds that running attempts may go on after the worker was asked to stop; then they are given back, and
        /// run again elsewhere without it counting as a failure.
        pub worker_drain_s: u32 = "20",
    }
}

/// Most slots of one worker: `jobs` takes no hello with more.
pub const SLOTS_MAX: u32 = 1_000;

/// Less than this, and a child ends before it has begun.
const SLOT_BYTES_MIN: u64 = 32 << 20;
/// A drain or grace beyond an hour is a mistake in the configuration.
const STOP_S_MAX: u32 = 3_600;

impl Settings {
    /// What is wrong with the values, a sentence each; nothing with good ones.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(fail) = Profile::of(self) {
            faults.push(format!("worker_profile: {}", fail.message().trim_end_matches('.')));
        }
        if self.worker_slots > SLOTS_MAX {
            faults.push(format!("worker_slots must be 0 to {SLOTS_MAX}, not {}", self.worker_slots));
        }
        if self.worker_slot_bytes_max.0 < SLOT_BYTES_MIN {
            faults.push(format!("worker_slot_bytes_max must be at least {}", Bytes(SLOT_BYTES_MIN)));
        }
        for (name, value) in [("worker_grace_s", self.worker_grace_s), ("worker_drain_s", self.worker_drain_s)] {
            if value > STOP_S_MAX {
                faults.push(format!("{name} must be 0 to {STOP_S_MAX}, not {value}"));
            }
        }
        faults
    }

    /// Slots to run, at least one.
    #[must_use]
    pub fn slots(&self) -> u32 {
        let slots = match self.worker_slots {
            0 => std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1)),
            slots => slots,
        };
        slots.clamp(1, SLOTS_MAX)
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(self.worker_grace_s.into())
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.worker_drain_s.into())
    }

    /// Longest time from the request to stop until the worker has ended: what a process that runs one should wait.
    #[must_use]
    pub fn stop_within(&self) -> Duration {
        self.drain() + self.grace() + RECEIPTS_WITHIN
    }
}

/// How long a draining worker waits for receipts after its last attempt has ended.
pub(crate) const RECEIPTS_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_give_a_slot() {
        assert!(Settings::default().slots() >= 1);
        assert_eq!(Settings::default().faults(), Vec::<String>::new());
    }

    #[test]
    fn each_wrong_value_is_told() {
        let settings = Settings {
            worker_profile: "none".to_owned(),
            worker_slots: 5_000,
            worker_slot_bytes_max: Bytes(1),
            worker_drain_s: 86_400,
            ..Settings::default()
        };
        assert_eq!(settings.faults().len(), 4, "{:?}", settings.faults());
    }
}
