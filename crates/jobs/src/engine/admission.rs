//! Admission: which queued jobs may start where something is limited. What runs is counted, tokens are taken and shares
//! are entered in the transaction that starts the jobs, and no two of these are under way at once on one database: so a
//! limit holds at every instant, and a limit of one is a lock.
//!
//! Where nothing is limited nothing is counted: claims go side by side, each under a shared lock, which whoever sets a
//! limit takes for itself. So a limit holds from the moment at which it was accepted.

mod bucket;
mod lanes;
mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use kit::Fail;
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use self::{
    bucket::{Bucket, Rate},
    plan::{Books, Lane, Limits, OF_QUEUE, Place, Share},
};
use super::{dispatch::Claim, straight};

pub(crate) use lanes::lane_running;
pub(super) use lanes::{Followed, follow, tidy};
pub(crate) use plan::Hindrance;

/// The lock: shared by claims that count nothing, held alone by those that count and by who changes a limit.
const LOCK: &str = "guildhall.jobs.admission";
/// Jobs that are looked at for one claim, over all lanes.
const JOBS_LOOKED_AT: usize = 20_000;

/// Whether anything is limited, as far as this replica knows: it decides only which lock a claim takes. The lowest bit says
/// it; the others count the limits that were set here, so that what was read before one does not undo it.
#[derive(Debug)]
pub(crate) struct Known(AtomicU64);

/// What was known at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen(u64);

impl Default for Known {
    /// Until it has looked, it counts.
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

impl Known {
    pub(super) fn is_limited(&self) -> bool {
        self.0.load(Ordering::Acquire) & 1 == 1
    }

    /// What is known now, for [`learn`](Self::learn).
    pub(super) fn seen(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }

    /// Takes in what a statement read that began after `seen`. Where a limit was set here meanwhile that stands.
    pub(super) fn learn(&self, Seen(before): Seen, is_limited: bool) {
        let known = before & !1 | u64::from(is_limited);
        let _newer = self.0.compare_exchange(before, known, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Looks again, where no job that was claimed has told.
    pub(super) async fn look(&self, conn: &mut PgConnection) -> Result<(), Fail> {
        let seen = self.seen();
        let is_limited = sqlx::query_scalar!(
            r#"select exists (select from jobs.queue where is_limited)
                 or exists (select from jobs.task where concurrency is not null) as "is_limited!""#,
        )
        .fetch_one(conn)
        .await?;
        self.learn(seen, is_limited);
        Ok(())
    }

    /// A limit was set here.
    pub(crate) fn limited(&self) {
        let _before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |known| Some(known.wrapping_add(2) | 1));
    }
}

/// Begins a transaction that claims beside others.
///
/// # Errors
/// As the database.
pub(super) async fn beside(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, Fail> {
    straight::begin_beside(conn, LOCK).await
}

/// Claims, or changes limits, alone, for the rest of the transaction.
///
/// # Errors
/// As the database.
pub(crate) async fn alone(conn: &mut PgConnection) -> Result<(), Fail> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", LOCK).fetch_one(conn).await?;
    Ok(())
}

/// What may start, and when the next token comes for what may not.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) jobs: Vec<Uuid>,
    pub(super) token_in: Option<Duration>,
    books: Books,
}

/// Chooses up to `free` jobs of these tasks and queues (none: every queue). The caller holds the lock alone.
pub(super) async fn admit(
    conn: &mut PgConnection,
    tasks: &[String],
    queues: &[String],
    free: u32,
    now: DateTime<Utc>,
) -> Result<Admitted, Fail> {
    let mut books = count(conn, queues, tasks).await?;
    let names: Vec<String> = books.queues.keys().cloned().collect();
    fill_own(conn, &mut books, now).await?;
    let mut places = lanes_of(conn, &open(&books, &names)).await?;
    fill(conn, &mut books, &places, now).await?;
    // Jobs without a lane. In a queue of keys each has one, or gets it within moments.
    places.extend(names.into_iter().map(|queue| Place { queue, lane: None }));
    let mut token_in: Option<f64> = None;
    let mut free_places = Vec::new();
    for place in places {
        match books.hindrance(&place) {
            None => free_places.push(place),
            Some(hindrance) => {
                let seconds = books.token_in(&place, hindrance);
                token_in = [token_in, seconds].into_iter().flatten().reduce(f64::min);
            }
        }
    }
    let lanes = jobs_of(conn, free_places, &books, tasks, free, now).await?;
    let jobs = plan::plan(&books, lanes, free as usize, now);
    let token_in = token_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Admitted { jobs, token_in, books })
}

