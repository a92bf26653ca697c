//! An upload on its way in: a multipart body (RFC 7578) whose files are streamed to object storage while they arrive, and
//! are there all at once or not at all.
//!
//! Each file gets a row from `jobs` before its first byte is stored, and becomes visible with the last. Whatever ends an
//! upload early, a refusal, a broken connection or a lost role, gives its rows and bytes up.
//!
//! On a slow link it lasts longer than the caller's access token. The token is shown once, with the first file; from then
//! on the ticket that `jobs` answers with stands for the upload, and the caller's session must still be live.

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
use kit::{Fail, Secret, grpc::Call, storage::Writer};
use multer::{Field, Multipart};
use proto::jobs::{
    AbandonFilesRequest, CompleteFilesRequest, CompleteFilesResponse, CompletedFile, ExtendFilesRequest,
    ReserveFilesRequest, ReserveFilesResponse, ReservedFile,
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{
    content_type,
    door::Door,
    places::Place,
    revocations::ended,
    route::{Fails, UploadBody, stalled, with_streamed_body},
};

/// Longest time that an upload may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(6 * 60 * 60);

pub(crate) const FAILS: Fails = Fails(&[
    (400, "files.malformed_multipart"),
    (400, "files.unknown_part"),
    (404, "files.upload_not_found"),
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
    let place = door
        .uploads
        .take(call.caller()?.subject)
        .ok_or_else(|| Fail::unavailable("busy", "Too many uploads are at work: try again shortly."))?;
    let mut upload = Upload {
        door,
        call,
        admitted_at: Instant::now(),
        reserved: None,
        writer: None,
        stored_bytes: 0,
        files: Vec::new(),
        digest: Sha256::new(),
        ahead_bytes: Arc::default(),
        _place: place,
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
    admitted_at: Instant,
    /// From the first file on, as long as there are rows to complete or to give up.
    reserved: Option<Reserved>,
    /// The file that is arriving.
    writer: Option<Writer>,
    stored_bytes: u64,
    files: Vec<CompletedFile>,
    /// Of each file's name and digest: what an idempotency key stands for.
    digest: Sha256,
    /// Bytes that arrived since a file's bytes were last taken.
    ahead_bytes: Arc<AtomicUsize>,
    _place: Place,
}

/// What `jobs` said last, and when.
struct Reserved {
    ticket: Secret,
    quota_left_bytes: u64,
    file_bytes_max: u64,
    lease: Duration,
    at: Instant,
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
        let row = self.reserve(vec![name.clone()]).await?.pop();
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
        // Word of an ended session may come at any time: what follows it is not taken in.
        if self.door.revocations.has_ended(&self.call) {
            return Err(ended());
        }
        let (Some(writer), Some(reserved)) = (&mut self.writer, &self.reserved) else {
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
        let is_due = reserved.at.elapsed() > reserved.lease / 3;
        writer.write(chunk).await?;
        if is_due {
            self.reserve(Vec::new()).await?;
        }
        Ok(())
    }

    /// Reserves a row for each name, and extends the lease of those there are.
    async fn reserve(&mut self, names: Vec<String>) -> Result<Vec<ReservedFile>, Fail> {
        let mut files = self.door.files();
        let answer = match &self.reserved {
            // If this answer is lost, the rows are given up with the end of their lease.
            None => files.reserve(self.call.request(ReserveFilesRequest { names })).await?,
            Some(reserved) => {
                let message = ExtendFilesRequest { ticket: reserved.ticket.expose().clone(), names };
                files.extend(self.call_by_ticket().request(message)).await?
            }
        };
        let ReserveFilesResponse { items, quota_left_bytes, file_bytes_max, lease_s, ticket } = answer.into_inner();
        self.reserved = Some(Reserved {
            ticket: Secret::new(ticket),
            quota_left_bytes,
            file_bytes_max,
            lease: Duration::from_secs(lease_s.into()),
            at: Instant::now(),
        });
        Ok(items)
    }

    /// The caller's request without the caller's token.
    fn call_by_ticket(&self) -> Call {
        Call::anonymous(&self.call.request_id)
            .with_origin(&self.call.remote_address, &self.call.user_agent)
            .with_traceparent(self.call.traceparent.clone())
            .with_idempotency(self.call.idempotency.clone())
    }

    async fn complete(mut self) -> Result<CompleteFilesResponse, Fail> {
        let (Some(reserved), false) = (&self.reserved, self.files.is_empty()) else {
            return Err(Fail::invalid("files.missing", "The upload has no file.").at(
                format!("/{FIELD}"),
                "required",
                "At least one file must be sent.",
            ));
        };
        let door = &self.door;
        door.revocations.admit_still(&self.call, self.admitted_at, || door.sessions()).await?;
        let ticket = reserved.ticket.expose().clone();
        let digest = std::mem::take(&mut self.digest).finalize().into();
        let message = CompleteFilesRequest { ticket, files: std::mem::take(&mut self.files) };
        let call = with_streamed_body(&self.call_by_ticket(), &digest);
        let answer = self.door.files().complete(call.request(message)).await?.into_inner();
        // Of a replay, too: the role has given the bytes of this one up by itself.
        self.reserved = None;
        Ok(answer)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A writer writes to a row's place, so without rows there is no writer either.
        let Some(reserved) = self.reserved.take() else { return };
        let (door, call, writer) = (self.door.clone(), self.call_by_ticket(), self.writer.take());
        self.door.tasks.detach("give an upload up", async move {
            if let Some(writer) = writer {
                writer.abort().await;
            }
            let message = AbandonFilesRequest { ticket: reserved.ticket.expose().clone() };
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
