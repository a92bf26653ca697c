//! Files: in, out, and gone.

use kit::Fail;
use proto::jobs as rpc;
use schemars::JsonSchema;
use serde::Serialize;

use super::SMALL;
use crate::{
    download,
    route::{
        Access, Ask, Content, Fails, Id, Idempotency, Limits, NoContent, Nothing, Query, Reply, Route, UploadBody,
    },
    upload,
    wire::{LIMIT, List, Paging, Time, time},
};

const TAG: &str = "files";
const READ: Access = Access::Permission("files:read");
const WRITE: Access = Access::Permission("files:write");
const NOT_FOUND: Fails = Fails(&[(404, "files.not_found")]);
/// As large as its files may be, for as long as bytes arrive, and not for ever.
const UPLOAD: Limits = Limits { body_bytes_max: usize::MAX, within: upload::WITHIN };

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/files", TAG, "Upload files, all or nothing")
            .access(
                WRITE,
                &[
                    "/guildhall.jobs.v1.Files/Reserve",
                    "/guildhall.jobs.v1.Files/Extend",
                    "/guildhall.jobs.v1.Files/Complete",
                    "/guildhall.jobs.v1.Files/Abandon",
                ],
            )
            .limits(UPLOAD)
            .idempotency(Idempotency::ByKey)
            .refuses(upload::FAILS)
            .by(create),
        Route::get("/api/v1/files", TAG, "List your files, newest first")
            .access(READ, &["/guildhall.jobs.v1.Files/List"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails::NONE)
            .by(list),
        Route::get("/api/v1/files/{id}", TAG, "Show a file")
            .access(READ, &["/guildhall.jobs.v1.Files/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(show),
        Route::get("/api/v1/files/{id}/content", TAG, "Download a file, or a part of it")
            .access(READ, &["/guildhall.jobs.v1.Files/Get"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(Fails(&[
                (404, "files.not_found"),
                (416, "files.range_not_satisfiable"),
                (503, "storage_unavailable"),
            ]))
            .by(content),
        Route::delete("/api/v1/files/{id}", TAG, "Remove a file")
            .access(WRITE, &["/guildhall.jobs.v1.Files/Remove"])
            .limits(SMALL)
            .idempotency(Idempotency::ByNature)
            .refuses(NOT_FOUND)
            .by(remove),
    ]
}

/// A file that is whole.
#[derive(Debug, Serialize, JsonSchema)]
struct File {
    #[schemars(extend("format" = "uuid"))]
    id: String,
    name: String,
    /// By looking at its bytes.
    content_type: String,
    size_bytes: u64,
    sha256: String,
    created_at: Time,
}

/// The files of one upload, in the order they were sent in.
#[derive(Debug, Serialize, JsonSchema)]
struct Uploaded {
    items: Vec<File>,
}

async fn create(ask: Ask<Nothing, Nothing, UploadBody>) -> Result<Reply<201, Uploaded>, Fail> {
    let answer = upload::receive(ask.door, ask.call, ask.body).await?;
    let items = answer.items.into_iter().map(File::read).collect::<Result<_, _>>()?;
    Ok(Reply::new(Uploaded { items }).replayed(answer.replayed))
}

async fn list(ask: Ask<Nothing, Query<Paging>>) -> Result<Reply<200, List<File>>, Fail> {
    let Query(Paging { limit, cursor }) = ask.query;
    let message = rpc::ListFilesRequest { limit: limit.unwrap_or(LIMIT), cursor: cursor.unwrap_or_default() };
    let page = ask.door.files().list(ask.call.request(message)).await?.into_inner();
    Ok(Reply::new(List::of(page.items, page.next_cursor, File::read)?))
}

async fn show(ask: Ask<Id>) -> Result<Reply<200, File>, Fail> {
    let message = rpc::GetFileRequest { id: ask.path.0.to_string() };
    Ok(Reply::new(File::read(ask.door.files().get(ask.call.request(message)).await?.into_inner())?))
}

async fn content(ask: Ask<Id>) -> Result<Content, Fail> {
    let message = rpc::GetFileRequest { id: ask.path.0.to_string() };
    let file = ask.door.files().get(ask.call.request(message)).await?.into_inner();
    download::answer(&ask.door.storage, &file, &ask.headers).await
}

async fn remove(ask: Ask<Id>) -> Result<NoContent, Fail> {
    let message = rpc::RemoveFileRequest { id: ask.path.0.to_string() };
    ask.door.files().remove(ask.call.request(message)).await?;
    Ok(NoContent)
}

impl File {
    fn read(file: rpc::File) -> Result<Self, Fail> {
        Ok(Self {
            id: file.id,
            name: file.name,
            content_type: file.content_type,
            size_bytes: file.size_bytes,
            sha256: file.sha256,
            created_at: time(file.created_at)?,
        })
    }
}