impl Admitted {
    /// Writes down what the jobs that were started have taken of tokens and shares.
    pub(super) async fn settle(
        self,
        conn: &mut PgConnection,
        claims: &[Claim],
        now: DateTime<Utc>,
    ) -> Result<(), Fail> {
        let before = self.books;
        let mut books = before.clone();
        // In the order of the plan, by which the shares were given.
        let claims: HashMap<Uuid, &Claim> = claims.iter().map(|claim| (claim.id, claim)).collect();
        for claim in self.jobs.iter().filter_map(|job| claims.get(job)) {
            let place = Place { queue: claim.queue.clone(), lane: claim.lane.clone() };
            books.start(&place, &claim.task, now);
        }
        let buckets: Vec<_> =
            books.buckets.iter().filter(|(name, bucket)| before.buckets.get(*name) != Some(bucket)).collect();
        if !buckets.is_empty() {
            sqlx::query!(
                "insert into jobs.bucket (queue, key, tokens, at)
                 select queue, key, tokens, at
                 from unnest($1::text[], $2::text[], $3::float8[], $4::timestamptz[]) as taken (queue, key, tokens, at)
                 on conflict (queue, key) do update set tokens = excluded.tokens, at = excluded.at",
                &buckets.iter().map(|((queue, _), _)| queue.clone()).collect::<Vec<_>>(),
                &buckets.iter().map(|((_, key), _)| key.clone()).collect::<Vec<_>>(),
                &buckets.iter().map(|(_, bucket)| bucket.tokens).collect::<Vec<_>>(),
                &buckets.iter().map(|(_, bucket)| bucket.at).collect::<Vec<_>>(),
            )
            .execute(&mut *conn)
            .await?;
        }
        let is_same = |a: Option<&f64>, b: &f64| a.is_some_and(|a| a.to_bits() == b.to_bits());
        let shares: Vec<_> =
            books.shares.iter().filter(|(name, had)| !is_same(before.shares.get(*name), had)).collect();
        if !shares.is_empty() {
            sqlx::query!(
                "insert into jobs.share (queue, name, had, at)
                 select queue, name, had, $4
                 from unnest($1::text[], $2::text[], $3::float8[]) as had (queue, name, had)
                 on conflict (queue, name) do update set had = excluded.had, at = excluded.at",
                &shares.iter().map(|((queue, _), _)| queue.clone()).collect::<Vec<_>>(),
                &shares.iter().map(|((_, name), _)| name.clone()).collect::<Vec<_>>(),
                &shares.iter().map(|(_, had)| **had).collect::<Vec<_>>(),
                now,
            )
            .execute(conn)
            .await?;
        }
        Ok(())
    }
}

/// How the limits of some queues stand, for telling why a job waits.
#[derive(Debug, Default)]
pub(crate) struct Standing(Books);

impl Standing {
    /// # Errors
    /// As the database.
    pub(crate) async fn of(
        conn: &mut PgConnection,
        queues: &[String],
        tasks: &[String],
        places: &[(String, Option<String>)],
        now: DateTime<Utc>,
    ) -> Result<Self, Fail> {
        let mut books = count(conn, queues, tasks).await?;
        let places: Vec<Place> =
            places.iter().map(|(queue, lane)| Place { queue: queue.clone(), lane: lane.clone() }).collect();
        fill_own(conn, &mut books, now).await?;
        fill(conn, &mut books, &places, now).await?;
        Ok(Self(books))
    }

