//! How a child is kept from our environment, terminal and current directory, and from outliving us.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::Signal;

use super::account::Account;

/// Runs `command` as `account`, away from our environment, terminal and current directory, and has the kernel send it
/// `at_our_end` when this thread ends, however it ends.
pub fn confine(command: &mut Command, account: &Account, at_our_end: Signal) {
    account.apply(command);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        // The data directory need not be reachable by name from where we are.
        .current_dir("/")
        // A Ctrl-C at the terminal is for us: we drain first, and stop the servers last.
        .process_group(0);
    end_with_this_thread(command, at_our_end);
}

/// Has the kernel send `signal` to the child when the thread that starts it ends, however it ends. Only Linux can;
/// elsewhere what a killed process of ours leaves running is ended by the next start in its directory.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the kernel must be asked between fork and exec, after the change of user, which clears it"
)]
pub fn end_with_this_thread(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // We may have ended before the request was made; then nothing would ever come.
        if nix::unistd::getppid() != parent {
            return Err(io::Error::from(nix::errno::Errno::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are sound, since another thread may have held any lock
    // at the fork. `ask` makes two bare system calls, prctl and getppid, and builds an `io::Error` from a number, which
    // allocates nothing; what it captures is `Copy`.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(not(target_os = "linux"))]
pub fn end_with_this_thread(_command: &mut Command, _signal: Signal) {}
