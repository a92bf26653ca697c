//! Guildhall measured beside its yardsticks, in one run on one machine, so that a figure means something on any machine.
//!
//! ```text
//! engine pickup gateway relay models upload   a benchmark each
//! house       the real binary, started for one benchmark and ended with it
//! ground      the private Postgres and the folder that everything lives in
//! yardstick/  what it is held against: raw SQL, graphile-worker, nginx, wrk
//! proof       what the database itself says: rows, settings, commits, syncs
//! rows        what is told, as a table or as lines of JSON
//! ```
//!
//! It measures and tells. It never judges a figure, changes no setting of Guildhall but those it prints, and leaves
//! nothing behind. How each is measured, and what it is worth, stands in `docs/benchmarks.md`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command that tells what it measured")]

mod engine;
mod gateway;
mod ground;
mod house;
mod models;
mod pickup;
mod proof;
mod relay;
mod rows;
mod upload;
mod yardstick;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use ground::Ground;
use rows::Report;

/// Anything that ends a benchmark early, as a sentence.
type Fault = Box<dyn std::error::Error + Send + Sync>;

/// No benchmark takes longer; one that does has failed.
const BENCH_WITHIN: Duration = Duration::from_secs(20 * 60);

/// Measures Guildhall beside its yardsticks in the same run.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// What to measure; everything when none is named
    names: Vec<Name>,
    /// A line of JSON for each figure in place of the table
    #[arg(long)]
    json: bool,
    /// How often each figure is taken; the median is told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Jobs of one round of `engine`
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    jobs: u32,
    /// Attempts at once in `engine`, for the rate that is held against others' best settings
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slots: u32,
    /// Jobs of one round of `pickup`
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pickups: u32,
    /// Seconds of each line of `gateway`
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Events of one round of `relay`
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    events: u32,
    /// Pictures of `models`
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pictures: u32,
    /// Size of the file of `upload`, in MiB
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    upload_mib: u32,
    /// The binary to measure; `guildhall` beside this one when left out
    #[arg(long, value_name = "FILE")]
    guildhall: Option<PathBuf>,
    /// The folder with `node_modules` of `tools/bench-npm`; without it graphile-worker is left out
    #[arg(long, value_name = "FOLDER", env = "GUILDHALL_BENCH_TOOLS")]
    tools: Option<PathBuf>,
    /// The directory of `postgres` and `initdb`; looked for where packages put them when left out
    #[arg(long, value_name = "FOLDER", env = "GUILDHALL_PG_BIN")]
    pg_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Engine,
    Pickup,
    Gateway,
    Relay,
    Models,
    Upload,
}

impl Name {
    const ALL: [Self; 6] = [Self::Engine, Self::Pickup, Self::Gateway, Self::Relay, Self::Models, Self::Upload];
}

fn main() -> ExitCode {
    // Before any TLS: two crates could bring a provider each, and rustls would choose none.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing ran before this line");
    }
    let mut options = Options::parse();
    if options.names.is_empty() {
        options.names = Name::ALL.to_vec();
    }
    let outcome = tokio::runtime::Runtime::new().map_err(Fault::from).and_then(|runtime| {
        let outcome = runtime.block_on(measure(&options));
        // Nothing that still reads or writes is waited for.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &Options) -> Result<(), Fault> {
    let mut report = Report::new(options.json);
    let ground = Ground::start(options).await?;
    let measured = tokio::select! {
        measured = each(options, &ground, &mut report) => measured,
        signal = tokio::signal::ctrl_c() => signal.map_err(Fault::from).and(Err("interrupted".into())),
    };
    ground.stop().await;
    measured
}

async fn each(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    for name in &options.names {
        report.prove("machine", &ground.machine()?);
        let bench = async {
            match name {
                Name::Engine => engine::run(options, ground, report).await,
                Name::Pickup => pickup::run(options, ground, report).await,
                Name::Gateway => gateway::run(options, ground, report).await,
                Name::Relay => relay::run(options, ground, report).await,
                Name::Models => models::run(options, ground, report).await,
                Name::Upload => upload::run(options, ground, report).await,
            }
        };
        let limit = || format!("{name:?} took longer than {} s", BENCH_WITHIN.as_secs());
        tokio::time::timeout(BENCH_WITHIN, bench).await.map_err(|_| limit())??;
        report.close();
    }
    Ok(())
}
