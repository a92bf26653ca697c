//! Uploads: several files that become whole together or not at all. The gateway reserves rows, streams the bytes into
//! object storage, and completes. An upload's id is its owner's: another owner's upload of the same id is another upload.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use kit::{Fail, grpc::IdempotencyKey, idempotency};
use proto::jobs::{
    CompleteFilesRequest, CompleteFilesResponse, CompletedFile, File, ReserveFilesRequest, ReserveFilesResponse,
    ReservedFile,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Description, WholeFile, add_usage, lock_usage, name, storage_key};
use crate::{Core, SCHEMA};

/// Most files of one upload.
const FILES_MAX: usize = 100;

/// Reserves a row for each name, and extends the lease of the whole upload.
///
/// # Errors
/// `files.invalid_upload`, `files.too_many` (422), `files.quota_exceeded` (413).
pub(super) async fn reserve(
    core: &Core,
    owner: Uuid,
    asked: &ReserveFilesRequest,
) -> Result<ReserveFilesResponse, Fail> {
    let upload = parse_upload(&asked.upload_id)?;
    let now = core.clock.now();
    let lease_s = core.settings.upload_lease_s;
    let expires_at = now + Duration::from_secs(u64::from(lease_s));

    let mut transaction = core.pool.begin().await?;
    let used = lock_usage(&mut transaction, owner).await?;
    let left = core.settings.owner_bytes_max.0.saturating_sub(used.unsigned_abs());
    if left == 0 && !asked.names.is_empty() {
        return Err(quota_exceeded(core));
    }
    let reserved = sqlx::query!(
        "update jobs.file
         set expires_at = $3
         where upload_id = $1 and owner_id = $2 and state = 'writing'",
        upload,
        owner,
        expires_at,
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    if reserved + asked.names.len() as u64 > FILES_MAX as u64 {
        return Err(Fail::invalid("files.too_many", format!("One upload takes at most {FILES_MAX} files.")));
    }
    let ids: Vec<Uuid> = asked.names.iter().map(|_| core.clock.new_id()).collect();
    let names: Vec<String> = asked.names.iter().map(|name| name::sanitised(name)).collect();
    sqlx::query!(
        "insert into jobs.file (id, owner_id, name, state, upload_id, created_at, expires_at)
         select id, $3, name, 'writing', $4, $5, $6
         from unnest($1::uuid[], $2::text[]) as new (id, name)",
        &ids,
        &names,
        owner,
        upload,
        now,
        expires_at,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(ReserveFilesResponse {
        items: ids.into_iter().map(|id| ReservedFile { id: id.to_string(), storage_key: storage_key(id) }).collect(),
        quota_left_bytes: left,
        file_bytes_max: core.settings.file_bytes_max.0,
        lease_s,
    })
}

/// Makes the named files whole and gives up the upload's others. A repeat under the same idempotency key is a second
/// upload of the same bytes: it gets the first answer, and its own files are given up.
///
/// # Errors
/// `files.invalid_upload`, `files.not_described`, `files.upload_not_found` (404), `files.too_large`,
/// `files.quota_exceeded` (413), and those of [`idempotency::once`].
pub(super) async fn complete(
    core: &Arc<Core>,
    owner: Uuid,
    key: Option<&IdempotencyKey>,
    asked: CompleteFilesRequest,
) -> Result<CompleteFilesResponse, Fail> {
    let upload = parse_upload(&asked.upload_id)?;
    let now = core.clock.now();
    let transaction = core.pool.begin().await?;
    let effect_core = Arc::clone(core);
    let (answer, is_replayed) = idempotency::once(transaction, SCHEMA, owner, key, now, move |conn| {
        Box::pin(async move {
            let items = make_whole(conn, &effect_core, owner, upload, asked.files, now).await?;
            Ok(CompleteFilesResponse { items, replayed: false })
        })
    })
    .await?;
    if is_replayed {
        doom(&mut *core.pool.acquire().await?, owner, upload, now).await?;
    }
    Ok(CompleteFilesResponse { replayed: is_replayed, ..answer })
}

/// Gives an upload up. One that is not there, or whole already, is left as it is.
///
/// # Errors
/// `files.invalid_upload`.
pub(super) async fn abandon(core: &Core, owner: Uuid, upload: &str) -> Result<(), Fail> {
    let upload = parse_upload(upload)?;
    doom(&mut *core.pool.acquire().await?, owner, upload, core.clock.now()).await
}

async fn make_whole(
    conn: &mut PgConnection,
    core: &Core,
    owner: Uuid,
    upload: Uuid,
    files: Vec<CompletedFile>,
    now: DateTime<Utc>,
) -> Result<Vec<File>, Fail> {
    let files = described(files)?;
    let file_bytes_max = core.settings.file_bytes_max.0;
    if files.iter().any(|file| file.size_bytes.unsigned_abs() > file_bytes_max) {
        let message = format!("A file may have at most {file_bytes_max} bytes.");
        return Err(Fail::too_large("files.too_large", message));
    }
    let used = lock_usage(conn, owner).await?;
    let added = write_descriptions(conn, owner, upload, &files).await?;
    if used.saturating_add(added).unsigned_abs() > core.settings.owner_bytes_max.0 {
        return Err(quota_exceeded(core));
    }
    let whole = read_whole(conn, owner, upload, &files).await?;
    add_usage(conn, owner, added).await?;
    doom(conn, owner, upload, now).await?;
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
async fn write_descriptions(
    conn: &mut PgConnection,
    owner: Uuid,
    upload: Uuid,
    files: &[Description],
) -> Result<i64, Fail> {
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
        upload,
        owner,
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
async fn read_whole(
    conn: &mut PgConnection,
    owner: Uuid,
    upload: Uuid,
    files: &[Description],
) -> Result<Vec<File>, Fail> {
    let ids: Vec<Uuid> = files.iter().map(|file| file.id).collect();
    let mut rows: HashMap<Uuid, WholeFile> = sqlx::query_as!(
        WholeFile,
        r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
             sha256 as "sha256!", created_at
           from jobs.file
           where id = any($3) and upload_id = $1 and owner_id = $2 and state = 'whole'"#,
        upload,
        owner,
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
                .ok_or_else(|| {
                    Fail::not_found("files.upload_not_found", "The upload is not there, or its time is over.")
                })
        })
        .collect()
}

async fn doom(conn: &mut PgConnection, owner: Uuid, upload: Uuid, now: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.file
         set state = 'doomed', expires_at = $3
         where upload_id = $1 and owner_id = $2 and state = 'writing'",
        upload,
        owner,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

fn parse_upload(id: &str) -> Result<Uuid, Fail> {
    id.parse().map_err(|_| Fail::malformed("files.invalid_upload", "The upload's id is not a UUID."))
}

fn quota_exceeded(core: &Core) -> Fail {
    let message = format!("Your files may have {} bytes together.", core.settings.owner_bytes_max.0);
    Fail::too_large("files.quota_exceeded", message)
}
