//! The worker's scratch folder: one folder a slot, emptied before the worker starts and after each attempt, so that a
//! killed worker's leftovers are gone with its successor's start. A lock keeps two workers out of one folder.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use kit::Fail;

const LOCK: &str = "worker.lock";
const SLOT: &str = "slot-";

/// A worker's scratch folder, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    /// Its lock ends with the process, however that ends.
    _lock: File,
}

impl Scratch {
    /// Takes `folder`, which is made when it is not there, and removes what an earlier worker left in it.
    pub(crate) fn take(folder: &Path) -> Result<Self, Fail> {
        let broken = |error: io::Error| broken(folder, &error);
        private_dir(folder).map_err(broken)?;
        let lock = File::create(folder.join(LOCK)).map_err(broken)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("Another worker uses the scratch folder {}.", folder.display());
                return Err(Fail::conflict("worker.scratch_in_use", message));
            }
            Err(TryLockError::Error(error)) => return Err(broken(error)),
        }
        for entry in fs::read_dir(folder).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            if entry.file_name().to_string_lossy().starts_with(SLOT) {
                fs::remove_dir_all(entry.path()).map_err(broken)?;
            }
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// The folder of one slot, made anew.
    pub(crate) fn slot(&self, index: u32) -> Result<PathBuf, Fail> {
        let slot = self.folder.join(format!("{SLOT}{index}"));
        private_dir(&slot).map_err(|error| broken(&self.folder, &error))?;
        Ok(slot)
    }
}

/// Leaves an empty folder at `path`, whatever was there.
pub(crate) async fn empty(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    let emptied = tokio::task::spawn_blocking(move || {
        // Most attempts leave nothing, and need not wait for a folder to be made anew.
        if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
            return Ok(());
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        private_dir(&path)
    });
    emptied.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

fn broken(folder: &Path, error: &io::Error) -> Fail {
    let message = format!("The worker's scratch folder {} cannot be used: {error}.", folder.display());
    Fail::invalid("worker.scratch", message)
}

fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_killed_worker_are_gone_and_a_second_worker_is_kept_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = Scratch::take(folder.path()).expect("it is free");
        let file = first.slot(0).expect("a folder").join("half.glb");
        fs::write(&file, "half").expect("a file");
        assert_eq!(Scratch::take(folder.path()).expect_err("it is held").code(), "worker.scratch_in_use");
        drop(first);
        let second = Scratch::take(folder.path()).expect("it is free again");
        let slot = second.slot(0).expect("a folder");
        assert!(slot.is_dir());
        assert!(!file.exists());
    }
}
