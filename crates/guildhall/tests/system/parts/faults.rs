//! The main job in the production shape, while whatever it needs is killed: at each point where a crash could lose or
//! double something, each process in the middle of a batch, and then any of them at any time. At the end the books are
//! compared: jobs, batches, files, events and the audit log each say the same.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use kit::outbox;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, types::Uuid};

use nix::sys::signal::Signal;

use super::{
    Parts,
    foreign::{Foreign, SCHEMAS},
};
use crate::{
    faults::{assert_each_ended_once, wait_for_more},
    is_long, main_job,
    person::Person,
    pictures,
    wait::{SOON, until},
};

const BATCH_WITHIN: Duration = Duration::from_secs(3600);

/// Where a crash is between two things that belong together.
const POINTS: [&str; 8] = [
    "relay-before-publish",
    "relay-published-not-marked",
    "inbox-before-commit",
    "inbox-committed-not-acked",
    "claimed-not-assigned",
    "result-not-finished",
    "finished-not-receipted",
    "last-child-not-finalized",
];

/// One of each kind, in the order in which the middle of a batch meets them.
const KINDS: [&str; 8] = ["jobs", "worker", "auth", "gateway", "postgres", "admin", "rabbitmq", "nginx"];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_wherever_it_stands_all_ends_once_and_all_is_told() {
    let (pictures, random_kills) = if is_long() { (200, 24) } else { (12, 4) };
    let parts = Parts::open(&[("lease_s", "4"), ("heartbeat_s", "1")]).await;
    let mut database = PgConnection::connect(&parts.database_url()).await.expect("the database answers");
    let foreign = Foreign::listen(&parts.amqp_url(), &mut database).await;
    let person = parts.newcomer("ada").await.patient();
    let administrator = parts.administrator().await.patient();
    let mut acts = Vec::new();

    for point in POINTS {
        parts.crash_at(point);
        let (job_id, _) = main_job::submit(&person, pictures::draw(2)).await;
        acts.push(act(&administrator).await);
        until(&format!("a crash at {point}"), SOON, async || (!parts.is_armed(point)).then_some(())).await;
        let recovered = parts.recovers().await;
        let job = person.finished(&job_id, BATCH_WITHIN).await;
        assert_eq!(job["state"], "succeeded", "{point}: {job:#}");
        assert_whole(&person, &job, 2).await;
        println!("killed at {point}: whole again after {} ms", recovered.as_millis());
    }

    let (job_id, _) = main_job::submit(&person, pictures::draw(pictures)).await;
    let batch_id = person.field(&job_id, "child_batch_id").await.as_str().expect("an id").to_owned();
    let mut random = Random::of(0);
    let at_random = (0..random_kills).map(|_| None);
    for kind in KINDS.into_iter().map(Some).chain(at_random) {
        if has_more(&person, &job_id).await {
            wait_for_more(&person, &batch_id).await;
        }
        let victims = parts.processes().into_iter().filter(|process| kind.is_none_or(|kind| process.role == kind));
        let victims: Vec<_> = victims.collect();
        let victim = &victims[random.below(victims.len())];
        let killed_at = Instant::now();
        parts.send(victim, Signal::SIGKILL);
        acts.push(act(&administrator).await);
        let recovered = parts.recovers().await;
        println!(
            "{} killed: an act answered and all whole again after {} ms ({} ms of waiting)",
            victim.role,
            killed_at.elapsed().as_millis(),
            recovered.as_millis(),
        );
    }
    let job = person.finished(&job_id, BATCH_WITHIN).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_whole(&person, &job, pictures).await;

    // The one of before has gone down with the server.
    let mut database = PgConnection::connect(&parts.database_url()).await.expect("the database answers");
    let told = foreign.has_heard_of_everything(&mut database, BATCH_WITHIN).await;
    let audited = assert_each_act_is_in_the_audit_once(&mut database, &administrator, &acts).await;
    assert_nothing_in_confidence_was_told(&parts, &foreign, &person, &mut database).await;
    println!("{told} events reached the foreign client in order; {audited} acts are in the audit, each once");
    parts.close().await;
}