    /// What is in the way of a job in a queue and lane, and a sentence on it.
    pub(crate) fn hindrance(&self, queue: &str, lane: Option<&str>) -> Option<(Hindrance, String)> {
        let place = Place { queue: queue.to_owned(), lane: lane.map(str::to_owned) };
        let hindrance = self.0.hindrance(&place)?;
        Some((hindrance, self.0.told(&place, hindrance)))
    }
}

/// What is held up by limits, over all queues and tasks: queues by themselves, and lanes in which something waits, of those
/// `lanes_max` at most.
pub(super) async fn held_up(
    conn: &mut PgConnection,
    lanes_max: usize,
    now: DateTime<Utc>,
) -> Result<Vec<(String, Option<String>, Hindrance)>, Fail> {
    let queues = sqlx::query_scalar!("select name from jobs.queue where is_limited").fetch_all(&mut *conn).await?;
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    let tasks =
        sqlx::query_scalar!("select name from jobs.task where concurrency is not null").fetch_all(&mut *conn).await?;
    let mut books = count(conn, &queues, &tasks).await?;
    fill_own(conn, &mut books, now).await?;
    let mut places = lanes_of(conn, &open(&books, &queues)).await?;
    fill(conn, &mut books, &places, now).await?;
    places.extend(queues.into_iter().map(|queue| Place { queue, lane: None }));
    let held = places.into_iter().filter_map(|place| {
        let hindrance = books.hindrance(&place)?;
        Some((place.queue, place.lane, hindrance))
    });
    let (of_queues, mut of_lanes): (Vec<_>, Vec<_>) = held.partition(|(_, lane, _)| lane.is_none());
    of_lanes.truncate(lanes_max);
    Ok(of_queues.into_iter().chain(of_lanes).collect())
}

