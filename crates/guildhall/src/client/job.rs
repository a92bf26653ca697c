//! Jobs: submitted, listed, shown, followed to their end, cancelled, retried.

mod follow;

use std::{io::Read as _, path::Path};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) use follow::{Told, follow};

use super::{
    Outcome,
    api::Api,
    args::{JobArgs, JobList, JobSubmit, JobVerb, Uniqueness},
    error::Error,
    interrupt::{Interrupts, Watched, watch},
    lists,
    live::Live,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// A job, as far as the client reads it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) task: String,
    #[serde(default)]
    pub(super) queue: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) attempt: u32,
    #[serde(default)]
    pub(super) args: Value,
    pub(super) priority: Option<u32>,
    #[serde(default)]
    pub(super) concurrency_key: Option<String>,
    pub(super) tags: Option<Vec<String>>,
    pub(super) progress: Option<Progress>,
    pub(super) waiting_reason: Option<WaitingReason>,
    pub(super) result: Option<Value>,
    pub(super) error: Option<JobError>,
    pub(super) worker_id: Option<String>,
    pub(super) batch_id: Option<String>,
    pub(super) child_batch_id: Option<String>,
    pub(super) created_at: Option<DateTime<Utc>>,
    pub(super) run_at: Option<DateTime<Utc>>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
    pub(super) deadline_at: Option<DateTime<Utc>>,
    pub(super) cancel_asked: Option<CancelAsked>,
    pub(super) unique_key: Option<String>,
    #[serde(default)]
    pub(super) after: Vec<String>,
    /// Of an answer to a submission: it was there before.
    #[serde(default)]
    pub(super) existing: bool,
}

/// How it was asked to stop.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct CancelAsked {
    at: DateTime<Utc>,
    by: Option<String>,
    awaits: Option<String>,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    /// 0 to 100.
    pub(super) percent: f64,
    pub(super) stage: String,
    pub(super) message: String,
}

/// Why a job does not run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct WaitingReason {
    pub(super) reason: String,
    pub(super) detail: Option<String>,
}

/// Why a job failed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, serde::Serialize)]
#[serde(default)]
pub(crate) struct JobError {
    /// One of the contract's error kinds, or the task's own.
    pub(crate) kind: String,
    /// One sentence.
    pub(crate) message: String,
}

pub(super) fn is_final(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled" | "expired")
}

impl Progress {
    /// `stage: message`, or whichever of them there is.
    pub(super) fn words(&self) -> String {
        let both = [&self.stage, &self.message].map(|part| words::plain(part));
        both.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(": ")
    }
}

impl Job {
    /// Seconds between its start and its end.
    pub(super) fn seconds(&self) -> Option<f64> {
        Some((self.finished_at? - self.started_at?).as_seconds_f64())
    }

    /// Since when it is to stop, by whom, and what has not answered.
    fn is_stopping(&self, now: DateTime<Utc>) -> Option<String> {
        let asked = self.cancel_asked.as_ref()?;
        let awaits = words::plain(asked.awaits.as_ref()?);
        let by = asked.by.as_ref().map(|by| format!(" by {}", words::plain(by))).unwrap_or_default();
        Some(format!("asked {}{by}; {awaits} has not answered", words::age(asked.at, now)))
    }

    /// Why it waits, in words.
    pub(super) fn waits(&self) -> Option<String> {
        let reason = self.waiting_reason.as_ref().filter(|reason| !reason.reason.is_empty())?;
        let words = words::plain(&reason.reason).replace('_', " ");
        let detail = reason.detail.as_deref().filter(|detail| !detail.is_empty()).map(words::plain);
        Some(detail.map_or(words.clone(), |detail| format!("{words} ({detail})")))
    }
}

