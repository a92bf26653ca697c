//! The directory of the socket that leads to the server: the only way in, and all the protection that `trust` has.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::{PORT, StartError};
use crate::private_server::account::Account;
use crate::private_server::home::{Home, short_hash};

/// A socket's whole path may have 107 bytes on Linux and 103 elsewhere (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// Makes the socket's directory anew: beside the cluster, or under `/tmp` when that path is too long for a socket.
/// Only the user of Postgres and root can enter it.
///
/// # Errors
/// Something else is in its place, or it cannot be made.
pub(super) fn make_dir(home: &Home, account: &Account) -> Result<PathBuf, StartError> {
    let mut dir = home.dir().join("postgres.socket");
    if dir.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len() > SOCKET_PATH_BYTES_MAX {
        dir = PathBuf::from(format!("/tmp/guildhall-{}", short_hash(home.dir())));
    }
    clear(&dir, account)?;
    DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .map_err(StartError::io(format!("make the socket directory {}", dir.display())))?;
    account.own(&dir)?;
    Ok(dir)
}

/// Removes an earlier run's socket directory, and nothing that is not one: in `/tmp` anybody may have put anything.
fn clear(dir: &Path, account: &Account) -> Result<(), StartError> {
    let there = match fs::symlink_metadata(dir) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StartError::io(format!("look at {}", dir.display()))(error)),
    };
    let refuse = |reason: &str| Err(StartError::SocketDir { dir: dir.to_owned(), reason: reason.to_owned() });
    if !there.is_dir() {
        return refuse("it is no directory");
    }
    // Between making it and giving it away, it is ours.
    if there.uid() != account.uid() && there.uid() != geteuid().as_raw() {
        return refuse("it belongs to somebody else");
    }
    fs::remove_dir_all(dir).map_err(StartError::io(format!("clear {}", dir.display())))
}
