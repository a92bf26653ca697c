//! Writing one object as its bytes arrive.

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, path::Path};
use sha2::{Digest as _, Sha256};

use super::fail;
use crate::Fail;

/// An object being written. It holds at most one part of the object in memory (1 MiB on disk, 5 MiB for S3).
///
/// End it with [`finish`](Self::finish) or [`abort`](Self::abort). One that is dropped leaves nothing on disk; S3 keeps
/// the parts it was sent until the bucket's own rule for incomplete uploads removes them.
pub struct Writer {
    store: Arc<dyn ObjectStore>,
    path: Path,
    part_bytes: usize,
    buffer: BytesMut,
    /// Set once there is more than one part.
    upload: Option<Box<dyn MultipartUpload>>,
    digest: Sha256,
    size: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// In bytes.
    pub size: u64,
    /// Of all bytes, in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Writer {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path, part_bytes: usize) -> Self {
        Self { store, path, part_bytes, buffer: BytesMut::new(), upload: None, digest: Sha256::new(), size: 0 }
    }

    /// Takes the next bytes; waits while a full part travels.
    ///
    /// # Errors
    /// `storage_unavailable`; the writer is then good for nothing but [`abort`](Self::abort).
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Fail> {
        self.digest.update(&bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.part_bytes - self.buffer.len();
            self.buffer.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if self.buffer.len() == self.part_bytes {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes the object appear, durably. On a failure nothing is left of it.
    ///
    /// # Errors
    /// `storage_unavailable`.
    pub async fn finish(mut self) -> Result<Written, Fail> {
        if let Err(error) = self.publish().await {
            self.abort().await;
            return Err(error);
        }
        let mut sha256 = String::with_capacity(64);
        for byte in self.digest.finalize() {
            sha256.push(char::from(HEX[usize::from(byte >> 4)]));
            sha256.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Ok(Written { size: self.size, sha256 })
    }

    /// Gives the object up and removes what was sent of it. A failure to remove is logged: the sweep comes by later.
    pub async fn abort(mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%error, "the parts of an object that was given up could not be removed");
        }
    }

    async fn publish(&mut self) -> Result<(), Fail> {
        if self.upload.is_none() {
            let whole = std::mem::take(&mut self.buffer).freeze();
            self.store.put(&self.path, whole.into()).await.map_err(fail)?;
            return Ok(());
        }
        if !self.buffer.is_empty() {
            self.send_part().await?;
        }
        if let Some(upload) = &mut self.upload {
            upload.complete().await.map_err(fail)?;
        }
        self.upload = None;
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), Fail> {
        let part = self.buffer.split().freeze();
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.put_multipart(&self.path).await.map_err(fail)?),
        };
        upload.put_part(part.into()).await.map_err(fail)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("size", &self.size).finish_non_exhaustive()
    }
}
