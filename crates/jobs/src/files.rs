//! Files: their rows, the quota of their owners, and who may see them. Bytes never pass through here: gateway and workers
//! stream them to and from object storage under the key that a row gives them.
//!
//! A row's life: `writing` while its bytes arrive, `whole` once an upload is completed ([`uploads`]) or an attempt has
//! succeeded ([`attempts`]), `doomed` when nobody wants it any more; the [`sweep`] removes the bytes and then the row.
//! Only whole files are there for anyone. An owner's bytes are counted in `file_usage`, whose row is locked before any
//! row of a file by whoever makes files whole or removes them.

mod attempts;
mod name;
mod sweep;
#[cfg(test)]
mod tests;
mod uploads;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use kit::{Fail, audit::Act, clock::to_timestamp, cursor::page_rows, grpc::Call, telemetry::span};
use proto::jobs::{
    AbandonFilesRequest, AbandonFilesResponse, CompleteFilesRequest, CompleteFilesResponse, ExtendFilesRequest, File,
    GetFileRequest, ListFilesRequest, ListFilesResponse, RemoveFileRequest, RemoveFileResponse, ReserveFilesRequest,
    ReserveFilesResponse, files_server,
};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{Core, acts};

pub(crate) use attempts::{create_for_attempt, doom_for_attempts, find_whole, make_whole_for_attempts};
pub(crate) use sweep::{check_usage, sweep_files, sweep_storage};

/// The gRPC service.
pub(crate) struct Files(Arc<Core>);

impl Files {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }
}

#[tonic::async_trait]
impl files_server::Files for Files {
    async fn reserve(&self, request: Request<ReserveFilesRequest>) -> Result<Response<ReserveFilesResponse>, Status> {
        let owner = Call::of(&request)?.caller()?.subject;
        Ok(Response::new(uploads::begin(&self.0, owner, request.get_ref()).await?))
    }

    async fn extend(&self, request: Request<ExtendFilesRequest>) -> Result<Response<ReserveFilesResponse>, Status> {
        Ok(Response::new(uploads::extend(&self.0, request.get_ref()).await?))
    }

    async fn complete(
        &self,
        request: Request<CompleteFilesRequest>,
    ) -> Result<Response<CompleteFilesResponse>, Status> {
        let key = Call::of(&request)?.idempotency.clone();
        Ok(Response::new(uploads::complete(&self.0, key.as_ref(), request.into_inner()).await?))
    }

    async fn abandon(&self, request: Request<AbandonFilesRequest>) -> Result<Response<AbandonFilesResponse>, Status> {
        uploads::abandon(&self.0, &request.get_ref().ticket).await?;
        Ok(Response::new(AbandonFilesResponse {}))
    }

    async fn get(&self, request: Request<GetFileRequest>) -> Result<Response<File>, Status> {
        let owner = Call::of(&request)?.caller()?.narrowed_to("files:read");
        Ok(Response::new(get(&self.0, owner, &request.get_ref().id).await?))
    }

    async fn list(&self, request: Request<ListFilesRequest>) -> Result<Response<ListFilesResponse>, Status> {
        let owner = Call::of(&request)?.caller()?.narrowed_to("files:read");
        Ok(Response::new(list(&self.0, owner, request.get_ref()).await?))
    }

    async fn remove(&self, request: Request<RemoveFileRequest>) -> Result<Response<RemoveFileResponse>, Status> {
        remove(&self.0, Call::of(&request)?, &request.get_ref().id).await?;
        Ok(Response::new(RemoveFileResponse {}))
    }
}

/// A whole file, as its row tells it.
struct WholeFile {
    id: Uuid,
    owner_id: Uuid,
    name: String,
    content_type: String,
    size_bytes: i64,
    sha256: Vec<u8>,
    created_at: DateTime<Utc>,
}

impl From<WholeFile> for File {
    fn from(row: WholeFile) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            content_type: row.content_type,
            // The database knows no negative size.
            size_bytes: row.size_bytes.unsigned_abs(),
            sha256: hex(&row.sha256),
            created_at: Some(to_timestamp(row.created_at)),
            owner_id: row.owner_id.to_string(),
            storage_key: storage_key(row.id),
        }
    }
}

async fn get(core: &Core, owner: Option<Uuid>, id: &str) -> Result<File, Fail> {
    let id: Uuid = id.parse().map_err(|_| not_found())?;
    let row = sqlx::query_as!(
        WholeFile,
        r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
             sha256 as "sha256!", created_at
           from jobs.file
           where id = $1 and state = 'whole' and ($2::uuid is null or owner_id = $2)"#,
        id,
        owner,
    )
    .fetch_optional(&core.pool)
    .await?;
    row.map(File::from).ok_or_else(not_found)
}

