//! Inserting jobs: the rows, their first event, and word of them in the outbox, in statements whose number does not grow
//! with the jobs.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Clock, Fail, outbox};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    backoff::Backoff,
    dependencies::{self, After},
    events::{self, Telling},
    retries::RetryOn,
    states::State,
    unique::Unique,
};
use crate::SCHEMA;

/// A job that was found good and is about to be.
#[derive(Debug, Clone)]
pub(crate) struct NewJob {
    pub(crate) id: Uuid,
    pub(crate) owner_id: Uuid,
    pub(crate) task: String,
    pub(crate) queue: String,
    /// 0 to 100.
    pub(crate) priority: u8,
    /// `None`: at once.
    pub(crate) run_at: Option<DateTime<Utc>>,
    pub(crate) max_attempts: u8,
    pub(crate) attempt_timeout_s: f64,
    pub(crate) backoff: Option<Backoff>,
    /// Seconds; above 0.
    pub(crate) queue_timeout_s: Option<f64>,
    /// Seconds from `run_at`; above 0.
    pub(crate) deadline_s: Option<f64>,
    pub(crate) retry_on: RetryOn,
    /// As it stands in the table: of the owner, or of all.
    pub(crate) concurrency_key: Option<String>,
    pub(crate) tags: Vec<String>,
    /// A JSON object.
    pub(crate) args: String,
    pub(crate) place: Place,
    pub(crate) unique: Option<Unique>,
    pub(crate) after: After,
    pub(crate) request_id: String,
    pub(crate) traceparent: Option<String>,
}

/// Where a job stands among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Alone,
    Child { batch: Uuid, ordinal: i32 },
    Finalize { batch: Uuid },
}

impl Place {
    pub(crate) const fn batch(self) -> Option<Uuid> {
        match self {
            Self::Alone => None,
            Self::Child { batch, .. } | Self::Finalize { batch } => Some(batch),
        }
    }
}

/// Seconds that one point of priority is worth: a job of priority 60 starts before one of 50 that was queued up to 100 s
/// earlier, and after one that was queued before that. So nothing waits for ever, and nothing has to age by a timer.
const SECONDS_A_POINT: i64 = 10;

/// Where in its queue a job stands that may run at `run_at`.
pub(crate) fn rank(run_at: DateTime<Utc>, priority: u8) -> DateTime<Utc> {
    run_at - TimeDelta::seconds(i64::from(priority) * SECONDS_A_POINT)
}

