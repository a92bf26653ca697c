//! What can be set about the audit log and parked events. Ranges that the types cannot say are checked by
//! [`Settings::faults`].

kit::settings! {
    /// The settings of the role `admin`.
    pub struct Settings {
        /// Days that an entry of the audit log is kept, 31 to 3650. A month of entries leaves whole, once its last day is
        /// that old.
        pub audit_days: u32 = "365",
        /// Days that a parked event is kept after it was replayed, 1 to 365. One that was not is kept until it is.
        pub parked_days: u32 = "30",
        /// Days that an act on a parked event stays in the outbox of `admin` once word of it was sent, 1 to 365.
        pub admin_outbox_days: u32 = "7",
        /// Connections of `admin` to the database, 4 to 1000.
        pub admin_connections_max: u32 = "10",
    }
}

impl Settings {
    /// What is wrong with the values, a sentence each; nothing with good ones.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut range = |name: &str, value: u32, least: u32, most: u32| {
            if !(least..=most).contains(&value) {
                faults.push(format!("{name} must be {least} to {most}, not {value}"));
            }
        };
        range("audit_days", self.audit_days, 31, 3650);
        range("parked_days", self.parked_days, 1, 365);
        range("admin_outbox_days", self.admin_outbox_days, 1, 365);
        range("admin_connections_max", self.admin_connections_max, 4, 1000);
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault_and_each_wrong_value_is_told() {
        assert_eq!(Settings::default().faults(), Vec::<String>::new());
        let settings = Settings { audit_days: 7, admin_connections_max: 0, ..Settings::default() };
        assert_eq!(settings.faults().len(), 2, "{:?}", settings.faults());
    }
}
