//! Uploads: several files that become whole together or not at all. The gateway reserves rows, streams the bytes into
//! object storage, and completes.
//!
//! Bytes may arrive for longer than an access token lives, so only the beginning shows the caller's token. It is answered
//! with a ticket, signed here, that names the upload and its owner: the right to go on with this upload and nothing else,
//! for as long as the upload is there.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use kit::{Fail, grpc::IdempotencyKey, idempotency, telemetry::span};
use proto::jobs::{
    CompleteFilesRequest, CompleteFilesResponse, CompletedFile, ExtendFilesRequest, File, ReserveFilesRequest,
    ReserveFilesResponse, ReservedFile,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Description, WholeFile, add_usage, lock_usage, name, storage_key};
use crate::{Core, SCHEMA};

/// Most files of one upload.
const FILES_MAX: usize = 100;

/// What a ticket names.
#[derive(Debug, Clone, Copy)]
struct Upload {
    id: Uuid,
    owner: Uuid,
}

impl Upload {
    /// What a ticket is signed for, apart from the cursors of lists.
    const PURPOSE: &str = "upload";

    fn ticket(self, core: &Core) -> String {
        core.cursors.encode(Self::PURPOSE, &[&self.id.to_string(), &self.owner.to_string()])
    }

    /// The upload that a ticket is for.
    ///
    /// # Errors
    /// `files.upload_not_found` for anything that this role has not signed as a ticket.
    fn of(core: &Core, ticket: &str) -> Result<Self, Fail> {
        let parts = core.cursors.decode(Self::PURPOSE, ticket).map_err(|_| not_found())?;
        match parts.as_slice() {
            [id, owner] => {
                Ok(Self { id: id.parse().map_err(|_| not_found())?, owner: owner.parse().map_err(|_| not_found())? })
            }
            _ => Err(not_found()),
        }
    }
}

/// Begins an upload, with a row for each name.
///
/// # Errors
/// `files.no_names`, `files.too_many` (422), `files.quota_exceeded` (413).
pub(super) async fn begin(core: &Core, owner: Uuid, asked: &ReserveFilesRequest) -> Result<ReserveFilesResponse, Fail> {
    if asked.names.is_empty() {
        return Err(Fail::invalid("files.no_names", "An upload begins with at least one file."));
    }
    let _told = span::transaction("jobs.reserve_upload");
    let mut transaction = core.pool.begin().await?;
    let left_bytes = quota_left(core, &mut transaction, owner).await?;
    let upload = Upload { id: core.clock.new_id(), owner };
    let answer = reserve(core, &mut transaction, upload, 0, &asked.names, left_bytes).await?;
    transaction.commit().await?;
    Ok(answer)
}

