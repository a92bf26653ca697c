//! The audit log: who did what, and what came of it.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;

use super::{
    Outcome,
    api::Api,
    args::{AuditArgs, AuditList, AuditVerb},
    error::Error,
    interrupt::Interrupts,
    lists,
    screen::{Screen, Tone},
    table::{Cell, Column, Table},
    user,
};

#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    at: DateTime<Utc>,
    #[serde(default)]
    actor_kind: String,
    actor_id: Option<String>,
    #[serde(default)]
    action: String,
    target_id: Option<String>,
    #[serde(default)]
    outcome: String,
}

pub(super) async fn run(args: &AuditArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let AuditVerb::List(list) = &args.verb;
    let act = self::list(&api, list, screen);
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn list(api: &Api, args: &AuditList, screen: &Screen) -> Result<Outcome, Error> {
    let time = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    let actor = match &args.actor {
        Some(actor) => Some(user::id_of(api, actor).await?),
        None => None,
    };
    let (after, before) = (time(args.after), time(args.before));
    let optional = [
        ("service", &args.service),
        ("actor_id", &actor),
        ("action", &args.action),
        ("target_id", &args.target),
        ("outcome", &args.outcome),
        ("request_id", &args.request),
        ("after", &after),
        ("before", &before),
    ];
    let filter: Vec<_> = optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    lists::page(api, &["admin", "audit"], &filter, &args.page, screen, table, |entry: &Entry| &entry.id).await
}

fn table(entries: &[Entry]) -> Table {
    let columns = [
        Column::left("at (UTC)"),
        Column::left("action"),
        Column::left("outcome"),
        Column::flexible("by"),
        Column::flexible("on"),
    ];
    let mut table = Table::new(columns);
    for entry in entries {
        let at = entry.at.format("%Y-%m-%d %H:%M:%S").to_string();
        let tone = if entry.outcome == "refused" { Tone::Odd } else { Tone::Plain };
        table.row([
            Cell::new(at, Tone::Dim),
            (&entry.action).into(),
            Cell::new(&entry.outcome, tone),
            entry.actor_id.as_ref().unwrap_or(&entry.actor_kind).into(),
            entry.target_id.as_deref().unwrap_or_default().into(),
        ]);
    }
    table
}
