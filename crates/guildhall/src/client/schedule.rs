//! Schedules: made, listed, shown, changed, removed, previewed, run by hand, paused and resumed, backfilled.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Outcome,
    api::Api,
    args::{Manners, ScheduleArgs, ScheduleCreate, SchedulePreview, ScheduleUpdate, ScheduleVerb, Timing},
    error::Error,
    interrupt::Interrupts,
    job::{arguments, uniqueness},
    lists,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// What a schedule is asked to be, by the names under which it is shown and taken alike.
const ASKED: [&str; 13] = [
    "name",
    "cron",
    "every_s",
    "anchor_at",
    "at",
    "time_zone",
    "job",
    "missed",
    "missed_max",
    "overlap",
    "queue_max",
    "jitter_s",
    "pause_after_failures",
];

/// A schedule, as far as the client reads it.
#[derive(Debug, Deserialize)]
struct Schedule {
    id: String,
    name: Option<String>,
    cron: Option<String>,
    every_s: Option<u32>,
    at: Option<DateTime<Utc>>,
    #[serde(default)]
    time_zone: String,
    job: Job,
    #[serde(default)]
    missed: String,
    #[serde(default)]
    overlap: String,
    state: String,
    next_at: Option<DateTime<Utc>>,
    pause_reason: Option<String>,
    #[serde(default)]
    failures: u64,
    last_error: Option<String>,
    #[serde(default)]
    missed_count: u64,
    #[serde(default)]
    skipped_count: u64,
    #[serde(default)]
    runs: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Job {
    task: String,
}

#[derive(Debug, Deserialize)]
struct Run {
    occurrence_at: DateTime<Utc>,
    kind: String,
    job_id: String,
    state: String,
}

#[derive(Debug, Deserialize)]
struct Occurrence {
    local: String,
    note: Option<String>,
}

impl Schedule {
    /// When it comes due, in a few words.
    fn when(&self) -> String {
        match (&self.cron, self.every_s, self.at) {
            (Some(cron), ..) => format!("{cron} ({})", self.time_zone),
            (None, Some(seconds), _) => format!("every {seconds} s"),
            (None, None, Some(at)) => format!("once, {}", time(at)),
            (None, None, None) => String::new(),
        }
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

pub(super) async fn run(args: &ScheduleArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    // Standard input is read before Ctrl-C is listened for: a read of a terminal cannot be called off.
    let job_args = match &args.verb {
        ScheduleVerb::Create(create) => Some(arguments(&create.args)?),
        ScheduleVerb::Update(update) => update.args.as_deref().map(arguments).transpose()?,
        _ => None,
    };
    let act = async {
        match &args.verb {
            ScheduleVerb::Create(asked) => create(&api, asked, job_args, screen).await,
            ScheduleVerb::List(part) => {
                let table = |schedules: &[Schedule]| table(schedules, api.clock().now());
                lists::page(&api, &["schedules"], &[], part, screen, table, |schedule: &Schedule| &schedule.id).await
            }
            ScheduleVerb::Show { id } => told(&api, api.get(&["schedules", id], &[]).await?, screen),
            ScheduleVerb::Update(asked) => update(&api, asked, job_args, screen).await,
            ScheduleVerb::Remove { id } => {
                api.delete(&["schedules", id]).await?;
                screen.note(&format!("Removed {}.", words::plain(id)));
                Ok(Outcome::Done)
            }
            ScheduleVerb::Preview(asked) => preview(&api, asked, screen).await,
            ScheduleVerb::Run { id } => {
                let key = api.clock().new_id().to_string();
                let answer: Value = api.post(&["schedules", id, "run"], &json!({}), Some(&key)).await?;
                match screen.manner {
                    Manner::Json => screen.print_json(&answer),
                    _ => screen.print(&words::plain(answer["job_id"].as_str().unwrap_or_default())),
                }
                Ok(Outcome::Done)
            }
            ScheduleVerb::Pause { id, reason } => {
                let body = reason.as_ref().map_or(json!({}), |reason| json!({ "reason": reason }));
                told(&api, api.post(&["schedules", id, "pause"], &body, None).await?, screen)
            }
            ScheduleVerb::Resume { id } => {
                told(&api, api.post(&["schedules", id, "resume"], &json!({}), None).await?, screen)
            }
            ScheduleVerb::Backfill { id, from, until } => {
                let (key, body) = (api.clock().new_id().to_string(), json!({ "from": from, "until": until }));
                let answer: Value = api.post(&["schedules", id, "backfill"], &body, Some(&key)).await?;
                backfilled(&answer, screen);
                Ok(Outcome::Done)
            }
        }
    };
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn create(api: &Api, asked: &ScheduleCreate, args: Option<Value>, screen: &Screen) -> Result<Outcome, Error> {
    let mut body = Map::new();
    body.insert("job".into(), json!({ "task": asked.task, "args": args }));
    change(&mut body, &asked.timing, &asked.manners);
    let key = api.clock().new_id().to_string();
    told(api, api.post(&["schedules"], &body, Some(&key)).await?, screen)
}

/// Reads the schedule and puts it back with what is given changed.
async fn update(api: &Api, asked: &ScheduleUpdate, args: Option<Value>, screen: &Screen) -> Result<Outcome, Error> {
    let path = ["schedules", asked.id.as_str()];
    let mut body: Map<String, Value> = api.get(&path, &[]).await?;
    body.retain(|name, value| ASKED.contains(&name.as_str()) && !value.is_null());
    if let Some(job) = body.get_mut("job").and_then(Value::as_object_mut) {
        job.retain(|_, value| !value.is_null());
        job.extend(
            [("task", asked.task.as_ref().map(|task| json!(task))), ("args", args)].into_iter().filter_map(given),
        );
    }
    change(&mut body, &asked.timing, &asked.manners);
    told(api, api.put(&path, &body).await?, screen)
}

fn given((name, value): (&str, Option<Value>)) -> Option<(String, Value)> {
    Some((name.to_owned(), value?))
}

/// Puts what was said into the body of a schedule. Another timing takes the place of the one there.
fn change(body: &mut Map<String, Value>, timing: &Timing, manners: &Manners) {
    if timing.cron.is_some() || timing.every.is_some() || timing.at.is_some() {
        for name in ["cron", "every_s", "anchor_at", "at"] {
            body.remove(name);
        }
    }
    body.extend(timing_of(timing).into_iter().filter_map(given));
    let count = |count: Option<u32>| count.map(|count| json!(count));
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let asked = [
        ("name", text(&manners.name)),
        ("missed", text(&manners.missed)),
        ("missed_max", count(manners.missed_max)),
        ("overlap", text(&manners.overlap)),
        ("queue_max", count(manners.queue_max)),
        ("jitter_s", count(manners.jitter)),
        ("pause_after_failures", count(manners.pause_after_failures)),
    ];
    body.extend(asked.into_iter().filter_map(given));
    let of_job = [
        ("queue", text(&manners.queue)),
        ("priority", count(manners.priority)),
        ("concurrency_key", text(&manners.concurrency_key)),
        ("max_attempts", count(manners.max_attempts)),
        ("tags", (!manners.tags.is_empty()).then(|| json!(manners.tags))),
        ("unique_key", text(&manners.unique.unique_key)),
        ("unique", uniqueness(&manners.unique)),
    ];
    if let Some(job) = body.get_mut("job").and_then(Value::as_object_mut) {
        job.extend(of_job.into_iter().filter_map(given));
    }
}

fn timing_of(timing: &Timing) -> [(&'static str, Option<Value>); 5] {
    [
        ("cron", timing.cron.as_ref().map(|cron| json!(cron))),
        ("every_s", timing.every.map(|seconds| json!(seconds))),
        ("anchor_at", timing.anchor.map(|at| json!(at))),
        ("at", timing.at.map(|at| json!(at))),
        ("time_zone", timing.time_zone.as_ref().map(|zone| json!(zone))),
    ]
}

async fn preview(api: &Api, asked: &SchedulePreview, screen: &Screen) -> Result<Outcome, Error> {
    let mut body = Map::new();
    body.insert("count".into(), json!(asked.count));
    body.extend(timing_of(&asked.timing).into_iter().filter_map(given));
    body.extend(given(("after", asked.after.map(|at| json!(at)))));
    let answer: Value = api.post(&["schedules", "preview"], &body, None).await?;
    if screen.manner == Manner::Json {
        screen.print_json(&answer);
        return Ok(Outcome::Done);
    }
    let occurrences: Vec<Occurrence> = lists::parse(api, answer["items"].clone())?;
    for occurrence in occurrences {
        let note = occurrence.note.map(|note| format!("  {}", screen.tone(Tone::Odd).apply_to(words::plain(&note))));
        screen.print(&format!("{}{}", words::plain(&occurrence.local), note.unwrap_or_default()));
    }
    Ok(Outcome::Done)
}

fn backfilled(answer: &Value, screen: &Screen) {
    let ids: Vec<&str> = answer["job_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match screen.manner {
        Manner::Json => screen.print_json(answer),
        Manner::Quiet => ids.iter().for_each(|id| screen.print(&words::plain(id))),
        Manner::Told => {
            let existing = answer["existing"].as_u64().unwrap_or_default();
            let run = words::counted(ids.len() as u64, "occurrence");
            screen.print(&format!("{run} will run; {existing} had run before."));
        }
    }
}

fn table(schedules: &[Schedule], now: DateTime<Utc>) -> Table {
    let columns = [
        Column::left("id"),
        Column::flexible("when"),
        Column::flexible("task"),
        Column::left("is"),
        Column::left("next"),
        Column::left("last"),
    ];
    let mut table = Table::new(columns);
    for schedule in schedules {
        let tone = match schedule.state.as_str() {
            "active" => Tone::Good,
            "paused" => Tone::Odd,
            _ => Tone::Dim,
        };
        let next = schedule.next_at.map(|at| words::age(at, now)).unwrap_or_default();
        let last = schedule.runs.first().map(|run| Cell::new(&run.state, Tone::of_state(&run.state)));
        table.row([
            (&schedule.id).into(),
            schedule.when().into(),
            (&schedule.job.task).into(),
            Cell::new(&schedule.state, tone),
            next.into(),
            last.unwrap_or_else(|| Cell::new("", Tone::Dim)),
        ]);
    }
    table
}

/// Tells one schedule in the screen's manner.
fn told(api: &Api, answer: Value, screen: &Screen) -> Result<Outcome, Error> {
    if screen.manner == Manner::Json {
        screen.print_json(&answer);
        return Ok(Outcome::Done);
    }
    let schedule: Schedule = lists::parse(api, answer)?;
    if screen.manner == Manner::Quiet {
        screen.print(&words::plain(&schedule.id));
        return Ok(Outcome::Done);
    }
    let now = api.clock().now();
    let count = |count: u64| (count > 0).then(|| words::thousands(count));
    let when = schedule.when();
    screen.print_pairs(&[
        ("id", Some(schedule.id)),
        ("name", schedule.name),
        ("when", Some(when)),
        ("task", Some(schedule.job.task)),
        ("state", Some(schedule.state)),
        ("paused for", schedule.pause_reason),
        ("next", schedule.next_at.map(|at| format!("{} ({})", time(at), words::age(at, now)))),
        ("missed", Some(schedule.missed)),
        ("overlap", Some(schedule.overlap)),
        ("failures", count(schedule.failures)),
        ("last error", schedule.last_error),
        ("not made up for", count(schedule.missed_count)),
        ("skipped", count(schedule.skipped_count)),
    ]);
    for run in schedule.runs {
        let state = screen.tone(Tone::of_state(&run.state)).apply_to(words::plain(&run.state)).to_string();
        let (kind, job) = (words::plain(&run.kind), words::plain(&run.job_id));
        screen.print(&format!("{}  {kind:8}  {job}  {state}", time(run.occurrence_at)));
    }
    Ok(Outcome::Done)
}
