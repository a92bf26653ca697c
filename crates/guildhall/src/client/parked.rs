//! Events that a consumer could not handle: listed, and handed to their consumers again.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Outcome,
    api::Api,
    args::{EventArgs, EventVerb, ParkedList},
    error::Error,
    interrupt::Interrupts,
    lists,
    screen::{Manner, Screen},
    table::{Column, Table},
    words,
};

#[derive(Debug, Deserialize)]
struct Parked {
    id: String,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    consumer: String,
    #[serde(default)]
    reason: String,
}

pub(super) async fn run(args: &EventArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let act = async {
        match &args.verb {
            EventVerb::Parked(list) => parked(&api, list, screen).await,
            EventVerb::Replay { ids } => replay(&api, ids, screen).await,
        }
    };
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn parked(api: &Api, args: &ParkedList, screen: &Screen) -> Result<Outcome, Error> {
    let mut filter = Vec::new();
    let optional = [("consumer", &args.consumer), ("type", &args.kind)];
    filter.extend(optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    if args.with_replayed {
        filter.push(("with_replayed", "true"));
    }
    let path = ["admin", "events", "parked"];
    lists::page(api, &path, &filter, &args.page, screen, table, |event: &Parked| &event.id).await
}

fn table(events: &[Parked]) -> Table {
    let columns =
        [Column::left("id"), Column::flexible("consumer"), Column::flexible("type"), Column::flexible("reason")];
    let mut table = Table::new(columns);
    for event in events {
        table.row([(&event.id).into(), (&event.consumer).into(), (&event.r#type).into(), (&event.reason).into()]);
    }
    table
}

/// One after the other; the first that is refused ends it.
async fn replay(api: &Api, ids: &[String], screen: &Screen) -> Result<Outcome, Error> {
    let mut answers = Vec::new();
    for id in ids {
        let answer: Value = api.post(&["admin", "events", "parked", id, "replay"], &json!({}), None).await?;
        if screen.manner == Manner::Told {
            let event: Parked = lists::parse(api, answer.clone())?;
            let (id, consumer) = (words::plain(&event.id), words::plain(&event.consumer));
            screen.print_wrapped(&format!("{id} was handed to {consumer} again."));
        }
        answers.push(answer);
    }
    if screen.manner == Manner::Json {
        screen.print_json(&json!({ "items": answers }));
    }
    Ok(Outcome::Done)
}
