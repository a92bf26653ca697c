//! Writing what was checked: a group of submissions in one transaction, each answered by what became of it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use kit::{Fail, grpc::IdempotencyKey, idempotency, telemetry::span::Shared};
use proto::jobs::{SubmitJobsResponse, SubmittedJob};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    SCHEMA,
    engine::{self, NewJob, Telling},
};

/// A checked submission on its way to the group writer.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) owner: Uuid,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) jobs: Arc<[NewJob]>,
}

/// What became of a submission: taken in, answered before, or refused.
pub(crate) type Taken = Result<SubmitJobsResponse, Fail>;

/// Writes a group of submissions in one transaction: those without a key, and those whose key is fresh, with the key's
/// answer beside them.
///
/// # Errors
/// As the database; nothing is written then.
pub(crate) async fn write(core: &engine::Ground, group: Vec<Submission>) -> Result<Vec<Taken>, Fail> {
    let now = core.clock.now();
    let shared = Shared::begin();
    let mut transaction = core.pool.begin().await?;
    let mut telling = Telling::default();
    let mut taken = Vec::with_capacity(group.len());
    let mut fresh: Vec<NewJob> = Vec::new();
    let mut keys: Vec<(Uuid, &str)> = Vec::new();
    for submission in &group {
        let answer = answer(&submission.jobs);
        let Some(key) = &submission.key else {
            fresh.extend(submission.jobs.iter().cloned());
            taken.push(Ok(answer));
            continue;
        };
        // The transaction's own locks do not stop it from taking them again, so twins within the group are told here.
        if keys.contains(&(submission.owner, &key.key)) {
            taken.push(Err(idempotency::in_flight()));
            continue;
        }
        keys.push((submission.owner, &key.key));
        taken.push(match keyed(&mut transaction, submission.owner, key, &answer, now).await {
            Ok(None) => {
                fresh.extend(submission.jobs.iter().cloned());
                Ok(answer)
            }
            Ok(Some(replayed)) => Ok(replayed),
            Err(fail) if fail.is_transient() => return Err(fail),
            Err(fail) => Err(fail),
        });
    }
    engine::insert(&mut transaction, &core.clock, &fresh, now, &mut telling).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    shared.end("jobs.submit", group.iter().map(|submission| submission.jobs.first()?.traceparent.as_deref()));
    core.took_in(streams);
    Ok(taken)
}

/// The earlier answer to a key, or `None` after keeping this one.
async fn keyed(
    conn: &mut PgConnection,
    owner: Uuid,
    key: &IdempotencyKey,
    answer: &SubmitJobsResponse,
    now: DateTime<Utc>,
) -> Result<Option<SubmitJobsResponse>, Fail> {
    use prost::Message as _;
    match idempotency::find(conn, SCHEMA, owner, key, now).await? {
        idempotency::Found::Answered(earlier) => {
            let mut earlier = SubmitJobsResponse::decode(earlier?.as_slice()).map_err(Fail::internal)?;
            earlier.replayed = true;
            Ok(Some(earlier))
        }
        idempotency::Found::Fresh => {
            idempotency::keep(conn, SCHEMA, owner, key, Ok(&answer.encode_to_vec()), now).await?;
            Ok(None)
        }
    }
}

fn answer(jobs: &[NewJob]) -> SubmitJobsResponse {
    let items = jobs.iter().map(|job| SubmittedJob { id: job.id.to_string(), existing: false }).collect();
    SubmitJobsResponse { items, replayed: false, job: None }
}
