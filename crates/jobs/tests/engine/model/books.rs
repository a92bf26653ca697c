//! The end of a run: everything is driven to its end, and what the service has written down about it is compared.

use std::collections::{BTreeMap, BTreeSet};

use kit::outbox;
use proto::jobs::{JobState, ListQueuesRequest, queues_client::QueuesClient};
use sqlx::Row as _;

use super::{
    driver::Driver,
    job::{End, Job},
};

/// The moves between states, as the reference prints them.
const MOVES: &str = include_str!("../../../../../docs/reference/states.md");
/// What a run needs to end: far more than it should.
const ROUNDS_MAX: usize = 1_000;
/// Jobs that one worker is given at a time.
const SLOTS: usize = 20;
/// The events that tell of an end.
const ENDS: [&str; 4] = ["succeeded", "failed", "cancelled", "expired"];

impl Driver {
    /// Lets everything end.
    pub(super) async fn drive_to_the_end(&mut self) {
        if self.model.is_paused {
            self.pause_or_resume().await;
        }
        let free = self.model.batches.iter().filter(|(_, batch)| batch.parent.is_none());
        let free: Vec<String> = free.map(|(id, _)| id.clone()).collect();
        for id in free {
            let asked = proto::jobs::CloseBatchRequest { id: id.clone() };
            self.user.batches().close(self.user.call.request(asked)).await.unwrap();
            self.model.close(&id, false);
        }
        for _ in 0..ROUNDS_MAX {
            self.agree().await;
            if self.model.is_over() {
                return;
            }
            let (room, held) = (self.model.room(), self.model.held());
            if room > 0 {
                let worker = self.a_hand().await;
                self.claim(&worker, room.min(SLOTS)).await;
            } else if !held.is_empty() {
                for id in held {
                    let is_cancelling = self.model.jobs[&id].state == JobState::Cancelling;
                    let end = match self.random.below(10) {
                        _ if is_cancelling => End::Stopped,
                        0 => End::Failed { kind: "provider", is_retryable: false, after: None },
                        _ => End::Succeeded(format!("{{\"n\":{}}}", self.next())),
                    };
                    self.tell(&id, &end).await;
                }
            } else {
                let waits = self.model.jobs.values().any(|job| job.state == JobState::Scheduled);
                let due = self.model.next_due().filter(|_| waits);
                let due = due.unwrap_or_else(|| panic!("this will never end: {:#?}", self.model));
                self.advance(due - self.model.now).await;
            }
        }
        panic!("this does not end: {:#?}", self.model);
    }

    /// Everything that was written down says the same: attempts, streams, rows, counters, and what was told to others.
    pub(super) async fn compare_the_books(&mut self) {
        for (id, job) in &self.model.jobs {
            let attempts = self.user.attempts(id).await;
            assert_eq!(attempts, job.attempts, "the attempts of {id}");
            let accepted = attempts.iter().filter(|outcome| *outcome == "succeeded").count();
            assert!(accepted <= 1, "{id} has two results");
            assert_stream_of_a_job(id, job, &self.user.events(id, 0).await);
        }
        for (id, batch) in &self.model.batches {
            let events = self.user.batch_events(id, 0).await;
            assert_without_gap(id, &events);
            let mut of_batch = events.iter().filter(|(_, event, _)| event == "batch");
            let counts = &of_batch.next_back().unwrap_or_else(|| panic!("{id} was never told of")).2["counts"];
            let counted = ["total", "succeeded", "failed", "cancelled", "expired"].map(|name| counts[name].as_u64());
            let expected = [batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.expired];
            assert_eq!(counted, expected.map(|count| Some(u64::from(count))), "the stream of {id}");
        }
        self.compare_rows().await;
        let mut queues = QueuesClient::new(self.user.peer.clone());
        let queues = queues.list(self.user.call.request(ListQueuesRequest {})).await.unwrap().into_inner().items;
        let left: u64 = queues.iter().flat_map(|queue| queue.depth.values()).sum();
        assert_eq!(left, 0, "the queues count what is not there: {queues:?}");
    }

