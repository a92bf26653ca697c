//! The relay: rows of the outbox onto the bus, by the group. For each schema one process leads, and holds a session lock
//! of Postgres on a connection of its own, over which it also reads and marks: a leader whose connection is gone can
//! neither mark nor read any more, and stops.
//!
//! **Order per subject.** A group is read from the first row that is not marked. The bus sends a subject's event when the
//! one before it is confirmed, and a row is marked when each event in it is confirmed. So of an event that is sent, every
//! earlier one of its subject was confirmed before: it stands in a row that is marked, or in this group in front of it, or
//! in the group before this, of which all was confirmed when this one was begun. An event that is in a queue has all earlier
//! ones of its subject in front of it.
//!
//! A row of which something was not confirmed stays unmarked and is read and sent again as a whole, and others behind it may
//! be marked by then. What of it had arrived arrives a second time, perhaps behind later events of its subject, and is known
//! by its id; what had not is a first arrival still, and so is whatever follows it. Two leaders at a time, the old one with
//! words still on the wire, keep all that: what holds of each event that one of them sends holds of the first that arrives.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    bell,
    bundle::COLUMNS,
    group::{self, Group},
    lag,
};
use crate::{
    Clock, Fail,
    bus::{Bus, Publisher},
    crash_point,
    db::Schema,
    tasks::Tasks,
};

/// Events that are read, published and marked together, and as many more as the last row has.
const GROUP_EVENTS_MAX: u16 = 1024;
/// Of the leader's session. A mark that a crash of Postgres takes back has its events sent again, which is what a mark that
/// came too late does, so it need not wait for the disk. And its few statements are planned once, in the only way that is
/// good whatever the outbox holds: by the indexes.
const LEADS_BY: &str = "set synchronous_commit = off; set plan_cache_mode = force_generic_plan; \
                        set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off; set jit = off";
/// Between looks at an idle outbox, which come soon after something was there, and then later and later.
const LOOK_FIRST: Duration = Duration::from_millis(2);
/// From the ring of a write in this process to the look. It rings before its transaction commits; and while an engine writes
/// hundreds of times a second, each look finds several of them, which are sent and marked as one.
const GATHER: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(250);
/// Between tries to lead. Not a lock that is waited for: a waiting statement is a snapshot, which keeps Postgres from
/// clearing away dead rows everywhere.
const LEAD_AGAIN: Duration = Duration::from_secs(1);
/// How often a leader whose publishing takes long asks whether it still is one.
const STILL_LEADS_EVERY: Duration = Duration::from_secs(1);
/// How long Postgres may take for what costs it milliseconds. A connection whose other end has vanished answers never, and
/// says so after many minutes at best: by then another may lead, and this one would be missing for as long.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to mark: that waits for whoever asks to send again and has begun to.
const MARK_WITHIN: Duration = Duration::from_secs(90);
/// Between tries to publish, while the bus is away. Publishing itself waits for the bus, too.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long a process that stops waits for the group that it is publishing.
const LAST_GROUP_WITHIN: Duration = Duration::from_secs(2);
const WHOLE_LOOK_EVERY: Duration = Duration::from_secs(10);
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// Publishes what is written to the outbox of `schema`, for as long as the process runs. Every replica of a service
/// starts it, and one of them leads; each takes one connection out of `pool` for good.
pub fn start_relay(pool: &PgPool, schema: Schema, bus: &Bus, clock: &Clock, tasks: &Tasks) {
    let stopping = tasks.stopping();
    let relay = Relay { pool: pool.clone(), schema, bus: bus.clone(), clock: clock.clone(), stopping };
    let measured = relay.clone();
    tasks.spawn_restarting("outbox.relay", move || relay.clone().run());
    tasks.spawn_restarting("outbox.lag", move || measured.clone().measure());
}

#[derive(Debug, Clone)]
struct Relay {
    pool: PgPool,
    schema: Schema,
    bus: Bus,
    clock: Clock,
    stopping: CancellationToken,
}

