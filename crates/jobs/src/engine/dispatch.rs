//! Handing work out: each connected worker has a seat with its free slots; jobs are claimed for a seat in one short
//! statement, in groups, and assigned only once the claim is durable.

use std::{
    collections::{HashMap, HashSet},
    iter::Peekable,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use kit::{Fail, crash_point, outbox, tasks::Tasks, telemetry::span::Shared};
use proto::worker::{Assign, Assignment, AttemptRef, ToWorker, to_worker};
use sqlx::PgConnection;
use std::sync::Mutex as SyncMutex;
use tokio::sync::{Mutex, mpsc};
use tonic::Status;
use uuid::Uuid;

use super::{
    Ground, admission,
    events::{self, Telling},
    finish::{End, Outcome},
    group::{self, Group},
    states::State,
    steps::Aftermath,
    straight,
    unique::{self, Holding},
};
use crate::{SCHEMA, submissions::ARGS_BYTES_MAX};

/// Without a wake-up, look this often: another replica may have taken jobs in, and its word been lost.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a claim may take, which is one of milliseconds: while it is under way no heartbeat of its worker is heard. A
/// Postgres that has vanished without closing anything never answers.
const CLAIM_WITHIN: Duration = Duration::from_secs(30);
/// Jobs that one claim takes at most.
const CLAIM_MAX: u32 = 500;
/// Bytes of arguments in one message to a worker: with what surrounds them, below the 4 MiB that gRPC takes in unless a
/// client asks for more. A message that a worker cannot read would cost it its stream, and all its attempts with that.
const ASSIGN_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A connected worker's place: what it offers, how many slots are free, and the way to it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) worker: Uuid,
    /// Which of the worker's streams this is, one after another: only the last counts.
    pub(crate) stream: Uuid,
    /// Empty: every queue.
    pub(crate) queues: Vec<String>,
    pub(crate) tasks: Vec<String>,
    free: AtomicU32,
    is_draining: AtomicBool,
    out: mpsc::Sender<Result<ToWorker, Status>>,
    /// What was assigned over this stream. Held from a claim to its assignment, so that whoever compares the database
    /// with what the worker holds never sees an attempt in between.
    pub(crate) assigned: Mutex<Assigned>,
    /// Attempts of this stream whose ends concern others than their jobs, as was known when they were claimed.
    entangled: SyncMutex<HashSet<(Uuid, i64)>>,
}

/// Assignments of one stream, in the order in which they were sent.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    count: u64,
    /// The place of each attempt among the assignments, counted from 1.
    places: HashMap<(Uuid, i64), u64>,
}

impl Assigned {
    /// Whether the attempt was sent over this stream.
    pub(crate) fn was_sent(&self, attempt: (Uuid, i64)) -> bool {
        self.places.contains_key(&attempt)
    }

    /// Whether the attempt was sent and is not among the first `read` assignments.
    pub(crate) fn is_on_its_way(&self, attempt: (Uuid, i64), read: u64) -> bool {
        self.places.get(&attempt).is_some_and(|place| *place > read)
    }

    /// Forgets what has ended.
    pub(crate) fn forget(&mut self, is_held: impl Fn(&(Uuid, i64)) -> bool) {
        self.places.retain(|attempt, _| is_held(attempt));
    }
}

impl Seat {
    pub(crate) fn new(
        worker: Uuid,
        stream: Uuid,
        queues: Vec<String>,
        tasks: Vec<String>,
        out: mpsc::Sender<Result<ToWorker, Status>>,
    ) -> Self {
        Self {
            worker,
            stream,
            queues,
            tasks,
            free: AtomicU32::new(0),
            is_draining: AtomicBool::new(false),
            out,
            assigned: Mutex::default(),
            entangled: SyncMutex::default(),
        }
    }

    /// Whether the end of this attempt concerns others than its job, as far as is known; forgets it.
    pub(crate) fn ends_entangled(&self, attempt: (Uuid, i64)) -> bool {
        self.entangled().remove(&attempt)
    }

