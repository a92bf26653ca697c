//! Starts the children of all slots from one thread that lives as long as they may be needed: the kernel's signal at a
//! parent's death, by which a child ends, is bound to the thread that started it and not to the process.

use std::{ffi::OsString, io, path::PathBuf, process::Stdio, sync::mpsc, thread};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

/// How to start a slot's child: a program and arguments that lead to [`slot::main`](crate::slot::main).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// The way to the launching thread, which ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Launcher(mpsc::Sender<oneshot::Sender<io::Result<Child>>>);

impl Launcher {
    /// Starts the thread. Its children belong to the present runtime.
    pub(crate) fn start(command: SlotCommand) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<oneshot::Sender<io::Result<Child>>>();
        let runtime = Handle::current();
        thread::Builder::new().name("slot-launcher".to_owned()).spawn(move || {
            let _runtime = runtime.enter();
            while let Ok(answer) = receiver.recv() {
                // Whoever asked may have gone; the child is then killed by being dropped.
                drop(answer.send(spawn(&command)));
            }
        })?;
        Ok(Self(sender))
    }

    pub(crate) async fn launch(&self) -> io::Result<Child> {
        let (answer, started) = oneshot::channel();
        let gone = || io::Error::other("the launching thread has ended");
        self.0.send(answer).map_err(|_| gone())?;
        started.await.map_err(|_| gone())?
    }
}

fn spawn(command: &SlotCommand) -> io::Result<Child> {
    Command::new(&command.program)
        .args(&command.args)
        // What a child computes on came from strangers, so it inherits no secret. The two that it is given make the
        // allocator of glibc return what a large picture took, instead of keeping it for the next.
        .env_clear()
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C at the terminal is for the worker, which lets its attempts end first.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}
