//! `./dev apart`: opens the production shape, says where it is, tells of what dies and runs again, and closes in order.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use apart::{Apart, Options};
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The shell's way of telling that Ctrl-C ended a command.
const INTERRUPTED: u8 = 130;

/// The production shape on this machine: nginx, two gateways, two of each service, three workers, Postgres and RabbitMQ,
/// each a process. What dies is started again at once. Ctrl-C drains and stops; once more stops at once.
#[derive(Debug, clap::Parser)]
#[command(name = "./dev apart")]
struct Args {
    /// The directory of all that is kept, logs among it. By default /var/lib/guildhall/apart for root, else
    /// guildhall-apart under ~/.local/share
    #[arg(long, env = "GUILDHALL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where nginx listens; port 0 picks a free one
    #[arg(long, env = "GUILDHALL_HTTP_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Attempts at once in each of the three workers; by default one for each processor
    #[arg(long, env = "GUILDHALL_WORKER_SLOTS", value_name = "N")]
    worker_slots: Option<u32>,
    /// The directory with postgres and initdb; by default they are looked for
    #[arg(long, env = "GUILDHALL_PG_BIN", value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// The binary of the roles; by default the one beside this
    #[arg(long, value_name = "FILE")]
    guildhall: Option<PathBuf>,
    #[arg(long, env = "XDG_DATA_HOME", hide = true)]
    data_home: Option<PathBuf>,
    #[arg(long, env = "HOME", hide = true)]
    home: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(told) => {
            // Whoever read may have gone, and then there is nobody to tell.
            let _unread = told.print();
            return if told.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(std::io::stderr).init();
    let options = match options(args) {
        Ok(options) => options,
        Err(sentence) => {
            error(sentence);
            return ExitCode::from(64);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(fault) => {
            error(format_args!("the runtime does not start: {fault}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(live(options));
    // What a hard stop has left at work ends with this process: the kernel sees to it.
    runtime.shutdown_background();
    code
}

fn options(args: Args) -> Result<Options, String> {
    let data_dir = match args.data_dir.filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => dir,
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/guildhall/apart"),
        None => {
            let base = args.data_home.or_else(|| args.home.map(|home| home.join(".local/share")));
            base.ok_or("neither --data-dir nor HOME is set, so there is no place to keep anything")?
                .join("guildhall-apart")
        }
    };
    let guildhall = match args.guildhall {
        Some(program) => program,
        None => {
            let this =
                std::env::current_exe().map_err(|fault| format!("cannot tell where this program is: {fault}"))?;
            this.with_file_name("guildhall")
        }
    };
    Ok(Options {
        data_dir,
        guildhall,
        http_listen: args.http,
        worker_slots: args.worker_slots,
        pg_bin: args.pg_bin.filter(|dir| !dir.as_os_str().is_empty()),
        env: Vec::new(),
    })
}

async fn live(options: Options) -> ExitCode {
    let started = Instant::now();
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(fault) => {
            error(format_args!("the signals cannot be listened for: {fault}"));
            return ExitCode::FAILURE;
        }
    };
    line("Opening: Postgres, RabbitMQ, then role by role.");
    let open = Apart::open(options, |sentence: &dyn fmt::Display| line(sentence));
    let apart = tokio::select! {
        () = signals.next() => return ExitCode::from(INTERRUPTED),
        opened = open => match opened {
            Ok(apart) => apart,
            Err(fault) => {
                error(fault);
                return ExitCode::FAILURE;
            }
        },
    };
    banner(&apart, started.elapsed().as_secs_f64());
    signals.next().await;

    line("Stopping: what is at work may end. Ctrl-C again stops at once.");
    tokio::select! {
        () = signals.next() => ExitCode::from(INTERRUPTED),
        has_drained = apart.close() => {
            if !has_drained {
                error("not everything ended by itself in time; it will be taken up at the next start");
            }
            if has_drained { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn banner(apart: &Apart, seconds: f64) {
    let (good, strong, dim) = if std::io::stdout().is_terminal() {
        let style = anstyle::Style::new();
        (style.bold().fg_color(Some(anstyle::AnsiColor::Green.into())), style.bold(), style.dimmed())
    } else {
        Default::default()
    };
    let row = |name: &str, value: &dyn fmt::Display| line(format_args!("  {dim}{name:<9}{dim:#} {value}"));
    let shown = |path: &Path| path.display().to_string();
    line("");
    line(format_args!("  {good}Guildhall is open, its roles apart{good:#}  {dim}after {seconds:.1} s{dim:#}"));
    line("");
    row("api", &format_args!("{strong}{}{strong:#}", apart.http()));
    row("data", &shown(apart.data_dir()));
    row("processes", &shown(apart.told()));
    row("logs", &format_args!("{}, postgres.log, rabbitmq.log", shown(&apart.data_dir().join("logs"))));
    row("sign in", &format_args!("{}, password in {}", apart::ADMIN_EMAIL, shown(&apart.administrator_file())));
    row("stop", &"Ctrl-C drains first; once more stops at once");
    line("");
}

/// Ctrl-C, SIGTERM and the end of the terminal mean the same.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

fn line(text: impl fmt::Display) {
    // Whoever read may have gone, and then there is nobody to tell.
    let _unread = writeln!(std::io::stdout().lock(), "{text}");
}

fn error(text: impl fmt::Display) {
    let _unread = writeln!(std::io::stderr().lock(), "error: {text}");
}
