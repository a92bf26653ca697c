//! How many jobs a second the engine takes in and works off, beside plain SQL and graphile-worker on the same server.
//!
//! The house is the real binary. Jobs go in through its gateway, 1,000 a call and two calls at a time, onto a queue that
//! is held; then the queue goes on, and the clock runs until the last job is in the history: claimed, assigned over the
//! worker's stream, run, reported, receipted, with attempts, live events and outbox written. The task is `demo_echo`,
//! which does next to nothing in the worker's own process. `demo_spin` of no seconds does as little in a slot's child.

use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::{
    Fault, Options,
    ground::Ground,
    house::House,
    proof::{self, Counters},
    rows::{Report, Row, Spread},
    yardstick::{graphile, own_rows, raw_sql},
};

const BENCH: &str = "engine";
/// Jobs in one call, which is as many as one takes, and calls at a time.
const CALL: u32 = 1_000;
const CALLS_AT_A_TIME: usize = 2;
/// Jobs where attempts are few, as slow rates need no more.
const FEW: u32 = 2_000;

/// Rates of one round, in jobs a second.
#[derive(Debug, Default)]
struct Rates {
    bulk: f64,
    drain: f64,
}

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    let few = options.jobs.min(FEW);
    let (mut house, mut raw, mut own, mut graphile) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut default, mut children, mut graphile_default) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        // One after another in each round, so that a busy minute of the machine is everybody's.
        report.say(&format!("engine, round {round} of {}: guildhall with {} slots", options.rounds, options.slots));
        house.push(with_slots(options, ground, report, round).await?);
        report.say(&format!("engine, round {round}: guildhall with its default slots"));
        let (in_worker, in_child) = with_defaults(few, ground).await?;
        default.push(in_worker);
        children.push(in_child);
        report.say(&format!("engine, round {round}: plain SQL"));
        raw.push(plain(options, ground, report, round).await?);
        report.say(&format!("engine, round {round}: plain SQL over guildhall's tables"));
        own.push(over_own_rows(options, ground).await?);
        if let Some(tools) = &options.tools {
            report.say(&format!("engine, round {round}: graphile-worker"));
            let url = ground.empty_database("graphile").await?;
            let before = Counters::read(&url).await?;
            let bulk = graphile::submit(tools, &url, options.jobs).await?;
            let drain = graphile::drain(tools, &url, options.jobs, graphile::BEST).await?;
            if round == 1 {
                let counted = Counters::read(&url).await?.since(before);
                report.prove(
                    "graphile-worker",
                    &format!("jobs: {} of {}; {counted}", options.jobs * 2, options.jobs * 2),
                );
            }
            graphile.push(Rates { bulk, drain });
            graphile_default.push(graphile::drain(tools, &url, few, graphile::DEFAULT).await?);
        } else if round == 1 {
            report.say("engine: graphile-worker is left out, as --tools names no folder; ./dev bench gets it");
        }
    }

    let bulk = |rates: &[Rates]| rates.iter().map(|rates| rates.bulk).collect::<Spread>();
    let drain = |rates: &[Rates]| rates.iter().map(|rates| rates.drain).collect::<Spread>();
    let row = |metric, value, yardstick| Row { metric, value, unit: "jobs/s", yardstick };
    let mut rows = vec![
        row("bulk_submit", bulk(&house), Some(("plain SQL", bulk(&raw)))),
        row("drain", drain(&house), Some(("plain SQL", drain(&raw)))),
        row("drain", drain(&house), Some(("plain SQL, own rows", own.into_iter().collect()))),
    ];
    if !graphile.is_empty() {
        rows.push(row("bulk_submit", bulk(&house), Some((graphile::NAME, bulk(&graphile)))));
        rows.push(row("drain", drain(&house), Some((graphile::NAME, drain(&graphile)))));
    }
    let default: Spread = default.into_iter().collect();
    let yardstick = (!graphile_default.is_empty())
        .then(|| (graphile::NAME_DEFAULT, graphile_default.into_iter().collect::<Spread>()));
    rows.push(row("drain_default_slots", default.clone(), yardstick));
    let in_worker = Some(("drain_default_slots", default));
    rows.push(row("drain_in_children", children.into_iter().collect(), in_worker));
    report.rows(BENCH, rows);
    Ok(())
}

