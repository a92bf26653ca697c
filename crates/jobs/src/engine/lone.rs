//! Ends that concern nobody but their own job, as most do: an attempt has succeeded, its job is in no batch and has fanned
//! none out, holds no unique key, runs before no other, and the attempt has written no file. Whether that is so, and whether
//! the token is still the one that counts, is for the statement to see that carries it out, so that no row is locked and read
//! before. What is left over goes by `finish.rs`. A file that such an attempt begins to write at the same moment is found by the
//! sweep of files.

use std::collections::HashSet;

use kit::{Fail, outbox, telemetry::span::Shared};
use uuid::Uuid;

use super::{
    Ground,
    events::Telling,
    finish::{End, Outcome},
    moves::{self, Final},
    states::State,
    steps::Aftermath,
    straight,
};
use crate::SCHEMA;

/// Whether the outcome may be such an end. Of two that a worker tells of one attempt, one such and one not, either may count.
pub(super) const fn may_be(outcome: &Outcome) -> bool {
    matches!(&outcome.end, End::Succeeded { files, .. } if files.is_empty())
}

/// Ends those of the attempts whose ends are such; answers for each whether it was. Nothing is done about the others.
///
/// # Errors
/// As the database; nothing is done then.
pub(super) async fn finish(ground: &Ground, outcomes: Vec<Outcome>) -> Result<Vec<bool>, Fail> {
    let shared = Shared::begin();
    let mut held = ground.kept.take(&ground.pool).await?;
    let mut transaction = straight::begin(&mut held.connection).await?;
    let now = ground.clock.now();
    let mut finals: Vec<Final<'_>> = outcomes.iter().filter_map(success).collect();
    finals.sort_by_key(|end| end.id);
    // Of what is told twice the first counts.
    finals.dedup_by_key(|end| (end.id, end.lone));
    let moved = moves::into_history(&mut transaction, &finals, now).await?;
    let mut telling = Telling::default();
    let mut word = Vec::with_capacity(moved.len());
    for job in &moved {
        telling.by_row(job.id, None, String::new);
        let changed = proto::events::JobChanged {
            job_id: job.id.to_string(),
            owner_id: job.owner_id.to_string(),
            task: job.task.clone(),
            queue: job.queue.clone(),
            state: State::Succeeded.as_str().to_owned(),
            attempt: job.attempt.unsigned_abs(),
            ..Default::default()
        };
        word.push(outbox::Event::new("jobs.job.succeeded", job.id, &changed).with_traceparent(job.traceparent.clone()));
    }
    outbox::write(&mut transaction, SCHEMA, &word, &ground.clock, None).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    ground.kept.keep(held, &ground.pool);
    shared.end("jobs.finish", moved.iter().map(|job| job.traceparent.as_deref()));
    // In a lane, what ends makes room for another, wherever there is a slot for that.
    let has_work = moved.iter().any(|job| job.lane.is_some());
    ground.after(&Aftermath { streams, has_work, ..Aftermath::default() });
    let mut ended: HashSet<(Uuid, Option<i64>)> = moved.iter().map(|job| (job.id, job.token)).collect();
    Ok(outcomes.iter().map(|outcome| ended.remove(&(outcome.job, Some(outcome.token)))).collect())
}

fn success(outcome: &Outcome) -> Option<Final<'_>> {
    let End::Succeeded { result, .. } = &outcome.end else { return None };
    Some(Final {
        id: outcome.job,
        state: State::Succeeded,
        result: Some(result),
        error: None,
        stays: true,
        lone: Some(outcome.token),
    })
}
