//! How every process fares, and whether all is well.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Outcome,
    api::Api,
    args::HealthArgs,
    error::Error,
    interrupt::Interrupts,
    lists,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

#[derive(Debug, Deserialize)]
struct Health {
    ok: bool,
    #[serde(default)]
    missing_roles: Vec<String>,
    #[serde(default)]
    parked_events: u64,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
struct Replica {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    version: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    pid: u32,
    reported_at: DateTime<Utc>,
    live: bool,
    #[serde(default)]
    dependencies: Vec<Dependency>,
    #[serde(default)]
    lags: Vec<Lag>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    ok: bool,
}

#[derive(Debug, Deserialize)]
struct Lag {
    seconds: f64,
}

pub(super) async fn run(args: &HealthArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let answer: Value = Interrupts::listen()?.end("Interrupted.", api.get(&["admin", "health"], &[])).await?;
    let health: Health = lists::parse(&api, answer.clone())?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Quiet => {}
        Manner::Told => {
            screen.print(&table(&health.replicas, api.clock().now()).render(screen));
            screen.print_wrapped(&verdict(&health));
        }
    }
    Ok(if health.ok { Outcome::Done } else { Outcome::WentBadly })
}

fn table(replicas: &[Replica], now: DateTime<Utc>) -> Table {
    let columns = [
        Column::flexible("roles"),
        Column::flexible("host"),
        Column::right("pid"),
        Column::left("version"),
        Column::right("lag"),
        Column::left("fares"),
    ];
    let mut table = Table::new(columns);
    for replica in replicas {
        let lag = replica.lags.iter().map(|lag| lag.seconds).reduce(f64::max).map(words::seconds);
        table.row([
            replica.roles.join(", ").into(),
            (&replica.host).into(),
            replica.pid.to_string().into(),
            (&replica.version).into(),
            lag.unwrap_or_default().into(),
            fares(replica, now),
        ]);
    }
    table
}

fn fares(replica: &Replica, now: DateTime<Utc>) -> Cell {
    let failing: Vec<_> = replica.dependencies.iter().filter(|on| !on.ok).map(|on| on.name.as_str()).collect();
    if !replica.live {
        Cell::new(format!("gone {}", words::age(replica.reported_at, now)), Tone::Dim)
    } else if failing.is_empty() {
        Cell::new("well", Tone::Good)
    } else {
        Cell::new(format!("without {}", failing.join(", ")), Tone::Bad)
    }
}

/// The whole in a sentence or two.
fn verdict(health: &Health) -> String {
    let mut sentence = match (health.ok, health.missing_roles.as_slice()) {
        (true, _) => "All is well.".to_owned(),
        (false, []) => "Not all is well: a process cannot use what it stands on.".to_owned(),
        (false, roles) => format!("Not all is well: nobody is heard of for {}.", words::plain(&roles.join(", "))),
    };
    if health.parked_events > 0 {
        let parked = words::counted(health.parked_events, "event");
        sentence.push_str(&format!(" {parked} could not be handled: see `guildhall event parked`."));
    }
    sentence
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_well_is_named() {
        let of = |value: Value| verdict(&serde_json::from_value(value).unwrap());
        assert_eq!(of(json!({ "ok": true })), "All is well.");
        assert_eq!(
            of(json!({ "ok": false, "missing_roles": ["jobs", "worker"], "parked_events": 1 })),
            "Not all is well: nobody is heard of for jobs, worker. 1 event could not be handled: see `guildhall event parked`."
        );
        let replica = json!({ "roles": ["auth"], "live": true, "reported_at": "2026-01-01T00:00:00Z",
            "dependencies": [{ "name": "database", "ok": true }, { "name": "bus", "ok": false }] });
        let replica: Replica = serde_json::from_value(replica).unwrap();
        let Cell(text, tone) = fares(&replica, DateTime::UNIX_EPOCH);
        assert_eq!((text.as_str(), tone), ("without bus", Tone::Bad));
    }
}
