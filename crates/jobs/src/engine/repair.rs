//! Queueing again what has ended: one job, or all jobs of a batch that ended badly. What was asked of a batch stands in its
//! row before anything else happens, together with how far it has come. The jobs go back in bounded bites, which the leader
//! carries on, each with the counters in one transaction; no finalize starts while any are left, and a crash between two
//! bites loses nothing. By its ordinal each job has one turn, so that one which fails again at once is not retried for ever.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use kit::{Fail, audit::Act, crash_point, outbox, telemetry::span};
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{
    Ground,
    batch_row::{self, BatchRow},
    dependencies,
    events::Telling,
    fan_in::BatchChange,
    finalizes,
    leader::Lead,
    states::State,
    steps::{self, Aftermath},
    submit::rank,
    unique::{self, Holding},
};
use crate::SCHEMA;

/// Jobs that one transaction queues again.
const BITE: i64 = 500;

/// A job that has ended, its row in the history locked.
#[derive(Debug)]
struct Past {
    id: Uuid,
    owner_id: Uuid,
    state: String,
    task: String,
    queue: String,
    priority: i16,
    attempt: i32,
    events: i64,
    batch_id: Option<Uuid>,
    ordinal: Option<i32>,
    is_finalize: bool,
    traceparent: Option<String>,
    unique_key: Option<String>,
    is_unique_for_all: bool,
    unique_hold: Option<String>,
}

/// Queues one job again. A batch that was over is opened: with a job of its own it runs, and will finalize again; with its
/// finalize it finalizes.
pub(super) async fn job(ground: &Ground, id: Uuid, act: Act) -> Result<(), Fail> {
    let now = ground.clock.now();
    let _told = span::transaction("jobs.retry");
    let mut transaction = ground.pool.begin().await?;
    let Some(past) = sqlx::query_as!(
        Past,
        "select id, owner_id, state, task, queue, priority, attempt, events, batch_id, ordinal, is_finalize, traceparent,
           unique_key, is_unique_for_all, unique_hold
         from jobs.job_history
         where id = $1
         for update",
        id,
    )
    .fetch_optional(&mut *transaction)
    .await?
    else {
        return Err(Fail::conflict("jobs.not_final", "It has not ended yet."));
    };
    let was: State = past.state.parse()?;
    if !was.may_become(State::Queued) {
        return Err(Fail::conflict("jobs.already_succeeded", "It has succeeded; there is nothing to retry."));
    }
    if let Some(refusal) = dependencies::refusal(&mut transaction, id).await? {
        return Err(refusal);
    }
    let waiting = dependencies::ask_again(&mut transaction, &[id]).await?;
    let is = if waiting.is_empty() { State::Queued } else { State::Waiting };
    let mut telling = Telling::default();
    if let Some(batch) = past.batch_id {
        open_for(&mut transaction, batch, &past, was, &mut telling).await?;
    }
    if let (Some(key), Some(hold)) = (&past.unique_key, &past.unique_hold) {
        let own = Holding::new(id, past.owner_id, past.is_unique_for_all, &past.task, key);
        unique::take_again(&mut transaction, own, hold, now).await?;
    }
    let word = queue_again(&mut transaction, &[past], &waiting, now, &mut telling).await?;
    outbox::write(&mut transaction, SCHEMA, &word, &ground.clock, None).await?;
    let act = act.before("state", was.as_str()).after("state", is.as_str());
    ground.audit.record(&mut transaction, act).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    ground.after(&Aftermath { streams, has_work: true, has_dependents: !waiting.is_empty(), ..Aftermath::default() });
    Ok(())
}

/// Counts an ended job of a batch as live again.
async fn open_for(
    conn: &mut PgConnection,
    batch: Uuid,
    job: &Past,
    was: State,
    telling: &mut Telling,
) -> Result<(), Fail> {
    let Some(mut row) = batch_row::lock(conn, &[batch]).await?.pop() else {
        return Err(Fail::internal(format!("the batch {batch} of the job {} is not there", job.id)));
    };
    if row.state == "finalizing" {
        return Err(finalizing());
    }
    if job.is_finalize {
        if !row.is_over() || row.finalize_job_id != Some(job.id) {
            return Err(Fail::conflict(
                "jobs.finalize_superseded",
                "Its batch was opened again since, and will be finalized anew.",
            ));
        }
        row.open_again();
        "finalizing".clone_into(&mut row.state);
        row.finalize_job_id = Some(job.id);
        finalizes::go_on(conn, batch, job.id).await?;
    } else {
        row.uncount(was);
        row.open_again();
    }
    telling.batch(batch, row.to_event());
    batch_row::write(conn, &[row]).await
}

