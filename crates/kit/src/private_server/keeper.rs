//! The thread that runs a server: starts it, waits for it, and starts it again in place when it dies, for as long as the
//! server's [`Restart`] says. It ends with the server, and the server with it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::PlaceError;
use super::log::Log;

const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// A life shorter than this is a start that failed.
const LIFE_MIN: Duration = Duration::from_secs(1);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How often a server is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// At once, until it has died three times within a minute: then there is a fault, which somebody has to see.
    FewTimes,
    /// Always: at once, and where one start after the other fails at once, with pauses up to five seconds.
    Always,
}

/// What a keeper has to know of the server that it keeps.
pub trait Server: Send + 'static {
    /// How the server is called, in sentences.
    fn name(&self) -> &str;

    fn restart(&self) -> Restart;

    /// Takes what the server says on its standard output and error.
    fn log(&self) -> &Log;

    /// Starts the server's main process; its output and input are the keeper's to set. See
    /// [`confine`](super::confine::confine) for one that ends with us.
    fn command(&self) -> Command;

    /// Ends what a dead main process has left running and clears what would keep a new one from starting. Called
    /// before the first life and after each.
    ///
    /// # Errors
    /// It cannot be ended or cleared.
    fn clear(&self) -> Result<(), PlaceError>;

    /// Called once, after the last life: gives back the places of the server.
    fn leave(self);
}

/// Where the server is in its life, as others see it. A restart in place is no change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Running,
    /// It died too often; the reason is a sentence for people.
    GaveUp(String),
    /// It was asked to stop and has.
    Ended,
}

/// A kept server, from outside of its thread. Dropping it stops nothing.
#[derive(Debug)]
pub struct Keeper {
    name: String,
    control: Arc<Control>,
    phase: watch::Receiver<Phase>,
    pid: watch::Receiver<Option<u32>>,
    death: watch::Receiver<String>,
}

/// What the thread and those outside of it share.
#[derive(Debug, Default)]
struct Control {
    process: Mutex<Process>,
    /// Told when the server shall stop.
    stop: Condvar,
}

/// What the thread tells.
struct Told {
    phase: watch::Sender<Phase>,
    pid: watch::Sender<Option<u32>>,
    death: watch::Sender<String>,
}

#[derive(Debug, Default)]
struct Process {
    /// Set exactly while the number is ours: from its start until just before the process is reaped. So a signal
    /// sent under the lock never meets a stranger.
    pid: Option<Pid>,
    is_stopping: bool,
}

impl Keeper {
    /// Starts the thread, prepares the server on it and runs it. One thread does it all: the kernel ends the server
    /// when the *thread* that forked it ends, so it must not be one of a pool's.
    ///
    /// # Errors
    /// What `prepare` answers, or the thread could not be had.
    pub async fn start<S, T, E>(
        name: &str,
        prepare: impl FnOnce() -> Result<(S, T), E> + Send + 'static,
    ) -> Result<(Self, T), E>
    where
        S: Server,
        T: Send + 'static,
        E: From<PlaceError> + Send + 'static,
    {
        let (prepared_tx, prepared_rx) = oneshot::channel();
        let control = Arc::new(Control::default());
        let (phase_tx, phase) = watch::channel(Phase::Running);
        let (pid_tx, pid) = watch::channel(None);
        let (death_tx, death) = watch::channel(String::new());
        let told = Told { phase: phase_tx, pid: pid_tx, death: death_tx };
        let keeper = Self { name: name.to_owned(), control: Arc::clone(&control), phase, pid, death };
        std::thread::Builder::new()
            .name(format!("keeper-{name}"))
            .spawn(move || {
                let prepared = prepare().and_then(|(server, answer)| {
                    server.clear()?;
                    Ok((server, answer))
                });
                match prepared {
                    Ok((server, answer)) => {
                        if prepared_tx.send(Ok(answer)).is_err() {
                            // Nobody waits any more, so nobody would ever stop it.
                            control.process.lock().is_stopping = true;
                        }
                        run(server, &control, &told);
                    }
                    Err(error) => drop(prepared_tx.send(Err(error))),
                }
            })
            .map_err(PlaceError::io(format!("start a thread for {name}")))?;

        let answer = prepared_rx.await.map_err(|_| PlaceError::Panicked { server: name.to_owned() })??;
        Ok((keeper, answer))
    }

    /// The number of the server's main process; none while there is no such process.
    #[must_use]
    pub fn pid(&self) -> watch::Receiver<Option<u32>> {
        self.pid.clone()
    }