/// Reads limits, and counts what they bound.
async fn count(conn: &mut PgConnection, queues: &[String], tasks: &[String]) -> Result<Books, Fail> {
    let mut books = Books::default();
    let rows = sqlx::query!(
        "select name, concurrency, key_concurrency, rate_starts, rate_seconds, rate_burst, key_rate_starts,
           key_rate_seconds, key_rate_burst, share, weights
         from jobs.queue
         where paused_at is null and (cardinality($1::text[]) = 0 or name = any($1))",
        queues,
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in rows {
        let share = match row.share.as_str() {
            "owner" => Share::Owner,
            "key" => Share::Key,
            _ => Share::None,
        };
        let weights: HashMap<String, f64> = serde_json::from_str(&row.weights).map_err(Fail::internal)?;
        let limits = Limits {
            concurrency: row.concurrency.map(i32::unsigned_abs),
            key_concurrency: row.key_concurrency.map(i32::unsigned_abs),
            rate: rate(row.rate_starts, row.rate_seconds, row.rate_burst),
            key_rate: rate(row.key_rate_starts, row.key_rate_seconds, row.key_rate_burst),
            share,
            weights,
        };
        books.queues.insert(row.name, limits);
    }
    let limited = sqlx::query!(
        r#"select name, concurrency as "concurrency!" from jobs.task where concurrency is not null and name = any($1)"#,
        tasks,
    )
    .fetch_all(&mut *conn)
    .await?;
    books.tasks = limited.into_iter().map(|row| (row.name, row.concurrency.unsigned_abs())).collect();
    let running = sqlx::query!(
        r#"select queue, task, lane, count(*) as "count!"
           from jobs.job
           where worker_id is not null
           group by queue, task, lane"#,
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in running {
        let place = Place { queue: row.queue, lane: row.lane };
        books.run(&place, &row.task, u32::try_from(row.count).unwrap_or(u32::MAX));
    }
    Ok(books)
}

/// Reads the queues' own buckets and virtual times.
async fn fill_own(conn: &mut PgConnection, books: &mut Books, now: DateTime<Utc>) -> Result<(), Fail> {
    let own: Vec<Place> = books.queues.keys().map(|queue| Place { queue: queue.clone(), lane: None }).collect();
    fill(conn, books, &own, now).await
}

/// Reads the buckets and shares of these places, and of no others: there may be a million keys that have nothing waiting.
async fn fill(conn: &mut PgConnection, books: &mut Books, places: &[Place], now: DateTime<Utc>) -> Result<(), Fail> {
    let metered: HashSet<String> =
        of(books, |limits| limits.rate.is_some() || limits.key_rate.is_some()).into_iter().collect();
    let of_buckets = places.iter().filter(|place| metered.contains(&place.queue));
    let (queues, keys): (Vec<String>, Vec<String>) =
        of_buckets.map(|place| (place.queue.clone(), place.key().unwrap_or(OF_QUEUE).to_owned())).unzip();
    if !queues.is_empty() {
        let buckets = sqlx::query!(
            "select bucket.queue, bucket.key, tokens, at
             from unnest($1::text[], $2::text[]) as asked (queue, key)
             join jobs.bucket on bucket.queue = asked.queue and bucket.key = asked.key",
            &queues,
            &keys,
        )
        .fetch_all(&mut *conn)
        .await?;
        for row in buckets {
            let Some(limits) = books.queues.get(&row.queue) else { continue };
            let rate = if row.key == OF_QUEUE { limits.rate } else { limits.key_rate };
            let Some(rate) = rate else { continue };
            let bucket = Bucket { tokens: row.tokens, at: row.at }.filled(rate, now);
            books.buckets.insert((row.queue, row.key), bucket);
        }
    }
    let shared: HashMap<String, Share> = books
        .queues
        .iter()
        .filter(|(_, limits)| limits.share != Share::None)
        .map(|(queue, limits)| (queue.clone(), limits.share))
        .collect();
    let of_shares = places.iter().filter_map(|place| Some((place, *shared.get(&place.queue)?)));
    let (queues, names): (Vec<String>, Vec<String>) = of_shares
        .map(|(place, share)| (place.queue.clone(), plan::sharer(share, place).unwrap_or(OF_QUEUE).to_owned()))
        .unzip();
    if !queues.is_empty() {
        let shares = sqlx::query!(
            "select share.queue, share.name, had
             from unnest($1::text[], $2::text[]) as asked (queue, name)
             join jobs.share on share.queue = asked.queue and share.name = asked.name",
            &queues,
            &names,
        )
        .fetch_all(conn)
        .await?;
        books.shares.extend(shares.into_iter().map(|row| ((row.queue, row.name), row.had)));
    }
    Ok(())
}

/// Of these queues those that are not held up as a whole: the lanes of the others need not be looked at.
fn open(books: &Books, queues: &[String]) -> Vec<String> {
    let is_open = |queue: &&String| books.hindrance(&Place { queue: (*queue).clone(), lane: None }).is_none();
    queues.iter().filter(is_open).cloned().collect()
}

fn of(books: &Books, is_asked_for: impl Fn(&Limits) -> bool) -> Vec<String> {
    books.queues.iter().filter(|(_, limits)| is_asked_for(limits)).map(|(name, _)| name.clone()).collect()
}

fn rate(starts: Option<i32>, seconds: Option<f64>, burst: Option<i32>) -> Option<Rate> {
    Some(Rate { per_second: f64::from(starts?) / seconds?, burst: f64::from(burst?) })
}

/// The lanes in which something is queued, each found by a step in the index, however much stands in it.
async fn lanes_of(conn: &mut PgConnection, queues: &[String]) -> Result<Vec<Place>, Fail> {
    let rows = sqlx::query!(
        r#"with recursive head (queue, lane) as (
             select name, (
                 select min(lane) from jobs.job where state = 'queued' and lane is not null and job.queue = asked.name
               )
             from unnest($1::text[]) as asked (name)
             union all
             select queue, (
                 select min(lane)
                 from jobs.job
                 where state = 'queued' and lane is not null and job.queue = head.queue and job.lane > head.lane
               )
             from head
             where lane is not null
           )
           select queue as "queue!", lane as "lane!" from head where lane is not null"#,
        queues,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| Place { queue: row.queue, lane: Some(row.lane) }).collect())
}

