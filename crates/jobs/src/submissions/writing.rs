//! Writing what was checked: a group of submissions in one transaction, each answered by what became of it.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use kit::{
    Fail,
    grpc::{Call, IdempotencyKey},
    idempotency,
    telemetry::span::Shared,
};
use prost::Message as _;
use proto::jobs::{SubmitJobsResponse, SubmittedJob};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    SCHEMA,
    engine::{self, Aftermath, Keys, NewJob, OnConflict, Telling, straight},
};

/// A checked submission on its way to the group writer.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) owner: Uuid,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) jobs: Arc<[NewJob]>,
    /// What it came with: who replaces a job is told in the audit log.
    pub(crate) call: Arc<Call>,
}

/// What became of a submission: taken in, answered before, or refused.
pub(crate) type Taken = Result<SubmitJobsResponse, Fail>;

/// Writes a group of submissions in one transaction: those without an idempotency key, and those whose key is fresh, with
/// the key's answer beside them.
///
/// # Errors
/// As the database; nothing is written then. `jobs.unique_key_held` when what becomes of one submission hangs on another of
/// the group: then each is to be written alone.
pub(crate) async fn write(core: &engine::Ground, group: Vec<Submission>) -> Result<Vec<Taken>, Fail> {
    let now = core.clock.now();
    let shared = Shared::begin();
    let mut held = core.kept.take(&core.pool).await?;
    let mut transaction = straight::begin(&mut held.connection).await?;
    let mut answered: Vec<Option<Taken>> = Vec::with_capacity(group.len());
    let mut keys: Vec<(Uuid, &str)> = Vec::new();
    for submission in &group {
        answered.push(earlier(&mut transaction, submission, &mut keys, now).await?);
    }
    let fresh: Vec<&Submission> =
        group.iter().zip(&answered).filter(|(_, answer)| answer.is_none()).map(|(submission, _)| submission).collect();
    let (unique, replaced) = take_unique_keys(core, &mut transaction, &fresh, now).await?;
    let mut jobs: Vec<NewJob> = Vec::new();
    let mut taken = Vec::with_capacity(group.len());
    for (submission, earlier) in group.iter().zip(answered) {
        if let Some(earlier) = earlier {
            taken.push(earlier);
            continue;
        }
        // Asked twice, since a refusal that is kept is not there to be given.
        let refusal = || unique.refusal(&submission.jobs);
        let told = answer(&submission.jobs, &unique);
        if let Some(key) = &submission.key {
            let bytes = told.encode_to_vec();
            let kept = refusal().map_or(Ok(bytes.as_slice()), Err);
            idempotency::keep(&mut transaction, SCHEMA, submission.owner, key, kept, now).await?;
        }
        let told = refusal().map_or(Ok(told), Err);
        if told.is_ok() {
            let new = submission.jobs.iter().filter(|job| unique.holder(job).is_none()).cloned();
            jobs.extend(new.map(|mut job| {
                job.after.jobs = job.after.jobs.into_iter().map(|after| unique.stand_in(after)).collect();
                job
            }));
        }
        taken.push(told);
    }
    let mut telling = Telling::default();
    engine::insert(&mut transaction, &core.clock, &jobs, now, &mut telling).await?;
    let mut streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    core.kept.keep(held, &core.pool);
    shared.end("jobs.submit", group.iter().map(|submission| submission.jobs.first()?.traceparent.as_deref()));
    if jobs.iter().any(|job| job.concurrency_key.is_some()) {
        core.limits.limited();
    }
    streams.extend(replaced.streams);
    core.took_in(streams, replaced.has_dependents || jobs.iter().any(|job| !job.after.is_empty()));
    Ok(taken)
}

/// The answer that was given before to a submission's idempotency key, or why there can be none now; `None` for a
/// submission that is to be written.
async fn earlier<'a>(
    conn: &mut PgConnection,
    submission: &'a Submission,
    keys: &mut Vec<(Uuid, &'a str)>,
    now: DateTime<Utc>,
) -> Result<Option<Taken>, Fail> {
    let Some(key) = &submission.key else { return Ok(None) };
    // The transaction's own locks do not stop it from taking them again, so twins within the group are told here.
    if keys.contains(&(submission.owner, &key.key)) {
        return Ok(Some(Err(idempotency::in_flight())));
    }
    keys.push((submission.owner, &key.key));
    let found = match idempotency::find(conn, SCHEMA, submission.owner, key, now).await {
        Ok(idempotency::Found::Fresh) => return Ok(None),
        Ok(idempotency::Found::Answered(earlier)) => earlier,
        Err(fail) => Err(fail),
    };
    match found.and_then(|bytes| SubmitJobsResponse::decode(bytes.as_slice()).map_err(Fail::internal)) {
        Ok(earlier) => Ok(Some(Ok(SubmitJobsResponse { replayed: true, ..earlier }))),
        Err(fail) if fail.is_transient() => Err(fail),
        Err(fail) => Ok(Some(Err(fail))),
    }
}

/// Takes the unique keys that fresh submissions ask for, and has the jobs replaced that are to be. Who holds the keys, and
/// what is to be done of the replacing once it is durable.
async fn take_unique_keys(
    core: &engine::Ground,
    conn: &mut PgConnection,
    fresh: &[&Submission],
    now: DateTime<Utc>,
) -> Result<(Keys, Aftermath), Fail> {
    let jobs = || fresh.iter().flat_map(|submission| submission.jobs.iter());
    if jobs().all(|job| job.unique.is_none()) {
        return Ok((Keys::default(), Aftermath::default()));
    }
    if is_contested(fresh) {
        return Err(engine::key_held());
    }
    let mut keys = Keys::take(conn, jobs(), now).await?;
    let mut replacing = Vec::new();
    for submission in fresh {
        match keys.refusal(&submission.jobs) {
            None => replacing.extend(submission.jobs.iter().map(|job| (job, Some(&*submission.call)))),
            // A key that it took is another's of the group by rights.
            Some(fail) if submission.jobs.iter().any(|job| keys.is_held_by(job)) => {
                if fresh.len() > 1 {
                    return Err(fail);
                }
                keys.give_back(conn, &submission.jobs).await?;
            }
            Some(_) => {}
        }
    }
    let replaced = keys.replace(core, conn, replacing, now).await?;
    Ok((keys, replaced))
}

/// Whether a submission would replace a job of another in the same group, which is not there yet: one after the other they
/// can.
fn is_contested(fresh: &[&Submission]) -> bool {
    let mut asked: HashMap<_, (usize, bool)> = HashMap::new();
    for (n, submission) in fresh.iter().enumerate() {
        for job in submission.jobs.iter() {
            let Some((name, unique)) = job.key() else { continue };
            let replaces = unique.on_conflict == OnConflict::Replace;
            let (first, is_replacing) = asked.entry(name).or_insert((n, replaces));
            *is_replacing |= replaces;
            if *first != n && *is_replacing {
                return true;
            }
        }
    }
    false
}

/// What is told of jobs: themselves, or those that hold their keys.
fn answer(jobs: &[NewJob], keys: &Keys) -> SubmitJobsResponse {
    let items = jobs.iter().map(|job| {
        let holder = keys.holder(job);
        SubmittedJob { id: holder.unwrap_or(job.id).to_string(), existing: holder.is_some() }
    });
    SubmitJobsResponse { items: items.collect(), replayed: false, job: None }
}
