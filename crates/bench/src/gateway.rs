//! How many requests a second the gateway answers, and how late the latest, beside nginx with a static file of the same
//! size: for a job, which takes several looks into Postgres, and for the list of tasks, which takes one. Every limit is as
//! it is by default, every request shows a real token, each is logged. A third line puts nginx before the gateway, as
//! production does.

use serde_json::json;

use crate::{
    Fault, Options,
    ground::Ground,
    house::House,
    proof::{self, Counters},
    rows::{Report, Row, Spread},
    yardstick::{
        nginx::Nginx,
        wrk::{self, Seen},
    },
};

const BENCH: &str = "gateway";
/// Before each route, uncounted.
const WARM_UP_S: u32 = 1;

/// A route, and the names of its figures.
struct Route {
    path: String,
    rate: &'static str,
    p99: &'static str,
    behind_nginx: &'static str,
}

/// One route's rounds.
#[derive(Default)]
struct Rounds {
    gateway: Vec<Seen>,
    nginx: Vec<Seen>,
    behind_nginx: Vec<Seen>,
}

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    let url = ground.empty_database("house").await?;
    let mut house = House::open(ground, &url, &[]).await?;
    let before = Counters::read(&url).await?;
    let job = house.post("/api/v1/jobs", &json!({ "task": "demo_echo", "args": { "value": 1 } })).await?;
    let id = job["id"].as_str().ok_or("the job has no id")?;
    let routes = [
        Route {
            path: format!("/api/v1/jobs/{id}"),
            rate: "get_job",
            p99: "get_job_p99",
            behind_nginx: "get_job_behind_nginx",
        },
        Route {
            path: "/api/v1/tasks".to_owned(),
            rate: "list_tasks",
            p99: "list_tasks_p99",
            behind_nginx: "list_tasks_behind_nginx",
        },
    ];
    let mut rows = Vec::new();
    for route in routes {
        rows.extend(measure(options, ground, report, &mut house, &route).await?);
    }
    house.close().await?;
    report.prove("server", &proof::settings(&url).await?);
    report.prove("guildhall", &format!("{}; {}", proof::rows(&url).await?, Counters::read(&url).await?.since(before)));
    report.rows(BENCH, rows);
    Ok(())
}

async fn measure(
    options: &Options,
    ground: &Ground,
    report: &mut Report,
    house: &mut House,
    route: &Route,
) -> Result<Vec<Row>, Fault> {
    let answer = house.request(reqwest::Method::GET, &route.path).send().await?.error_for_status()?;
    let bytes = answer.bytes().await?.len();
    report.prove(&route.path, &format!("{bytes} bytes an answer, 64 connections, {} s a line", options.seconds));
    let nginx = Nginx::start(ground, &house.http, bytes).await?;
    let direct = format!("{}{}", house.http, route.path);
    wrk::run(&direct, house.token(), WARM_UP_S).await?;
    let mut rounds = Rounds::default();
    for round in 1..=options.rounds {
        report.say(&format!("gateway, {}, round {round} of {}", route.path, options.rounds));
        // A token is good for five minutes.
        house.sign_in().await?;
        rounds.gateway.push(wrk::run(&direct, house.token(), options.seconds).await?);
        rounds.nginx.push(wrk::run(&nginx.url("/static"), house.token(), options.seconds).await?);
        rounds.behind_nginx.push(wrk::run(&nginx.url(&route.path), house.token(), options.seconds).await?);
    }
    nginx.stop().await?;

    let rate = |seen: &[Seen]| seen.iter().map(|seen| seen.requests_per_s).collect::<Spread>();
    let p99 = |seen: &[Seen]| seen.iter().map(|seen| seen.p99_ms).collect::<Spread>();
    let row = |metric, value, unit, yardstick, of| Row { metric, value, unit, yardstick: Some((yardstick, of)) };
    let static_file = "nginx, static file";
    Ok(vec![
        row(route.rate, rate(&rounds.gateway), "requests/s", static_file, rate(&rounds.nginx)),
        row(route.p99, p99(&rounds.gateway), "ms", static_file, p99(&rounds.nginx)),
        row(route.behind_nginx, rate(&rounds.behind_nginx), "requests/s", route.rate, rate(&rounds.gateway)),
    ])
}