async fn list(core: &Core, owner: Option<Uuid>, asked: &ListFilesRequest) -> Result<ListFilesResponse, Fail> {
    const LIST: &str = "files";
    let rows_max = page_rows(asked.limit);
    let before: Uuid = core.cursors.place(LIST, &asked.cursor)?.unwrap_or(Uuid::max());
    // Two statements, since no one plan is good for both: an owner's rows stand in an index of their own.
    let mut rows = match owner {
        Some(owner) => {
            sqlx::query_as!(
                WholeFile,
                r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
                     sha256 as "sha256!", created_at
                   from jobs.file
                   where owner_id = $1 and state = 'whole' and id < $2
                   order by id desc
                   limit $3"#,
                owner,
                before,
                rows_max + 1,
            )
            .fetch_all(&core.pool)
            .await?
        }
        None => {
            sqlx::query_as!(
                WholeFile,
                r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
                     sha256 as "sha256!", created_at
                   from jobs.file
                   where state = 'whole' and id < $1
                   order by id desc
                   limit $2"#,
                before,
                rows_max + 1,
            )
            .fetch_all(&core.pool)
            .await?
        }
    };
    let next_cursor = core.cursors.close_page(LIST, &mut rows, rows_max, |row| row.id.to_string());
    Ok(ListFilesResponse { items: rows.into_iter().map(File::from).collect(), next_cursor })
}

async fn remove(core: &Core, call: &Call, id: &str) -> Result<(), Fail> {
    let file = get(core, None, id).await?;
    let (id, owner): (Uuid, Uuid) =
        (file.id.parse().map_err(Fail::internal)?, file.owner_id.parse().map_err(Fail::internal)?);
    let act = Act::of(call, &acts::REMOVE_FILE, id).owned_by(owner);
    let came_to = match call.caller()?.may_touch("files:write", owner) {
        true => doom(core, id, owner, act.clone()).await,
        false => Err(not_found()),
    };
    core.witness(act, came_to).await
}

/// The file is gone for everyone at once; its bytes leave with the next sweep.
async fn doom(core: &Core, id: Uuid, owner: Uuid, act: Act) -> Result<(), Fail> {
    let now = core.clock.now();
    let _told = span::transaction("jobs.remove_file");
    let mut transaction = core.pool.begin().await?;
    lock_usage(&mut transaction, owner).await?;
    let removed = sqlx::query_scalar!(
        r#"update jobs.file
           set state = 'doomed', expires_at = $2
           where id = $1 and state = 'whole'
           returning size_bytes as "size_bytes!""#,
        id,
        now,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let size_bytes = removed.ok_or_else(not_found)?;
    add_usage(&mut transaction, owner, -size_bytes).await?;
    let act = act.before("size_bytes", size_bytes.unsigned_abs());
    core.engine.ground.audit.record(&mut transaction, act).await?;
    transaction.commit().await?;
    Ok(())
}

/// Locks the owner's count of bytes for the rest of the transaction, and tells it.
async fn lock_usage(conn: &mut PgConnection, owner: Uuid) -> Result<i64, Fail> {
    // The update that changes nothing locks a row that is there already, and reads what was committed last.
    let bytes = sqlx::query_scalar!(
        "insert into jobs.file_usage (owner_id, bytes)
         values ($1, 0)
         on conflict (owner_id) do update set bytes = file_usage.bytes
         returning bytes",
        owner,
    )
    .fetch_one(conn)
    .await?;
    Ok(bytes)
}

async fn add_usage(conn: &mut PgConnection, owner: Uuid, bytes: i64) -> Result<(), Fail> {
    sqlx::query!("update jobs.file_usage set bytes = bytes + $2 where owner_id = $1", owner, bytes)
        .execute(conn)
        .await?;
    Ok(())
}

/// Where a file's bytes lie in object storage. The sweep knows a key of ours by its being an id.
fn storage_key(id: Uuid) -> String {
    id.to_string()
}

fn not_found() -> Fail {
    Fail::not_found("files.not_found", "There is no such file.")
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a writer says of bytes it has stored.
struct Description {
    id: Uuid,
    content_type: String,
    size_bytes: i64,
    sha256: Vec<u8>,
}

impl Description {
    /// Longest content type, in bytes.
    const CONTENT_TYPE_MAX: usize = 255;

    /// # Errors
    /// `files.not_described`: the writer is a role of ours or a worker, so this is a fault of its code.
    fn parse(id: &str, content_type: String, size_bytes: u64, sha256: &str) -> Result<Self, Fail> {
        let fault =
            |what: &str| Fail::invalid("files.not_described", format!("The stored file's {what} is not valid."));
        let is_type = !content_type.is_empty()
            && content_type.len() <= Self::CONTENT_TYPE_MAX
            && content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !is_type {
            return Err(fault("content type"));
        }
        Ok(Self {
            id: id.parse().map_err(|_| fault("id"))?,
            content_type,
            size_bytes: i64::try_from(size_bytes).map_err(|_| fault("size"))?,
            sha256: digest(sha256).ok_or_else(|| fault("digest"))?,
        })
    }
}

/// The 32 bytes that 64 hexadecimal digits tell.
fn digest(hex: &str) -> Option<Vec<u8>> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}