pub(super) async fn run(args: &JobArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    // Standard input is read before Ctrl-C is listened for: a read of a terminal cannot be called off.
    let args_given = match &args.verb {
        JobVerb::Submit(submit) => arguments(&submit.args)?,
        _ => Value::Null,
    };
    let mut interrupts = Interrupts::listen()?;
    let act = async {
        match &args.verb {
            JobVerb::Submit(submit) => return self::submit(&api, submit, args_given, screen).await,
            JobVerb::List(list) => self::list(&api, list, screen).await?,
            JobVerb::Show { id } => show(&api, id, screen).await?,
            JobVerb::Watch { id } => return Ok(Next::Watch(id.clone())),
            JobVerb::Cancel { id } => ask(&api, id, "cancel", screen).await?,
            JobVerb::Retry { id } => ask(&api, id, "retry", screen).await?,
        };
        Ok(Next::Nothing)
    };
    match interrupts.end("Interrupted.", act).await? {
        Next::Nothing => Ok(Outcome::Done),
        Next::Watch(id) => watched(&api, &id, screen, &mut interrupts).await,
    }
}

/// What is left to do after the request.
enum Next {
    Nothing,
    Watch(String),
}

async fn submit(api: &Api, submit: &JobSubmit, args: Value, screen: &Screen) -> Result<Next, Error> {
    let mut body = Map::new();
    body.insert("task".into(), json!(submit.task));
    body.insert("args".into(), args);
    let optional = [
        ("queue", submit.queue.as_ref().map(|queue| json!(queue))),
        ("priority", submit.priority.map(|priority| json!(priority))),
        ("concurrency_key", submit.concurrency_key.as_ref().map(|key| json!(key))),
        ("run_at", submit.run_at.map(|at| json!(at))),
        ("attempt_timeout_s", submit.attempt_timeout.map(|seconds| json!(seconds))),
        ("queue_timeout_s", submit.queue_timeout.map(|seconds| json!(seconds))),
        ("deadline_s", submit.deadline.map(|seconds| json!(seconds))),
        ("max_attempts", submit.max_attempts.map(|count| json!(count))),
        ("after", (!submit.after.is_empty()).then(|| json!(submit.after))),
        ("after_needs", submit.after_needs.as_ref().map(|needs| json!(needs))),
        ("tags", (!submit.tags.is_empty()).then(|| json!(submit.tags))),
        ("unique_key", submit.unique.unique_key.as_ref().map(|key| json!(key))),
        ("unique", uniqueness(&submit.unique)),
    ];
    body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let key = api.clock().new_id().to_string();
    let answer: Value = api.post(&["jobs"], &body, Some(&key)).await?;
    let job: Job = lists::parse(api, answer.clone())?;
    match screen.manner {
        Manner::Json if !submit.watch => screen.print_json(&answer),
        Manner::Quiet => screen.print(&words::plain(&job.id)),
        Manner::Told if job.existing => {
            let id = words::plain(&job.id);
            if !submit.watch {
                screen.print(&id);
            }
            screen.note(&format!("The job {id} holds this key; no other was submitted."));
        }
        Manner::Told if submit.watch => screen.note(&format!("Submitted job {}.", words::plain(&job.id))),
        Manner::Told => {
            screen.print(&words::plain(&job.id));
            screen.note(&format!("Watch it with `guildhall job watch {}`.", words::plain(&job.id)));
        }
        Manner::Json => {}
    }
    Ok(if submit.watch { Next::Watch(job.id) } else { Next::Nothing })
}

/// How the job is to be unique, beside its key.
pub(super) fn uniqueness(given: &Uniqueness) -> Option<Value> {
    given.unique_key.as_ref()?;
    let mut unique = Map::new();
    let optional = [
        ("hold", given.unique_hold.as_ref().map(|hold| json!(hold))),
        ("window_s", given.unique_window.map(|seconds| json!(seconds))),
        ("on_conflict", given.on_conflict.as_ref().map(|what| json!(what))),
        ("for_all", given.unique_for_all.then_some(json!(true))),
    ];
    unique.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    (!unique.is_empty()).then_some(Value::Object(unique))
}

/// The JSON that `--args` stands for.
pub(super) fn arguments(given: &str) -> Result<Value, Error> {
    let text = match given {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(Error::local("standard input"))?;
            text
        }
        _ => match given.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path).map_err(Error::local(Path::new(path)))?,
            None => given.to_owned(),
        },
    };
    match serde_json::from_str(&text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::Usage("The arguments are JSON, and not a JSON object like {\"seconds\": 3}.".into())),
        Err(fault) => Err(Error::Usage(format!("The arguments are not JSON: {fault}."))),
    }
}