/// Reserves a row for each further name, if there are any, and extends the lease of the whole upload. A ticket does not
/// outlive its upload: one that is whole or dropped takes no more files.
///
/// # Errors
/// `files.upload_not_found` (404), `files.too_many` (422), `files.quota_exceeded` (413).
pub(super) async fn extend(core: &Core, asked: &ExtendFilesRequest) -> Result<ReserveFilesResponse, Fail> {
    let upload = Upload::of(core, &asked.ticket)?;
    let _told = span::transaction("jobs.extend_upload");
    let mut transaction = core.pool.begin().await?;
    let left_bytes = quota_left(core, &mut transaction, upload.owner).await?;
    let held = sqlx::query!(
        "update jobs.file
         set expires_at = $3
         where upload_id = $1 and owner_id = $2 and state = 'writing'",
        upload.id,
        upload.owner,
        lease_end(core),
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    if held == 0 {
        return Err(not_found());
    }
    let answer = reserve(core, &mut transaction, upload, held, &asked.names, left_bytes).await?;
    transaction.commit().await?;
    Ok(answer)
}

/// Writes a row for each name, of an upload that has `held` of them already.
async fn reserve(
    core: &Core,
    conn: &mut PgConnection,
    upload: Upload,
    held: u64,
    names: &[String],
    left_bytes: u64,
) -> Result<ReserveFilesResponse, Fail> {
    if left_bytes == 0 && !names.is_empty() {
        return Err(quota_exceeded(core));
    }
    if held + names.len() as u64 > FILES_MAX as u64 {
        return Err(Fail::invalid("files.too_many", format!("One upload takes at most {FILES_MAX} files.")));
    }
    let ids: Vec<Uuid> = names.iter().map(|_| core.clock.new_id()).collect();
    let names: Vec<String> = names.iter().map(|name| name::sanitised(name)).collect();
    sqlx::query!(
        "insert into jobs.file (id, owner_id, name, state, upload_id, created_at, expires_at)
         select id, $3, name, 'writing', $4, $5, $6
         from unnest($1::uuid[], $2::text[]) as new (id, name)",
        &ids,
        &names,
        upload.owner,
        upload.id,
        core.clock.now(),
        lease_end(core),
    )
    .execute(conn)
    .await?;
    Ok(ReserveFilesResponse {
        items: ids.into_iter().map(|id| ReservedFile { id: id.to_string(), storage_key: storage_key(id) }).collect(),
        quota_left_bytes: left_bytes,
        file_bytes_max: core.settings.file_bytes_max.0,
        lease_s: core.settings.upload_lease_s,
        ticket: upload.ticket(core),
    })
}

/// When an upload that stands still from now on is dropped.
fn lease_end(core: &Core) -> DateTime<Utc> {
    core.clock.now() + Duration::from_secs(u64::from(core.settings.upload_lease_s))
}

/// What the owner may still store; locks the count for the rest of the transaction.
async fn quota_left(core: &Core, conn: &mut PgConnection, owner: Uuid) -> Result<u64, Fail> {
    let used = lock_usage(conn, owner).await?;
    Ok(core.settings.owner_bytes_max.0.saturating_sub(used.unsigned_abs()))
}

/// Makes the named files whole and gives up the upload's others. A repeat under the same idempotency key is a second
/// upload of the same bytes: it gets the first answer, and its own files are given up.
///
/// # Errors
/// `files.not_described`, `files.upload_not_found` (404), `files.too_large`, `files.quota_exceeded` (413), and those of
/// [`idempotency::once`].
pub(super) async fn complete(
    core: &Arc<Core>,
    key: Option<&IdempotencyKey>,
    asked: CompleteFilesRequest,
) -> Result<CompleteFilesResponse, Fail> {
    let upload = Upload::of(core, &asked.ticket)?;
    let now = core.clock.now();
    let _told = span::transaction("jobs.complete_upload");
    let transaction = core.pool.begin().await?;
    let effect_core = Arc::clone(core);
    let (answer, is_replayed) = idempotency::once(transaction, SCHEMA, upload.owner, key, now, move |conn| {
        Box::pin(async move {
            let items = make_whole(conn, &effect_core, upload, asked.files, now).await?;
            Ok(CompleteFilesResponse { items, replayed: false })
        })
    })
    .await?;
    if is_replayed {
        doom(&mut *core.pool.acquire().await?, upload, now).await?;
    }
    Ok(CompleteFilesResponse { replayed: is_replayed, ..answer })
}

/// Gives an upload up. One that is not there, or whole already, is left as it is.
///
/// # Errors
/// `files.upload_not_found` (404) for what is no ticket.
pub(super) async fn abandon(core: &Core, ticket: &str) -> Result<(), Fail> {
    let upload = Upload::of(core, ticket)?;
    doom(&mut *core.pool.acquire().await?, upload, core.clock.now()).await
}

async fn make_whole(
    conn: &mut PgConnection,
    core: &Core,
    upload: Upload,
    files: Vec<CompletedFile>,
    now: DateTime<Utc>,
) -> Result<Vec<File>, Fail> {
    let files = described(files)?;
    let file_bytes_max = core.settings.file_bytes_max.0;
    if files.iter().any(|file| file.size_bytes.unsigned_abs() > file_bytes_max) {
        let message = format!("A file may have at most {file_bytes_max} bytes.");
        return Err(Fail::too_large("files.too_large", message));
    }
    let used = lock_usage(conn, upload.owner).await?;
    let added = write_descriptions(conn, upload, &files).await?;
    if used.saturating_add(added).unsigned_abs() > core.settings.owner_bytes_max.0 {
        return Err(quota_exceeded(core));
    }
    let whole = read_whole(conn, upload, &files).await?;
    add_usage(conn, upload.owner, added).await?;
    doom(conn, upload, now).await?;
    Ok(whole)
}

/// As many as a upload may have, each with its own id.
fn described(files: Vec<CompletedFile>) -> Result<Vec<Description>, Fail> {
    if files.len() > FILES_MAX {
        return Err(Fail::invalid("files.too_many", format!("One upload takes at most {FILES_MAX} files.")));
    }
    let files: Vec<Description> = files
        .into_iter()
        .map(|file| Description::parse(&file.id, file.content_type, file.size_bytes, &file.sha256))
        .collect::<Result<_, _>>()?;
    let mut ids: Vec<Uuid> = files.iter().map(|file| file.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Fail::invalid("files.not_described", "A file of the upload is named twice."));
    }
    Ok(files)
}

