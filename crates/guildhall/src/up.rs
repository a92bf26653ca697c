//! `guildhall up`: every role in this process, on this machine alone. It opens the house, says where it is, shows the
//! sample at the first start, stays until it is asked to go, and closes in order.

mod banner;
mod data_dir;
mod door;
mod first_start;
mod house;
pub(crate) mod ops;
mod sample;

use std::{process::ExitCode, time::Duration};

use kit::Fail;
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    exit, say,
    settings::{self, Settings},
    signals::Signals,
};
use banner::Banner;
use data_dir::{DataDir, Ready};
use house::House;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: settings::File,
    /// Do not make models of the sample pictures at the first start
    #[arg(long)]
    no_sample: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let settings = match args.file.settle() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say::error(format_args!("the runtime does not start: {error}"));
            return exit::FAILED;
        }
    };
    let code = runtime.block_on(live(&settings, args.no_sample)).unwrap_or_else(|fail| {
        say::error(fail);
        exit::FAILED
    });
    // What was dropped at a hard stop may still sit in a thread of its own, which nobody waits for.
    runtime.shutdown_background();
    code
}

/// From the first signal listened for to the exit code.
async fn live(settings: &Settings, no_sample: bool) -> Result<ExitCode, Fail> {
    let mut signals = Signals::listen()?;
    let data_dir = DataDir::claim(&settings.data_dir)?;
    let mut house = House::default();

    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping");
            None
        }
        fail = stay(&mut house, settings, &data_dir, no_sample) => Some(fail),
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
async fn stay(house: &mut House, settings: &Settings, data_dir: &DataDir, no_sample: bool) -> Fail {
    let started = Instant::now();
    let opened = match house.open(settings, data_dir).await {
        Ok(opened) => opened,
        Err(fail) => return fail,
    };
    let ready = Ready {
        http: opened.http.clone(),
        ops: opened.ops.clone(),
        grpc: std::collections::BTreeMap::new(),
        pid: std::process::id(),
    };
    if let Err(fail) = data_dir.publish(&ready) {
        return fail;
    }
    let password_file = opened.administrator.file.as_deref();
    Banner {
        public_url: &opened.public_url,
        ops_url: &opened.ops,
        data_dir: data_dir.path(),
        is_private_database: settings.process.database_url.is_none(),
        admin_email: &opened.administrator.email,
        new_password: opened.administrator.new_password.as_ref().map(|password| password.expose().as_str()),
        password_file,
        seconds: started.elapsed().as_secs_f64(),
    }
    .print();

    let show = async {
        if let Some(password) = opened.administrator.new_password.as_ref().filter(|_| !no_sample) {
            sample::show(&opened.http, &opened.administrator.email, password, data_dir.path()).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        fail = house.failed() => fail,
        () = show => unreachable!("it waits for ever"),
    }
}
