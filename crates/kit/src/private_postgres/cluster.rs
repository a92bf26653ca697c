//! How a cluster is made, and which version made it. A cluster is whole or not there: it is built beside its place and
//! renamed.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::binaries::Binaries;
use super::{NAME, StartError, server};
use crate::private_server::account::Account;
use crate::private_server::confine::confine;
use crate::private_server::home::Home;

/// The major version of the cluster, none when there is no cluster.
///
/// # Errors
/// The directory is there but is no cluster that we can read.
pub(super) fn major(cluster: &Path) -> Result<Option<u32>, StartError> {
    let path = cluster.join("PG_VERSION");
    let doing = || format!("read {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| StartError::io(doing())(io::Error::other(format!("it says `{}`", text.trim())))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !cluster.exists() => Ok(None),
        Err(error) => Err(StartError::io(doing())(error)),
    }
}

/// Makes the cluster; blocking, about half a second.
///
/// # Errors
/// `initdb` failed, with what it said.
pub(super) fn create(binaries: &Binaries, home: &Home, account: &Account, durable: bool) -> Result<(), StartError> {
    // Beside its place; only a whole one is renamed to it.
    let unfinished = home.dir().join("postgres.new");
    let cluster = home.state();
    if unfinished.exists() {
        // An earlier first start was killed on its way.
        server::clear(&unfinished)?;
        fs::remove_dir_all(&unfinished).map_err(StartError::io(format!("clear {}", unfinished.display())))?;
    }
    fs::create_dir(&unfinished).map_err(StartError::io(format!("make {}", unfinished.display())))?;
    account.own(&unfinished)?;

    // `trust` is safe since nobody but the user of Postgres and root can enter the socket's directory, and there is no
    // TCP. The C locale makes order, and so every index, the same on every machine and in every build of Postgres.
    let mut initdb = Command::new(binaries.initdb());
    initdb
        .arg("-D")
        .arg(&unfinished)
        .args(["-U", NAME, "-E", "UTF8", "--locale=C", "--auth=trust", "--no-instructions"])
        .stdin(Stdio::null());
    if !durable {
        initdb.arg("--no-sync");
    }
    confine(&mut initdb, account, nix::sys::signal::Signal::SIGKILL);
    let output = initdb.output().map_err(StartError::io("run `initdb`"))?;
    if !output.status.success() {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(StartError::Initdb { cluster: unfinished, output: said.trim().to_owned() });
    }
    fs::rename(&unfinished, &cluster).map_err(StartError::io(format!(
        "rename {} to {}",
        unfinished.display(),
        cluster.display()
    )))
}