/// Makes those of the files whole that are being written; the bytes they add.
async fn write_descriptions(conn: &mut PgConnection, upload: Upload, files: &[Description]) -> Result<i64, Fail> {
    let ids: Vec<Uuid> = files.iter().map(|file| file.id).collect();
    let types: Vec<String> = files.iter().map(|file| file.content_type.clone()).collect();
    let sizes: Vec<i64> = files.iter().map(|file| file.size_bytes).collect();
    let digests: Vec<Vec<u8>> = files.iter().map(|file| file.sha256.clone()).collect();
    let sizes = sqlx::query_scalar!(
        r#"update jobs.file
           set state = 'whole', expires_at = null, content_type = done.content_type, size_bytes = done.size_bytes,
             sha256 = done.sha256
           from unnest($3::uuid[], $4::text[], $5::bigint[], $6::bytea[]) as done (id, content_type, size_bytes, sha256)
           where file.id = done.id and file.upload_id = $1 and file.owner_id = $2 and file.state = 'writing'
           returning file.size_bytes as "size_bytes!""#,
        upload.id,
        upload.owner,
        &ids,
        &types,
        &sizes,
        &digests,
    )
    .fetch_all(conn)
    .await?;
    Ok(sizes.into_iter().fold(0, i64::saturating_add))
}

/// The files in the order they were named. Those that were whole before are there when they are described alike, so that
/// a completion whose answer was lost can be asked for again.
async fn read_whole(conn: &mut PgConnection, upload: Upload, files: &[Description]) -> Result<Vec<File>, Fail> {
    let ids: Vec<Uuid> = files.iter().map(|file| file.id).collect();
    let mut rows: HashMap<Uuid, WholeFile> = sqlx::query_as!(
        WholeFile,
        r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
             sha256 as "sha256!", created_at
           from jobs.file
           where id = any($3) and upload_id = $1 and owner_id = $2 and state = 'whole'"#,
        upload.id,
        upload.owner,
        &ids,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| (row.id, row))
    .collect();
    files
        .iter()
        .map(|file| {
            rows.remove(&file.id)
                .filter(|row| row.size_bytes == file.size_bytes && row.sha256 == file.sha256)
                .map(File::from)
                .ok_or_else(not_found)
        })
        .collect()
}

async fn doom(conn: &mut PgConnection, upload: Upload, now: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.file
         set state = 'doomed', expires_at = $3
         where upload_id = $1 and owner_id = $2 and state = 'writing'",
        upload.id,
        upload.owner,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

fn not_found() -> Fail {
    Fail::not_found("files.upload_not_found", "The upload is not there, or its time is over.")
}

fn quota_exceeded(core: &Core) -> Fail {
    let message = format!("Your files may have {} bytes together.", core.settings.owner_bytes_max.0);
    Fail::too_large("files.quota_exceeded", message)
}
