//! Batches: pictures in, models out. `guildhall batch ...`, and [`make_models`], by which `up` makes its first ones.
//!
//! `submit` sends the pictures, `watch` follows what becomes of them, `board` knows how things stand, `view` draws it,
//! `summary` tells the end, `save` brings everything here.

mod board;
mod save;
mod submit;
mod summary;
mod view;
mod watch;

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use serde_json::json;

pub(crate) use summary::Summary;

use self::{
    submit::Wish,
    view::View,
    watch::{Batch, Target},
};
use super::{
    Outcome,
    api::Api,
    args::{BatchArgs, BatchSubmit, BatchVerb, PageArgs},
    error::Error,
    file::Upload,
    interrupt::{self, Interrupts, Watched},
    lists,
    live::Live,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// Makes a model of each picture (its name and its bytes) and shows it on stderr, with bars when that is a terminal.
/// Signals are the caller's to handle: dropping the future stops the watching, and not the batch.
///
/// # Errors
/// Those of the requests, after some minutes of trying when the server is out of reach. Models that fail are no error:
/// the summary has them.
pub(crate) async fn make_models(api: &Api, pictures: Vec<(String, Bytes)>) -> Result<Summary, Error> {
    let screen = Screen::of_process(false, false);
    let live = Live::on(&screen);
    let uploads: Vec<_> = pictures.into_iter().map(|(name, bytes)| Upload::of_bytes(name, bytes)).collect();
    let (target, names) = submit::submit(api, &uploads, &Wish::default(), (&screen, &live)).await?;
    let mut view = View::new(&screen, &live, false);
    let found = watch::follow(api, &target, names, &mut view).await;
    view.close();
    Ok(Summary::of(found?))
}

impl Summary {
    /// Puts models, previews, contact sheet and manifest into `directory`.
    ///
    /// # Errors
    /// Those of the requests, and of the files.
    pub(crate) async fn save(&mut self, api: &Api, directory: &Path) -> Result<(), Error> {
        save::save(api, self, directory, &Live::on(&Screen::of_process(false, false))).await
    }

    /// Prints the table of the models and where things are, to stdout.
    pub(crate) fn print(&self) {
        self.tell(&Screen::of_process(false, false));
    }
}

pub(super) async fn run(args: BatchArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let mut interrupts = Interrupts::listen()?;
    match args.verb {
        BatchVerb::Submit(args) => submit_files(&api, args, screen, &mut interrupts).await,
        BatchVerb::Watch(args) => {
            let target = interrupts.end("Interrupted.", Target::find(&api, &args.id)).await?;
            watch_to_end(&api, target, HashMap::new(), args.out.as_deref(), screen, (&mut interrupts, true)).await
        }
        BatchVerb::List(page) => interrupts.end("Interrupted.", list(&api, &page, screen)).await,
        BatchVerb::Show { id } => interrupts.end("Interrupted.", show(&api, &id, screen)).await,
        BatchVerb::Cancel { id } => interrupts.end("Interrupted.", cancel(&api, &id, screen)).await,
        BatchVerb::Retry { id, states } => interrupts.end("Interrupted.", retry(&api, &id, &states, screen)).await,
    }
}

async fn submit_files(
    api: &Api,
    args: BatchSubmit,
    screen: &Screen,
    interrupts: &mut Interrupts,
) -> Result<Outcome, Error> {
    let params = submit::parameters(&args.params)?;
    let wish = Wish { provider: args.provider, params, priority: args.priority, tags: args.tags };
    let uploads = Upload::of_paths(&args.files)?;
    // Refused now rather than after hours of work.
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(Error::local(out))?;
    }
    let live = Live::on(screen);
    let submitting = submit::submit(api, &uploads, &wish, (screen, &live));
    let (target, names) = interrupts.end("Interrupted: nothing was submitted.", submitting).await?;
    let id = words::plain(target.id());
    if args.watch {
        screen.note(&format!("Submitted {} as job {id}.", words::counted(uploads.len() as u64, "picture")));
        return watch_to_end(api, target, names, args.out.as_deref(), screen, (interrupts, false)).await;
    }
    match screen.manner {
        Manner::Json => screen.print_json(&json!({ "job_id": target.id() })),
        _ => screen.print(&id),
    }
    screen.note(&format!("Watch it with `guildhall batch watch {id}`."));
    Ok(Outcome::Done)
}

