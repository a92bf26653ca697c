//! The inbox: what a service hears from others, each event's effect once. A repeat is known by the event's id, which is
//! written in the transaction of the effect; so a crash at any point leaves both or neither. Each consuming service has
//! the tables in its schema:
//!
//! ```sql
//! create table inbox (
//!   consumer text not null, id uuid not null, at timestamptz not null, primary key (consumer, id)
//! );
//! create index inbox_at on inbox (at);
//! create table inbox_consumer (
//!   name text primary key, types text[] not null, losses bigint not null, caught_up bigint not null
//! );
//! create table inbox_source (
//!   consumer text not null, source text not null, generation bigint not null, kept_from timestamptz not null,
//!   primary key (consumer, source)
//! );
//! ```
//!
//! Events are handled one at a time and in order. A failure that passes holds the event and everything behind it; one
//! that does not parks the event with its reason, and the next one follows.
//!
//! **A queue that was lost** takes with it what producers had marked as sent. The inbox writes down that it has lost
//! something (`losses`) before the queue is made again, asks every producer to send again what it keeps, and only then
//! writes that it has caught up; a crash in between leaves the debt. A consumer that is new, or wants more types than
//! before, is in the same debt. So that order holds: a producer counts how often it was asked (its generation) and every
//! message says in which generation it was read from the outbox. What is older than the generation that answered us was
//! sent before the repeat began, comes again within it, and is let go here; but for what had lain in the queue until its
//! producer no longer kept it (`kept_from`), which is handled as it comes.

mod catch_up;
mod store;

use std::{collections::HashMap, fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::RwLock;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, warn};

use crate::{
    Clock, Fail, Kind,
    bus::{Bus, Consumer, Event},
    crash_point,
    db::Schema,
    tasks::Tasks,
    telemetry::{Ids, span},
};

pub use catch_up::Producer;

/// How long the id of a handled event is kept. No producer is asked for events that happened so long ago.
const KEPT: TimeDelta = TimeDelta::days(30);
/// What makes up for clocks that differ.
const KEPT_MARGIN: TimeDelta = TimeDelta::days(1);

/// How long one try may take. An effect is a transaction of milliseconds; one that is still not there waits for a lock that
/// somebody forgot, or for a Postgres that has vanished without closing anything, and holds up everything behind it.
const TRY_WITHIN: Duration = Duration::from_secs(30);
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A fault of our own may be one that passes (a table that another release brings) or a bug. After so many tries, some
/// forty seconds, it is taken for a bug and the event is parked.
const INTERNAL_TRIES_MAX: u32 = 11;

/// What an event does, in the transaction that also writes its id. What it must not do is anything that a rollback
/// leaves behind. An error that [`Fail::is_transient`] holds the event, any other parks it.
pub type Handle = Arc<dyn for<'a> Fn(&'a Event, &'a mut PgConnection) -> BoxFuture<'a, Result<(), Fail>> + Send + Sync>;

/// Whose inbox it is and where it lies.
#[derive(Debug)]
pub struct Setup {
    pub consumer: Consumer,
    /// Where the tables of this module are.
    pub schema: Schema,
    pub pool: PgPool,
    pub clock: Clock,
    /// Everyone who tells events of the consumer's types.
    pub producers: Vec<Producer>,
}

/// One consumer's inbox.
pub struct Inbox {
    setup: Setup,
    handle: Handle,
    /// For each source, what of it is let go.
    floors: RwLock<HashMap<String, Floor>>,
}

/// From where on a source is heard, since it began to send again.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// What was read in an earlier generation comes again,
    generation: i64,
    /// if it happened at this time or later.
    kept_from: DateTime<Utc>,
}

/// What became of an event.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Its effect is there, now or before.
    Done,
    /// It will not have one: park it, and say why.
    Never(String),
    /// The process stops. Nothing was decided.
    Stopped,
}

/// Why an event was not taken in one try.
#[derive(Debug)]
pub(crate) enum Refused {
    Later(Fail),
    Never(String),
}

