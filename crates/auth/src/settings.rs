//! What can be set about identity. Ranges that the types cannot say are checked by [`Settings::faults`].

use kit::Secret;

use crate::{email::Email, passwords::Password};

kit::settings! {
    /// The settings of the role `auth`.
    pub struct Settings {
        /// Seconds that an access token is good for, 60 to 600. Five minutes bound what a copied one is worth.
        pub access_token_s: u32 = "300",
        /// Days after which a session ends however much it is used, 1 to 365 (NIST SP 800-63B: 30 at its first level).
        pub session_days_max: u32 = "30",
        /// Days after which a session ends when its refresh token was not used, 1 to `session_days_max`.
        pub session_idle_days_max: u32 = "7",
        /// Argon2id: memory of one hash in KiB, 8192 to 1048576. With two passes OWASP's second choice, 23 ms of a core.
        pub password_memory_kib: u32 = "19456",
        /// Argon2id: passes over the memory, 1 to 100.
        pub password_passes: u32 = "2",
        /// Argon2id: lanes, 1 to 16. More than one only makes the attacker's work parallel.
        pub password_lanes: u32 = "1",
        /// Passwords hashed at a time, 1 to 1024; each takes a core and `password_memory_kib`. Unset: the number of cores.
        pub password_hashes_max: Option<u32> = "",
        /// Days after which a new key signs access tokens, 1 to 3650. The old one verifies for an hour more.
        pub signing_key_days: u32 = "90",
        /// Who becomes administrator when a start finds none.
        pub admin_email: String = "admin@guildhall.localhost",
        /// The password of that administrator, under the rules for every password. Unset: made and printed once.
        pub admin_password: Option<Secret> = "",
        /// Days that word of what happened to users and sessions stays in the outbox of `auth` once it was sent, 1 to 365.
        pub auth_outbox_days: u32 = "7",
        /// Connections of `auth` to the database, 2 to 1000. Two more read which sessions have ended.
        pub auth_connections_max: u32 = "10",
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
        range("access_token_s", self.access_token_s, 60, 600);
        range("session_days_max", self.session_days_max, 1, 365);
        range("session_idle_days_max", self.session_idle_days_max, 1, self.session_days_max);
        range("password_memory_kib", self.password_memory_kib, 8192, 1 << 20);
        range("password_passes", self.password_passes, 1, 100);
        range("password_lanes", self.password_lanes, 1, 16);
        range("password_hashes_max", self.password_hashes_max.unwrap_or(1), 1, 1024);
        range("signing_key_days", self.signing_key_days, 1, 3650);
        range("auth_outbox_days", self.auth_outbox_days, 1, 365);
        range("auth_connections_max", self.auth_connections_max, 2, 1000);
        match Email::parse(&self.admin_email) {
            Err(reason) => faults.push(format!("admin_email {reason}")),
            Ok(email) => {
                if let Some(password) = &self.admin_password
                    && let Err(violation) = Password::choose(password.expose(), Some(&email))
                {
                    faults.push(format!("admin_password {}", violation.message));
                }
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault() {
        assert_eq!(Settings::default().faults(), Vec::<String>::new());
    }

    #[test]
    fn every_value_out_of_range_is_told_and_no_password_is_shown() {
        let settings = Settings {
            access_token_s: 5,
            session_idle_days_max: 31,
            admin_email: "nobody".into(),
            ..Settings::default()
        };
        assert_eq!(settings.faults().len(), 3, "{:?}", settings.faults());
        let settings = Settings { admin_password: Some(Secret::new("hush".into())), ..Settings::default() };
        let faults = settings.faults();
        assert!(faults.len() == 1 && !faults[0].contains("hush"), "{faults:?}");
    }
}
