//! The thread that runs the server: starts it, waits for it, starts it again in place when it dies, and gives up when
//! it dies three times within a minute. It ends with the server, and the server with it.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::account::Account;
use super::binaries::Binaries;
use super::home::Home;
use super::log::Log;
use super::{PORT, leftovers};

const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// Where the server is in its life, as others see it. A restart in place is no change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// It died too often; the reason is a sentence for people.
    GaveUp(String),
    /// It was asked to stop and has.
    Ended,
}

/// How others reach the server's process.
#[derive(Debug, Clone)]
pub(super) struct Control(Arc<Mutex<Process>>);

#[derive(Debug, Default)]
struct Process {
    /// Set exactly while the number is ours: from its start until just before the process is reaped. So a signal
    /// sent under the lock never meets a stranger.
    pid: Option<Pid>,
    is_stopping: bool,
}

impl Control {
    /// Asks the server to stop in the way of `signal`, and the thread to leave it stopped.
    pub(super) fn stop(&self, signal: Signal) {
        let mut process = self.0.lock();
        process.is_stopping = true;
        if let Some(pid) = process.pid {
            // A zombie until it is reaped, so this cannot fail but where we may not signal it; the thread's wait tells.
            let _unreachable = kill(pid, signal);
        }
    }
}

/// A server that is ready to run.
#[derive(Debug)]
pub(super) struct Server {
    home: Home,
    socket_dir: PathBuf,
    binaries: Binaries,
    account: Account,
    durable: bool,
    log: Log,
    control: Control,
    phase: watch::Sender<Phase>,
}

impl Server {
    pub(super) fn new(home: Home, socket_dir: PathBuf, binaries: Binaries, account: Account, durable: bool) -> Self {
        let log = Log::new(home.log());
        let control = Control(Arc::new(Mutex::new(Process::default())));
        Self { home, socket_dir, binaries, account, durable, log, control, phase: watch::Sender::new(Phase::Running) }
    }

    pub(super) fn control(&self) -> Control {
        self.control.clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Runs the server until it is asked to stop or dies too often; blocking. It must be called on a thread that lives
    /// as long as the server shall, since the kernel ends the server with the thread.
    pub(super) fn run(self) {
        let mut deaths: Vec<Instant> = Vec::new();
        let last_phase = loop {
            let death = match self.live_once() {
                Ok(None) => break Phase::Ended,
                Ok(Some(status)) => describe(status),
                Err(error) => error.to_string(),
            };
            let now = Instant::now();
            deaths.retain(|death| now.duration_since(*death) < DEATHS_WITHIN);
            deaths.push(now);
            if deaths.len() >= DEATHS_MAX {
                break Phase::GaveUp(self.obituary(&death, deaths.len()));
            }
            tracing::warn!(death, "the private Postgres died and is started again");
        };
        if let Phase::GaveUp(reason) = &last_phase {
            tracing::error!("{reason}");
        }
        // Its processes are gone. An empty directory that stays behind harms nobody.
        let _left_behind = std::fs::remove_dir_all(&self.socket_dir);
        // The data directory is free for the next one before anybody hears that this one has ended.
        drop(self.home);
        self.phase.send_replace(last_phase);
    }

    /// One life of the server: none when it ended as it was asked to, else how it died.
    fn live_once(&self) -> io::Result<Option<ExitStatus>> {
        let cluster = self.home.cluster();
        let _gone = std::fs::remove_file(self.socket_dir.join(format!(".s.PGSQL.{PORT}.lock")));
        let Some((mut child, pump)) = self.spawn()? else { return Ok(None) };

        let pid = Pid::from_raw(child.id().cast_signed());
        tracing::info!(postgres.pid = pid.as_raw(), cluster = %cluster.display(), "the private Postgres runs");
        while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
        let (status, is_stopping) = {
            let mut process = self.control.0.lock();
            process.pid = None;
            (child.wait()?, process.is_stopping)
        };

        // Sessions of a dead postmaster live on until they notice; a new one cannot start beside them.
        leftovers::clear(&cluster).map_err(io::Error::other)?;
        // With the last of them the pipe has ended, so the log is whole.
        if pump.join().is_err() {
            tracing::debug!("the thread that writes the private Postgres's log panicked");
        }
        Ok(if is_stopping { None } else { Some(status) })
    }

    /// Starts the server, unless it has been asked to stop.
    fn spawn(&self) -> io::Result<Option<(Child, JoinHandle<()>)>> {
        let mut process = self.control.0.lock();
        if process.is_stopping {
            return Ok(None);
        }
        let mut child = self.command().spawn()?;
        process.pid = Some(Pid::from_raw(child.id().cast_signed()));
        drop(process);
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("Postgres has no standard error"))?;
        Ok(Some((child, self.log.pump(stderr)?)))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.binaries.postgres());
        command.arg("-D").arg(self.home.cluster()).arg("-k").arg(&self.socket_dir);
        // On the command line, and not in the cluster's files, so that they hold for clusters made by any version of ours.
        let mut settings = vec![
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            "unix_socket_permissions=0700".to_owned(),
            "shared_buffers=128MB".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
            // Without the details of an error, which repeat the values that a row was refused for: addresses of people.
            "log_error_verbosity=terse".to_owned(),
        ];
        if self.durable {
            settings.push("max_connections=100".to_owned());
        } else {
            // Tests open a pool each, as many at a time as there are cores. A killed server loses nothing even so, for
            // what was written is the kernel's; only a power cut would tell.
            settings.extend(["max_connections=500", "fsync=off", "full_page_writes=off"].map(str::to_owned));
        }
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        confine(&mut command, &self.account, Signal::SIGQUIT);
        command
    }

    fn obituary(&self, death: &str, deaths: usize) -> String {
        format!(
            "the private Postgres died {deaths} times within a minute and is not started again; at last it {death}. \
             Its log, {}, ends with:\n{}",
            self.log.path().display(),
            self.log.last_lines()
        )
    }
}

/// Runs `command` as `account`, away from our environment, terminal and current directory, and has the kernel send it
/// `at_our_end` when this thread ends, however it ends.
pub(super) fn confine(command: &mut Command, account: &Account, at_our_end: Signal) {
    account.apply(command);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        // The data directory need not be reachable by name from where we are.
        .current_dir("/")
        // A Ctrl-C at the terminal is for us: we drain first, and stop Postgres last.
        .process_group(0);
    #[cfg(target_os = "linux")]
    die_with_this_thread(command, at_our_end);
    #[cfg(not(target_os = "linux"))]
    let _only_linux_can = at_our_end;
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the kernel must be asked between fork and exec, after the change of user, which clears it"
)]
fn die_with_this_thread(command: &mut Command, signal: Signal) {
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

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with the code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by the signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}
