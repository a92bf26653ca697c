//! How the server is run: its command line, and what a dead one leaves behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::binaries::Binaries;
use super::{PORT, POSTGRES};
use crate::private_server::account::Account;
use crate::private_server::confine::confine;
use crate::private_server::home::Home;
use crate::private_server::keeper::{self, Restart};
use crate::private_server::log::Log;
use crate::private_server::{PlaceError, leftovers};

/// A server that is ready to run.
#[derive(Debug)]
pub(super) struct Server {
    home: Home,
    socket_dir: PathBuf,
    binaries: Binaries,
    account: Account,
    durable: bool,
    restart: Restart,
    log: Log,
}

impl Server {
    pub(super) fn new(
        home: Home,
        socket_dir: PathBuf,
        binaries: Binaries,
        account: Account,
        durable: bool,
        restart: Restart,
    ) -> Self {
        let log = Log::new(home.log());
        Self { home, socket_dir, binaries, account, durable, restart, log }
    }
}

impl keeper::Server for Server {
    fn name(&self) -> &str {
        POSTGRES.name
    }

    fn restart(&self) -> Restart {
        self.restart
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.binaries.postgres());
        command.arg("-D").arg(self.home.state()).arg("-k").arg(&self.socket_dir);
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
            // The pools of two replicas of every service take ninety.
            settings.push("max_connections=200".to_owned());
        } else {
            // Tests open a pool each, as many at a time as there are cores. A killed server loses nothing even so, for
            // what was written is the kernel's; only a power cut would tell.
            settings.extend(["max_connections=500", "fsync=off", "full_page_writes=off"].map(str::to_owned));
        }
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        confine(&mut command, &self.account, Signal::SIGQUIT);
        command
    }

    fn clear(&self) -> Result<(), PlaceError> {
        let _gone = fs::remove_file(self.socket_dir.join(format!(".s.PGSQL.{PORT}.lock")));
        clear(&self.home.state())
    }

    fn leave(self) {
        // Its processes are gone. An empty directory that stays behind harms nobody.
        let _left_behind = fs::remove_dir_all(&self.socket_dir);
    }
}

/// Makes way for a new server: ends what still works in the cluster (SIGQUIT: at once but in order), and clears away
/// the number of one that is gone.
///
/// # Errors
/// Some processes do not end, or the number cannot be cleared away.
pub(super) fn clear(cluster: &Path) -> Result<(), PlaceError> {
    leftovers::end(cluster, POSTGRES.name, &["postgres"], Signal::SIGQUIT)?;
    forget_stale_pid(cluster)
}

/// Removes a `postmaster.pid` whose number now belongs to another process or to a zombie: Postgres would take that for
/// a living postmaster and refuse. One whose process is gone Postgres clears away by itself.
fn forget_stale_pid(cluster: &Path) -> Result<(), PlaceError> {
    let path = cluster.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PlaceError::io(format!("read {}", path.display()))(error)),
    };
    let is_taken = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .is_none_or(|pid: i32| kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH));
    if !is_taken {
        return Ok(());
    }
    // No process of this cluster lives any more, so whoever has the number is a stranger.
    tracing::info!(path = %path.display(), "removing a stale postmaster.pid");
    fs::remove_file(&path).map_err(PlaceError::io(format!("remove {}", path.display())))
}
