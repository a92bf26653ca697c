//! Who starts next under limits: a plan made from what is counted, without a database. Limits compose: a job starts when its
//! queue, its task and its key each have room and each have a token.
//!
//! **Order.** Between queues, and within one that shares nothing, the earliest rank comes first. A queue that shares its
//! places gives each to whom has had the least by weight (start-time fair queueing): whoever comes anew, or comes back,
//! begins where the others stand, and brings no credit for the time that it was away.

use std::collections::{BTreeSet, HashMap, VecDeque};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::bucket::{Bucket, Rate};

/// Of which name the share is that says where a queue's own virtual time stands, and the bucket that is the queue's.
pub(super) const OF_QUEUE: &str = "";

/// What is counted within one claim.
#[derive(Debug, Clone, Default)]
pub(super) struct Books {
    pub(super) queues: HashMap<String, Limits>,
    /// Limited tasks, and how many of each may run.
    pub(super) tasks: HashMap<String, u32>,
    in_queue: HashMap<String, u32>,
    of_task: HashMap<String, u32>,
    of_key: HashMap<(String, String), u32>,
    /// By queue and key.
    pub(super) buckets: HashMap<(String, String), Bucket>,
    /// By queue and name: what it has had.
    pub(super) shares: HashMap<(String, String), f64>,
}

/// What a queue allows.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    pub(super) concurrency: Option<u32>,
    pub(super) key_concurrency: Option<u32>,
    pub(super) rate: Option<Rate>,
    pub(super) key_rate: Option<Rate>,
    pub(super) share: Share,
    pub(super) weights: HashMap<String, f64>,
}

/// Between whom a queue shares its places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Share {
    #[default]
    None,
    Owner,
    Key,
}

/// Where a job stands: with all for whom the same limits hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) queue: String,
    pub(super) lane: Option<String>,
}

impl Place {
    /// The task, where it is limited.
    fn task(&self) -> Option<&str> {
        self.lane.as_deref()?.split_once(' ').map(|(task, _)| task).filter(|task| !task.is_empty())
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.lane.as_deref()?.split_once(' ').map(|(_, key)| key).filter(|key| !key.is_empty())
    }
}

/// Jobs of one place that could start, by rank.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) place: Place,
    pub(super) jobs: VecDeque<(DateTime<Utc>, Uuid)>,
}

/// What is in the way of a job that could start otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hindrance {
    QueueLimit,
    TaskLimit,
    KeyLimit,
    Rate,
    KeyRate,
}

impl Hindrance {
    /// As it is told: the reason why a job waits.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueLimit => "queue_limit",
            Self::TaskLimit => "task_limit",
            Self::KeyLimit => "key_limit",
            Self::Rate => "rate_limit",
            Self::KeyRate => "key_rate_limit",
        }
    }
}

impl Books {
    /// Counts attempts that run.
    pub(super) fn run(&mut self, place: &Place, task: &str, count: u32) {
        *self.in_queue.entry(place.queue.clone()).or_default() += count;
        *self.of_task.entry(task.to_owned()).or_default() += count;
        if let Some(key) = place.key() {
            *self.of_key.entry(scope(&place.queue, key)).or_default() += count;
        }
    }

    /// What keeps the place's next job from starting.
    pub(super) fn hindrance(&self, place: &Place) -> Option<Hindrance> {
        let limits = self.queues.get(&place.queue)?;
        let count = |map: &HashMap<String, u32>, name: &str| map.get(name).copied().unwrap_or(0);
        if limits.concurrency.is_some_and(|max| count(&self.in_queue, &place.queue) >= max) {
            return Some(Hindrance::QueueLimit);
        }
        if let Some(task) = place.task()
            && self.tasks.get(task).is_some_and(|max| count(&self.of_task, task) >= *max)
        {
            return Some(Hindrance::TaskLimit);
        }
        let key = place.key();
        if let Some(key) = key
            && key_concurrency(limits, key)
                .is_some_and(|max| self.of_key.get(&scope(&place.queue, key)).copied().unwrap_or(0) >= max)
        {
            return Some(Hindrance::KeyLimit);
        }
        if limits.rate.is_some() && !self.has_token(&place.queue, OF_QUEUE) {
            return Some(Hindrance::Rate);
        }
        if let Some(key) = key
            && limits.key_rate.is_some()
            && !self.has_token(&place.queue, key)
        {
            return Some(Hindrance::KeyRate);
        }
        None
    }

    /// Seconds until the bucket that is in the place's way has a token.
    pub(super) fn token_in(&self, place: &Place, hindrance: Hindrance) -> Option<f64> {
        let key = match hindrance {
            Hindrance::Rate => OF_QUEUE,
            Hindrance::KeyRate => place.key()?,
            Hindrance::QueueLimit | Hindrance::TaskLimit | Hindrance::KeyLimit => return None,
        };
        let limits = self.queues.get(&place.queue)?;
        let rate = if key == OF_QUEUE { limits.rate } else { limits.key_rate }?;
        self.buckets.get(&(place.queue.clone(), key.to_owned())).map(|bucket| bucket.token_in(rate))
    }

