//! Work of every kind, asked for by clients that are never told more than what they are answered, while each process that it
//! needs is killed: where a crash falls between two things that belong together, and at any time. What was promised is then
//! proved by journals that no database keeps.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::DateTime;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::{
    Parts,
    clients::{Client, EVERY_S, SCHEDULED},
    faults::Random,
    journal::{Journal, Journals, at_work, read},
    journalist::Journalist,
    reckoning::{all_has_ended, reckon},
};
use crate::{
    is_long, variable,
    wait::{SOON, until},
};

/// What may go wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// A process of this role dies in the middle of whatever it does.
    Dies(&'static str),
    /// A worker of ours dies with all that it holds.
    WorkerDies,
    /// Whoever comes to this point dies there.
    At(&'static str),
}

/// One of each kind that a job needs.
const DEATHS: [Fault; 6] = [
    Fault::Dies("jobs"),
    Fault::WorkerDies,
    Fault::Dies("gateway"),
    Fault::Dies("postgres"),
    Fault::Dies("rabbitmq"),
    Fault::Dies("worker"),
];
/// Where an answer, an attempt, an outcome, a finalize or an occurrence could be lost or doubled.
const POINTS: [Fault; 6] = [
    Fault::At("claimed-not-assigned"),
    Fault::At("finished-not-receipted"),
    Fault::At("occurrence-committed"),
    Fault::At("result-not-finished"),
    Fault::At("last-child-not-finalized"),
    Fault::At("occurrence-not-committed"),
];

/// How much is asked, and how much goes wrong.
struct Size {
    points: usize,
    at_random: usize,
    /// Requests of each client while one thing goes wrong.
    requests: usize,
    within: Duration,
}

const SHORT: Size = Size { points: 3, at_random: 1, requests: 4, within: Duration::from_secs(120) };
const LONG: Size = Size { points: 6, at_random: 68, requests: 16, within: Duration::from_secs(1800) };
const CLIENTS: [&str; 3] = ["ada", "bob", "eve"];
const JOURNALISTS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_ends_once_by_the_journals_whatever_is_killed() {
    let size = if is_long() { LONG } else { SHORT };
    let seed = variable("GUILDHALL_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("GUILDHALL_TEST_SEED={seed}");
    let mut random = Random::of(seed);
    let parts = Parts::open(&[("lease_s", "4"), ("heartbeat_s", "1")]).await;
    let journals = Journals::new();
    let killed = Journal::open(&journals.asked);
    let answered = Arc::new(watch::Sender::new(0));
    let mut workers = Vec::new();
    for _ in 0..JOURNALISTS {
        workers.push(Journalist::start(&parts, &journals).await);
    }
    let mut clients = Vec::new();
    for name in CLIENTS {
        clients.push(Client::new(parts.newcomer(name).await, &journals, &answered));
    }
    let (schedule, first) = clients[0].schedule().await;

    let mut faults: Vec<Fault> = DEATHS.to_vec();
    faults.extend((0..size.at_random).map(|_| {
        let all = [DEATHS, POINTS].concat();
        all[random.below(all.len())]
    }));
    // Last, since the death of a worker would also free what a crash at one of these has left behind.
    faults.extend(&POINTS[..size.points]);
    let workers = Mutex::new(workers);
    for fault in faults {
        // Somewhere among what is asked meanwhile.
        let after = *answered.borrow() + random.below(size.requests * CLIENTS.len() / 2);
        let strike = async {
            answered.subscribe().wait_for(|count| *count >= after).await.expect("it is kept");
            let workers = &mut *workers.lock().await;
            strike(fault, &parts, &journals, &killed, workers, &mut random).await;
        };
        let asking = futures::future::join_all(clients.iter_mut().map(|client| client.ask(size.requests)));
        tokio::join!(asking, strike);
    }

    let runs = clients[0].end_schedule(&schedule).await;
    for client in &clients {
        all_has_ended(client, size.within).await;
    }
    let scheduled = assert_each_occurrence_ran_once(&clients[0], &first, &runs).await;
    let totals = reckon(&clients, &journals, &scheduled).await;
    println!(
        "{} jobs, {} of them scheduled, and {} batches ended once, by {} attempts, of which {} were fenced; {} jobs were \
         given up after three crashes",
        totals.jobs,
        scheduled.len(),
        totals.batches,
        totals.attempts,
        totals.fenced,
        totals.given_up,
    );
    for worker in workers.into_inner() {
        worker.close().await;
    }
    parts.close().await;
}

/// Does the harm, waits until all is whole again, and says how long that took.
async fn strike(
    fault: Fault,
    parts: &Parts,
    journals: &Journals,
    killed: &Journal,
    workers: &mut Vec<Journalist>,
    random: &mut Random,
) {
    let begun = match fault {
        Fault::Dies(role) => {
            let victims = parts.processes().into_iter().filter(|process| process.role == role);
            let victims: Vec<_> = victims.collect();
            let victim = &victims[random.below(victims.len())];
            let begun = Instant::now();
            parts.send(victim, Signal::SIGKILL);
            // Not all that is killed has a port that could be asked whether it is there.
            until("the death to be seen", SOON, async || {
                parts.processes().iter().all(|process| process.pid != victim.pid).then_some(())
            })
            .await;
            begun
        }
        Fault::WorkerDies => {
            let place = until("a worker that is at work", SOON, async || {
                let at_work = at_work(&read(&journals.done));
                workers.iter().position(|worker| at_work.contains(&u64::from(worker.pid)))
            });
            let victim = workers.swap_remove(place.await);
            let begun = Instant::now();
            victim.kill(killed).await;
            workers.push(Journalist::start(parts, journals).await);
            begun
        }
        Fault::At(point) => {
            parts.crash_at(point);
            until(&format!("a crash at {point}"), SOON, async || (!parts.is_armed(point)).then_some(())).await;
            Instant::now()
        }
    };
    parts.recovers().await;
    println!("{fault:?}: all was whole again after {} ms", begun.elapsed().as_millis());
}

/// From the first to the last there is one job for each occurrence, and no other.
async fn assert_each_occurrence_ran_once(client: &Client, first: &str, runs: &[(String, String)]) -> BTreeSet<String> {
    let tagged = client.person.list(&format!("/api/v1/jobs?tag={SCHEDULED}")).await;
    let jobs: BTreeSet<String> =
        tagged.iter().filter_map(|job: &Value| job["id"].as_str().map(str::to_owned)).collect();
    let at = |text: &str| DateTime::parse_from_rfc3339(text).expect("a time").timestamp();
    let (last, _) = runs.first().expect("a run");
    let occurrences = (at(last) - at(first)) / EVERY_S + 1;
    assert_eq!(jobs.len() as i64, occurrences, "from {first} to {last}");
    let newest: BTreeSet<&String> = runs.iter().map(|(_, job)| job).collect();
    assert_eq!(newest.len(), runs.len(), "two occurrences have one job: {runs:?}");
    assert!(newest.into_iter().all(|job| jobs.contains(job)), "{runs:?}");
    jobs
}
