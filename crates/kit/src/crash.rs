//! Named points at which a test may have the process killed. Outside builds with the feature `crash-points`, which only
//! tests turn on, there is nothing of this.

/// Kills this process at once, as `kill -9` would, when a test has asked for it: when the file
/// `$GUILDHALL_TEST_CRASH_DIR/<name>` is there. Whoever removes that file is the one who dies, so that one file is one crash.
#[cfg(feature = "crash-points")]
#[expect(clippy::disallowed_methods, reason = "the tests' own variable is no setting")]
pub fn crash_point(name: &str) {
    use nix::{
        sys::signal::{Signal, raise},
        unistd::Pid,
    };
    let Some(folder) = std::env::var_os("GUILDHALL_TEST_CRASH_DIR") else { return };
    if std::fs::remove_file(std::path::Path::new(&folder).join(name)).is_ok() {
        tracing::error!(point = name, pid = Pid::this().as_raw(), "killed at a crash point");
        let _never_returns = raise(Signal::SIGKILL);
    }
}

/// Nothing, outside tests.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &str) {}
