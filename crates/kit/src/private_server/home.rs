//! The place of one private server: the data directory and its lock, and the home that holds the server's state and
//! log. It decides where things are and who may use them; it never looks inside a server's state.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};

use super::account::Account;
use super::{PlaceError, Product};

/// Where a root's servers live whose data directory their user cannot reach.
const STAND_INS: &str = "/var/lib/guildhall";

/// One server's place in one Guildhall's directory, locked for this process until the value is dropped.
#[derive(Debug)]
pub struct Home {
    product: &'static Product,
    dir: PathBuf,
    /// Held, not read: the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Home {
    /// Makes the data directory when needed, locks it for this product and finds where its state is or shall be.
    ///
    /// # Errors
    /// The directory is in use or cannot be made, or no user for the server can reach any place for it.
    pub fn claim(data_dir: &Path, product: &'static Product) -> Result<Self, PlaceError> {
        // Others may pass through a root's directory but not list it, since the server has to pass.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        make_dir(data_dir, mode)?;
        let data_dir = data_dir.canonicalize().map_err(PlaceError::io(format!("find {}", data_dir.display())))?;
        let lock = lock(&data_dir, product)?;
        let dir = locate(&data_dir, product)?;
        // By the name that the kernel has for it, which is how the server's processes are known.
        let dir = dir.canonicalize().map_err(PlaceError::io(format!("find {}", dir.display())))?;
        Ok(Self { product, dir, _lock: lock })
    }

    /// Holds the state and the log; belongs to us.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The server's state, which belongs to the user of the server.
    pub fn state(&self) -> PathBuf {
        self.dir.join(self.product.slug)
    }

    /// Outside of the state, so that a root never writes where another user could have laid a link.
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.product.slug))
    }

    /// Who the server runs as here.
    ///
    /// # Errors
    /// The state is somebody else's, or its owner can no longer reach it.
    pub fn account(&self) -> Result<Account, PlaceError> {
        let state = self.state();
        let account = if state.exists() { Account::of(&state, self.product)? } else { Account::for_new(self.product)? };
        if !account.can_reach(&self.dir) {
            return Err(PlaceError::Unreachable {
                server: self.product.name,
                dir: self.dir.clone(),
                user: account.name(),
            });
        }
        Ok(account)
    }
}

/// Takes the data directory's lock for this product, or says who has it.
fn lock(data_dir: &Path, product: &Product) -> Result<File, PlaceError> {
    lock_file(&data_dir.join(format!("{}.lock", product.slug)), data_dir)
}

/// Takes the lock `path` of `data_dir` until the value is dropped; the kernel lets go of it when the process ends,
/// however it ends. The file says who holds it.
///
/// # Errors
/// Another process holds it, or it cannot be made.
pub fn lock_file(path: &Path, data_dir: &Path) -> Result<File, PlaceError> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(PlaceError::io(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Unreadable or not yet written: the refusal then goes without the number.
            let pid = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
                Ok(_) | Err(_) => "that has just started".to_owned(),
            };
            return Err(PlaceError::InUse { data_dir: data_dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => {
            return Err(PlaceError::io(format!("lock {}", path.display()))(error));
        }
    }
    let note_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note_pid(&mut file).map_err(PlaceError::io(format!("write {}", path.display())))?;
    Ok(file)
}

/// Where the state of `data_dir` is, or would be where the server can reach it; makes and locks nothing.
pub fn state_of(data_dir: &Path, product: &Product) -> Result<PathBuf, PlaceError> {
    Ok(stand_in_of(data_dir, product)?.unwrap_or_else(|| data_dir.to_owned()).join(product.slug))
}

/// In a data directory: says which directory holds the server's state instead.
fn pointer(data_dir: &Path, product: &Product) -> PathBuf {
    data_dir.join(format!("{}.location", product.slug))
}

/// The directory that `data_dir` says holds the server's state, if it says so.
fn stand_in_of(data_dir: &Path, product: &Product) -> Result<Option<PathBuf>, PlaceError> {
    let pointer = pointer(data_dir, product);
    match fs::read_to_string(&pointer) {
        Ok(text) => Ok(text.lines().next().map(PathBuf::from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PlaceError::io(format!("read {}", pointer.display()))(error)),
    }
}

/// Where the state of `data_dir` is, or shall be made: in it, unless the server could not reach it there.
fn locate(data_dir: &Path, product: &Product) -> Result<PathBuf, PlaceError> {
    if let Some(dir) = stand_in_of(data_dir, product)? {
        make_stand_in(&dir, data_dir)?;
        return Ok(dir);
    }
    if data_dir.join(product.slug).exists() || Account::for_new(product)?.can_reach(data_dir) {
        return Ok(data_dir.to_owned());
    }

    // A random number is hashed too: a data directory that was removed and made again must not find its forerunner's
    // state, whose keys and passwords went with it.
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).map_err(|error| PlaceError::Io {
        doing: "draw a random number".to_owned(),
        source: io::Error::other(error),
    })?;
    let mut seed = data_dir.as_os_str().as_bytes().to_vec();
    seed.extend(salt);
    let dir = Path::new(STAND_INS).join(short_hash(Path::new(std::ffi::OsStr::from_bytes(&seed))));
    // First the note, then the directory: a crash in between leaves nothing that nobody knows of.
    let note = format!(
        "{}\nThe first line says where the state of {} of this directory is. The user that {1} runs as cannot \
         reach it here.\nWhoever removes this directory should remove that one too.\n",
        dir.display(),
        product.name
    );
    let pointer = pointer(data_dir, product);
    fs::write(&pointer, note).map_err(PlaceError::io(format!("write {}", pointer.display())))?;
    make_stand_in(&dir, data_dir)?;
    Ok(dir)
}

fn make_stand_in(dir: &Path, data_dir: &Path) -> Result<(), PlaceError> {
    make_dir(Path::new(STAND_INS), 0o755)?;
    make_dir(dir, 0o711)?;
    let note = dir.join("data_directory");
    if note.exists() {
        return Ok(());
    }
    fs::write(&note, format!("{}\n", data_dir.display())).map_err(PlaceError::io(format!("write {}", note.display())))
}

/// Makes `dir` and what is missing above it. A directory that is there keeps its mode.
pub fn make_dir(dir: &Path, mode: u32) -> Result<(), PlaceError> {
    if dir.is_dir() {
        return Ok(());
    }
    let doing = format!("make the directory {}", dir.display());
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).create(parent).map_err(PlaceError::io(doing.clone()))?;
    }
    match DirBuilder::new().create(dir) {
        // Set afterwards, since the umask would take bits away from a mode given at creation.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(PlaceError::io(doing)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(PlaceError::io(doing)(error)),
    }
}

/// 12 hexadecimal digits.
pub fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