    /// Forgets what has ended without a word over this stream.
    pub(crate) fn forget_entangled(&self, is_held: impl Fn(&(Uuid, i64)) -> bool) {
        self.entangled().retain(is_held);
    }

    fn entangled(&self) -> std::sync::MutexGuard<'_, HashSet<(Uuid, i64)>> {
        // The set is never left half changed.
        self.entangled.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The worker has `slots` more free slots.
    pub(crate) fn credit(&self, slots: u32) {
        // A worker has at most 1,000 slots (`workers.rs` refuses more); the bound keeps a broken one from wrapping.
        let _previous = self
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| Some(free.saturating_add(slots).min(1_000)));
    }

    /// Takes no more work, whatever slots become free.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Sends to the worker, waiting for room. A worker that is gone hears nothing and is noticed by its lease.
    pub(crate) async fn send(&self, message: to_worker::Message) {
        let _gone = self.out.send(Ok(ToWorker { message: Some(message) })).await;
    }

    /// Sends to the worker if there is room.
    pub(super) fn try_send(&self, message: to_worker::Message) {
        let _full = self.out.try_send(Ok(ToWorker { message: Some(message) }));
    }

    /// Ends the stream with an error that the worker sees.
    pub(crate) async fn fail(&self, fail: Fail) {
        let _gone = self.out.send(Err(fail.into())).await;
    }

    /// Whether the worker's stream is still there.
    pub(crate) fn is_connected(&self) -> bool {
        !self.out.is_closed()
    }
}

/// The seats of this replica, by worker.
#[derive(Debug, Default)]
pub(super) struct Seats(SyncMutex<HashMap<Uuid, Arc<Seat>>>);