    /// A sentence on what is in the place's way.
    pub(super) fn told(&self, place: &Place, hindrance: Hindrance) -> String {
        let queue = &place.queue;
        match hindrance {
            Hindrance::QueueLimit => format!("As many jobs of the queue `{queue}` run as may run at once."),
            Hindrance::TaskLimit => {
                format!("As many jobs of the task `{}` run as may run at once.", place.task().unwrap_or_default())
            }
            Hindrance::KeyLimit => "As many jobs of its key run as may run at once.".to_owned(),
            Hindrance::Rate => format!("As many jobs of the queue `{queue}` have started as its rate lets."),
            Hindrance::KeyRate => "As many jobs of its key have started as their rate lets.".to_owned(),
        }
    }

    fn has_token(&self, queue: &str, key: &str) -> bool {
        // A bucket that nobody has taken from is full.
        self.buckets.get(&(queue.to_owned(), key.to_owned())).is_none_or(Bucket::has_token)
    }

    /// A job of the place starts: it is counted, and takes its tokens and its share.
    pub(super) fn start(&mut self, place: &Place, task: &str, now: DateTime<Utc>) {
        self.run(place, task, 1);
        let Some(limits) = self.queues.get(&place.queue) else { return };
        let key = place.key();
        let buckets = [(limits.rate, Some(OF_QUEUE)), (limits.key_rate, key)];
        for (rate, key) in buckets {
            if let (Some(rate), Some(key)) = (rate, key) {
                let bucket = self.buckets.entry((place.queue.clone(), key.to_owned()));
                bucket.or_insert_with(|| Bucket::full(rate, now)).take();
            }
        }
        if let Some(name) = sharer(limits.share, place) {
            let weight = limits.weights.get(weighed(name)).copied().unwrap_or(1.0);
            let name = name.to_owned();
            let had = self.had(&place.queue, &name);
            self.shares.insert((place.queue.clone(), OF_QUEUE.to_owned()), had);
            self.shares.insert((place.queue.clone(), name), had + 1.0 / weight);
        }
    }

    /// What somebody has had, counted from where the queue stands.
    fn had(&self, queue: &str, name: &str) -> f64 {
        let had = |name: &str| self.shares.get(&(queue.to_owned(), name.to_owned())).copied().unwrap_or(0.0);
        had(name).max(had(OF_QUEUE))
    }
}

/// Named keys are counted wherever their jobs run, an owner's own in each queue for itself.
fn scope(queue: &str, key: &str) -> (String, String) {
    (if key.starts_with("o:") { queue } else { "" }.to_owned(), key.to_owned())
}

/// How many of a key may run. Who names a key wants one at a time, unless the queue says otherwise.
fn key_concurrency(limits: &Limits, key: &str) -> Option<u32> {
    limits.key_concurrency.or_else(|| (!key.starts_with("o:")).then_some(1))
}

/// Whose share a job of the place is. With `owner` that is who submitted it, whatever keys it names, so that nobody has
/// more for naming many; a key for all owners is nobody's, and has a share of its own.
pub(super) fn sharer(share: Share, place: &Place) -> Option<&str> {
    let key = place.key()?;
    match share {
        Share::None => None,
        Share::Key => Some(key),
        Share::Owner => match key.split_once(':') {
            Some(("k", rest)) => rest.split_once(':').map(|(owner, _)| owner),
            Some(("o", owner)) => Some(owner),
            _ => Some(key),
        },
    }
}

/// By which name a weight is given: an owner's id, `<owner>:<name>` for a key of its own, or a key for all as its jobs
/// name it. A key's name alone would give the weight to whoever names a key so.
fn weighed(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, rest)| rest)
}

/// Chooses up to `free` jobs. `books` are what is counted now, and stay as they are.
pub(super) fn plan(books: &Books, lanes: Vec<Lane>, free: usize, now: DateTime<Utc>) -> Vec<Uuid> {
    let mut books = books.clone();
    let mut queues: HashMap<String, Vec<Group>> = HashMap::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    let mut lanes = lanes;
    for (n, lane) in lanes.iter().enumerate() {
        let Some((rank, _)) = lane.jobs.front() else { continue };
        let share = books.queues.get(&lane.place.queue).map_or(Share::None, |limits| limits.share);
        let name = sharer(share, &lane.place).unwrap_or(OF_QUEUE);
        let groups = queues.entry(lane.place.queue.clone()).or_default();
        let at = *places.entry((lane.place.queue.clone(), name.to_owned())).or_insert_with(|| {
            groups.push(Group { name: name.to_owned(), lanes: BTreeSet::new() });
            groups.len() - 1
        });
        groups[at].lanes.insert((*rank, n));
    }
    let mut chosen = Vec::new();
    while chosen.len() < free {
        let next = queues.iter_mut().filter_map(|(queue, groups)| next_of(&books, &lanes, queue, groups)).min();
        let Some((_, n)) = next else { break };
        let lane = &mut lanes[n];
        let Some((rank, id)) = lane.jobs.pop_front() else { break };
        let groups = queues.get_mut(&lane.place.queue).map(Vec::as_mut_slice).unwrap_or_default();
        for group in groups {
            if group.lanes.remove(&(rank, n))
                && let Some((rank, _)) = lane.jobs.front()
            {
                group.lanes.insert((*rank, n));
            }
        }
        // Only limited tasks are counted, and these stand in the lane's name.
        let task = lane.place.task().unwrap_or_default().to_owned();
        books.start(&lane.place, &task, now);
        chosen.push(id);
    }
    chosen
}

