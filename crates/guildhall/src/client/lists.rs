//! The lists: how a page of any noun is asked for and told, and the nouns that are little more than a list (tasks, queues,
//! workers).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Outcome,
    api::{Api, Page},
    args::{PageArgs, QueueArgs, QueueVerb, TaskArgs, TaskVerb, WorkerArgs, WorkerVerb},
    error::Error,
    interrupt::Interrupts,
    limits,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// Asks for one page and tells it in the screen's manner: the server's own JSON, ids, or a table with the way on.
pub(super) async fn page<T: DeserializeOwned>(
    api: &Api,
    path: &[&str],
    filter: &[(&str, &str)],
    args: &PageArgs,
    screen: &Screen,
    table: impl FnOnce(&[T]) -> Table,
    id: impl Fn(&T) -> &String,
) -> Result<Outcome, Error> {
    let limit = args.limit.to_string();
    let mut query = filter.to_vec();
    query.push(("limit", &limit));
    if let Some(cursor) = &args.cursor {
        query.push(("cursor", cursor));
    }
    let answer: Value = api.get(path, &query).await?;
    if screen.manner == Manner::Json {
        screen.print_json(&answer);
        return Ok(Outcome::Done);
    }
    let page: Page<T> = parse(api, answer)?;
    match screen.manner {
        Manner::Quiet => page.items.iter().for_each(|item| screen.print(&words::plain(id(item)))),
        _ if page.items.is_empty() => screen.note("There are none."),
        _ => screen.print(&table(&page.items).render(screen)),
    }
    if let Some(next) = &page.next_cursor {
        screen.note(&format!("There is more: add --cursor {}", words::plain(next)));
    }
    Ok(Outcome::Done)
}

/// Reads what the server answered as what it should be.
pub(super) fn parse<T: DeserializeOwned>(api: &Api, answer: Value) -> Result<T, Error> {
    serde_json::from_value(answer).map_err(|fault| Error::Broken {
        address: api.address(),
        cause: format!("it is not what this version of the client knows ({fault})"),
    })
}

#[derive(Debug, Deserialize)]
struct Task {
    name: String,
    #[serde(default)]
    queue: String,
    #[serde(default)]
    description: String,
    /// Connected workers that offer it now.
    #[serde(default)]
    workers: u32,
}

pub(super) async fn tasks(args: &TaskArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let part = match &args.verb {
        TaskVerb::List(part) => part,
        TaskVerb::Limit { name, concurrency } => {
            let body = json!({ "concurrency": concurrency });
            return Interrupts::listen()?.end("Interrupted.", limits::set(&api, &["tasks", name], &body, screen)).await;
        }
    };
    let table = |tasks: &[Task]| {
        let columns =
            [Column::left("task"), Column::left("queue"), Column::right("workers"), Column::flexible("what it does")];
        let mut table = Table::new(columns);
        for task in tasks {
            let workers = Cell::new(task.workers.to_string(), if task.workers == 0 { Tone::Bad } else { Tone::Plain });
            table.row([(&task.name).into(), (&task.queue).into(), workers, (&task.description).into()]);
        }
        table
    };
    let act = page(&api, &["tasks"], &[], part, screen, table, |task: &Task| &task.name);
    Interrupts::listen()?.end("Interrupted.", act).await
}

#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    #[serde(default)]
    paused: bool,
    /// Jobs by state.
    #[serde(default)]
    depth: BTreeMap<String, u64>,
}

pub(super) async fn queues(args: &QueueArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let act = async {
        match &args.verb {
            QueueVerb::List => list_queues(&api, screen).await,
            QueueVerb::Pause { name } => switch_queue(&api, name, "pause", screen).await,
            QueueVerb::Limit(asked) => limits::set(&api, &["queues", &asked.name], &limits::asked(asked), screen).await,
            QueueVerb::Resume { name } => switch_queue(&api, name, "resume", screen).await,
        }
    };
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn list_queues(api: &Api, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.get(&["queues"], &[]).await?;
    if screen.manner == Manner::Json {
        screen.print_json(&answer);
        return Ok(Outcome::Done);
    }
    let queues: Page<Queue> = parse(api, answer)?;
    if screen.manner == Manner::Quiet {
        queues.items.iter().for_each(|queue| screen.print(&words::plain(&queue.name)));
        return Ok(Outcome::Done);
    }
    const SHOWN: [&str; 6] = ["queued", "running", "cancelling", "scheduled", "waiting", "suspended"];
    let columns = [Column::flexible("queue"), Column::left("is")].into_iter().chain(SHOWN.map(Column::right));
    let mut table = Table::new(columns.collect::<Vec<_>>());
    for queue in &queues.items {
        let is = if queue.paused { Cell::new("paused", Tone::Odd) } else { Cell::new("open", Tone::Dim) };
        let depth = SHOWN.map(|state| match queue.depth.get(state).copied().unwrap_or(0) {
            0 => Cell::new("0", Tone::Dim),
            count => Cell::new(words::thousands(count), Tone::of_state(state)),
        });
        table.row([(&queue.name).into(), is].into_iter().chain(depth).collect::<Vec<_>>());
    }
    screen.print(&table.render(screen));
    Ok(Outcome::Done)
}

async fn switch_queue(api: &Api, name: &str, verb: &str, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.post(&["queues", name, verb], &json!({}), None).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Told if verb == "pause" => {
            screen.print(&format!("{name} is paused: what runs goes on, nothing new starts."));
        }
        Manner::Told => screen.print(&format!("{name} is open again.")),
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

#[derive(Debug, Deserialize)]
struct Worker {
    id: String,
    #[serde(default)]
    profile: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    queues: Vec<String>,
    #[serde(default)]
    slots: u32,
    #[serde(default)]
    running: u32,
    last_seen_at: Option<DateTime<Utc>>,
}

pub(super) async fn workers(args: &WorkerArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let WorkerVerb::List(part) = &args.verb;
    let table = |workers: &[Worker]| {
        let columns = [
            Column::left("id"),
            Column::left("profile"),
            Column::left("host"),
            Column::right("busy"),
            Column::left("seen"),
            Column::flexible("queues"),
        ];
        let mut table = Table::new(columns);
        for worker in workers {
            let tone = if worker.running > 0 { Tone::Busy } else { Tone::Dim };
            let seen = worker.last_seen_at.map(|at| words::age(at, api.clock().now())).unwrap_or_default();
            table.row([
                (&worker.id).into(),
                (&worker.profile).into(),
                (&worker.host).into(),
                Cell::new(format!("{}/{}", worker.running, worker.slots), tone),
                seen.into(),
                // None named is none left out.
                if worker.queues.is_empty() { "every queue".to_owned() } else { worker.queues.join(", ") }.into(),
            ]);
        }
        table
    };
    let act = page(&api, &["workers"], &[], part, screen, table, |worker: &Worker| &worker.id);
    Interrupts::listen()?.end("Interrupted.", act).await
}
