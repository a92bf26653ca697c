//! Object storage: the bytes of files, on local disk or in an S3-compatible service, behind one type.
//!
//! Bytes are streamed both ways in bounded memory. What [`Writer::finish`] has acknowledged survives a crash of the
//! machine; what was not finished is never visible under its key. Which keys mean something is known only to the
//! service that owns the rows; [`Storage::sweep`] asks it.

mod sweep;
mod url;
mod writer;

use std::{fmt, ops::Range, path::Path as FilePath, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

pub use sweep::Swept;
pub use writer::{Writer, Written};

use crate::{Fail, Secret};

/// How much of a local file is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Where the bytes of files lie. Cheap to clone; clones are the same place.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    /// Bytes buffered by a writer before they travel.
    part_bytes: usize,
    /// The folder of a `file:` storage.
    folder: Option<PathBuf>,
}

/// A file's bytes, as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, Fail>>;

impl Storage {
    /// Opens `file:///folder`, which is created when it is not there, or
    /// `s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1`, for which the keys are needed. Talks to
    /// nobody yet: [`check`](Self::check) does.
    ///
    /// # Errors
    /// `config.storage_url` for a URL that is neither, or whose folder cannot be made.
    pub fn open(url: &str, access_key: Option<&Secret>, secret_key: Option<&Secret>) -> Result<Self, Fail> {
        url::open(url, access_key, secret_key)
    }

    /// Whether the storage answers.
    ///
    /// # Errors
    /// `storage_unavailable`.
    pub async fn check(&self) -> Result<(), Fail> {
        self.store.list(None).next().await.transpose().map(drop).map_err(fail)
    }

    /// Starts writing the object `key`, which is not there until [`Writer::finish`], and replaces one of that name.
    ///
    /// # Errors
    /// `internal` for a key that cannot be one.
    pub fn writer(&self, key: &str) -> Result<Writer, Fail> {
        Ok(Writer::new(self.store.clone(), path(key)?, self.part_bytes))
    }

    /// The object's bytes, or a part of them; `range` must lie within the object.
    ///
    /// # Errors
    /// `storage.object_not_found`, `storage_unavailable`; the stream itself fails with the latter.
    pub async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<ByteStream, Fail> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.store.get_opts(&path(key)?, options).await.map_err(fail)?;
        let range = found.range.clone();
        match found.payload {
            GetResultPayload::Stream(stream) => Ok(stream.map_err(fail).boxed()),
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(broken)?;
                let part = file.take(range.end - range.start);
                Ok(ReaderStream::with_capacity(part, READ_BYTES).map_err(broken).boxed())
            }
        }
    }

    /// Copies the object into a new file at `to`; its size. What a failure leaves there is the caller's to remove.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn download_to(&self, key: &str, to: &FilePath) -> Result<u64, Fail> {
        let mut bytes = self.read(key, None).await?;
        let mut file = tokio::fs::File::create(to).await.map_err(Fail::internal)?;
        let mut size = 0;
        while let Some(chunk) = bytes.try_next().await? {
            file.write_all(&chunk).await.map_err(Fail::internal)?;
            size += chunk.len() as u64;
        }
        file.flush().await.map_err(Fail::internal)?;
        Ok(size)
    }

    /// Removes an object, and what killed writers of it left unfinished in a folder. One that is not there is removed
    /// already.
    ///
    /// # Errors
    /// `storage_unavailable`.
    pub async fn remove(&self, key: &str) -> Result<(), Fail> {
        match self.store.delete(&path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(fail(error)),
        }
        if let Some(folder) = &self.folder {
            // Numbered from 1 without a gap, as the local store stages them.
            for number in 1.. {
                if tokio::fs::remove_file(folder.join(format!("{key}#{number}"))).await.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store's own Debug would show its credentials.
        f.debug_struct("Storage").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn path(key: &str) -> Result<Path, Fail> {
    let path = Path::parse(key).map_err(Fail::internal)?;
    // The local store stages an unfinished object under its name, `#` and a number.
    if path.as_ref().is_empty() || key.contains('#') {
        return Err(Fail::internal(format!("`{key}` cannot be the key of an object")));
    }
    Ok(path)
}

fn fail(error: object_store::Error) -> Fail {
    match error {
        object_store::Error::NotFound { .. } => {
            Fail::not_found("storage.object_not_found", "The stored bytes are not there.").caused_by(error)
        }
        other => unavailable(other),
    }
}

fn broken(error: std::io::Error) -> Fail {
    unavailable(error)
}

fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Fail {
    Fail::unavailable("storage_unavailable", "The file storage is away for the moment.").caused_by(cause)
}
