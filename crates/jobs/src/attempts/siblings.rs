//! A job of a batch that adds others to it while it runs. It is itself one that the batch waits for, so the batch cannot be
//! over before they are in it.

use std::collections::{BTreeSet, HashMap};

use kit::{Fail, grpc::Call, telemetry::span};
use proto::worker::{AddSiblingsRequest, AddSiblingsResponse, FanOutJob, Sibling};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{CHILDREN_MAX, afters, child, hold, queue_of, too_many_after};
use crate::{
    Core,
    batches::{self, BATCH_JOBS_MAX},
    engine::{AFTER_MAX, Telling},
};

/// Adds what no earlier attempt of the job has added under the same numbers.
pub(super) async fn add(core: &Core, call: &Call, asked: AddSiblingsRequest) -> Result<AddSiblingsResponse, Fail> {
    let jobs = numbered(asked.jobs)?;
    // Before the transaction: a look at the catalogue may need a connection of its own.
    let mut queues = HashMap::with_capacity(jobs.len());
    for job in &jobs {
        queues.insert(job.ordinal, queue_of(core, job).await?);
    }
    let now = core.clock.now();
    let _told = span::transaction("jobs.add_siblings");
    let mut transaction = core.pool.begin().await?;
    let (mut held, _) = hold(&mut transaction, asked.attempt.as_ref()).await?;
    let Some(batch) = held.batch_id.filter(|_| !held.is_finalize) else {
        return Err(Fail::invalid("jobs.not_in_a_batch", "Only a job that a batch waits for adds others to it."));
    };
    held.traceparent = call.traceparent.clone().or(held.traceparent);
    let row = sqlx::query!("select state, cancel_asked_at, siblings from jobs.batch where id = $1 for update", batch)
        .fetch_one(&mut *transaction)
        .await?;
    if row.cancel_asked_at.is_some() {
        return Err(Fail::conflict("jobs.batch_cancelling", "The batch is being cancelled; no more jobs are added."));
    }
    let named: BTreeSet<u32> = jobs.iter().flat_map(|job| job.after.iter().chain([&job.ordinal])).copied().collect();
    let mut ids = there(&mut transaction, batch, held.id, named).await?;
    let new: Vec<&FanOutJob> = jobs.iter().filter(|job| !ids.contains_key(&job.ordinal)).collect();
    ids.extend(new.iter().map(|job| (job.ordinal, core.clock.new_id())));
    let after = afters(new.iter().copied(), &ids)?;
    let places = BATCH_JOBS_MAX + row.siblings..;
    let children: Vec<_> = new
        .iter()
        .zip(places)
        .zip(after)
        .map(|((job, place), after)| {
            let queue = queues.get(&job.ordinal).cloned().unwrap_or_default();
            child(core, &held, (batch, place), ids[&job.ordinal], (*job).clone(), queue, after)
        })
        .collect();
    let (numbers, added): (Vec<i32>, Vec<Uuid>) =
        new.iter().map(|job| (i32::try_from(job.ordinal).unwrap_or(i32::MAX), ids[&job.ordinal])).unzip();
    sqlx::query!(
        "insert into jobs.sibling (batch_id, added_by, number, job_id)
         select $1, $2, number, job_id
         from unnest($3::integer[], $4::uuid[]) as added (number, job_id)",
        batch,
        held.id,
        &numbers,
        &added,
    )
    .execute(&mut *transaction)
    .await?;
    let count = i32::try_from(children.len()).unwrap_or(i32::MAX);
    sqlx::query!("update jobs.batch set siblings = siblings + $2 where id = $1", batch, count)
        .execute(&mut *transaction)
        .await?;
    let mut telling = Telling::default();
    batches::append(&mut transaction, &core.clock, batch, &children, now, &mut telling).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    core.engine.ground.took_in(streams, children.iter().any(|job| !job.after.is_empty()));
    let job_ids = jobs.iter().map(|job| ids[&job.ordinal].to_string());
    Ok(AddSiblingsResponse { job_ids: job_ids.collect() })
}

/// The jobs of a call, by their numbers.
fn numbered(jobs: Vec<Sibling>) -> Result<Vec<FanOutJob>, Fail> {
    if jobs.len() > CHILDREN_MAX as usize {
        return Err(Fail::invalid("jobs.too_many", format!("One call adds at most {CHILDREN_MAX} jobs.")));
    }
    if let Some(job) = jobs.iter().find(|job| job.after.len() > AFTER_MAX) {
        return Err(too_many_after(job.number));
    }
    let distinct: BTreeSet<u32> = jobs.iter().map(|job| job.number).collect();
    if distinct.len() < jobs.len() || distinct.iter().any(|number| *number >= BATCH_JOBS_MAX.unsigned_abs()) {
        let message = format!("Each job has a number of its own, below {BATCH_JOBS_MAX}.");
        return Err(Fail::invalid("jobs.invalid", message));
    }
    let of =
        |job: Sibling| FanOutJob { ordinal: job.number, task: job.task, args_json: job.args_json, after: job.after };
    Ok(jobs.into_iter().map(of).collect())
}

/// Of these numbers those under which the job has added before.
async fn there(
    conn: &mut PgConnection,
    batch: Uuid,
    job: Uuid,
    numbers: BTreeSet<u32>,
) -> Result<HashMap<u32, Uuid>, Fail> {
    let numbers: Vec<i32> = numbers.into_iter().map(|number| i32::try_from(number).unwrap_or(i32::MAX)).collect();
    let rows = sqlx::query!(
        "select number, job_id from jobs.sibling where batch_id = $1 and added_by = $2 and number = any($3)",
        batch,
        job,
        &numbers,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.number.unsigned_abs(), row.job_id)).collect())
}
