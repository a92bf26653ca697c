//! The child's side of a slot: the whole life of the process that a [`SlotCommand`](super::SlotCommand) starts.
//!
//! The main thread runs one task after another. A second thread reads what the worker sends, so that a request to stop
//! and the worker's death are noticed while a task computes and never looks up.

use std::{
    fs::File,
    io::{self, BufReader},
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use tokio_util::sync::CancellationToken;

use super::frames::{self, Down, RunFrame, Up};
use crate::{
    Context, Ending, Failure, Registry,
    context::{Answer, Host, Question, Told},
    failure::kind,
};

/// Below whatever serves people, so that a gateway on the same machine stays quick while models are computed.
const NICENESS: i32 = 10;
/// The reading thread parses frames and does nothing else.
const READER_STACK_BYTES: usize = 512 * 1024;

/// Serves attempts until the worker closes the pipe. The binary that a slot's command starts calls this first of all:
/// it talks over standard input and output, and expects nobody else to.
#[must_use]
pub fn main(registry: &Registry) -> ExitCode {
    match serve(registry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_words(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(registry: &Registry) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    nice(NICENESS)?;
    // A core file of a burst child would be large, and hold what a stranger sent.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A task that prints must not end up in the frames.
    let mut up = File::from(rustix::io::dup(io::stdout())?);
    rustix::stdio::dup2_stdout(io::stderr())?;

    let mut down = BufReader::new(File::from(rustix::io::dup(io::stdin())?));
    let Some(Down::Begin { bytes_max }) = frames::read(&mut down)? else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this process is started by a worker, for a slot of its own",
        ));
    };
    setrlimit(Resource::Data, Rlimit { current: Some(bytes_max), maximum: Some(bytes_max) })?;

    let (runs, next_run) = mpsc::sync_channel(1);
    let (answers, next_answer) = mpsc::sync_channel(1);
    let reader = thread::Builder::new().name("slot-reader".to_owned()).stack_size(READER_STACK_BYTES);
    reader.spawn(move || read_until_the_end(down, &runs, &answers))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let pipe = Arc::new(Pipe { up: Mutex::new(up.try_clone()?), answers: Mutex::new(next_answer) });
    while let Ok((run, stop)) = next_run.recv() {
        let (said, is_last) = runtime.block_on(attempt(registry, run, pipe.clone(), stop));
        let _guard = pipe.up.lock();
        frames::write(&mut up, &Up::Ended { said, is_last })?;
        if is_last {
            break;
        }
    }
    Ok(())
}

/// One attempt, and whether the process is not fit for another: a panic may have left anything behind.
async fn attempt(
    registry: &Registry,
    run: RunFrame,
    pipe: Arc<Pipe>,
    stop: CancellationToken,
) -> (Result<Ending, Failure>, bool) {
    let Some(task) = registry.find(&run.task) else {
        return (Err(Failure::internal(format!("a child knows no task `{}`", run.task))), false);
    };
    let context = Context::new(run.facts, run.scratch, pipe, stop);
    match AssertUnwindSafe(task.run(&context, run.args)).catch_unwind().await {
        Ok(said) => (said, false),
        Err(_) => (Err(Failure::passing(kind::INTERNAL, "The task panicked.")), true),
    }
}

type Run = (RunFrame, CancellationToken);

fn read_until_the_end(
    mut down: BufReader<File>,
    runs: &mpsc::SyncSender<Run>,
    answers: &mpsc::SyncSender<Result<Answer, Failure>>,
) {
    let mut present = CancellationToken::new();
    // Whatever the reason for the end, the worker is not there any more, or not in its right mind.
    while let Ok(Some(frame)) = frames::read(&mut down) {
        let is_taken = match frame {
            Down::Run(run) => {
                present = CancellationToken::new();
                runs.send((run, present.clone())).is_ok()
            }
            Down::Answer(answer) => answers.send(answer).is_ok(),
            Down::Stop => {
                present.cancel();
                true
            }
            Down::Begin { .. } => false,
        };
        if !is_taken {
            break;
        }
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the task's thread may never come back, and nothing here needs a drop"
    )]
    std::process::exit(0);
}

/// The way to the worker's desk.
struct Pipe {
    up: Mutex<File>,
    /// Held from a question to its answer: one is open at a time.
    answers: Mutex<mpsc::Receiver<Result<Answer, Failure>>>,
}

impl Host for Pipe {
    fn tell(&self, told: Told) {
        // A worker that is gone ends this process; there is nobody to tell of the failure.
        drop(frames::write(&mut *self.up.lock(), &Up::Told(told)));
    }

    /// Blocks: nothing else runs on this thread's runtime.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Failure>> {
        let answers = self.answers.lock();
        let sent = frames::write(&mut *self.up.lock(), &Up::Question(question));
        let answer = match sent {
            Ok(()) => answers.recv().unwrap_or_else(|gone| Err(Failure::internal(gone))),
            Err(error) => Err(Failure::internal(error)),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[expect(clippy::print_stderr, reason = "the worker keeps and logs a child's last words; a child has no other log")]
fn last_words(error: &io::Error) {
    eprintln!("{error}");
}
