//! Processes of a cluster whose postmaster is gone, or whose owner is. They hold shared memory that keeps a new server
//! from starting. Nothing is ended but what is proven to be Postgres at work in that very cluster.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::StartError;

/// After SIGQUIT, Postgres ends within milliseconds; what is stuck in the kernel's hands ends when it lets go.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Makes way for a new server: ends what still works in the cluster, and clears away the number of one that is gone.
///
/// The caller holds the lock of the data directory, so no living Guildhall owns them.
///
/// # Errors
/// Some processes do not end, or the number cannot be cleared away.
pub(super) fn clear(cluster: &Path) -> Result<(), StartError> {
    end(cluster)?;
    forget_stale_pid(cluster)
}

/// Ends every process of the cluster: at once but in order (SIGQUIT), then by force. Returns when they are gone.
fn end(cluster: &Path) -> Result<(), StartError> {
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        let deadline = Instant::now() + PATIENCE;
        let mut told: Vec<Pid> = Vec::new();
        loop {
            let alive = find(cluster);
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            for pid in alive {
                if !told.contains(&pid) {
                    tracing::info!(
                        postgres.pid = pid.as_raw(),
                        signal = signal.as_str(),
                        "ending a left-over Postgres process"
                    );
                    // It may have ended since it was seen; the next look tells.
                    let _ended_meanwhile = kill(pid, signal);
                    told.push(pid);
                }
            }
            std::thread::sleep(POLL);
        }
    }
    let pids = find(cluster).iter().map(Pid::to_string).collect::<Vec<_>>();
    if pids.is_empty() {
        return Ok(());
    }
    Err(StartError::Leftovers { cluster: cluster.to_owned(), pids: pids.join(", ") })
}

/// Removes a `postmaster.pid` whose number now belongs to another process or to a zombie: Postgres would take that for
/// a living postmaster and refuse. One whose process is gone Postgres clears away by itself.
fn forget_stale_pid(cluster: &Path) -> Result<(), StartError> {
    let path = cluster.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StartError::io(format!("read {}", path.display()))(error)),
    };
    let is_taken = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .is_none_or(|pid: i32| kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH));
    if !is_taken {
        return Ok(());
    }
    // `end` has shown that no process of this cluster lives, so whoever has the number is a stranger.
    tracing::info!(path = %path.display(), "removing a stale postmaster.pid");
    fs::remove_file(&path).map_err(StartError::io(format!("remove {}", path.display())))
}

/// Every process of Postgres that works in `cluster`: the postmaster and its children have made it their current
/// directory, and the kernel says which program they run. Both are beyond the reach of another user's tricks, unlike a
/// number in a file.
fn find(cluster: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(|pid: i32| (pid, entry.path())))
        .filter(|(_, process)| {
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster)
                && fs::read_link(process.join("exe")).is_ok_and(|exe| {
                    // A program that was replaced since shows as `postgres (deleted)`.
                    exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("postgres"))
                })
        })
        .map(|(pid, _)| Pid::from_raw(pid))
        .collect()
}
