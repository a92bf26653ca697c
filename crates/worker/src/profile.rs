//! Profiles: named answers to "which queues does this worker serve?". Every worker offers every task it was built with;
//! the queues alone decide what it is given.

use kit::Fail;

use crate::Settings;

/// A named set of queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Shown in the list of workers and in the metric `guildhall_workers`.
    pub name: String,
    /// Empty: every queue.
    pub queues: Vec<String>,
}

/// The profiles there are: name, queues, what it is good for.
pub const PROFILES: &[(&str, &[&str], &str)] = &[
    ("all", &[], "every queue"),
    ("models", &["model_generation"], "a machine that only computes models"),
    ("batches", &["batch_processing"], "keeps batches moving while models take every other worker"),
    ("light", &["default", "batch_processing", "content_generation", "priority", "maintenance"], "all but models"),
];

impl Profile {
    /// The profile that the settings name, with their queues in place of its own where they give some.
    ///
    /// # Errors
    /// `worker.unknown_profile` with the names there are.
    pub fn of(settings: &Settings) -> Result<Self, Fail> {
        let name = settings.worker_profile.trim();
        let (_, queues, _) = PROFILES.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
            let known = PROFILES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
            Fail::invalid("worker.unknown_profile", format!("There is no worker profile `{name}`; there are {known}."))
        })?;
        let queues = match settings.worker_queues.as_slice() {
            [] => queues.iter().map(|&queue| queue.to_owned()).collect(),
            chosen => chosen.to_vec(),
        };
        Ok(Self { name: name.to_owned(), queues })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_the_settings_take_the_place_of_the_profiles() {
        let mut settings = Settings { worker_profile: "models".to_owned(), ..Settings::default() };
        assert_eq!(Profile::of(&settings).expect("it is known").queues, ["model_generation"]);
        settings.worker_queues = vec!["mine".to_owned()];
        assert_eq!(Profile::of(&settings).expect("it is known").queues, ["mine"]);
    }

    #[test]
    fn an_unknown_profile_is_refused_with_those_there_are() {
        let settings = Settings { worker_profile: "modles".to_owned(), ..Settings::default() };
        let fail = Profile::of(&settings).expect_err("it is not known");
        assert!(fail.message().contains("all, models"), "{fail}");
    }
}
