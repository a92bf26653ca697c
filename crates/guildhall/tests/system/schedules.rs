//! Schedules, while the process that submits their jobs is killed.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _, types::Uuid};

use crate::{
    house::House,
    person::Person,
    wait::{SOON, until},
};

/// Before an occurrence is durable, and after it is and nobody has been told.
const POINTS: [&str; 2] = ["occurrence-not-committed", "occurrence-committed"];

#[tokio::test(flavor = "multi_thread")]
async fn an_occurrence_runs_once_and_none_is_lost_wherever_the_process_is_killed() {
    let crashes = tempfile::tempdir().expect("a temporary directory");
    let mut house = House::closed(&[("test_crash_dir", &crashes.path().display().to_string())]);
    house.reopen().await;
    let mut person = house.newcomer("ada").await;
    let asked = json!({ "every_s": 1, "missed": "all", "missed_max": 1000, "overlap": "allow",
        "job": { "task": "demo_echo", "args": { "value": 1 } } });
    let made = person.post("/api/v1/schedules", &asked).await.expect(201);
    let path = format!("/api/v1/schedules/{}", made["id"].as_str().expect("an id"));
    for point in POINTS {
        more_runs(&person, &path).await;
        fs::write(crashes.path().join(point), []).expect("a file");
        house.ended().await;
        assert!(!crashes.path().join(point).exists(), "it was not killed at {point}");
        house.reopen().await;
        person = person.at(&house.ready().http).await;
        more_runs(&person, &path).await;
    }
    person.post(&format!("{path}/pause"), &json!({})).await.expect(200);
    let mut database = PgConnection::connect(&house.database_url()).await.expect("the database answers");
    let rows = sqlx::query("select occurrence_at::text as at, job_id from jobs.schedule_run order by occurrence_at");
    let rows = rows.fetch_all(&mut database).await.expect("rows");
    let jobs = sqlx::query_scalar::<_, Uuid>("select id from jobs.any_job").fetch_all(&mut database).await;
    let jobs: BTreeSet<Uuid> = jobs.expect("rows").into_iter().collect();
    let noted: BTreeSet<Uuid> = rows.iter().map(|row| row.get("job_id")).collect();
    let at: BTreeSet<String> = rows.iter().map(|row| row.get("at")).collect();
    // Each second has one job, and each job has a second.
    assert_eq!((at.len(), noted.len()), (rows.len(), rows.len()));
    assert_eq!(noted, jobs);
    let span = sqlx::query_scalar::<_, i64>(
        "select extract(epoch from max(occurrence_at) - min(occurrence_at))::bigint + 1 from jobs.schedule_run",
    );
    assert_eq!(span.fetch_one(&mut database).await.expect("a count"), rows.len() as i64, "an occurrence was lost");
    house.close().await;
}

/// Waits until there is a run newer than those there are.
async fn more_runs(person: &Person, path: &str) {
    let newest = async || -> Value {
        let answer = person.get(path).await;
        answer.body["runs"][0]["occurrence_at"].clone()
    };
    let before = newest().await;
    until("another run", SOON, async || (newest().await != before).then_some(())).await;
}