/// Inserts jobs in the caller's transaction, and gathers what is to be told of them.
pub(crate) async fn insert(
    conn: &mut PgConnection,
    clock: &Clock,
    jobs: &[NewJob],
    now: DateTime<Utc>,
    telling: &mut Telling,
) -> Result<(), Fail> {
    if jobs.is_empty() {
        return Ok(());
    }
    let state = |job: &NewJob| match job.run_at {
        _ if !job.after.is_empty() => State::Waiting,
        Some(at) if at > now => State::Scheduled,
        _ => State::Queued,
    };
    let run_at = |job: &NewJob| job.run_at.map_or(now, |at| at.max(now));
    let column = |value: &dyn Fn(&NewJob) -> String| jobs.iter().map(value).collect::<Vec<_>>();

    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    let owners: Vec<Uuid> = jobs.iter().map(|job| job.owner_id).collect();
    let states = column(&|job| state(job).as_str().to_owned());
    let priorities: Vec<i16> = jobs.iter().map(|job| i16::from(job.priority)).collect();
    let run_ats: Vec<DateTime<Utc>> = jobs.iter().map(run_at).collect();
    let ranks: Vec<DateTime<Utc>> = jobs.iter().map(|job| rank(run_at(job), job.priority)).collect();
    let attempts: Vec<i32> = jobs.iter().map(|job| i32::from(job.max_attempts)).collect();
    let timeouts: Vec<f64> = jobs.iter().map(|job| job.attempt_timeout_s).collect();
    let backoffs: Vec<Option<String>> = jobs.iter().map(|job| job.backoff.as_ref().map(Backoff::to_json)).collect();
    let queue_timeouts: Vec<Option<f64>> = jobs.iter().map(|job| job.queue_timeout_s).collect();
    let deadlines: Vec<Option<f64>> = jobs.iter().map(|job| job.deadline_s).collect();
    let retry_ons: Vec<Option<String>> = jobs.iter().map(|job| job.retry_on.to_json()).collect();
    let unique_keys: Vec<_> = jobs.iter().map(|job| job.unique.as_ref().map(|unique| unique.key.clone())).collect();
    let for_alls: Vec<bool> =
        jobs.iter().map(|job| job.unique.as_ref().is_some_and(|unique| unique.is_for_all)).collect();
    let holds: Vec<_> =
        jobs.iter().map(|job| job.unique.as_ref().map(|unique| unique.hold.as_str().to_owned())).collect();
    let batches: Vec<Option<Uuid>> = jobs.iter().map(|job| job.place.batch()).collect();
    let ordinals: Vec<Option<i32>> = jobs
        .iter()
        .map(|job| match job.place {
            Place::Child { ordinal, .. } => Some(ordinal),
            Place::Alone | Place::Finalize { .. } => None,
        })
        .collect();
    let finalizes: Vec<bool> = jobs.iter().map(|job| matches!(job.place, Place::Finalize { .. })).collect();
    let traceparents: Vec<Option<String>> = jobs.iter().map(|job| job.traceparent.clone()).collect();
    // An array of arrays would have to be rectangular, so each row's tags travel as a JSON list.
    let tags = column(&|job| serde_json::Value::from(job.tags.clone()).to_string());

    sqlx::query!(
        "with new as (
           insert into jobs.job (id, owner_id, task, queue, state, priority, run_at, rank, attempts_until, max_attempts,
             attempt_timeout_s, backoff, batch_id, ordinal, is_finalize, request_id, traceparent, tags, args, events, since,
             created_at, queue_timeout_s, queue_until, deadline_s, deadline_at, retry_on, concurrency_key, lane,
             unique_key, is_unique_for_all, unique_hold)
           select id, owner_id, new.task, new.queue, state, priority, run_at, rank, max_attempts, max_attempts,
             attempt_timeout_s, backoff, batch_id, ordinal, is_finalize, request_id, traceparent,
             array(select jsonb_array_elements_text(tags::jsonb)), args, 1, $19, $19, queue_timeout_s,
             case when state = 'queued' then run_at + make_interval(secs => queue_timeout_s) end, deadline_s,
             case when state <> 'waiting' then run_at + make_interval(secs => deadline_s) end, retry_on, concurrency_key,
             jobs.lane(new.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed), unique_key,
             is_unique_for_all, unique_hold
           from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::timestamptz[],
             $8::timestamptz[], $9::integer[], $10::double precision[], $11::text[], $12::uuid[], $13::integer[],
             $14::boolean[], $15::text[], $16::text[], $17::text[], $18::text[], $20::double precision[],
             $21::double precision[], $22::text[], $23::text[], $24::text[], $25::boolean[], $26::text[])
             as new (id, owner_id, task, queue, state, priority, run_at, rank, max_attempts, attempt_timeout_s, backoff,
               batch_id, ordinal, is_finalize, request_id, traceparent, tags, args, queue_timeout_s, deadline_s, retry_on,
               concurrency_key, unique_key, is_unique_for_all, unique_hold)
           left join jobs.queue on queue.name = new.queue
           left join jobs.task on task.name = new.task
           returning queue, lane
         )
         update jobs.queue
         set has_lanes = true
         from (select distinct queue from new where lane is not null) as laned
         where queue.name = laned.queue and not has_lanes",
        &ids,
        &owners,
        &column(&|job| job.task.clone()),
        &column(&|job| job.queue.clone()),
        &states,
        &priorities,
        &run_ats,
        &ranks,
        &attempts,
        &timeouts,
        &backoffs as &[Option<String>],
        &batches as &[Option<Uuid>],
        &ordinals as &[Option<i32>],
        &finalizes,
        &column(&|job| job.request_id.clone()),
        &traceparents as &[Option<String>],
        &tags,
        &column(&|job| job.args.clone()),
        now,
        &queue_timeouts as &[Option<f64>],
        &deadlines as &[Option<f64>],
        &retry_ons as &[Option<String>],
        &jobs.iter().map(|job| job.concurrency_key.clone()).collect::<Vec<_>>() as &[Option<String>],
        &unique_keys as &[Option<String>],
        &for_alls,
        &holds as &[Option<String>],
    )
    .execute(&mut *conn)
    .await?;

    dependencies::insert(conn, jobs).await?;
    let mut word = Vec::with_capacity(jobs.len());
    let mut enqueued: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for job in jobs {
        let state = state(job);
        telling.job(job.id, 1, job.place.batch(), "state", events::state(job.id, state, 0, None));
        *enqueued.entry((&job.queue, &job.task)).or_default() += 1;
        word.push(
            outbox::Event::new(
                "jobs.job.submitted",
                job.id,
                &proto::events::JobChanged {
                    job_id: job.id.to_string(),
                    owner_id: job.owner_id.to_string(),
                    task: job.task.clone(),
                    queue: job.queue.clone(),
                    state: state.as_str().to_owned(),
                    attempt: 0,
                    batch_id: job.place.batch().map(|id| id.to_string()).unwrap_or_default(),
                    error_kind: String::new(),
                },
            )
            .with_traceparent(job.traceparent.clone()),
        );
    }
    outbox::write(conn, SCHEMA, &word, clock, None).await?;
    for ((queue, task), count) in enqueued {
        metrics::counter!("guildhall_jobs_enqueued_total", "queue" => queue.to_owned(), "task" => task.to_owned())
            .increment(count);
    }
    Ok(())
}