    /// How the server died last, in words that follow its name; empty when it has not.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<String> {
        self.death.clone()
    }

    /// Sends a signal to the main process, if it runs.
    pub fn signal(&self, signal: Signal) {
        self.control.process.lock().signal(signal);
    }

    /// Kills the main process and waits until it is gone; the next life may have begun by then.
    pub async fn kill(&self) {
        let mut pid = self.pid.clone();
        let Some(killed) = *pid.borrow_and_update() else { return };
        self.signal(Signal::SIGKILL);
        // The sender ends with the thread, and the thread with its last process.
        let _the_thread_has_ended = pid.wait_for(|now| *now != Some(killed)).await;
    }

    /// Asks the server to stop in the way of `signal`, and the thread to leave it stopped.
    pub fn ask_to_stop(&self, signal: Signal) {
        let mut process = self.control.process.lock();
        process.is_stopping = true;
        process.signal(signal);
        self.control.stop.notify_all();
    }

    /// Stops the server and waits for it: with each signal in turn for as long as it is given. Whether the first was
    /// enough.
    pub async fn stop(&self, ways: &[(Signal, Duration)]) -> bool {
        for (nth, (signal, patience)) in ways.iter().enumerate() {
            self.ask_to_stop(*signal);
            let mut phase = self.phase.clone();
            let ended = phase.wait_for(|phase| !matches!(phase, Phase::Running));
            if tokio::time::timeout(*patience, ended).await.is_ok() {
                return nth == 0;
            }
            tracing::warn!(server = self.name, signal = signal.as_str(), "a private server has not stopped yet");
        }
        tracing::error!(server = self.name, "a private server did not end; its log says why");
        false
    }

    /// Resolves only when the server died too often ([`Restart`]) and is not started again, with the reason.
    pub async fn died(&self) -> String {
        let mut phase = self.phase.clone();
        let reason = match phase.wait_for(|phase| matches!(phase, Phase::GaveUp(_))).await {
            Ok(phase) => match &*phase {
                Phase::GaveUp(reason) => Some(reason.clone()),
                Phase::Running | Phase::Ended => None,
            },
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            // It was stopped on purpose, which is no death.
            None => std::future::pending().await,
        }
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // A zombie until it is reaped, so this cannot fail but where we may not signal it; the thread's wait tells.
            let _unreachable = kill(pid, signal);
        }
    }
}

/// Runs the server until it is asked to stop or dies too often; blocking.
fn run<S: Server>(server: S, control: &Control, told: &Told) {
    let mut deaths: Vec<Instant> = Vec::new();
    let mut pause = Duration::ZERO;
    let last_phase = loop {
        let born = Instant::now();
        let death = match live_once(&server, control, told) {
            Ok(None) => break Phase::Ended,
            Ok(Some(status)) => describe(status),
            Err(error) => error.to_string(),
        };
        tracing::warn!(death, "the private {} died", server.name());
        told.death.send_replace(death.clone());
        let now = Instant::now();
        match server.restart() {
            Restart::FewTimes => {
                deaths.retain(|death| now.duration_since(*death) < DEATHS_WITHIN);
                deaths.push(now);
                if deaths.len() >= DEATHS_MAX {
                    break Phase::GaveUp(obituary(&server, &death, deaths.len()));
                }
            }
            Restart::Always if now.duration_since(born) >= LIFE_MIN => pause = Duration::ZERO,
            Restart::Always => {
                pause = (pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
                let mut process = control.process.lock();
                control.stop.wait_while_for(&mut process, |process| !process.is_stopping, pause);
            }
        }
    };
    if let Phase::GaveUp(reason) = &last_phase {
        tracing::error!("{reason}");
    }
    // The places are free for the next one before anybody hears that this one has ended.
    server.leave();
    told.phase.send_replace(last_phase);
}

/// One life of the server: none when it ended as it was asked to, else how it died.
fn live_once<S: Server>(server: &S, control: &Control, told: &Told) -> io::Result<Option<ExitStatus>> {
    let Some((mut child, pump)) = spawn(server, control)? else { return Ok(None) };
    told.pid.send_replace(Some(child.id()));
    let pid = Pid::from_raw(child.id().cast_signed());
    tracing::info!(server.pid = pid.as_raw(), "the private {} runs", server.name());
    while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
    let (status, is_stopping) = {
        let mut process = control.process.lock();
        process.pid = None;
        (child.wait()?, process.is_stopping)
    };
    told.pid.send_replace(None);

    // Children of a dead main process may live on until they notice; a new one cannot start beside them.
    server.clear().map_err(io::Error::other)?;
    // With the last of them the pipe has ended, so the log is whole.
    if pump.join().is_err() {
        tracing::debug!("the thread that writes a private server's log panicked");
    }
    Ok(if is_stopping { None } else { Some(status) })
}

/// Starts the server, unless it has been asked to stop.
fn spawn<S: Server>(server: &S, control: &Control) -> io::Result<Option<(Child, JoinHandle<()>)>> {
    let mut process = control.process.lock();
    if process.is_stopping {
        return Ok(None);
    }
    let (said, output) = io::pipe()?;
    // The command holds our ends of the pipe, and goes with this statement: then only the server's processes do.
    let child = server.command().stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
    process.pid = Some(Pid::from_raw(child.id().cast_signed()));
    drop(process);
    Ok(Some((child, server.log().pump(said)?)))
}

fn obituary<S: Server>(server: &S, death: &str, deaths: usize) -> String {
    format!(
        "the private {} died {deaths} times within a minute and is not started again; at last it {death}. \
         Its log, {}, ends with:\n{}",
        server.name(),
        server.log().path().display(),
        server.log().last_lines()
    )
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