/// Asks that the jobs of a batch which ended in one of `states` are queued again, and begins with it. `act` is written down
/// with it, unless there are none.
pub(super) async fn batch(ground: &Ground, id: Uuid, states: &[State], act: Act) -> Result<(), Fail> {
    let now = ground.clock.now();
    let _told = span::transaction("jobs.retry_batch");
    let mut transaction = ground.pool.begin().await?;
    let Some(mut row) = batch_row::lock(&mut transaction, &[id]).await?.pop() else {
        return Err(Fail::internal(format!("the batch {id} is not there")));
    };
    if row.state == "finalizing" {
        return Err(finalizing());
    }
    if row.cancel_asked_at.is_some() && !row.is_over() {
        return Err(Fail::conflict("jobs.batch_cancelling", "It is being cancelled; retry it when that is over."));
    }
    let words: BTreeSet<String> = states.iter().map(|state| state.as_str().to_owned()).collect();
    let are_there = sqlx::query_scalar!(
        r#"select exists (
             select from jobs.job_history
             where batch_id = $1 and ordinal is not null and state = any($2)
           ) as "are_there!""#,
        id,
        &words.iter().cloned().collect::<Vec<_>>(),
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !are_there {
        // Of one that is still at work it may have been asked before, and is done.
        return if row.is_over() { Err(nothing()) } else { Ok(()) };
    }
    let was = word_of(&row.state);
    row.open_again();
    // Asked while an earlier asking is not done: both are kept, and every job has a turn once more.
    let all: BTreeSet<String> = words.into_iter().chain(row.retry_states.take().into_iter().flatten()).collect();
    row.retry_states = Some(all.into_iter().collect());
    row.retry_after = Some(-1);
    let act = act.before("state", was).after("state", word_of(&row.state));
    let act = act.after("retried", states.iter().map(|state| state.as_str()).collect::<Vec<_>>());
    ground.audit.record(&mut transaction, act).await?;
    let mut telling = Telling::default();
    telling.batch(id, row.to_event());
    batch_row::write(&mut transaction, &[row]).await?;
    let streams = telling.append(&mut transaction, now).await?;
    transaction.commit().await?;
    // The leader goes on with it, also where this replica dies here.
    ground.after(&Aftermath { streams, has_cancels: true, ..Aftermath::default() });
    crash_point("batch-retry-asked");
    // The first bite at once, so that the answer shows a small batch as it will be. The leader takes the others.
    let transaction = ground.pool.begin().await?;
    bite(ground, transaction, id).await.map(drop)
}

/// Takes a bite of every batch of which jobs are still to be queued again. Whether there may be more.
pub(super) async fn carry_on(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let batches =
        sqlx::query_scalar!("select id from jobs.batch where retry_states is not null order by id limit 1000")
            .fetch_all(&ground.pool)
            .await?;
    let mut is_more = false;
    for batch in batches {
        let transaction = lead.begin(&ground.pool).await?;
        is_more |= bite(ground, transaction, batch).await?;
    }
    Ok(is_more)
}

/// Queues some of a batch's jobs again; whether there may be more.
async fn bite(ground: &Ground, mut transaction: Transaction<'static, Postgres>, batch: Uuid) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let Some(asked) = sqlx::query!(
        r#"select retry_states as "states!", retry_after as "after!"
           from jobs.batch
           where id = $1 and retry_states is not null"#,
        batch,
    )
    .fetch_optional(&mut *transaction)
    .await?
    else {
        return Ok(false);
    };
    let found = sqlx::query_as!(
        Past,
        "select id, owner_id, state, task, queue, priority, attempt, events, batch_id, ordinal, is_finalize, traceparent,
           unique_key, is_unique_for_all, unique_hold
         from jobs.job_history
         where batch_id = $1 and ordinal > $2 and state = any($3)
         order by ordinal
         limit $4
         for update",
        batch,
        asked.after,
        &asked.states,
        BITE,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let ids: Vec<Uuid> = found.iter().map(|past| past.id).collect();
    let waiting = dependencies::ask_again(&mut transaction, &ids).await?;
    // The last bite may find the batch complete, and so end its parent, which comes before the batch; and after dependencies,
    // which the leader holds while it locks what waits and the parents of that.
    steps::lock_parent(&mut transaction, batch).await?;
    let Some(mut row) = batch_row::lock(&mut transaction, &[batch]).await?.pop() else { return Ok(false) };
    if row.retry_states.as_ref() != Some(&asked.states) || row.retry_after != Some(asked.after) {
        // Somebody else has taken this bite, or asked for more, or a cancel came before it.
        return Ok(row.retry_states.is_some());
    }
    for past in &found {
        row.uncount(past.state.parse()?);
    }
    let is_more = found.len() as u64 == BITE.unsigned_abs();
    row.retry_after = found.last().and_then(|past| past.ordinal).filter(|_| is_more);
    row.retry_states.take_if(|_| !is_more);
    let mut telling = Telling::default();
    telling.batch(batch, row.to_event());
    batch_row::write(&mut transaction, &[row]).await?;
    let word = queue_again(&mut transaction, &found, &waiting, now, &mut telling).await?;
    outbox::write(&mut transaction, SCHEMA, &word, &ground.clock, None).await?;
    // It may be complete now: what the earlier bites have queued again may have ended.
    let changes = BTreeMap::from([(batch, BatchChange::default())]);
    let mut aftermath = steps::carry_out(ground, &mut transaction, Vec::new(), changes, telling, now).await?;
    aftermath.has_work |= !found.is_empty();
    // The last bite lets go of what waited for it, too.
    aftermath.has_dependents = true;
    transaction.commit().await?;
    ground.after(&aftermath);
    crash_point("batch-retry-bite");
    Ok(is_more)
}

