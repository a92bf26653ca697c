//! The engine against a model of it: random commands and faults from a seed are given to the real service on a real
//! database and to a model in plain Rust, and after each the two must show the same. At the end everything is driven to its
//! end, and the books are compared.
//!
//! | file | knows |
//! |---|---|
//! | `job`, `rules`, `batches`, `dependencies`, `unique` | the model: what must become of jobs, attempts, batches, parents, chains and keys |
//! | `driver`, `shown` | the workers and the user of one run, time, and how the service is held against the model |
//! | `drawing`, `commands`, `filling`, `faults` | what is asked and what goes wrong, drawn at random |
//! | `books` | what must be true in the end |
//!
//! The order in which sweeps act on several things that are due at once is not the model's to know. So time goes from one
//! due instant to the next, and each is waited for.
//!
//! `GUILDHALL_TEST_LONG` runs more seeds and longer ones, `GUILDHALL_TEST_SEED` one seed alone.

mod batches;
mod books;
mod commands;
mod dependencies;
mod drawing;
mod driver;
mod faults;
mod filling;
mod job;
mod rules;
mod shown;
mod unique;

use std::sync::{Arc, Mutex};

use tokio::task::{JoinSet, LocalSet};

use driver::Driver;

/// Runs at a time: each waits for sweeps most of its time.
const SIDE_BY_SIDE: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_does_what_the_model_says_whatever_is_asked_and_wherever_it_crashes() {
    let (seeds, commands) = if variable("GUILDHALL_TEST_LONG").is_some() { (200, 200) } else { (20, 60) };
    let seeds = match variable("GUILDHALL_TEST_SEED") {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (1..=seeds).collect(),
    };
    LocalSet::new().run_until(run_all(seeds, commands)).await;
}

async fn run_all(seeds: Vec<u64>, commands: usize) {
    let mut waiting = seeds.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < SIDE_BY_SIDE
            && let Some(seed) = waiting.next()
        {
            running.spawn_local(run(seed, commands));
        }
        let Some(ended) = running.join_next().await else { return };
        if let Err(failure) = ended.unwrap() {
            panic!("{failure}");
        }
    }
}

/// One seed to its end, or what went wrong and all that led there.
async fn run(seed: u64, commands: usize) -> Result<(), String> {
    let trail = Trail::default();
    let walked = trail.clone();
    let mut walk = JoinSet::new();
    walk.spawn_local(async move {
        let mut driver = Driver::new(seed, walked).await;
        for _ in 0..commands {
            driver.step().await;
        }
        driver.drive_to_the_end().await;
        driver.compare_the_books().await;
    });
    match walk.join_next().await {
        Some(Err(failed)) => {
            let panic = failed.into_panic();
            let why = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".to_owned());
            Err(format!("seed {seed} (GUILDHALL_TEST_SEED={seed} runs it alone):\n{}\n{why}", trail.told()))
        }
        _ => Ok(()),
    }
}

/// What was done, in order.
#[derive(Debug, Clone, Default)]
struct Trail(Arc<Mutex<Vec<String>>>);

impl Trail {
    fn say(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn told(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

/// The same choices in every run of a seed.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// splitmix64 (Steele, Lea, Flood, 2014).
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len())) }
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variables, which no service knows")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
