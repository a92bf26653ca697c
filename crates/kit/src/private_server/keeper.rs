//! The thread that runs a server: starts it, waits for it, starts it again in place when it dies, and gives up when it
//! dies three times within a minute. It ends with the server, and the server with it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::log::Log;
use super::{PlaceError, Product};

const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// What a keeper has to know of the server that it keeps.
pub(crate) trait Server: Send + 'static {
    fn product(&self) -> &'static Product;

    /// Takes what the server says on its standard output and error.
    fn log(&self) -> &Log;

    /// Starts the server's main process; its output and input are the keeper's to set.
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
pub(crate) enum Phase {
    Running,
    /// It died too often; the reason is a sentence for people.
    GaveUp(String),
    /// It was asked to stop and has.
    Ended,
}

/// A kept server, from outside of its thread. Dropping it stops nothing.
#[derive(Debug)]
pub(crate) struct Keeper {
    product: &'static Product,
    control: Arc<Mutex<Process>>,
    phase: watch::Receiver<Phase>,
    pid: watch::Receiver<Option<u32>>,
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
    pub(crate) async fn start<S, T, E>(
        product: &'static Product,
        prepare: impl FnOnce() -> Result<(S, T), E> + Send + 'static,
    ) -> Result<(Self, T), E>
    where
        S: Server,
        T: Send + 'static,
        E: From<PlaceError> + Send + 'static,
    {
        let (prepared_tx, prepared_rx) = oneshot::channel();
        let control = Arc::new(Mutex::new(Process::default()));
        let (phase_tx, phase) = watch::channel(Phase::Running);
        let (pid_tx, pid) = watch::channel(None);
        let keeper = Self { product, control: Arc::clone(&control), phase, pid };
        std::thread::Builder::new()
            .name(format!("private-{}", product.slug))
            .spawn(move || {
                let prepared = prepare().and_then(|(server, told)| {
                    server.clear()?;
                    Ok((server, told))
                });
                match prepared {
                    Ok((server, told)) => {
                        if prepared_tx.send(Ok(told)).is_err() {
                            // Nobody waits any more, so nobody would ever stop it.
                            control.lock().is_stopping = true;
                        }
                        run(server, &control, &phase_tx, &pid_tx);
                    }
                    Err(error) => drop(prepared_tx.send(Err(error))),
                }
            })
            .map_err(PlaceError::io(format!("start a thread for {}", product.name)))?;

        let told = prepared_rx.await.map_err(|_| PlaceError::Panicked { server: product.name })??;
        Ok((keeper, told))
    }

    /// The number of the server's main process; none while there is no such process.
    pub(crate) fn pid(&self) -> watch::Receiver<Option<u32>> {
        self.pid.clone()
    }

    /// Sends a signal to the main process, if it runs.
    pub(crate) fn signal(&self, signal: Signal) {
        self.control.lock().signal(signal);
    }

    /// Kills the main process and waits until it is gone; the next life may have begun by then.
    pub(crate) async fn kill(&self) {
        let mut pid = self.pid.clone();
        let Some(killed) = *pid.borrow_and_update() else { return };
        self.signal(Signal::SIGKILL);
        // The sender ends with the thread, and the thread with its last process.
        let _the_thread_has_ended = pid.wait_for(|now| *now != Some(killed)).await;
    }

    /// Asks the server to stop in the way of `signal`, and the thread to leave it stopped.
    pub(crate) fn ask_to_stop(&self, signal: Signal) {
        let mut process = self.control.lock();
        process.is_stopping = true;
        process.signal(signal);
    }

    /// Stops the server and waits for it: with each signal in turn for as long as it is given.
    pub(crate) async fn stop(&self, ways: &[(Signal, Duration)]) {
        for (signal, patience) in ways {
            self.ask_to_stop(*signal);
            let mut phase = self.phase.clone();
            let ended = phase.wait_for(|phase| !matches!(phase, Phase::Running));
            if tokio::time::timeout(*patience, ended).await.is_ok() {
                return;
            }
            tracing::warn!(
                server = self.product.slug,
                signal = signal.as_str(),
                "a private server has not stopped yet"
            );
        }
        tracing::error!(server = self.product.slug, "a private server did not end; its log says why");
    }

    /// Resolves only when the server died three times within a minute and is not started again, with the reason.
    pub(crate) async fn died(&self) -> String {
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
fn run<S: Server>(server: S, control: &Mutex<Process>, phase: &watch::Sender<Phase>, pid: &watch::Sender<Option<u32>>) {
    let name = server.product().name;
    let mut deaths: Vec<Instant> = Vec::new();
    let last_phase = loop {
        let death = match live_once(&server, control, pid) {
            Ok(None) => break Phase::Ended,
            Ok(Some(status)) => describe(status),
            Err(error) => error.to_string(),
        };
        let now = Instant::now();
        deaths.retain(|death| now.duration_since(*death) < DEATHS_WITHIN);
        deaths.push(now);
        if deaths.len() >= DEATHS_MAX {
            break Phase::GaveUp(obituary(&server, &death, deaths.len()));
        }
        tracing::warn!(death, "the private {name} died and is started again");
    };
    if let Phase::GaveUp(reason) = &last_phase {
        tracing::error!("{reason}");
    }
    // The places are free for the next one before anybody hears that this one has ended.
    server.leave();
    phase.send_replace(last_phase);
}

/// One life of the server: none when it ended as it was asked to, else how it died.
fn live_once<S: Server>(
    server: &S,
    control: &Mutex<Process>,
    told: &watch::Sender<Option<u32>>,
) -> io::Result<Option<ExitStatus>> {
    let Some((mut child, pump)) = spawn(server, control)? else { return Ok(None) };
    told.send_replace(Some(child.id()));
    let pid = Pid::from_raw(child.id().cast_signed());
    tracing::info!(server.pid = pid.as_raw(), "the private {} runs", server.product().name);
    while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
    let (status, is_stopping) = {
        let mut process = control.lock();
        process.pid = None;
        (child.wait()?, process.is_stopping)
    };
    told.send_replace(None);

    // Children of a dead main process may live on until they notice; a new one cannot start beside them.
    server.clear().map_err(io::Error::other)?;
    // With the last of them the pipe has ended, so the log is whole.
    if pump.join().is_err() {
        tracing::debug!("the thread that writes a private server's log panicked");
    }
    Ok(if is_stopping { None } else { Some(status) })
}

/// Starts the server, unless it has been asked to stop.
fn spawn<S: Server>(server: &S, control: &Mutex<Process>) -> io::Result<Option<(Child, JoinHandle<()>)>> {
    let mut process = control.lock();
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
        server.product().name,
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