impl Inbox {
    /// Takes the consumer's events from `bus` until the process stops.
    ///
    /// ```ignore
    /// Inbox::start(setup, &bus, &tasks, |event, transaction| Box::pin(on_event(event, transaction)));
    /// ```
    pub fn start<H>(setup: Setup, bus: &Bus, tasks: &Tasks, handle: H)
    where
        H: for<'a> Fn(&'a Event, &'a mut PgConnection) -> BoxFuture<'a, Result<(), Fail>> + Send + Sync + 'static,
    {
        let inbox = Arc::new(Self { setup, handle: Arc::new(handle), floors: RwLock::default() });
        let (keeper, stopping) = (Arc::clone(&inbox), tasks.stopping());
        tasks.spawn_restarting("inbox.prune", move || store::prune_on(Arc::clone(&keeper), stopping.clone()));
        bus.attach(inbox, tasks);
    }

    pub(crate) fn consumer(&self) -> Consumer {
        self.setup.consumer
    }

    /// Takes one event to its end: tries again, with growing waits, for as long as what hinders it may pass.
    pub(crate) async fn take(&self, body: &Bytes, generation: Option<i64>, stopping: &CancellationToken) -> Taken {
        let (mut wait, mut internal_tries) = (WAIT_FIRST, 0);
        loop {
            let fail = match self.take_once(body, generation).await {
                Ok(()) => return Taken::Done,
                Err(Refused::Never(reason)) => return Taken::Never(reason),
                Err(Refused::Later(fail)) => fail,
            };
            if fail.kind() == Kind::Internal {
                internal_tries += 1;
                if internal_tries == INTERNAL_TRIES_MAX {
                    error!(consumer = self.setup.consumer.name, error = %fail, "an event is given up and parked");
                    return Taken::Never(reason(&fail));
                }
            }
            warn!(consumer = self.setup.consumer.name, error = %fail, "an event waits for its consumer");
            tokio::select! {
                () = stopping.cancelled() => return Taken::Stopped,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(WAIT_MAX),
            }
        }
    }

    /// One try: the event's id and its effect in one transaction.
    pub(crate) async fn take_once(&self, body: &Bytes, generation: Option<i64>) -> Result<(), Refused> {
        let event = Event::from_bytes(body).map_err(|fail| Refused::Never(reason(&fail)))?;
        if !self.setup.consumer.wants(&event.kind) {
            return Err(Refused::Never("event.unwanted: This version of the consumer knows no such type.".to_owned()));
        }
        if self.comes_again(&event, generation) {
            return Ok(());
        }
        let span = span::process(&event.kind, event.id, self.setup.consumer.name, event.traceparent.as_deref());
        let ids = Ids { trace: span.trace_id().as_deref(), ..Ids::default() }.span();
        let one_try = tokio::time::timeout(TRY_WITHIN, self.carry_out(&event));
        let too_long = |_| Err(Refused::Later(Fail::unavailable("event.slow", "The event's effect takes too long.")));
        let taken = span.within(one_try.instrument(ids)).await.unwrap_or_else(too_long);
        if taken.is_err() {
            span.fail("refused");
        }
        taken
    }

    async fn carry_out(&self, event: &Event) -> Result<(), Refused> {
        let later = |error: sqlx::Error| Refused::Later(error.into());
        let mut transaction = self.setup.pool.begin().await.map_err(later)?;
        if !store::is_new(&mut transaction, &self.setup, event.id).await.map_err(Refused::Later)? {
            return Ok(());
        }
        // A panic is a bug like any other: it must not end what takes the events behind this one.
        let handled = AssertUnwindSafe((self.handle)(event, &mut transaction)).catch_unwind().await;
        match handled.unwrap_or_else(|_| Err(Fail::internal("the handler of an event panicked"))) {
            Ok(()) => {}
            Err(fail) if fail.is_transient() => return Err(Refused::Later(fail)),
            Err(fail) => {
                warn!(consumer = self.setup.consumer.name, event.id = %event.id, error = %fail, "an event is parked");
                return Err(Refused::Never(reason(&fail)));
            }
        }
        crash_point("inbox-before-commit");
        transaction.commit().await.map_err(later)
    }

    /// Whether the event was sent before its producer began to send again, for us: then it comes once more, behind those
    /// that must come first. What says no generation was handed to us alone.
    fn comes_again(&self, event: &Event, generation: Option<i64>) -> bool {
        let Some((generation, floor)) = generation.zip(self.floors.read().get(&event.source).copied()) else {
            return false;
        };
        generation < floor.generation && event.at >= floor.kept_from
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("consumer", &self.setup.consumer).finish_non_exhaustive()
    }
}

/// What may be shown of a fault beside the event: never its cause, which may quote what it stumbled on.
fn reason(fail: &Fail) -> String {
    format!("{}: {}", fail.code(), fail.message())
}
