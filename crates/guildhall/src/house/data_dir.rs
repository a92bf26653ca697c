//! The data directory: whose it is at this moment, where things lie in it, and how files are put there so that nobody
//! ever reads half of one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use kit::{Fail, Secret};
use serde::Serialize;

const LOCK: &str = "guildhall.lock";
const KEYS: &str = "keys";
const READY: &str = "ready.json";

/// A data directory that is ours until the value is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Held, not read: the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

/// What `ready.json` tells.
#[derive(Debug, Serialize)]
pub(crate) struct Ready {
    /// The public URL as this machine reaches it, where the gateway is in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    pub(crate) ops: String,
    /// The services with a port of their own, and its URL. `up` opens none unless asked for.
    pub(crate) grpc: std::collections::BTreeMap<&'static str, String>,
    pub(crate) pid: u32,
}

impl DataDir {
    /// Makes the directory where it is missing, takes it for this process, and removes a `ready.json` that an earlier one
    /// left when it was killed.
    ///
    /// # Errors
    /// `up.data_dir_in_use` with the other's pid; `up.data_dir` when it cannot be made or written.
    pub(crate) fn claim(path: &Path) -> Result<Self, Fail> {
        // Others may pass through a root's directory but not list it: the private Postgres, an ordinary user, has to pass.
        let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
        make_dir(path, mode)?;
        let path = path.canonicalize().map_err(cannot("find", path))?;
        let lock = lock(&path)?;
        let data_dir = Self { path, _lock: lock };
        data_dir.withdraw()?;
        Ok(data_dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it for our user's eyes only, made where it is missing.
    ///
    /// # Errors
    /// `up.data_dir`.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Fail> {
        let folder = self.path.join(name);
        make_dir(&folder, 0o700)?;
        Ok(folder)
    }

    /// Tells others that this process can be used, and where.
    ///
    /// # Errors
    /// `up.data_dir`.
    pub(crate) fn publish(&self, ready: &Ready) -> Result<(), Fail> {
        let text = serde_json::to_vec(ready).map_err(Fail::internal)?;
        self.write(&self.path.join(READY), &text, 0o644)
    }

    /// Takes it back.
    ///
    /// # Errors
    /// `up.data_dir`.
    pub(crate) fn withdraw(&self) -> Result<(), Fail> {
        remove(&self.path.join(READY))
    }

    /// The secret kept under `name`, for our user's eyes only.
    ///
    /// # Errors
    /// `up.data_dir` for one that is there and cannot be read.
    pub(crate) fn secret(&self, name: &str) -> Result<Option<Secret>, Fail> {
        let path = self.secret_path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Secret::new(text.trim_end().to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot("read", &path)(error)),
        }
    }

    /// Keeps a secret under `name`; it is on the disk when this returns.
    ///
    /// # Errors
    /// `up.data_dir`.
    pub(crate) fn keep_secret(&self, name: &str, secret: &Secret) -> Result<(), Fail> {
        self.folder(KEYS)?;
        let path = self.secret_path(name);
        self.write(&path, format!("{}\n", secret.expose()).as_bytes(), 0o600)
    }

    /// Removes a secret, if it is there.
    ///
    /// # Errors
    /// `up.data_dir`.
    pub(crate) fn forget_secret(&self, name: &str) -> Result<(), Fail> {
        remove(&self.secret_path(name))
    }

    pub(crate) fn secret_path(&self, name: &str) -> PathBuf {
        self.path.join(KEYS).join(name)
    }

    /// Whole or not at all: written beside its place, forced to the disk, and renamed.
    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fail> {
        let unfinished = path.with_extension("new");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&unfinished, path))
            .and_then(|()| File::open(path.parent().unwrap_or(&self.path))?.sync_all());
        written.map_err(cannot("write", path))
    }
}

/// Makes `path` and what is missing above it. A directory that is there keeps its mode.
fn make_dir(path: &Path, mode: u32) -> Result<(), Fail> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(cannot("make", path))?;
    // Afterwards, since the umask would take bits away from a mode given at creation.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(cannot("set the rights of", path))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), Fail> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("remove", path)(error)),
        _ => Ok(()),
    }
}

fn lock(data_dir: &Path) -> Result<File, Fail> {
    let path = data_dir.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(cannot("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Unreadable or not written yet: the refusal then goes without the number.
            let pid = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!("the process {}", holder.trim()),
                _ => "another process".to_owned(),
            };
            return Err(Fail::conflict(
                "up.data_dir_in_use",
                format!(
                    "{} is in use by {pid}. Stop that one first, or choose another directory with GUILDHALL_DATA_DIR.",
                    data_dir.display()
                ),
            ));
        }
        Err(TryLockError::Error(error)) => return Err(cannot("lock", &path)(error)),
    }
    let note_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note_pid(&mut file).map_err(cannot("write", &path))?;
    Ok(file)
}

fn cannot(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Fail {
    let sentence = format!("Could not {doing} {}", path.display());
    move |error| Fail::unavailable("up.data_dir", format!("{sentence}: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_is_refused_with_the_holders_pid_and_a_later_one_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = DataDir::claim(folder.path()).expect("it is free");
        let refusal = DataDir::claim(folder.path()).expect_err("it is taken");
        assert_eq!(refusal.code(), "up.data_dir_in_use");
        assert!(refusal.message().contains(&format!("the process {}", std::process::id())), "{refusal}");
        drop(first);
        DataDir::claim(folder.path()).expect("it is free again");
    }

    #[test]
    fn a_secret_is_read_back_until_it_is_forgotten_and_is_for_our_eyes_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data_dir = DataDir::claim(folder.path()).expect("it is free");
        assert!(data_dir.secret("worker").expect("no error").is_none());
        data_dir.keep_secret("worker", &Secret::new("hush".to_owned())).expect("it is kept");
        assert_eq!(data_dir.secret("worker").expect("no error").map(|s| s.expose().clone()).as_deref(), Some("hush"));
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&data_dir.secret_path("worker")), 0o600);
        assert_eq!(mode(&folder.path().join("keys")), 0o700);
        for _ in 0..2 {
            data_dir.forget_secret("worker").expect("it goes, and is gone");
            assert!(data_dir.secret("worker").expect("no error").is_none());
        }
    }

    #[test]
    fn a_claim_removes_what_a_killed_process_left_to_be_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(READY), "{}").expect("a file");
        let _data_dir = DataDir::claim(folder.path()).expect("it is free");
        assert!(!folder.path().join(READY).exists());
    }
}