/// Follows `target` to its end, brings what it made to `out`, and tells. `tells_events`: whether JSON is a line for each
/// event, or the summary alone.
async fn watch_to_end(
    api: &Api,
    target: Target,
    names: HashMap<String, String>,
    out: Option<&Path>,
    screen: &Screen,
    (interrupts, tells_events): (&mut Interrupts, bool),
) -> Result<Outcome, Error> {
    let live = Live::on(screen);
    let mut view = View::new(screen, &live, tells_events);
    let again = format!("guildhall batch watch {}", words::plain(target.id()));
    let watched = {
        let following = watch::follow(api, &target, names, &mut view);
        let what = Watched { noun: "batch", again: &again };
        interrupt::watch(interrupts, (screen, &live), &what, following, async || target.cancel(api).await).await
    };
    view.close();
    let (found, is_called_off) = watched?;
    let mut summary = Summary::of(found);
    if let Some(out) = out {
        let again = format!("Interrupted. Fetch the rest with `{again} --out {}`.", out.display());
        interrupts.end(&again, save::save(api, &mut summary, out, &live)).await?;
    }
    if tells_events && screen.manner == Manner::Json {
        screen.print_json_line(&json!({ "event": "summary", "data": summary }));
    } else {
        summary.tell(screen);
    }
    Ok(match summary.is_whole() {
        _ if is_called_off => Outcome::CalledOff,
        true => Outcome::Done,
        false => Outcome::WentBadly,
    })
}

async fn list(api: &Api, page: &PageArgs, screen: &Screen) -> Result<Outcome, Error> {
    let table = |batches: &[Batch]| {
        let columns = [
            Column::left("id"),
            Column::left("state"),
            Column::right("jobs"),
            Column::flexible("of which"),
            Column::left("made"),
        ];
        let mut table = Table::new(columns);
        for batch in batches {
            let made = batch.created_at.map(|at| words::age(at, api.clock().now())).unwrap_or_default();
            table.row([
                (&batch.id).into(),
                Cell::state(&batch.state),
                words::thousands(batch.counts.total).into(),
                batch.counts.words().into(),
                Cell::new(made, Tone::Dim),
            ]);
        }
        table
    };
    lists::page(api, &["batches"], &[], page, screen, table, |batch: &Batch| &batch.id).await
}

async fn show(api: &Api, id: &str, screen: &Screen) -> Result<Outcome, Error> {
    let target = Target::find(api, id).await?;
    let job = match target.job_id.get() {
        Some(job_id) => Some(api.get(&["jobs", job_id], &[]).await?),
        None => None,
    };
    let found = watch::gather(api, target.batch_id.get().map(String::as_str), job, HashMap::new()).await?;
    Summary::of(found).tell(screen);
    Ok(Outcome::Done)
}

async fn cancel(api: &Api, id: &str, screen: &Screen) -> Result<Outcome, Error> {
    let target = Target::find(api, id).await?;
    target.cancel(api).await?;
    let id = words::plain(target.id());
    match screen.manner {
        Manner::Json => screen.print_json(&json!({ "id": target.id() })),
        Manner::Told => {
            screen.print(&format!("{id} is being cancelled: what runs is asked to stop, what is done stays."));
        }
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

async fn retry(api: &Api, id: &str, states: &[String], screen: &Screen) -> Result<Outcome, Error> {
    let target = Target::find(api, id).await?;
    let Some(id) = target.batch_id.get() else {
        return Err(Error::Failed(format!("{} has made no batch yet.", words::plain(target.id()))));
    };
    let asked = if states.is_empty() { json!({}) } else { json!({ "states": states }) };
    let batch: Batch = api.post(&["batches", id, "retry"], &asked, None).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&json!({ "id": batch.id, "state": batch.state, "counts": batch.counts })),
        Manner::Told => {
            let id = words::plain(&batch.id);
            screen.print(&format!("{id} is {}: {}.", words::plain(&batch.state), batch.counts.words()));
        }
        Manner::Quiet => {}
    }
    screen.note(&format!("Watch it with `guildhall batch watch {}`.", words::plain(&batch.id)));
    Ok(Outcome::Done)
}