    async fn compare_rows(&self) {
        let pool = self.house.database.pool();
        let rows = sqlx::query(
            "select (select count(*) from jobs.job) as live, (select count(*) from jobs.job_history) as past,
               (select count(distinct id) from jobs.job_history) as jobs,
               (select count(*) from jobs.batch
                where (succeeded, failed, cancelled, expired) <> (
                  select count(*) filter (where state = 'succeeded'), count(*) filter (where state = 'failed'),
                    count(*) filter (where state = 'cancelled'), count(*) filter (where state = 'expired')
                  from jobs.job_history
                  where batch_id = batch.id and ordinal is not null
                )) as miscounted",
        );
        let row = rows.fetch_one(pool).await.unwrap();
        let jobs = i64::try_from(self.model.jobs.len()).unwrap();
        let counted = ["live", "past", "jobs", "miscounted"].map(|name| row.get::<i64, _>(name));
        assert_eq!(counted, [0, jobs, jobs, 0], "live, past, each once, miscounted batches");

        let mut connection = pool.acquire().await.unwrap();
        let mut ends: BTreeMap<String, i64> = BTreeMap::new();
        for event in outbox::kept(&mut connection, jobs::SCHEMA, 0).await.unwrap() {
            let is_end = ENDS.iter().any(|end| event.kind == format!("jobs.job.{end}"));
            *ends.entry(event.subject).or_default() += i64::from(is_end || event.kind == "jobs.batch.finished");
        }
        let of_jobs = self.model.jobs.iter().map(|(id, job)| (id, job.ends));
        for (id, expected) in of_jobs.chain(self.model.batches.iter().map(|(id, batch)| (id, batch.ends))) {
            assert_eq!(
                ends.get(id).copied().unwrap_or_default(),
                i64::from(expected),
                "the ends of {id} that were told"
            );
        }
    }
}

type Event = (u64, String, serde_json::Value);

fn assert_without_gap(id: &str, events: &[Event]) {
    let offsets: Vec<u64> = events.iter().filter(|(_, event, _)| event != "end").map(|(offset, ..)| *offset).collect();
    assert_eq!(offsets, (1..=offsets.len() as u64).collect::<Vec<_>>(), "the stream of {id} has a gap");
    assert_eq!(events.last().map(|(_, event, _)| event.as_str()), Some("end"), "the stream of {id} has no end");
}

/// From its submission to its last state, by moves that there are.
fn assert_stream_of_a_job(id: &str, job: &Job, events: &[Event]) {
    assert_without_gap(id, events);
    let moves: BTreeSet<(&str, &str)> = MOVES
        .lines()
        .filter_map(|line| {
            let mut names = line.split('`').skip(1).step_by(2);
            line.starts_with("| `").then(|| Some((names.next()?, names.next()?))).flatten()
        })
        .collect();
    let states = events.iter().filter(|(_, event, _)| event == "state").map(|(_, _, data)| data["state"].as_str());
    let states: Vec<&str> = states.map(Option::unwrap).collect();
    assert!(matches!(states[0], "waiting" | "scheduled" | "queued"), "{id} begins as {}", states[0]);
    for pair in states.windows(2) {
        // The attempt of a parent that is to stop has ended, and its children have not.
        let stays = pair == ["cancelling"; 2];
        assert!(stays || moves.contains(&(pair[0], pair[1])), "{id} went from {} to {}: {states:?}", pair[0], pair[1]);
    }
    let last = format!("JOB_STATE_{}", states.last().unwrap().to_uppercase());
    assert_eq!(last, job.state.as_str_name(), "the stream of {id}");
    let ends = states.iter().filter(|state| ENDS.contains(state)).count();
    assert_eq!(ends, job.ends as usize, "the stream of {id}: {states:?}");
}
