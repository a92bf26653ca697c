//! RabbitMQ stands still: its sockets are open and nobody answers, which is the hardest of its absences to notice.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use super::{Parts, foreign::Foreign};
use crate::{
    is_long,
    wait::{SOON, until},
};

const WITHIN: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_while_the_broker_stands_still_and_all_of_it_is_told_afterwards() {
    let lag_s = if is_long() { 60.0 } else { 8.0 };
    let parts = Parts::open(&[]).await;
    let mut database = PgConnection::connect(&parts.database_url()).await.expect("the database answers");
    let foreign = Foreign::listen(&parts.amqp_url(), &mut database).await;
    let person = parts.newcomer("ada").await;
    let administrator = parts.administrator().await;
    let broker = parts.processes().into_iter().find(|process| process.role == "rabbitmq").expect("it is there");

    parts.send(&broker, Signal::SIGSTOP);
    let mut done = 0;
    let shown = until("the lag to be shown", WITHIN, async || {
        let job_id = person.submit("demo_echo", json!({ "value": done })).await;
        assert_eq!(person.finished(&job_id, SOON).await["state"], "succeeded");
        done += 1;
        let health = administrator.get("/api/v1/admin/health").await.expect(200);
        let replicas = health["replicas"].as_array().expect("replicas").clone();
        let lags = replicas.iter().flat_map(|replica| replica["lags"].as_array().cloned().unwrap_or_default());
        let of_jobs = lags.filter(|lag| lag["service"] == "jobs").filter_map(|lag| lag["seconds"].as_f64());
        of_jobs.reduce(f64::max).filter(|seconds| *seconds > lag_s)
    })
    .await;
    parts.send(&broker, Signal::SIGCONT);

    let told = foreign.has_heard_of_everything(&mut database, WITHIN).await;
    println!(
        "{done} jobs were done while the broker stood still, and a lag of {shown:.0} s was shown; all {told} events came"
    );
    parts.close().await;
}
