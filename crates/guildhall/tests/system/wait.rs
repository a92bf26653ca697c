//! Waiting for what happens in another process, within a bound. The bound only ends a test that has failed already.

use std::time::Duration;

/// Longest wait for anything but a batch of pictures.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How often something that cannot be waited on is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until there is something to see.
///
/// # Panics
/// Nothing is seen within `limit`; `what` says what was waited for.
pub(crate) async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(limit, looking).await {
        Ok(seen) => seen,
        Err(_) => panic!("waited {} s in vain for {what}", limit.as_secs()),
    }
}