async fn list(api: &Api, args: &JobList, screen: &Screen) -> Result<Outcome, Error> {
    let mut filter: Vec<(&str, &str)> = args.states.iter().map(|state| ("state", state.as_str())).collect();
    let optional = [("task", &args.task), ("queue", &args.queue), ("tag", &args.tag), ("batch_id", &args.batch)];
    filter.extend(optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    let table = |jobs: &[Job]| table(api, jobs);
    lists::page(api, &["jobs"], &filter, &args.page, screen, table, |job: &Job| &job.id).await
}

pub(super) fn table(api: &Api, jobs: &[Job]) -> Table {
    let columns = [
        Column::left("id"),
        Column::flexible("task"),
        Column::left("state"),
        Column::right("took"),
        Column::left("made"),
    ];
    let mut table = Table::new(columns);
    for job in jobs {
        let made = job.created_at.map(|at| words::age(at, api.clock().now())).unwrap_or_default();
        let took = job.seconds().map(words::seconds).unwrap_or_default();
        table.row([
            (&job.id).into(),
            (&job.task).into(),
            Cell::state(&job.state),
            took.into(),
            Cell::new(made, Tone::Dim),
        ]);
    }
    table
}

async fn show(api: &Api, id: &str, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.get(&["jobs", id], &[]).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Quiet => screen.print(&words::plain(answer["state"].as_str().unwrap_or_default())),
        Manner::Told => {
            let job: Job = lists::parse(api, answer)?;
            let at = |time: Option<DateTime<Utc>>| {
                time.map(|at| format!("{} ({})", at.format("%Y-%m-%d %H:%M:%S UTC"), words::age(at, api.clock().now())))
            };
            let progress = job.progress.as_ref().filter(|_| !is_final(&job.state));
            screen.print_pairs(&[
                ("id", Some(job.id.clone())),
                ("task", Some(job.task.clone())),
                ("queue", Some(job.queue.clone())),
                ("state", Some(job.state.clone())),
                ("waits for", job.waits()),
                ("stopping", job.is_stopping(api.clock().now())),
                ("progress", progress.map(|progress| format!("{:.0} % {}", progress.percent, progress.words()))),
                ("attempt", Some(job.attempt.to_string())),
                ("priority", job.priority.map(|priority| priority.to_string())),
                ("concurrency key", job.concurrency_key.clone()),
                ("tags", job.tags.clone().filter(|tags| !tags.is_empty()).map(|tags| tags.join(", "))),
                ("unique key", job.unique_key.clone()),
                ("runs after", (!job.after.is_empty()).then(|| job.after.join(", "))),
                ("worker", job.worker_id.clone().filter(|id| !id.is_empty())),
                ("batch", job.batch_id.clone().filter(|id| !id.is_empty())),
                ("made batch", job.child_batch_id.clone().filter(|id| !id.is_empty())),
                ("created", at(job.created_at)),
                ("runs at", at(job.run_at.filter(|_| job.state == "scheduled"))),
                ("deadline", at(job.deadline_at.filter(|_| !is_final(&job.state)))),
                ("started", at(job.started_at)),
                ("finished", at(job.finished_at)),
                ("error", job.error.as_ref().map(|error| format!("{}: {}", error.kind, error.message))),
            ]);
            for (name, value) in [("arguments", Some(&job.args)), ("result", job.result.as_ref())] {
                if let Some(value) = value.filter(|value| !value.is_null()) {
                    screen.print(&format!("\n{}\n{}", screen.tone(Tone::Dim).apply_to(name), words::json(value)));
                }
            }
        }
    }
    Ok(Outcome::Done)
}

