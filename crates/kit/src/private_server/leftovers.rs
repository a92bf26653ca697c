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
    // One on its way out shows neither its program nor its directory any more, and still has its ports and files.
    let mut ending: Vec<Process> = Vec::new();
    for signal in [first, Signal::SIGKILL] {
        let deadline = Instant::now() + PATIENCE;
        let mut told: Vec<Process> = Vec::new();
        loop {
            let at_work = find(dir, programs);
            ending.retain(|process| !at_work.contains(process) && !process.is_over());
            ending.extend(&at_work);
            if ending.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            for process in at_work {
                if !told.contains(&process) {
                    tracing::info!(
                        server,
                        server.pid = process.pid,
                        signal = signal.as_str(),
                        "ending a left-over process"
                    );
                    // It may have ended since it was seen; the next look tells.
                    let _ended_meanwhile = kill(Pid::from_raw(process.pid), signal);
                    told.push(process);
                }
            }
            std::thread::sleep(POLL);
        }
    }
    let pids = ending.iter().map(|process| process.pid.to_string()).collect::<Vec<_>>();
    Err(PlaceError::Leftovers { server, dir: dir.to_owned(), pids: pids.join(", ") })
}

/// A process, told by when it began from one that is given its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    /// In the kernel's ticks since the machine was started.
    began: u64,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, began: Stat::of(pid)?.began })
    }

    /// It has let go of all that it had: nothing is left of it, or a zombie that its parent has not asked for yet.
    fn is_over(self) -> bool {
        Stat::of(self.pid).is_none_or(|stat| stat.began != self.began || stat.is_zombie && stat.threads <= 1)
    }
}

/// What `/proc/PID/stat` says of a process; see proc_pid_stat(5).
struct Stat {
    /// Its first thread is one. Others may still be on their way out.
    is_zombie: bool,
    threads: u64,
    began: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // Its name may have any bytes, parentheses too. Fields are numbered from 1, the state is the third.
        let text = String::from_utf8_lossy(&text);
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self { is_zombie: matches!(*fields.first()?, "Z" | "X"), threads: number(20)?, began: number(22)? })
    }
}

/// Every process of `programs` that works in `dir`: servers make it their current directory, and the kernel says which
/// program they run. Both are beyond the reach of another user's tricks, unlike a number in a file.
fn find(dir: &Path, programs: &[&str]) -> Vec<Process> {
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
        .filter_map(|(pid, _)| Process::of(pid))
        .collect()
}