impl Relay {
    /// Waits to lead and leads, until the process stops.
    ///
    /// # Errors
    /// As the database; then another may lead already.
    async fn run(self) -> Result<(), Fail> {
        let mut connection = self.pool.acquire().await?.detach();
        loop {
            let lead = sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended($1, 0))")
                .bind(format!("guildhall.outbox.{}", self.schema.name()))
                .fetch_one(&mut connection);
            let leads: bool = within(ANSWER_WITHIN, lead).await?;
            if leads {
                within(ANSWER_WITHIN, connection.execute(LEADS_BY)).await?;
                info!(service = self.schema.name(), "this process publishes the service's events");
                return Box::pin(Leader::new(&self, connection).lead()).await;
            }
            tokio::select! {
                () = self.stopping.cancelled() => return Ok(()),
                () = tokio::time::sleep(LEAD_AGAIN) => {}
            }
        }
    }

    async fn measure(self) -> Result<(), Fail> {
        let gauge = metrics::gauge!("guildhall_outbox_lag_seconds", "service" => self.schema.name());
        loop {
            let lag = lag(&self.pool, self.schema, self.clock.now());
            gauge.set(within(ANSWER_WITHIN, lag).await?.seconds);
            tokio::select! {
                () = self.stopping.cancelled() => return Ok(()),
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
        }
    }
}

/// What came of a group.
#[derive(Debug, Default)]
struct Passed {
    next: Group,
    /// More is there. Otherwise what was written meanwhile has rung, or is found by the next look.
    is_more: bool,
    fail: Option<Fail>,
}

struct Leader<'a> {
    rows: Rows<'a>,
    publisher: Publisher,
}

impl<'a> Leader<'a> {
    fn new(relay: &'a Relay, connection: PgConnection) -> Self {
        Self {
            rows: Rows { relay, connection, look: Look::new(0), untaken: Vec::new() },
            publisher: relay.bus.publisher(),
        }
    }

    async fn lead(mut self) -> Result<(), Fail> {
        let relay = self.rows.relay;
        let bell = bell(relay.schema);
        let (mut quiet, mut retry) = (LOOK_FIRST, RETRY_FIRST);
        let mut group = Group::default();
        let mut is_more = true;
        while !relay.stopping.is_cancelled() {
            if is_more && group.seqs.is_empty() {
                group = self.rows.read(&[]).await?;
            }
            if group.seqs.is_empty() {
                is_more = true;
                tokio::select! {
                    () = relay.stopping.cancelled() => {}
                    () = tokio::time::sleep(quiet) => quiet = (quiet * 2).min(LOOK_MAX),
                    () = bell.notified() => {
                        quiet = LOOK_FIRST;
                        tokio::time::sleep(GATHER).await;
                    }
                }
                continue;
            }
            quiet = LOOK_FIRST;
            let passed = Box::pin(self.pass_on(&group)).await?;
            is_more = passed.is_more;
            group = passed.next;
            let Some(fail) = passed.fail else {
                retry = RETRY_FIRST;
                continue;
            };
            warn!(service = relay.schema.name(), error = %fail, "events wait in the outbox");
            tokio::select! {
                () = relay.stopping.cancelled() => {}
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY_MAX),
            }
        }
        Ok(())
    }

    /// Publishes a group and marks what was confirmed. Behind one that is as large as they come the next is read meanwhile; it
    /// is empty when it would not follow: when something of this one has to be sent again first.
    async fn pass_on(&mut self, group: &Group) -> Result<Passed, Fail> {
        crash_point("relay-before-publish");
        let Self { rows, publisher } = self;
        let is_full = group.events() >= GROUP_EVENTS_MAX.into();
        let (done, stopping) = (CancellationToken::new(), rows.relay.stopping.clone());
        let publish = async {
            let published = publisher.publish(&group.messages).await;
            done.cancel();
            Ok::<_, Fail>(published)
        };
        let stopped = async {
            stopping.cancelled().await;
            tokio::time::sleep(LAST_GROUP_WITHIN).await;
        };
        let (published, next) = tokio::select! {
            both = async { tokio::try_join!(publish, rows.read_beside(&group.seqs, is_full, &done)) } => both?,
            () = stopped => return Ok(Passed::default()),
        };
        crash_point("relay-published-not-marked");
        let confirmed = group.confirmed(&published.confirmed);
        let is_marked = confirmed.is_empty() || rows.mark(&confirmed, group.generation).await?;
        if is_marked {
            group.count_untaken();
        }
        let follows = is_marked && confirmed.len() == group.seqs.len();
        Ok(Passed {
            next: if follows { next } else { Group::default() },
            is_more: is_full || !follows,
            fail: published.fail,
        })
    }
}

/// The rows of the outbox, over the leader's connection.
struct Rows<'a> {
    relay: &'a Relay,
    connection: PgConnection,
    look: Look,
    /// Types that nobody wants, as far as was seen.
    untaken: Vec<String>,
}

