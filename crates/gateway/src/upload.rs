//! An upload on its way in: a multipart body (RFC 7578) whose files are streamed to object storage while they arrive, and
//! are there all at once or not at all.
//!
//! Each file gets a row from `jobs` before its first byte is stored, and becomes visible with the last. Whatever ends an
//! upload early, a refusal, a broken connection or a lost role, gives its rows and bytes up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use kit::{Fail, grpc::Call, storage::Writer};
use multer::{Field, Multipart};
use proto::jobs::{
    AbandonFilesRequest, CompleteFilesRequest, CompleteFilesResponse, CompletedFile, ReserveFilesRequest,
    ReserveFilesResponse,
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use uuid::Uuid;

use crate::{
    content_type,
    door::Door,
    route::{Fails, UploadBody, stalled, with_streamed_body},
};

pub(crate) const FAILS: Fails = Fails(&[
    (400, "files.malformed_multipart"),
    (400, "files.unknown_part"),
    (408, "request.stalled"),
    (413, "files.too_large"),
    (413, "files.quota_exceeded"),
    (422, "files.missing"),
    (422, "files.too_many"),
    (503, "storage_unavailable"),
]);

/// The one field there is.
const FIELD: &str = "file";
/// Longest name that is kept, in bytes.
const NAME_BYTES_MAX: usize = 255;
const NO_NAME: &str = "file";
/// Most bytes read ahead of what a file's bytes were taken from: bounds the headers of a part, which are held whole.
const AHEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Takes the whole upload in.
///
/// # Errors
/// Those of [`FAILS`], and as `jobs`.
pub(crate) async fn receive(door: Arc<Door>, call: Call, body: UploadBody) -> Result<CompleteFilesResponse, Fail> {
    let permit = door
        .uploads
        .clone()
        .try_acquire_owned()
        .map_err(|_| Fail::unavailable("busy", "Too many uploads are at work: try again shortly."))?;
    let id = door.clock.new_id();
    let mut upload = Upload {
        door,
        call,
        id,
        reserved: None,
        writer: None,
        stored_bytes: 0,
        files: Vec::new(),
        digest: Sha256::new(),
        is_open: false,
        ahead_bytes: Arc::default(),
        _permit: permit,
    };
    let stall = upload.door.stall();
    let mut parts = Multipart::new(arriving(body.body, stall, upload.ahead_bytes.clone()), body.boundary);
    while let Some(part) = parts.next_field().await.map_err(broken)? {
        upload.take(part).await?;
    }
    upload.complete().await
}

/// What is known of an upload that is not complete. Dropping it gives it up.
struct Upload {
    door: Arc<Door>,
    call: Call,
    id: Uuid,
    /// What `jobs` said last, and when.
    reserved: Option<(ReserveFilesResponse, Instant)>,
    /// The file that is arriving.
    writer: Option<Writer>,
    stored_bytes: u64,
    files: Vec<CompletedFile>,
    /// Of each file's name and digest: what an idempotency key stands for.
    digest: Sha256,
    /// Whether there are rows to give up.
    is_open: bool,
    /// Bytes that arrived since a file's bytes were last taken.
    ahead_bytes: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Upload {
    async fn take(&mut self, mut part: Field<'static>) -> Result<(), Fail> {
        if part.name() != Some(FIELD) {
            let name = part.name().unwrap_or_default().replace('~', "~0").replace('/', "~1");
            return Err(Fail::malformed("files.unknown_part", "The upload has a part that does not exist here.").at(
                format!("/{name}"),
                "unknown",
                "There is no such part: files are sent as `file`.",
            ));
        }
        self.ahead_bytes.store(0, Ordering::Relaxed);
        let name = clean_name(part.file_name().unwrap_or_default());
        let row = self.reserve(vec![name.clone()]).await?;
        let row = row.ok_or_else(|| Fail::internal("jobs reserved no row for a file"))?;
        self.writer = Some(self.door.storage.writer(&row.storage_key)?);

        let mut head = Vec::new();
        while let Some(chunk) = part.chunk().await.map_err(broken)? {
            self.ahead_bytes.store(0, Ordering::Relaxed);
            let unseen = content_type::HEAD_BYTES.saturating_sub(head.len());
            head.extend_from_slice(&chunk[..unseen.min(chunk.len())]);
            self.write(chunk).await?;
        }
        let Some(writer) = self.writer.take() else { return Err(Fail::internal("a file lost its writer")) };
        let written = writer.finish().await?;
        self.digest.update((name.len() as u64).to_be_bytes());
        self.digest.update(&name);
        self.digest.update(&written.sha256);
        self.files.push(CompletedFile {
            id: row.id,
            content_type: content_type::of(&head, written.size == head.len() as u64).to_owned(),
            size_bytes: written.size,
            sha256: written.sha256,
        });
        Ok(())
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), Fail> {
        let (Some(writer), Some((reserved, at))) = (&mut self.writer, &self.reserved) else {
            return Err(Fail::internal("a file arrived without a place to go to"));
        };
        let file_bytes = writer.size() + chunk.len() as u64;
        self.stored_bytes += chunk.len() as u64;
        if file_bytes > reserved.file_bytes_max {
            let sentence = format!("A file may have at most {} bytes.", reserved.file_bytes_max);
            return Err(Fail::too_large("files.too_large", sentence));
        }
        if self.stored_bytes > reserved.quota_left_bytes {
            return Err(Fail::too_large(
                "files.quota_exceeded",
                "There is no room left for it: remove files you do not need.",
            ));
        }
        let is_due = at.elapsed() > Duration::from_secs(u64::from(reserved.lease_s)) / 3;
        writer.write(chunk).await?;
        if is_due {
            self.reserve(Vec::new()).await?;
        }
        Ok(())
    }

    /// Reserves a row for each name, and extends the lease of those there are. The row, if one name was given.
    async fn reserve(&mut self, names: Vec<String>) -> Result<Option<proto::jobs::ReservedFile>, Fail> {
        // From here on there may be rows, even if the answer is lost.
        self.is_open = true;
        let message = ReserveFilesRequest { upload_id: self.id.to_string(), names };
        let mut answer = self.door.files().reserve(self.call.request(message)).await?.into_inner();
        let row = answer.items.pop();
        self.reserved = Some((answer, Instant::now()));
        Ok(row)
    }

    async fn complete(mut self) -> Result<CompleteFilesResponse, Fail> {
        if self.files.is_empty() {
            return Err(Fail::invalid("files.missing", "The upload has no file.").at(
                format!("/{FIELD}"),
                "required",
                "At least one file must be sent.",
            ));
        }
        let digest = std::mem::take(&mut self.digest).finalize().into();
        let message = CompleteFilesRequest { upload_id: self.id.to_string(), files: std::mem::take(&mut self.files) };
        let call = with_streamed_body(&self.call, &digest);
        let answer = self.door.files().complete(call.request(message)).await?.into_inner();
        // Of a replay, too: the role has given the bytes of this one up by itself.
        self.is_open = false;
        Ok(answer)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let writer = self.writer.take();
        if !self.is_open && writer.is_none() {
            return;
        }
        let (door, call, id) = (self.door.clone(), self.call.clone(), self.id);
        self.door.tasks.detach("give an upload up", async move {
            if let Some(writer) = writer {
                writer.abort().await;
            }
            let message = AbandonFilesRequest { upload_id: id.to_string() };
            if let Err(status) = door.files().abandon(call.request(message)).await {
                // Its lease ends by itself, and its bytes with it.
                tracing::warn!(error = %Fail::from(status), "an upload could not be given up");
            }
        });
    }
}

/// The body as it arrives, for as long as something arrives.
fn arriving(
    body: Body,
    stall: Duration,
    ahead_bytes: Arc<AtomicUsize>,
) -> impl Stream<Item = Result<Bytes, Fail>> + Send + 'static {
    let state = (body.into_data_stream(), ahead_bytes);
    stream::try_unfold(state, move |(mut body, ahead_bytes): (BodyDataStream, Arc<AtomicUsize>)| async move {
        match tokio::time::timeout(stall, body.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(chunk))) => {
                if ahead_bytes.fetch_add(chunk.len(), Ordering::Relaxed) > AHEAD_BYTES_MAX {
                    return Err(Fail::malformed("files.malformed_multipart", "The head of a part is too large."));
                }
                Ok(Some((chunk, (body, ahead_bytes))))
            }
            Ok(Some(Err(error))) => {
                Err(Fail::malformed("files.malformed_multipart", "The upload did not arrive whole.").caused_by(error))
            }
            Err(_) => Err(stalled()),
        }
    })
}

/// What is wrong with the body itself.
fn broken(error: multer::Error) -> Fail {
    match error {
        multer::Error::StreamReadFailed(inner) => match inner.downcast::<Fail>() {
            Ok(fail) => *fail,
            Err(other) => {
                Fail::malformed("files.malformed_multipart", "The upload did not arrive whole.").caused_by(other)
            }
        },
        other => Fail::malformed("files.malformed_multipart", "The upload is not well-formed.").caused_by(other),
    }
}

/// A name without the folders it came from and without what does not show.
fn clean_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut clean: String = base.chars().filter(|c| !c.is_control()).collect();
    let end = clean.floor_char_boundary(NAME_BYTES_MAX);
    clean.truncate(end);
    let clean = clean.trim();
    if matches!(clean, "" | "." | "..") { NO_NAME.to_owned() } else { clean.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_nothing_but_itself() {
        assert_eq!(clean_name("/etc/../passwd"), "passwd");
        assert_eq!(clean_name("C:\\pictures\\a\0b.png"), "ab.png");
        assert_eq!(clean_name(".."), "file");
        assert_eq!(clean_name(&"é".repeat(200)).len(), 254);
    }
}
