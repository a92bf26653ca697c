//! The places of one private Postgres: the data directory and its lock, the home that holds the cluster and the log,
//! the socket's directory. It decides where things are and who may use them; it never looks inside a cluster.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};

use super::account::Account;
use super::{PORT, StartError};

/// Where a root's clusters live whose data directory the user of Postgres cannot reach.
const STAND_INS: &str = "/var/lib/guildhall";

/// In a data directory: says which directory holds its cluster instead.
const POINTER: &str = "postgres.location";

/// A socket's whole path may have 107 bytes on Linux and 103 elsewhere (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// One Guildhall's directory, locked for this process until the value is dropped.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    /// Held, not read: the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Home {
    /// Makes the data directory when needed, locks it and finds where its cluster is or shall be.
    ///
    /// # Errors
    /// The directory is in use or cannot be made, or no user for Postgres can reach any place for it.
    pub(super) fn claim(data_dir: &Path) -> Result<Self, StartError> {
        // Others may pass through a root's directory but not list it, since Postgres has to pass.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        make_dir(data_dir, mode)?;
        let data_dir = data_dir.canonicalize().map_err(StartError::io(format!("find {}", data_dir.display())))?;
        let lock = lock(&data_dir)?;
        let dir = locate(&data_dir)?;
        // By the name that the kernel has for it, which is how the cluster's processes are known.
        let dir = dir.canonicalize().map_err(StartError::io(format!("find {}", dir.display())))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Holds the cluster and the log; belongs to us.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster, which belongs to the user of Postgres.
    pub(super) fn cluster(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    /// A cluster in the making. Only a whole one is renamed to [`Home::cluster`].
    pub(super) fn unfinished_cluster(&self) -> PathBuf {
        self.dir.join("postgres.new")
    }

    /// Outside of the cluster, so that a root never writes where another user could have laid a link.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// Who Postgres runs as here.
    ///
    /// # Errors
    /// The cluster is somebody else's, or its owner can no longer reach it.
    pub(super) fn account(&self) -> Result<Account, StartError> {
        let cluster = self.cluster();
        let account = if cluster.exists() { Account::of_cluster(&cluster)? } else { Account::for_new_cluster()? };
        if !account.can_reach(&self.dir) {
            return Err(StartError::Unreachable { dir: self.dir.clone(), user: account.name() });
        }
        Ok(account)
    }

    /// Makes the socket's directory anew: beside the cluster, or under `/tmp` when that path is too long for a socket.
    /// Only the user of Postgres and root can enter it, which is all the protection that `trust` has.
    ///
    /// # Errors
    /// Something else is in its place, or it cannot be made.
    pub(super) fn make_socket_dir(&self, account: &Account) -> Result<PathBuf, StartError> {
        let mut dir = self.dir.join("postgres.socket");
        if dir.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len() > SOCKET_PATH_BYTES_MAX {
            dir = PathBuf::from(format!("/tmp/guildhall-{}", short_hash(&self.dir)));
        }
        clear_socket_dir(&dir, account)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(StartError::io(format!("make the socket directory {}", dir.display())))?;
        account.own(&dir)?;
        Ok(dir)
    }
}

/// Removes an earlier run's socket directory, and nothing that is not one: in `/tmp` anybody may have put anything.
fn clear_socket_dir(dir: &Path, account: &Account) -> Result<(), StartError> {
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

/// Takes the data directory's lock, or says who has it.
fn lock(data_dir: &Path) -> Result<File, StartError> {
    let path = data_dir.join("postgres.lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StartError::io(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Unreadable or not yet written: the refusal then goes without the number.
            let pid = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
                Ok(_) | Err(_) => "that has just started".to_owned(),
            };
            return Err(StartError::InUse { data_dir: data_dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => {
            return Err(StartError::io(format!("lock {}", path.display()))(error));
        }
    }
    let note_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note_pid(&mut file).map_err(StartError::io(format!("write {}", path.display())))?;
    Ok(file)
}

/// Where the cluster of `data_dir` is, or would be where Postgres can reach it; makes and locks nothing.
pub(super) fn cluster_of(data_dir: &Path) -> Result<PathBuf, StartError> {
    Ok(stand_in_of(data_dir)?.unwrap_or_else(|| data_dir.to_owned()).join("postgres"))
}

/// The directory that `data_dir` says holds its cluster, if it says so.
fn stand_in_of(data_dir: &Path) -> Result<Option<PathBuf>, StartError> {
    let pointer = data_dir.join(POINTER);
    match fs::read_to_string(&pointer) {
        Ok(text) => Ok(text.lines().next().map(PathBuf::from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StartError::io(format!("read {}", pointer.display()))(error)),
    }
}

/// Where the cluster of `data_dir` is, or shall be made: in it, unless Postgres could not reach it there.
fn locate(data_dir: &Path) -> Result<PathBuf, StartError> {
    if let Some(dir) = stand_in_of(data_dir)? {
        make_stand_in(&dir, data_dir)?;
        return Ok(dir);
    }
    if data_dir.join("postgres").exists() || Account::for_new_cluster()?.can_reach(data_dir) {
        return Ok(data_dir.to_owned());
    }

    // A random number is hashed too: a data directory that was removed and made again must not find its forerunner's
    // cluster, whose keys and passwords went with it.
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).map_err(|error| StartError::Io {
        doing: "draw a random number".to_owned(),
        source: io::Error::other(error),
    })?;
    let mut seed = data_dir.as_os_str().as_bytes().to_vec();
    seed.extend(salt);
    let dir = Path::new(STAND_INS).join(short_hash(Path::new(std::ffi::OsStr::from_bytes(&seed))));
    // First the note, then the directory: a crash in between leaves nothing that nobody knows of.
    let note = format!(
        "{}\nThe first line says where the Postgres cluster of this directory is. The user that Postgres runs as cannot \
         reach it here.\nWhoever removes this directory should remove that one too.\n",
        dir.display()
    );
    let pointer = data_dir.join(POINTER);
    fs::write(&pointer, note).map_err(StartError::io(format!("write {}", pointer.display())))?;
    make_stand_in(&dir, data_dir)?;
    Ok(dir)
}

fn make_stand_in(dir: &Path, data_dir: &Path) -> Result<(), StartError> {
    make_dir(Path::new(STAND_INS), 0o755)?;
    make_dir(dir, 0o711)?;
    let note = dir.join("data_directory");
    if note.exists() {
        return Ok(());
    }
    fs::write(&note, format!("{}\n", data_dir.display())).map_err(StartError::io(format!("write {}", note.display())))
}

/// Makes `dir` and what is missing above it. A directory that is there keeps its mode.
fn make_dir(dir: &Path, mode: u32) -> Result<(), StartError> {
    if dir.is_dir() {
        return Ok(());
    }
    let doing = format!("make the directory {}", dir.display());
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).create(parent).map_err(StartError::io(doing.clone()))?;
    }
    match DirBuilder::new().create(dir) {
        // Set afterwards, since the umask would take bits away from a mode given at creation.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(StartError::io(doing)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(StartError::io(doing)(error)),
    }
}

/// 12 hexadecimal digits.
fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