/// Where looks begin: behind what was marked long ago, so that they need not pass the dead entries of the index while
/// something else keeps Postgres from clearing those away. Once in [`WHOLE_LOOK_EVERY`] a look begins at the very first
/// row, for the sake of transactions that took as long to commit; and always when rows were asked for once more.
struct Look {
    generation: i64,
    /// Up to here nothing was unpublished at the last whole look but one.
    floor: i64,
    /// Up to here nothing was at the last one.
    floor_next: i64,
    /// The last row that was marked.
    marked: i64,
    whole_at: Instant,
}

impl Look {
    fn new(generation: i64) -> Self {
        Self { generation, floor: 0, floor_next: 0, marked: 0, whole_at: Instant::now() }
    }
}

impl Rows<'_> {
    /// Reads what follows the rows in hand, if that is asked for, and then watches whether this process still leads, until
    /// `done`.
    async fn read_beside(&mut self, in_hand: &[i64], reads: bool, done: &CancellationToken) -> Result<Group, Fail> {
        let next = if reads { self.read(in_hand).await? } else { Group::default() };
        loop {
            tokio::select! {
                () = done.cancelled() => return Ok(next),
                () = tokio::time::sleep(STILL_LEADS_EVERY) => {}
            }
            // The lock lives as long as the connection.
            within(ANSWER_WITHIN, sqlx::query("select").execute(&mut self.connection)).await?;
        }
    }

    /// The first rows that are not published, but for those in hand.
    async fn read(&mut self, in_hand: &[i64]) -> Result<Group, Fail> {
        let is_whole = self.look.whole_at.elapsed() >= WHOLE_LOOK_EVERY;
        if is_whole {
            self.look.floor = self.look.floor_next;
        }
        let (table, bus) = (self.relay.schema.name(), &self.relay.bus);
        // What nobody wanted at the last look and nobody wants now need not be fetched.
        self.untaken.retain(|kind| group::is_untaken(kind, bus));
        let read = sqlx::query(AssertSqlSafe(format!(
            "select replay.generation, events, seq, id, type, subject, traceparent, at,
               case when type <> all ($5) then data end as data
             from (
               select {COLUMNS}, events, sum(events) over (order by seq) - events as before
               from (
                 select {COLUMNS}, events
                 from {table}.outbox
                 where published_at is null
                   and seq > (select case when generation = $1 then $2 else 0 end from {table}.outbox_replay)
                   and seq <> all ($3)
                 order by seq
                 limit $4
               ) as waiting
             ) as first
             cross join {table}.outbox_replay as replay
             where before < $4
             order by seq"
        )))
        .bind(self.look.generation)
        .bind(if is_whole { 0 } else { self.look.floor })
        .bind(in_hand)
        .bind(i64::from(GROUP_EVENTS_MAX))
        .bind(&self.untaken)
        .fetch_all(&mut self.connection);
        let found = within(ANSWER_WITHIN, read).await?;
        let mut group = Group::default();
        for row in found {
            group.add(&row, table, bus, &mut self.untaken)?;
        }
        if !group.seqs.is_empty() && group.generation != self.look.generation {
            self.look = Look::new(group.generation);
        } else if is_whole {
            let first = in_hand.iter().chain(&group.seqs).min();
            self.look.floor_next = first.map_or(self.look.marked, |seq| seq - 1);
            self.look.whole_at = Instant::now();
        }
        Ok(group)
    }

    /// Marks rows as published; false when they were asked for once more since they were read, and none was marked.
    async fn mark(&mut self, seqs: &[i64], generation: i64) -> Result<bool, Fail> {
        let table = self.relay.schema.name();
        // Who asks to send again takes the same row, for itself: either it sees these marks and takes them back, or they
        // are not made.
        let mark = sqlx::query(AssertSqlSafe(format!(
            "with same as (select generation from {table}.outbox_replay where generation = $2 for share)
             update {table}.outbox
             set published_at = $3
             where seq = any ($1) and exists (select from same)"
        )))
        .bind(seqs)
        .bind(generation)
        .bind(self.relay.clock.now())
        .execute(&mut self.connection);
        let done = within(MARK_WITHIN, mark).await?;
        let is_marked = done.rows_affected() > 0;
        if is_marked {
            self.look.marked = seqs.iter().copied().fold(self.look.marked, i64::max);
        }
        Ok(is_marked)
    }
}

/// What Postgres answers within `time`. A connection that was not waited for is good for nothing any more.
async fn within<T, E>(time: Duration, answer: impl Future<Output = Result<T, E>>) -> Result<T, Fail>
where
    Fail: From<E>,
{
    let answer = tokio::time::timeout(time, answer).await;
    Ok(answer.map_err(|_| Fail::unavailable("database_unavailable", "The database does not answer."))??)
}
