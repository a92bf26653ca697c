//! Where on this machine a usable RabbitMQ and its Erlang are. It looks; it never installs.

use std::path::{Path, PathBuf};

use super::StartError;
use crate::private_server::account::Account;
use crate::private_server::search::{distinct, expand, in_path};

/// Patterns of directories with RabbitMQ's own scripts, best known first.
const SERVER_DIRS: [&str; 5] = [
    "/usr/lib/rabbitmq/bin", // Debian, Ubuntu, Red Hat, Arch
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin", // Homebrew on ARM
    "/usr/local/opt/rabbitmq/sbin",    // Homebrew on Intel
];

const ERLANG_DIRS: [&str; 5] =
    ["/usr/bin", "/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin", "/opt/homebrew/bin", "/usr/local/bin"];

/// `rabbitmq-env` tells the scripts from what packages put into `/usr/sbin` under the same names: wrappers that change
/// the user and run the system's own service.
const SERVER_PROGRAMS: [&str; 3] = ["rabbitmq-server", "rabbitmqctl", "rabbitmq-env"];
const ERLANG_PROGRAMS: [&str; 2] = ["erl", "epmd"];

/// The two directories that a broker is run from.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    server_dir: PathBuf,
    erlang_dir: PathBuf,
}

impl Binaries {
    pub(super) fn server(&self) -> PathBuf {
        self.server_dir.join("rabbitmq-server")
    }

    pub(super) fn ctl(&self) -> PathBuf {
        self.server_dir.join("rabbitmqctl")
    }

    pub(super) fn epmd(&self) -> PathBuf {
        self.erlang_dir.join("epmd")
    }

    /// Holds `erl`, which the scripts look for in `PATH`.
    pub(super) fn erlang_dir(&self) -> &Path {
        &self.erlang_dir
    }
}

/// The first usable ones.
///
/// # Errors
/// There are none, with what was looked at.
pub(super) fn find(account: &Account) -> Result<Binaries, StartError> {
    Ok(Binaries {
        server_dir: find_dir("RabbitMQ's programs", &SERVER_DIRS, &SERVER_PROGRAMS, account)?,
        erlang_dir: find_dir("Erlang's programs", &ERLANG_DIRS, &ERLANG_PROGRAMS, account)?,
    })
}

fn find_dir(what: &str, patterns: &[&str], programs: &[&str], account: &Account) -> Result<PathBuf, StartError> {
    let mut dirs: Vec<PathBuf> = patterns.iter().flat_map(|pattern| expand(Path::new(pattern))).collect();
    dirs.extend(in_path(programs[0]));
    distinct(dirs)
        .into_iter()
        .find(|dir| programs.iter().all(|program| is_usable(&dir.join(program), account)))
        .ok_or_else(|| StartError::NoBinaries { what: format!("{what} ({})", programs.join(", ")) })
}

fn is_usable(program: &Path, account: &Account) -> bool {
    // `rabbitmq-env` is read by the others and need not be a program everywhere.
    program.is_file() && (program.ends_with("rabbitmq-env") || account.can_reach(program))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn wrappers_are_passed_over_and_what_is_missing_is_named_with_the_way_out() {
        let root = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        let programs = ["guildhall-test-server", "rabbitmq-env"];
        let put = |dir: &str, name: &str| {
            let path = root.path().join(dir).join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(&path, "").expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        };
        let pattern = root.path().join("*");
        let patterns = [pattern.to_str().expect("a path in UTF-8")];
        let account = Account::Ourselves;

        put("1-wrapper", programs[0]);
        let missing = find_dir("Its programs", &patterns, &programs, &account).expect_err("there are none").to_string();
        put("2-real", programs[0]);
        put("2-real", programs[1]);
        let found = find_dir("Its programs", &patterns, &programs, &account).expect("they are there");

        assert!(missing.contains("apt-get install rabbitmq-server") && missing.contains(programs[0]), "{missing}");
        assert_eq!(found, root.path().join("2-real"));
    }
}
