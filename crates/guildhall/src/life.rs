//! The life of a process that is a house, whatever roles are in it: it claims its data directory, opens, says that it is
//! ready, stays until it is asked to go or cannot go on, and closes in order.

use std::{process::ExitCode, time::Duration};

use kit::Fail;
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    exit,
    house::{DataDir, House, Opened, Ready},
    roles::Roles,
    say,
    seen::seen,
    settings::Settings,
    signals::Signals,
};

/// Lives to the end. `opened` tells people that the house is open, how long that took, and may go on for as long as it
/// likes.
pub(crate) fn run(
    settings: &Settings,
    roles: &Roles,
    opened: impl AsyncFnOnce(&Opened, &DataDir, Duration),
) -> ExitCode {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say::error(format_args!("the runtime does not start: {error}"));
            return exit::FAILED;
        }
    };
    let role = if roles.is_up { "up".to_owned() } else { roles.names().join(" ") };
    let code = runtime.block_on(seen(settings, &role, live(settings, roles, opened))).unwrap_or_else(|fail| {
        say::error(fail);
        exit::FAILED
    });
    // What was dropped at a hard stop may still sit in a thread of its own, which nobody waits for.
    runtime.shutdown_background();
    code
}

/// From the first signal listened for to the exit code.
async fn live(
    settings: &Settings,
    roles: &Roles,
    opened: impl AsyncFnOnce(&Opened, &DataDir, Duration),
) -> Result<ExitCode, Fail> {
    let mut signals = Signals::listen()?;
    let data_dir = DataDir::claim(&settings.data_dir)?;
    let mut house = House::default();

    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping");
            None
        }
        fail = stay(&mut house, settings, roles, &data_dir, opened) => Some(fail),
    };
    if let Some(fail) = &failure {
        say::error(fail);
    }
    data_dir.withdraw()?;

    say::line("Stopping: what is at work may end. Ctrl-C again stops at once.");
    let deadline = Instant::now() + Duration::from_secs(settings.process.drain_s.into());
    let has_drained = tokio::select! {
        signal = signals.next() => {
            tracing::warn!(signal, "stopped at once");
            return Ok(exit::interrupted());
        }
        has_drained = house.close(deadline) => has_drained,
    };
    if !has_drained {
        say::error(format_args!(
            "not everything ended within {} s; it will be taken up at the next start",
            settings.process.drain_s
        ));
    }
    Ok(if failure.is_none() && has_drained { exit::DONE } else { exit::FAILED })
}

/// Opens the house and stays in it; ends only with a failure.
async fn stay(
    house: &mut House,
    settings: &Settings,
    roles: &Roles,
    data_dir: &DataDir,
    opened: impl AsyncFnOnce(&Opened, &DataDir, Duration),
) -> Fail {
    let started = Instant::now();
    let open = match house.open(settings, roles, data_dir).await {
        Ok(open) => open,
        Err(fail) => return fail,
    };
    let ready =
        Ready { http: open.http.clone(), ops: open.ops.clone(), grpc: open.grpc.clone(), pid: std::process::id() };
    if let Err(fail) = data_dir.publish(&ready) {
        return fail;
    }
    let tell = async {
        opened(&open, data_dir, started.elapsed()).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        fail = house.failed() => fail,
        () = tell => unreachable!("it waits for ever"),
    }
}
