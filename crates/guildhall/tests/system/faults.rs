//! What is killed, and what becomes of the work.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _};

use crate::{
    house::House,
    is_long, main_job,
    person::Person,
    pictures,
    wait::{SOON, until},
};

const BATCH_WITHIN: Duration = Duration::from_secs(1800);

/// Short, so that a lost worker is noticed within the test and not within half a minute.
const QUICK: [(&str, &str); 2] = [("lease_s", "4"), ("heartbeat_s", "1")];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_in_the_middle_of_a_batch_it_ends_once_and_leaves_nothing_behind() {
    let (pictures, rounds) = if is_long() { (60, 9) } else { (12, 3) };
    let mut house = House::open_with(&QUICK).await;
    let mut person = house.newcomer("ada").await;
    let (job_id, _) = main_job::submit(&person, pictures::draw(pictures)).await;
    let batch_id = person.field(&job_id, "child_batch_id").await.as_str().expect("an id").to_owned();

    for round in 0..rounds {
        wait_for_more(&person, &batch_id).await;
        match round % 3 {
            0 => {
                house.kill().await;
                house.reopen().await;
            }
            1 => {
                house.kill_parent().await;
                house.reopen().await;
            }
            _ => house.postgres().kill(),
        }
        until("the house to answer", SOON, async || {
            let status = Person::stranger(&house.ready().http).get("/readyz").await.status;
            (status.as_u16() == 200).then_some(())
        })
        .await;
        person = person.at(&house.ready().http).await;
        if let Some(slot) = house.slots().first() {
            slot.kill();
        }
    }
    let job = person.finished(&job_id, BATCH_WITHIN).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    main_job::assert_finalized(&person, &job["result"], pictures, 0).await;
    assert_each_ended_once(&person, &batch_id, pictures).await;
    assert_every_object_has_a_row(&house, &person).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_takes_too_much_memory_ends_alone() {
    let house = House::open().await;
    let person = house.newcomer("ada").await;
    let neighbour = person.submit("demo_sleep", json!({ "seconds": 3 })).await;
    let hog =
        person.post("/api/v1/jobs", &json!({ "task": "demo_hog", "args": { "mib": 4096 }, "max_attempts": 1 })).await;
    let hog = hog.expect(202)["id"].as_str().expect("an id").to_owned();
    let hog = person.finished(&hog, SOON).await;
    assert_eq!(hog["state"], "failed", "{hog:#}");
    assert_eq!(hog["error"]["kind"], "memory_exceeded", "{hog:#}");
    assert_undisturbed(&person, &neighbour).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_does_not_stop_is_killed_when_it_is_cancelled_and_at_its_timeout() {
    let house = House::open_with(&[("cancel_grace_s", "1"), ("worker_grace_s", "1")]).await;
    let person = house.newcomer("ada").await;
    let spin = |timeout: Option<u32>| {
        let mut job = json!({ "task": "demo_spin", "args": { "seconds": 600 }, "max_attempts": 1 });
        if let Some(timeout) = timeout {
            job["attempt_timeout_s"] = json!(timeout);
        }
        job
    };
    let timed = person.post("/api/v1/jobs", &spin(Some(2))).await.expect(202)["id"].as_str().expect("an id").to_owned();
    let timed = person.finished(&timed, SOON).await;
    assert_eq!((&timed["state"], &timed["error"]["kind"]), (&json!("failed"), &json!("timeout")), "{timed:#}");

    let cancelled =
        person.post("/api/v1/jobs", &spin(None)).await.expect(202)["id"].as_str().expect("an id").to_owned();
    let neighbour = person.submit("demo_sleep", json!({ "seconds": 4 })).await;
    until("the job to run", SOON, async || (person.job(&cancelled).await["state"] == "running").then_some(())).await;
    let path = format!("/api/v1/jobs/{cancelled}/cancel");
    person.post(&path, &json!({})).await.expect(202);
    person.post(&path, &json!({})).await.expect(202);
    let job = person.finished(&cancelled, SOON).await;
    assert_eq!(job["state"], "cancelled", "{job:#}");
    assert_eq!(person.post(&path, &json!({})).await.status.as_u16(), 409);
    assert_undisturbed(&person, &neighbour).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_slot_fails_its_attempt_alone_which_is_tried_again() {
    let house = House::open().await;
    let person = house.newcomer("ada").await;
    let job_id = person.submit("demo_spin", json!({ "seconds": 3 })).await;
    let slot = until("a slot to spin", SOON, async || {
        let is_running = person.job(&job_id).await["state"] == "running";
        is_running.then(|| house.slots().into_iter().next()).flatten()
    })
    .await;
    slot.kill();
    let job = person.finished(&job_id, SOON).await;
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(2)), "{job:#}");
    let attempts = person.list(&format!("/api/v1/jobs/{job_id}/attempts")).await;
    assert!(attempts.iter().any(|attempt| attempt["error"]["kind"] == "worker_crashed"), "{attempts:#?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_is_restarted_in_place_and_work_goes_on() {
    let house = House::open_with(&QUICK).await;
    let person = house.newcomer("ada").await;
    let job_id = person.submit("demo_sleep", json!({ "seconds": 2 })).await;
    let postgres = house.postgres();
    postgres.kill();
    until("another Postgres", SOON, async || {
        let family = house.family();
        let is_there =
            family.iter().any(|process| process.pid != postgres.pid && process.command.contains("postgres -D"));
        is_there.then_some(())
    })
    .await;
    until("answers", SOON, async || {
        let answer = person.get(&format!("/api/v1/jobs/{job_id}")).await;
        (answer.status.as_u16() == 200).then_some(())
    })
    .await;
    let job = person.finished(&job_id, SOON).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    house.close().await;
}

/// Waits until one more model is there than when asked, so that a kill falls into the middle.
pub(crate) async fn wait_for_more(person: &Person, batch_id: &str) {
    let done = async || {
        let batch = person.get(&format!("/api/v1/batches/{batch_id}")).await;
        batch.body["counts"]["succeeded"].as_u64().unwrap_or(0)
    };
    let before = done().await;
    until("one more model", BATCH_WITHIN, async || (done().await > before).then_some(())).await;
}

/// Each child succeeded, by one attempt and no other, and the finalize ran once to its end.
pub(crate) async fn assert_each_ended_once(person: &Person, batch_id: &str, pictures: usize) {
    let jobs = person.list(&format!("/api/v1/jobs?batch_id={batch_id}")).await;
    let mut by_task: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for job in &jobs {
        by_task.entry(job["task"].as_str().expect("a task")).or_default().push(job);
    }
    assert_eq!(by_task["generate_3d_model"].len(), pictures);
    for job in by_task["generate_3d_model"].iter().copied() {
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let attempts = person.list(&format!("/api/v1/jobs/{}/attempts", job["id"].as_str().expect("an id"))).await;
        let accepted = attempts.iter().filter(|attempt| attempt["outcome"] == "succeeded").count();
        assert_eq!(accepted, 1, "{attempts:#?}");
    }
    let batch = person.get(&format!("/api/v1/batches/{batch_id}")).await.expect(200);
    assert_eq!(batch["state"], "finished", "{batch:#}");
    assert_eq!(batch["counts"]["succeeded"], pictures, "{batch:#}");
    let finalize = person.job(batch["finalize_job_id"].as_str().expect("an id")).await;
    assert_eq!(finalize["state"], "succeeded", "{finalize:#}");
}

/// Whatever lies in the storage belongs to a file that its owner sees, and each of these is whole.
async fn assert_every_object_has_a_row(house: &House, person: &Person) {
    for file in person.list("/api/v1/files").await {
        let bytes = person.download(file["id"].as_str().expect("an id")).await;
        assert_eq!(bytes.len() as u64, file["size_bytes"].as_u64().expect("a size"), "{file:#}");
        let digest: String =
            <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(file["sha256"], digest, "{file:#}");
    }
    let mut database = sqlx::PgConnection::connect(&house.database_url()).await.expect("the database answers");
    until("leftovers to be swept", BATCH_WITHIN, async || {
        let rows = sqlx::query("select id from jobs.file").fetch_all(&mut database).await.expect("rows");
        let ids: Vec<String> = rows.iter().map(|row| row.get::<sqlx::types::Uuid, _>("id").to_string()).collect();
        let mut objects = Vec::new();
        walk(&house.data_dir().join("files"), &mut objects);
        // An object is named by the id of its file.
        let is_known = |object: &String| ids.iter().any(|id| object.contains(id.as_str()));
        objects.iter().all(is_known).then_some(())
    })
    .await;
}

fn walk(folder: &Path, objects: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => walk(&path, objects),
            path => objects.push(path.display().to_string()),
        }
    }
}

async fn assert_undisturbed(person: &Person, neighbour: &str) {
    let neighbour = person.finished(neighbour, SOON).await;
    assert_eq!((&neighbour["state"], &neighbour["attempt"]), (&json!("succeeded"), &json!(1)), "{neighbour:#}");
}
