//! How a process fares: the checks of what it stands on. Its operations port asks them for `/readyz`, and a [`Reporter`]
//! tells `admin` what came of them, so that one look shows every process there is.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use tokio::time::Instant;

use crate::Fail;

/// A check that takes longer has failed.
const CHECK_WITHIN: Duration = Duration::from_secs(3);

type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Fail>> + Send + Sync>;

/// The checks of one process, by the names of what they look at. Cheap to clone.
#[derive(Clone, Default)]
pub struct Checks(Vec<(&'static str, Probe)>);

/// What came of one check.
#[derive(Debug)]
pub struct Checked {
    pub name: &'static str,
    pub took: Duration,
    pub outcome: Result<(), Fail>,
}

impl Checks {
    /// Adds a check: `probe` fails while `name` cannot be used.
    #[must_use]
    pub fn with<F>(mut self, name: &'static str, probe: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Fail>> + Send + 'static,
    {
        self.0.push((name, Arc::new(move || Box::pin(probe()))));
        self
    }

    /// Makes all of them at once; done within 3 s.
    pub async fn run(&self) -> Vec<Checked> {
        join_all(self.0.iter().map(|(name, probe)| async move {
            let started = Instant::now();
            let outcome = tokio::time::timeout(CHECK_WITHIN, probe()).await.unwrap_or_else(|_| {
                Err(Fail::unavailable("check.timeout", format!("No answer within {} s.", CHECK_WITHIN.as_secs())))
            });
            Checked { name, took: started.elapsed(), outcome }
        }))
        .await
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_fails_alone_and_in_time() {
        let checks = Checks::default().with("rock", async || Ok(())).with("swamp", std::future::pending);
        let checked = checks.run().await;
        let [rock, swamp] = checked.as_slice() else { panic!("{checked:?}") };
        assert!(rock.outcome.is_ok());
        assert_eq!((swamp.name, swamp.took), ("swamp", CHECK_WITHIN));
        assert_eq!(swamp.outcome.as_ref().expect_err("it hangs").code(), "check.timeout");
    }
}