/// Something that an administrator does and that belongs into the audit; the id of the request that was answered.
async fn act(administrator: &Person) -> String {
    let answer = administrator.post("/api/v1/queues/maintenance/pause", &json!({})).await;
    let request_id = answer.request_id.clone();
    answer.expect(200);
    administrator.post("/api/v1/queues/maintenance/resume", &json!({})).await.expect(200);
    request_id
}

async fn has_more(person: &Person, job_id: &str) -> bool {
    let job = person.job(job_id).await;
    job["finished_at"].is_null() && {
        let batch = person.get(&format!("/api/v1/batches/{}", job["child_batch_id"].as_str().expect("an id"))).await;
        batch.expect(200)["state"] == "running"
    }
}

async fn assert_whole(person: &Person, job: &Value, pictures: usize) {
    main_job::assert_finalized(person, &job["result"], pictures, 0).await;
    assert_each_ended_once(person, job["child_batch_id"].as_str().expect("an id"), pictures).await;
}

/// What the services wrote down as acts, and what the audit log holds, are the same; and each request that was answered has
/// its one entry. How many there are.
async fn assert_each_act_is_in_the_audit_once(
    database: &mut PgConnection,
    administrator: &Person,
    acts: &[String],
) -> usize {
    let mut written = BTreeSet::new();
    for schema in SCHEMAS {
        let kept = outbox::kept(database, schema, 0).await.expect("events");
        let acts = kept.into_iter().filter(|event| event.kind.ends_with(".act.recorded"));
        written.extend(acts.map(|event| event.id));
    }
    let entries = until("every act to be in the audit", SOON, async || {
        let entries = administrator.list("/api/v1/admin/audit").await;
        (entries.len() >= written.len()).then_some(entries)
    })
    .await;
    let ids: Vec<Uuid> =
        entries.iter().map(|entry| entry["id"].as_str().expect("an id").parse().expect("a UUID")).collect();
    assert_eq!(ids.len(), written.len(), "an act is in the audit twice, or one that nobody wrote down");
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), written);
    for request_id in acts {
        let of_it = entries.iter().filter(|entry| entry["request_id"] == *request_id).count();
        assert_eq!(of_it, 1, "request {request_id} has {of_it} entries");
    }
    written.len()
}

/// What was given in confidence stands in no event, no log, no metric and no parked message.
async fn assert_nothing_in_confidence_was_told(
    parts: &Parts,
    foreign: &Foreign,
    person: &Person,
    database: &mut PgConnection,
) {
    let in_confidence = [person.email.clone(), person.password.clone(), person.token().await, parts.worker_key()];
    let mut told: Vec<(String, Vec<u8>)> =
        foreign.seen().into_iter().map(|seen| (format!("the event {}", seen.kind), seen.body)).collect();
    told.extend(parts.logs());
    for process in parts.processes() {
        let Some(ops) = process.ops else { continue };
        let page = reqwest::get(format!("{ops}/metrics")).await.expect("an answer").text().await.expect("a page");
        told.push((format!("the metrics of {}", process.role), page.into_bytes()));
    }
    let parked = sqlx::query_scalar::<_, Vec<u8>>("select event from admin.parked_event").fetch_all(database).await;
    told.extend(parked.expect("rows").into_iter().map(|event| ("a parked event".to_owned(), event)));
    for (place, bytes) in told {
        for secret in &in_confidence {
            let is_there = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!is_there, "{place} tells what was given in confidence");
        }
    }
}

/// The same choices in every run of a seed, so that a failure can be had again.
pub(super) struct Random(u64);

impl Random {
    /// Any seed will do; its bits are spread, and never all of them 0.
    pub(super) fn of(seed: u64) -> Self {
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// xorshift64 (Marsaglia, 2003).
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("it is below the bound")
    }
}