/// Lanes that share one share, by the rank of their first job.
struct Group {
    name: String,
    lanes: BTreeSet<(DateTime<Utc>, usize)>,
}

/// The lane whose job comes next in a queue. One with something in its way is put aside: within a plan nothing ends.
fn next_of(books: &Books, lanes: &[Lane], queue: &str, groups: &mut Vec<Group>) -> Option<(DateTime<Utc>, usize)> {
    loop {
        groups.retain(|group| !group.lanes.is_empty());
        let had = |group: &Group| (books.had(queue, &group.name), group.lanes.first().copied());
        let group = groups.iter_mut().min_by(|a, b| {
            let ((a, first_a), (b, first_b)) = (had(a), had(b));
            a.total_cmp(&b).then(first_a.cmp(&first_b))
        })?;
        let first = *group.lanes.first()?;
        if books.hindrance(&lanes[first.1].place).is_none() {
            return Some(first);
        }
        group.lanes.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).expect("a time") + TimeDelta::seconds(second)
    }

    /// A lane of `count` jobs that came one after another from `from` on; each is named by its lane's `first` id and its
    /// place.
    fn lane(lane: &str, first: u128, from: i64, count: i64) -> Lane {
        let place = Place { queue: "queue".to_owned(), lane: (!lane.is_empty()).then(|| lane.to_owned()) };
        let jobs = (0..count).map(|n| (at(from + n), Uuid::from_u128(first + n.unsigned_abs() as u128))).collect();
        Lane { place, jobs }
    }

    fn books(limits: Limits) -> Books {
        Books { queues: HashMap::from([("queue".to_owned(), limits)]), ..Books::default() }
    }

    fn numbers(chosen: Vec<Uuid>) -> Vec<u128> {
        chosen.into_iter().map(|id| id.as_u128()).collect()
    }

    #[test]
    fn the_earliest_come_first_and_a_full_key_is_passed_over() {
        let limits = Limits { key_concurrency: Some(2), ..Limits::default() };
        let lanes = vec![lane(" o:a", 0, 0, 5), lane(" o:b", 100, 3, 5), lane("", 200, 2, 1)];
        assert_eq!(numbers(plan(&books(limits), lanes, 10, at(0))), [0, 1, 200, 100, 101]);
    }

    #[test]
    fn every_limit_has_its_say() {
        let limits = Limits { concurrency: Some(4), key_concurrency: Some(3), ..Limits::default() };
        let mut books = books(limits);
        books.tasks.insert("heavy".to_owned(), 1);
        books.run(&Place { queue: "queue".to_owned(), lane: Some(" o:a".to_owned()) }, "light", 1);
        let lanes = vec![lane(" o:a", 0, 0, 9), lane("heavy o:b", 100, 1, 9)];
        assert_eq!(numbers(plan(&books, lanes, 10, at(0))), [0, 1, 100]);
    }

    #[test]
    fn who_comes_anew_starts_where_the_others_stand() {
        let limits = Limits { share: Share::Owner, ..Limits::default() };
        let mut books = books(limits);
        for name in ["", "a"] {
            books.shares.insert(("queue".to_owned(), name.to_owned()), 1_000.0);
        }
        let lanes = vec![lane(" o:a", 0, 0, 9), lane(" o:b", 100, 5, 9)];
        assert_eq!(numbers(plan(&books, lanes, 6, at(0))), [0, 100, 1, 101, 2, 102]);
    }

    #[test]
    fn an_owner_has_one_share_however_many_keys_it_names() {
        let limits = Limits { share: Share::Owner, key_concurrency: Some(9), ..Limits::default() };
        let lanes = vec![lane(" k:a:x", 0, 0, 2), lane(" k:a:y", 10, 0, 2), lane(" o:b", 100, 5, 4)];
        let chosen = numbers(plan(&books(limits), lanes, 4, at(0)));
        assert_eq!(chosen.iter().filter(|id| **id >= 100).count(), 2, "{chosen:?}");
    }
}
