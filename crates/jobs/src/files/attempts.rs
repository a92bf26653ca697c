//! Files of attempts: read by a job for its owner, and written by an attempt, to become whole with its result. All of it
//! happens in the transaction in which the engine has made sure that the attempt is the one that counts.
//!
//! The quota does not bind here: it is checked where an owner stores more, and a result that is there is not thrown away.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use kit::{Clock, Fail};
use proto::{jobs::File, worker::WrittenFile};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Description, WholeFile, name, storage_key};

/// Most files that one attempt writes.
const FILES_MAX: i64 = 1_000;

/// A row for a file that an attempt is about to write; its id and storage key.
///
/// # Errors
/// `files.too_many` for an attempt with 1,000 files.
pub(crate) async fn create_for_attempt(
    conn: &mut PgConnection,
    owner: Uuid,
    job_id: Uuid,
    token: i64,
    name: &str,
    now: DateTime<Utc>,
    clock: &Clock,
) -> Result<(Uuid, String), Fail> {
    let id = clock.new_id();
    let created = sqlx::query!(
        "insert into jobs.file (id, owner_id, name, state, job_id, token, created_at)
         select $1, $2, $3, 'writing', $4, $5, $6
         where (select count(*) from jobs.file where job_id = $4 and token = $5 and state = 'writing') < $7",
        id,
        owner,
        name::sanitised(name),
        job_id,
        token,
        now,
        FILES_MAX,
    )
    .execute(conn)
    .await?;
    if created.rows_affected() == 0 {
        return Err(Fail::invalid("files.too_many", format!("One attempt writes at most {FILES_MAX} files.")));
    }
    Ok((id, storage_key(id)))
}

/// A whole file of the owner.
///
/// # Errors
/// As the database.
pub(crate) async fn find_whole(conn: &mut PgConnection, owner: Uuid, id: Uuid) -> Result<Option<File>, Fail> {
    let row = sqlx::query_as!(
        WholeFile,
        r#"select id, owner_id, name, content_type as "content_type!", size_bytes as "size_bytes!",
             sha256 as "sha256!", created_at
           from jobs.file
           where id = $1 and owner_id = $2 and state = 'whole'"#,
        id,
        owner,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(File::from))
}

/// Ends attempts that succeeded: makes the files whole that each names, counts their bytes, and gives up the others that
/// the attempt began.
///
/// # Errors
/// `files.not_of_attempt` or `files.not_described` (both 422) when any attempt names a file that it did not create, names
/// one twice, or does not describe it; nothing is to be committed then.
pub(crate) async fn make_whole_for_attempts(
    conn: &mut PgConnection,
    attempts: &[(Uuid, i64, Vec<WrittenFile>)],
    now: DateTime<Utc>,
) -> Result<(), Fail> {
    if attempts.is_empty() {
        return Ok(());
    }
    let begun = begun(conn, attempts.iter().map(|(job, token, _)| (*job, *token))).await?;
    if begun.is_empty() && attempts.iter().all(|(_, _, files)| files.is_empty()) {
        return Ok(());
    }
    let mut named = HashSet::new();
    let mut written = Vec::new();
    let mut added: BTreeMap<Uuid, i64> = BTreeMap::new();
    for (job, token, files) in attempts {
        for file in files {
            let file = Description::parse(&file.file_id, file.content_type.clone(), file.size_bytes, &file.sha256)?;
            let owner = match begun.get(&file.id) {
                Some(row) if (row.job, row.token) == (*job, *token) && named.insert(file.id) => row.owner,
                _ => return Err(not_of_attempt()),
            };
            let bytes = added.entry(owner).or_default();
            *bytes = bytes.saturating_add(file.size_bytes);
            written.push(file);
        }
    }
    count(conn, &added).await?;
    if write_descriptions(conn, &written).await? != written.len() as u64 {
        // A row that was being written a moment ago is so no longer: the sweep took the attempt for ended.
        return Err(not_of_attempt());
    }
    let left: Vec<Uuid> = begun.into_keys().filter(|id| !named.contains(id)).collect();
    doom(conn, &left, now).await
}