/// The first jobs of each place.
async fn jobs_of(
    conn: &mut PgConnection,
    places: Vec<Place>,
    books: &Books,
    tasks: &[String],
    free: u32,
    now: DateTime<Utc>,
) -> Result<Vec<Lane>, Fail> {
    let each = (JOBS_LOOKED_AT / places.len().max(1)).clamp(1, free as usize);
    let each = i64::try_from(each).unwrap_or(1);
    let (laned, bare): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|place| place.lane.is_some());
    let mut lanes: HashMap<Place, Lane> = HashMap::new();
    let mut enter = |place: Place, rank: DateTime<Utc>, id: Uuid| {
        let lane =
            lanes.entry(place.clone()).or_insert_with(|| Lane { place, jobs: std::collections::VecDeque::new() });
        lane.jobs.push_back((rank, id));
    };
    let rows = sqlx::query!(
        r#"select place.queue as "queue!", place.lane as "lane!", next.id, next.rank
           from unnest($1::text[], $2::text[]) as place (queue, lane)
           cross join lateral (
             select id, rank
             from jobs.job
             join jobs.queue on queue.name = job.queue
             left join jobs.task on task.name = job.task
             where state = 'queued' and lane is not null and job.queue = place.queue and job.lane = place.lane
               and job.task = any($3)
               -- One that stands in a lane of earlier limits waits until it is in its own.
               and lane is not distinct from
                 jobs.lane(job.task, task.concurrency is not null, concurrency_key, owner_id, queue.is_keyed)
               and (queue_until is null or queue_until > $5) and (deadline_at is null or deadline_at > $5)
             order by rank
             limit $4
           ) as next
           order by next.rank"#,
        &laned.iter().map(|place| place.queue.clone()).collect::<Vec<_>>(),
        &laned.iter().filter_map(|place| place.lane.clone()).collect::<Vec<_>>(),
        tasks,
        each,
        now,
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in rows {
        enter(Place { queue: row.queue, lane: Some(row.lane) }, row.rank, row.id);
    }
    // A job of a limited task, or in a queue of keys, that has no lane yet waits for it.
    let unlimited: HashSet<&String> = tasks.iter().filter(|task| !books.tasks.contains_key(*task)).collect();
    let rows = sqlx::query!(
        r#"select queue.name as "queue!", next.id, next.rank
           from jobs.queue
           cross join lateral (
             select id, rank
             from jobs.job
             where state = 'queued' and lane is null and job.queue = queue.name and task = any($2)
               and (queue_until is null or queue_until > $4) and (deadline_at is null or deadline_at > $4)
             order by rank
             limit $3
           ) as next
           where not queue.is_keyed and queue.name = any($1)
           order by next.rank"#,
        &bare.iter().map(|place| place.queue.clone()).collect::<Vec<_>>(),
        &unlimited.into_iter().cloned().collect::<Vec<_>>(),
        each,
        now,
    )
    .fetch_all(conn)
    .await?;
    for row in rows {
        enter(Place { queue: row.queue, lane: None }, row.rank, row.id);
    }
    let mut lanes: Vec<Lane> = lanes.into_values().collect();
    // Of the same rank, the older job comes first.
    lanes.sort_by_key(|lane| lane.jobs.front().copied());
    Ok(lanes)
}
