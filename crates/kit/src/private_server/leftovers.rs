//! Processes of a server whose main process is gone, or whose owner is. They hold memory, ports and files that keep a
//! new server from starting. Nothing is ended but what is proven to be that server at work in that very directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PlaceError;

/// What is told to end does so within milliseconds; what is stuck in the kernel's hands ends when it lets go.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Ends every process of `programs` that works in `dir`: at once but in order (`first`), then by force. Returns when
/// they are gone.
///
/// The caller holds the lock of the data directory, so no living Guildhall owns them.
///
/// # Errors
/// Some processes do not end.
pub fn end(dir: &Path, server: &'static str, programs: &[&str], first: Signal) -> Result<(), PlaceError> {
    for signal in [first, Signal::SIGKILL] {
        let deadline = Instant::now() + PATIENCE;
        let mut told: Vec<Pid> = Vec::new();
        loop {
            let alive = find(dir, programs);
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            for pid in alive {
                if !told.contains(&pid) {
                    tracing::info!(
                        server,
                        server.pid = pid.as_raw(),
                        signal = signal.as_str(),
                        "ending a left-over process"
                    );
                    // It may have ended since it was seen; the next look tells.
                    let _ended_meanwhile = kill(pid, signal);
                    told.push(pid);
                }
            }
            std::thread::sleep(POLL);
        }
    }
    let pids = find(dir, programs).iter().map(Pid::to_string).collect::<Vec<_>>();
    if pids.is_empty() {
        return Ok(());
    }
    Err(PlaceError::Leftovers { server, dir: dir.to_owned(), pids: pids.join(", ") })
}

/// Every process of `programs` that works in `dir`: servers make it their current directory, and the kernel says which
/// program they run. Both are beyond the reach of another user's tricks, unlike a number in a file.
fn find(dir: &Path, programs: &[&str]) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(|pid: i32| (pid, entry.path())))
        .filter(|(_, process)| {
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == dir)
                && fs::read_link(process.join("exe")).is_ok_and(|exe| {
                    let Some(name) = exe.file_name().map(|name| name.to_string_lossy()) else { return false };
                    // A program that was replaced since shows as `postgres (deleted)`.
                    programs.contains(&name.trim_end_matches(" (deleted)"))
                })
        })
        .map(|(pid, _)| Pid::from_raw(pid))
        .collect()
}