/// Gives up what attempts have written that ended without a result.
///
/// # Errors
/// As the database.
pub(crate) async fn doom_for_attempts(conn: &mut PgConnection, attempts: &[(Uuid, i64)]) -> Result<(), Fail> {
    if attempts.is_empty() {
        return Ok(());
    }
    let (jobs, tokens): (Vec<Uuid>, Vec<i64>) = attempts.iter().copied().unzip();
    sqlx::query!(
        "update jobs.file
         set state = 'doomed', expires_at = file.created_at
         from unnest($1::uuid[], $2::bigint[]) as ended (job_id, token)
         where file.job_id = ended.job_id and file.token = ended.token and file.state = 'writing'",
        &jobs,
        &tokens,
    )
    .execute(conn)
    .await?;
    Ok(())
}

struct Begun {
    owner: Uuid,
    job: Uuid,
    token: i64,
}

/// What the attempts are writing, by id.
async fn begun(
    conn: &mut PgConnection,
    attempts: impl Iterator<Item = (Uuid, i64)>,
) -> Result<HashMap<Uuid, Begun>, Fail> {
    let (jobs, tokens): (Vec<Uuid>, Vec<i64>) = attempts.unzip();
    let rows = sqlx::query!(
        r#"select file.id, file.owner_id, file.job_id as "job_id!", file.token as "token!"
           from unnest($1::uuid[], $2::bigint[]) as ended (job_id, token)
           join jobs.file on file.job_id = ended.job_id and file.token = ended.token and file.state = 'writing'"#,
        &jobs,
        &tokens,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, Begun { owner: row.owner_id, job: row.job_id, token: row.token })).collect())
}

/// Adds to the owners' bytes, in the order of their ids: two transactions that lock several owners do not wait for each
/// other in a ring.
async fn count(conn: &mut PgConnection, added: &BTreeMap<Uuid, i64>) -> Result<(), Fail> {
    let (owners, bytes): (Vec<Uuid>, Vec<i64>) = added.iter().unzip();
    sqlx::query!(
        "insert into jobs.file_usage (owner_id, bytes)
         select owner_id, bytes
         from unnest($1::uuid[], $2::bigint[]) as added (owner_id, bytes)
         order by owner_id
         on conflict (owner_id) do update set bytes = file_usage.bytes + excluded.bytes",
        &owners,
        &bytes,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_descriptions(conn: &mut PgConnection, files: &[Description]) -> Result<u64, Fail> {
    let ids: Vec<Uuid> = files.iter().map(|file| file.id).collect();
    let types: Vec<String> = files.iter().map(|file| file.content_type.clone()).collect();
    let sizes: Vec<i64> = files.iter().map(|file| file.size_bytes).collect();
    let digests: Vec<Vec<u8>> = files.iter().map(|file| file.sha256.clone()).collect();
    let written = sqlx::query!(
        "update jobs.file
         set state = 'whole', content_type = done.content_type, size_bytes = done.size_bytes, sha256 = done.sha256
         from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bytea[]) as done (id, content_type, size_bytes, sha256)
         where file.id = done.id and file.state = 'writing'",
        &ids,
        &types,
        &sizes,
        &digests,
    )
    .execute(conn)
    .await?;
    Ok(written.rows_affected())
}

async fn doom(conn: &mut PgConnection, ids: &[Uuid], now: DateTime<Utc>) -> Result<(), Fail> {
    sqlx::query!(
        "update jobs.file set state = 'doomed', expires_at = $2 where id = any($1) and state = 'writing'",
        ids,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

fn not_of_attempt() -> Fail {
    Fail::invalid("files.not_of_attempt", "The result names a file that this attempt has not created.")
}