/// The house at the setting that is held against others' best.
async fn with_slots(options: &Options, ground: &Ground, report: &mut Report, round: u32) -> Result<Rates, Fault> {
    let url = ground.empty_database("house").await?;
    let house = House::open(ground, &url, &[("worker_slots", options.slots.to_string())]).await?;
    let before = Counters::read(&url).await?;
    let bulk = fill(&house, "demo_echo", &json!({ "value": 1 }), options.jobs).await?;
    let drain = drain(&house, &url, options.jobs, options.jobs).await?;
    house.close().await?;
    if round == 1 {
        report.prove("server", &proof::settings(&url).await?);
        let counted = Counters::read(&url).await?.since(before);
        report.prove("guildhall", &format!("{}; {counted}", proof::rows(&url).await?));
    }
    Ok(Rates { bulk, drain })
}

/// The house as it is without being told anything: in the worker's own process, and in children.
async fn with_defaults(jobs: u32, ground: &Ground) -> Result<(f64, f64), Fault> {
    let url = ground.empty_database("house").await?;
    let house = House::open(ground, &url, &[]).await?;
    fill(&house, "demo_echo", &json!({ "value": 1 }), jobs).await?;
    let in_worker = drain(&house, &url, jobs, jobs).await?;
    fill(&house, "demo_spin", &json!({ "seconds": 0 }), jobs).await?;
    let in_child = drain(&house, &url, jobs, jobs * 2).await?;
    house.close().await?;
    Ok((in_worker, in_child))
}

async fn plain(options: &Options, ground: &Ground, report: &mut Report, round: u32) -> Result<Rates, Fault> {
    let url = ground.empty_database("plain").await?;
    let before = Counters::read(&url).await?;
    let (bulk, drain) = raw_sql::measure(&url, options.jobs).await?;
    if round == 1 {
        let counted = Counters::read(&url).await?.since(before);
        report.prove("plain SQL", &format!("jobs: {} in the history; {counted}", options.jobs));
    }
    Ok(Rates { bulk, drain })
}

/// What Postgres takes for the rows alone.
async fn over_own_rows(options: &Options, ground: &Ground) -> Result<f64, Fault> {
    let url = ground.empty_database("house").await?;
    let house = House::open(ground, &url, &[]).await?;
    fill(&house, "demo_echo", &json!({ "value": 1 }), options.jobs).await?;
    house.close().await?;
    own_rows::measure(&url, options.jobs).await
}

/// Submits `jobs` to a queue that is held; how many a second.
async fn fill(house: &House, task: &str, args: &Value, jobs: u32) -> Result<f64, Fault> {
    house.post("/api/v1/queues/default/pause", &json!({})).await?;
    let counts = (0..jobs).step_by(CALL as usize).map(|from| CALL.min(jobs - from));
    let bodies: Vec<Value> =
        counts.map(|count| json!({ "jobs": vec![json!({ "task": task, "args": args }); count as usize] })).collect();
    let started = Instant::now();
    futures::stream::iter(bodies.iter().map(|body| house.post("/api/v1/jobs/bulk", body)))
        .buffer_unordered(CALLS_AT_A_TIME)
        .try_collect::<Vec<Value>>()
        .await?;
    Ok(f64::from(jobs) / started.elapsed().as_secs_f64())
}

/// Lets the queue with its `jobs` go on and waits until nothing is left; how many a second, if `total` have succeeded then.
async fn drain(house: &House, url: &str, jobs: u32, total: u32) -> Result<f64, Fault> {
    let mut connection = PgConnection::connect(url).await?;
    let started = Instant::now();
    house.post("/api/v1/queues/default/resume", &json!({})).await?;
    // The last one to come is the last to go, and found without passing those that have gone.
    let is_left = "select count(*) > 0 from (select id from jobs.job order by id desc limit 1) as last";
    let took = proof::worked_off(&mut connection, is_left, started).await?;
    let succeeded = "select count(*) from jobs.job_history where state = 'succeeded'";
    let succeeded = proof::count(&mut connection, succeeded).await?;
    connection.close().await?;
    if succeeded != i64::from(total) {
        return Err(format!("{succeeded} jobs succeeded, not {total}").into());
    }
    Ok(f64::from(jobs) / took.as_secs_f64())
}