async fn ask(api: &Api, id: &str, verb: &str, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.post(&["jobs", id, verb], &json!({}), None).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Told => {
            let job: Job = lists::parse(api, answer)?;
            screen.print(&format!("{} is {}.", words::plain(&job.id), words::plain(&job.state)));
        }
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

async fn watched(api: &Api, id: &str, screen: &Screen, interrupts: &mut Interrupts) -> Result<Outcome, Error> {
    let live = Live::on(screen);
    let line = live.alone("job");
    let again = format!("guildhall job watch {}", words::plain(id));
    let following = follow(api, id, |_| false, |told| tell(&told, screen, &live, &line));
    let cancel = async || api.post::<Value>(&["jobs", id, "cancel"], &json!({}), None).await.map(drop);
    let watched = watch(interrupts, (screen, &live), &Watched { noun: "job", again: &again }, following, cancel).await;
    live.remove(&line);
    let (job, is_called_off) = watched?;
    let took = job.seconds().map(|seconds| format!(" in {}", words::seconds(seconds))).unwrap_or_default();
    match screen.manner {
        Manner::Json => {
            screen.print_json_line(&json!({ "event": "final", "data": { "job_id": job.id, "state": job.state, "result": job.result, "error": job.error } }));
        }
        _ => {
            let state = screen.tone_err(Tone::of_state(&job.state)).apply_to(words::plain(&job.state));
            screen.note(&format!("{state}{took}"));
            if let Some(error) = job.error.as_ref().filter(|_| job.state != "succeeded") {
                screen.warn(&format!("{}: {}", words::plain(&error.kind), words::plain(&error.message)));
            }
            if let Some(result) =
                job.result.as_ref().filter(|result| !result.is_null() && screen.manner == Manner::Told)
            {
                screen.print(&words::json(result));
            }
        }
    }
    Ok(match job.state.as_str() {
        _ if is_called_off => Outcome::CalledOff,
        "succeeded" => Outcome::Done,
        _ => Outcome::WentBadly,
    })
}

fn tell(told: &Told<'_>, screen: &Screen, live: &Live, line: &indicatif::ProgressBar) {
    let say = |text: &str| if live.is_live() { live.say(text) } else { screen.note(text) };
    match told {
        Told::Broken if live.is_live() => line.set_message("the connection broke; opening it again"),
        Told::Broken => screen.note("The connection broke; opening it again."),
        Told::Job(job) => {
            line.set_prefix(words::plain(&job.task));
            line.set_message(job.waits().map_or_else(|| words::plain(&job.state), |why| format!("waits: {why}")));
        }
        Told::Event(event) if screen.manner == Manner::Json => screen.print_json_line(event),
        Told::Event(event) => match event.event.as_str() {
            "log" => {
                let (level, message) = (event.data["level"].as_str(), event.data["message"].as_str());
                say(&format!(
                    "{:5} {}",
                    words::plain(level.unwrap_or("info")),
                    words::plain(message.unwrap_or_default())
                ));
            }
            "progress" => {
                let progress: Progress = serde_json::from_value(event.data.clone()).unwrap_or_default();
                line.set_position(progress.percent.clamp(0.0, 100.0) as u64);
                line.set_message(progress.words());
            }
            "state" if !live.is_live() => screen.note(&words::plain(event.data["state"].as_str().unwrap_or_default())),
            _ => {}
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_from_the_line_or_a_file_and_are_an_object() {
        assert_eq!(arguments(r#"{"value": 1}"#).unwrap(), json!({ "value": 1 }));
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("args.json");
        std::fs::write(&path, r#"{"value": 2}"#).unwrap();
        assert_eq!(arguments(&format!("@{}", path.display())).unwrap(), json!({ "value": 2 }));
        assert_eq!(arguments("[1]").unwrap_err().exit_code(), 64);
        assert_eq!(arguments("{").unwrap_err().exit_code(), 64);
        assert_eq!(arguments("@/nowhere/args.json").unwrap_err().exit_code(), 1);
    }

    #[test]
    fn what_a_job_waits_for_is_told_in_words() {
        let mut job: Job = serde_json::from_value(json!({ "id": "j", "task": "t", "state": "queued" })).unwrap();
        assert_eq!(job.waits(), None);
        job.waiting_reason = Some(WaitingReason { reason: "no_worker".into(), detail: Some("t".into()) });
        assert_eq!(job.waits().unwrap(), "no worker (t)");
    }
}