/// Moves jobs from the history back into their queues, under their ids; `waiting` ones wait for others first. Their attempts
/// are counted on, and each is granted `max_attempts` and all its time anew. Gives what is to be told of them outside.
async fn queue_again(
    conn: &mut PgConnection,
    jobs: &[Past],
    waiting: &[Uuid],
    now: DateTime<Utc>,
    telling: &mut Telling,
) -> Result<Vec<outbox::Event>, Fail> {
    let ids: Vec<Uuid> = jobs.iter().map(|past| past.id).collect();
    let state = |past: &Past| if waiting.contains(&past.id) { State::Waiting } else { State::Queued };
    let states: Vec<_> = jobs.iter().map(|past| state(past).as_str().to_owned()).collect();
    let ranks: Vec<_> = jobs.iter().map(|past| rank(now, u8::try_from(past.priority).unwrap_or_default())).collect();
    sqlx::query!(
        "insert into jobs.job (id, owner_id, task, queue, state, priority, run_at, rank, attempt, attempts_until,
           max_attempts, attempt_timeout_s, backoff, token, started_at, batch_id, ordinal, is_finalize, events, request_id,
           traceparent, tags, args, since, created_at, queue_timeout_s, queue_until, deadline_s, deadline_at, retry_on,
           concurrency_key, lane, unique_key, is_unique_for_all, unique_hold)
         select past.id, owner_id, past.task, past.queue, again.state, priority, $2, again.rank, attempt, attempt + max_attempts,
           max_attempts, attempt_timeout_s, backoff, 0, started_at, batch_id, ordinal, is_finalize, events + 1, request_id,
           traceparent, tags, args, $2, created_at, queue_timeout_s,
           case when again.state = 'queued' then $2::timestamptz + make_interval(secs => queue_timeout_s) end, deadline_s,
           case when again.state = 'queued' then $2::timestamptz + make_interval(secs => deadline_s) end, retry_on, concurrency_key,
           jobs.lane(past.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed), unique_key,
           is_unique_for_all, unique_hold
         from jobs.job_history as past
         join unnest($1::uuid[], $3::timestamptz[], $4::text[]) as again (id, rank, state) on again.id = past.id
         left join jobs.queue on queue.name = past.queue
         left join jobs.task on task.name = past.task",
        &ids,
        now,
        &ranks,
        &states,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "update jobs.queue
         set has_lanes = true
         where not has_lanes and name in (select queue from jobs.job where id = any($1) and lane is not null)",
        &ids,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!("delete from jobs.job_history where id = any($1)", &ids).execute(conn).await?;
    let mut word = Vec::with_capacity(jobs.len());
    for past in jobs {
        telling.state(past.id, past.events + 1, past.batch_id, state(past), past.attempt);
        let changed = proto::events::JobChanged {
            job_id: past.id.to_string(),
            owner_id: past.owner_id.to_string(),
            task: past.task.clone(),
            queue: past.queue.clone(),
            state: state(past).as_str().to_owned(),
            attempt: past.attempt.unsigned_abs(),
            batch_id: past.batch_id.map(|id| id.to_string()).unwrap_or_default(),
            error_kind: String::new(),
        };
        let event = outbox::Event::new("jobs.job.retried", past.id, &changed);
        word.push(event.with_traceparent(past.traceparent.clone()));
    }
    Ok(word)
}

/// A batch's state as an audit entry holds it.
fn word_of(state: &str) -> &'static str {
    BatchRow::STATES.into_iter().find(|word| *word == state).unwrap_or("unknown")
}

fn finalizing() -> Fail {
    Fail::conflict("jobs.batch_finalizing", "Its batch is being finalized; retry it after that.")
}

fn nothing() -> Fail {
    Fail::conflict("jobs.nothing_to_retry", "None of its jobs ended in such a state.")
}
