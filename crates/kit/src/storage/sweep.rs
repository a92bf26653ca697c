//! Removing what nothing refers to: objects without a row, and what a killed process left of an unfinished one.

use std::{future::Future, io, path::PathBuf, time::SystemTime};

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use object_store::ObjectMeta;

use super::{Storage, fail};
use crate::Fail;

/// Most keys that are asked about at once.
const KEYS_MAX: usize = 500;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Finished objects that no row knows.
    pub objects: u64,
    /// Unfinished ones whose writer is gone.
    pub unfinished: u64,
}

impl Storage {
    /// Removes every object last changed before `older_than` that `is_known` does not vouch for; it is given up to 500
    /// keys at a time and answers in their order. On disk it also removes unfinished objects last written to before
    /// then; those of S3 are left to the bucket's own rule for incomplete uploads.
    ///
    /// # Errors
    /// `storage_unavailable`, and as `is_known`. What was removed until then stays removed.
    pub async fn sweep<K, F>(&self, older_than: DateTime<Utc>, mut is_known: K) -> Result<Swept, Fail>
    where
        K: FnMut(Vec<String>) -> F,
        F: Future<Output = Result<Vec<bool>, Fail>>,
    {
        let mut swept = Swept::default();
        let mut objects = self.store.list(None).try_ready_chunks(KEYS_MAX);
        loop {
            // A chunk that ends in an error still counts: its keys are seen again by the next sweep.
            let found = match objects.try_next().await {
                Ok(None) => break,
                Ok(Some(found)) => found,
                Err(error) => return Err(fail(error.1)),
            };
            let keys = old_keys(found, older_than);
            if keys.is_empty() {
                continue;
            }
            let known = is_known(keys.clone()).await?;
            if known.len() != keys.len() {
                return Err(Fail::internal("a sweep was answered for another number of keys than it asked about"));
            }
            for (key, _) in keys.iter().zip(known).filter(|(_, is_known)| !is_known) {
                self.remove(key).await?;
                swept.objects += 1;
            }
        }
        if let Some(folder) = self.folder.clone() {
            let removed = tokio::task::spawn_blocking(move || remove_unfinished(folder, older_than.into())).await;
            swept.unfinished = removed.map_err(Fail::internal)?.map_err(super::broken)?;
        }
        Ok(swept)
    }
}

fn old_keys(found: Vec<ObjectMeta>, older_than: DateTime<Utc>) -> Vec<String> {
    found.into_iter().filter(|object| object.last_modified < older_than).map(|object| object.location.into()).collect()
}

/// An unfinished object is staged beside its place as `<name>#<number>`.
fn remove_unfinished(folder: PathBuf, older_than: SystemTime) -> io::Result<u64> {
    let mut removed = 0;
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            let is_staged = name
                .to_str()
                .and_then(|name| name.rsplit_once('#'))
                .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
            if !(kind.is_file() && is_staged) {
                continue;
            }
            // Its writer may finish or remove it meanwhile: then there is nothing left to do.
            match entry.metadata().and_then(|about| about.modified()) {
                Ok(at) if at < older_than => match std::fs::remove_file(entry.path()) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                },
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}