impl Seats {
    pub(super) fn take(&self, seat: &Arc<Seat>) {
        self.lock().insert(seat.worker, Arc::clone(seat));
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        let mut seats = self.lock();
        if seats.get(&seat.worker).is_some_and(|taken| Arc::ptr_eq(taken, seat)) {
            seats.remove(&seat.worker);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Seat>> {
        self.lock().values().filter(|seat| seat.is_connected()).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<Seat>>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Starts the loop that hands work out to this replica's seats.
pub(super) fn start(ground: &Arc<Ground>, finisher: &Group<Outcome, bool>, tasks: &Tasks) {
    let (ground, finisher, stopping) = (Arc::clone(ground), finisher.clone(), tasks.stopping());
    tasks.spawn_restarting("jobs.dispatch", move || {
        let (ground, finisher, stopping) = (Arc::clone(&ground), finisher.clone(), stopping.clone());
        async move {
            while !stopping.is_cancelled() {
                let mut next_look = LOOK_EVERY;
                ground.kept.let_go();
                for seat in ground.seats.all() {
                    next_look = next_look.min(serve(&ground, &finisher, &seat).await?);
                }
                if !next_look.is_zero() {
                    tokio::select! {
                        () = ground.work.notified() => {}
                        () = tokio::time::sleep(next_look) => {}
                        () = stopping.cancelled() => {}
                    }
                }
            }
            Ok(())
        }
    });
}

/// Claims for one seat and assigns; in what time it is worth a look again, which is none where more may be there.
async fn serve(ground: &Ground, finisher: &Group<Outcome, bool>, seat: &Seat) -> Result<Duration, Fail> {
    let free = seat.free.load(Ordering::Acquire).min(CLAIM_MAX);
    if free == 0 || seat.is_draining.load(Ordering::Acquire) {
        return Ok(LOOK_EVERY);
    }
    // A worker that does not read is given nothing: what it cannot be told it must not hold.
    let Ok(rooms) = seat.out.try_reserve_many(messages_max(free)) else { return Ok(LOOK_EVERY) };
    let mut assigned = seat.assigned.lock().await;
    let claim = tokio::time::timeout(CLAIM_WITHIN, claim(ground, seat, free));
    let Claimed { jobs: claims, next_look } = claim.await.map_err(|_| group::not_now())??;
    let count = u32::try_from(claims.len()).unwrap_or(free);
    if count == 0 {
        return Ok(next_look);
    }
    let _previous =
        seat.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| Some(left.saturating_sub(count)));
    crash_point("claimed-not-assigned");
    let attempts: Vec<(Uuid, i64)> = claims.iter().map(|claim| (claim.id, claim.token)).collect();
    if seat.out.is_closed() {
        // The stream broke after the claim: the worker never saw these, so they go back unharmed.
        drop(assigned);
        for (job, token) in attempts {
            finisher.write(Outcome { job, token, end: End::Interrupted }).await?;
        }
        return Ok(LOOK_EVERY);
    }
    for attempt in attempts {
        assigned.count += 1;
        let place = assigned.count;
        assigned.places.insert(attempt, place);
    }
    seat.entangled().extend(claims.iter().filter(|claim| claim.is_entangled()).map(|claim| (claim.id, claim.token)));
    let mut left = claims.into_iter().map(Claim::into_assignment).peekable();
    for room in rooms {
        let items = next_message(&mut left);
        if items.is_empty() {
            break;
        }
        room.send(Ok(ToWorker { message: Some(to_worker::Message::Assign(Assign { items })) }));
    }
    Ok(next_look)
}

/// Messages that `jobs` assignments take at most: each but the last is full but for less than the longest arguments.
fn messages_max(jobs: u32) -> usize {
    let bytes = jobs as usize * ARGS_BYTES_MAX;
    bytes.div_ceil(ASSIGN_BYTES_MAX - ARGS_BYTES_MAX).min(jobs as usize)
}

/// As many assignments as one message takes.
fn next_message(left: &mut Peekable<impl Iterator<Item = Assignment>>) -> Vec<Assignment> {
    let (mut items, mut bytes) = (Vec::new(), 0);
    // The first goes in any case, or it would never go.
    while let Some(item) = left.next_if(|item| bytes == 0 || bytes + item.args_json.len() <= ASSIGN_BYTES_MAX) {
        bytes += item.args_json.len();
        items.push(item);
    }
    items
}

/// What was claimed, and in what time it is worth a look again.
struct Claimed {
    jobs: Vec<Claim>,
    next_look: Duration,
}

#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: Uuid,
    owner_id: Uuid,
    pub(super) task: String,
    pub(super) queue: String,
    pub(super) lane: Option<String>,
    attempt: i32,
    token: i64,
    args: String,
    attempt_timeout_s: f64,
    batch_id: Option<Uuid>,
    ordinal: Option<i32>,
    is_finalize: bool,
    request_id: String,
    traceparent: Option<String>,
    run_at: DateTime<Utc>,
    rank: DateTime<Utc>,
    unique_key: Option<String>,
    is_unique_for_all: bool,
    unique_hold: Option<String>,
    /// Whether anything is limited, be it this job or not: the same for all of one claim.
    is_limited: bool,
}

impl Claim {
    /// The key that the job held until now.
    fn lets_go_of(&self) -> Option<Holding> {
        let key = self.unique_key.as_ref().filter(|_| unique::ends_at_start(self.unique_hold.as_deref()))?;
        Some(Holding::new(self.id, self.owner_id, self.is_unique_for_all, &self.task, key))
    }

    /// Whether its end concerns its batch, or a key.
    const fn is_entangled(&self) -> bool {
        self.batch_id.is_some() || self.unique_key.is_some()
    }

    fn into_assignment(self) -> Assignment {
        Assignment {
            attempt: Some(AttemptRef { job_id: self.id.to_string(), token: self.token.unsigned_abs() }),
            number: self.attempt.unsigned_abs(),
            task: self.task,
            queue: self.queue,
            args_json: self.args,
            owner_id: self.owner_id.to_string(),
            timeout_s: self.attempt_timeout_s,
            batch_id: self.batch_id.map(|id| id.to_string()).unwrap_or_default(),
            ordinal: self.ordinal.unwrap_or_default().unsigned_abs(),
            finalize: self.is_finalize,
            traceparent: self.traceparent.unwrap_or_default(),
            request_id: self.request_id,
        }
    }
}

/// Claims up to `free` jobs for a worker whose lease is not over and who is here by this stream: where something is
/// limited, those that admission has chosen.
async fn claim(ground: &Ground, seat: &Seat, free: u32) -> Result<Claimed, Fail> {
    let shared = Shared::begin();
    let mut admitted = None;
    let is_limited = ground.limits.is_limited();
    let mut held = ground.kept.take(&ground.pool).await?;
    let mut transaction = if is_limited {
        let mut transaction = straight::begin(&mut held.connection).await?;
        admission::alone(&mut transaction).await?;
        let now = ground.clock.now();
        admitted = Some(admission::admit(&mut transaction, &seat.tasks, &seat.queues, free, now).await?);
        transaction
    } else {
        admission::beside(&mut held.connection).await?
    };
    let now = ground.clock.now();
    let seen = ground.limits.seen();
    let chosen = admitted.as_ref().map(|admitted| admitted.jobs.as_slice());
    let mut claims = if chosen.is_some_and(<[Uuid]>::is_empty) {
        Vec::new()
    } else {
        start_jobs(&mut transaction, seat, chosen, free, now).await?
    };
    let is_full = claims.len() >= free as usize;
    // What is limited was left out by a claim that does not count, and one that counts may have no need to any more. A full one
    // looks, too: behind a long backlog none is anything else.
    match claims.first() {
        Some(claim) => ground.limits.learn(seen, claim.is_limited),
        None => ground.limits.look(&mut transaction).await?,
    }
    let token_in = admitted.as_ref().and_then(|admitted| admitted.token_in);
    let is_changed = ground.limits.is_limited() != is_limited;
    // Under limits, what was started may have left something that only waits for a token.
    let is_more = is_full || is_changed || (is_limited && !claims.is_empty());
    let next_look = if is_more { Duration::ZERO } else { token_in.map_or(LOOK_EVERY, |time| time.min(LOOK_EVERY)) };
    if claims.is_empty() {
        transaction.rollback().await?;
        return Ok(Claimed { jobs: claims, next_look });
    }
    if let Some(admitted) = admitted {
        admitted.settle(&mut transaction, &claims, now).await?;
    }
    // What an update returns has no order; what came at the same time goes in the order of its ids.
    claims.sort_by_key(|claim| (claim.rank, claim.id));
    let mut telling = Telling::default();
    let mut word = Vec::with_capacity(claims.len());
    let mut waits: HashMap<&str, metrics::Histogram> = HashMap::new();
    for claim in &claims {
        telling.by_row(claim.id, claim.batch_id, || events::state(claim.id, State::Running, claim.attempt, None));
        word.push(
            outbox::Event::new(
                "jobs.job.started",
                claim.id,
                &proto::events::JobChanged {
                    job_id: claim.id.to_string(),
                    owner_id: claim.owner_id.to_string(),
                    task: claim.task.clone(),
                    queue: claim.queue.clone(),
                    state: State::Running.as_str().to_owned(),
                    attempt: claim.attempt.unsigned_abs(),
                    batch_id: claim.batch_id.map(|id| id.to_string()).unwrap_or_default(),
                    error_kind: String::new(),
                },
            )
            .with_traceparent(claim.traceparent.clone()),
        );
        let waited = (now - claim.run_at).to_std().unwrap_or_default();
        let waits = waits
            .entry(&claim.queue)
            .or_insert_with(|| metrics::histogram!("guildhall_job_wait_seconds", "queue" => claim.queue.clone()));
        waits.record(waited.as_secs_f64());
    }
    outbox::write(&mut transaction, SCHEMA, &word, &ground.clock, None).await?;
    let streams = telling.append(&mut transaction, now).await?;
    let freed: Vec<Holding> = claims.iter().filter_map(Claim::lets_go_of).collect();
    unique::let_go(&mut transaction, &freed, now).await?;
    transaction.commit().await?;
    ground.kept.keep(held, &ground.pool);
    shared.end("jobs.claim", claims.iter().map(|claim| claim.traceparent.as_deref()));
    ground.after(&Aftermath { streams, ..Aftermath::default() });
    Ok(Claimed { jobs: claims, next_look })
}

/// Starts the chosen jobs; where nothing was chosen, of each queue without limits the first ones that no other replica holds
/// are locked, and the earliest of all are started: were they chosen first and locked then, two replicas that look at once
/// would choose the same, and one would find nothing though there is enough for both.
async fn start_jobs(
    conn: &mut PgConnection,
    seat: &Seat,
    chosen: Option<&[Uuid]>,
    free: u32,
    now: DateTime<Utc>,
) -> Result<Vec<Claim>, Fail> {
    let claims = sqlx::query_as!(
        Claim,
        r#"with first as (
           select next.place
           from jobs.queue
           cross join lateral (
             select ctid as place, rank
             from jobs.job
             where state = 'queued' and lane is null and job.queue = queue.name and task = any($1)
               -- What is over and not swept yet does not start.
               and (queue_until is null or queue_until > $5) and (deadline_at is null or deadline_at > $5)
             order by rank
             limit $3
             for update skip locked
           ) as next
           where $7::uuid[] is null and queue.paused_at is null and not queue.is_limited
             and (cardinality($2::text[]) = 0 or queue.name = any($2))
             and not exists (select from jobs.task where concurrency is not null and name = any($1))
           order by next.rank
           limit $3
         ), chosen as (
           select ctid as place
           from jobs.job
           where id = any($7) and state = 'queued'
             and not exists (select from jobs.queue where queue.name = job.queue and paused_at is not null)
           order by id
           for update skip locked
         )
         update jobs.job
         set state = 'running', attempt = attempt + 1, token = nextval('jobs.attempt_token'), worker_id = $4,
           attempt_started_at = $5, started_at = coalesce(started_at, $5), since = $5, progress_percent = null,
           progress_stage = null, progress_message = null, events = events + 1, started_event = events + 1
         -- By where they stand, which nobody changes who does not hold their locks. One that was changed just before it was
         -- locked stands where this statement does not see it, and waits for the next claim.
         from (select place from first union all select place from chosen) as candidate
         where job.ctid = candidate.place
           and exists (
             select from jobs.worker where worker.id = $4 and worker.stream = $6 and worker.expires_at >= $5
           )
         returning job.id, owner_id, task, queue, lane, attempt, token, args, attempt_timeout_s, batch_id, ordinal,
           is_finalize, request_id, traceparent, run_at, rank, unique_key, is_unique_for_all, unique_hold,
           exists (select from jobs.queue where is_limited)
             or exists (select from jobs.task where concurrency is not null) as "is_limited!""#,
        &seat.tasks,
        &seat.queues,
        i64::from(free),
        seat.worker,
        now,
        seat.stream,
        chosen as Option<&[Uuid]>,
    )
    .fetch_all(conn)
    .await?;
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_told_in_messages_that_a_worker_can_read() {
        for (jobs, args_bytes) in
            [(1, ARGS_BYTES_MAX), (CLAIM_MAX, ARGS_BYTES_MAX), (CLAIM_MAX, 400_000), (CLAIM_MAX, 2)]
        {
            let assignment = Assignment { args_json: "x".repeat(args_bytes), ..Assignment::default() };
            let mut left = vec![assignment; jobs as usize].into_iter().peekable();
            let messages: Vec<_> = (0..messages_max(jobs)).map(|_| next_message(&mut left)).collect();
            assert!(left.next().is_none(), "{jobs} jobs of {args_bytes} bytes are not all told");
            for items in messages {
                let bytes = prost::Message::encoded_len(&Assign { items });
                assert!(bytes < 4 * 1024 * 1024, "a message has {bytes} bytes");
            }
        }
    }
}
