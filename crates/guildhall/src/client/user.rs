//! Users, for administrators: found, let in or kept out, given roles. A user is named by its id or its address.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Outcome,
    api::{Api, Page},
    args::{UserArgs, UserList, UserVerb},
    error::Error,
    interrupt::Interrupts,
    lists,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

#[derive(Debug, Deserialize)]
struct User {
    id: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    roles: Vec<String>,
    created_at: Option<DateTime<Utc>>,
    disabled_at: Option<DateTime<Utc>>,
}

pub(super) async fn run(args: &UserArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let act = async {
        match &args.verb {
            UserVerb::List(list) => self::list(&api, list, screen).await,
            UserVerb::Show { user } => show(&api, &id_of(&api, user).await?, screen).await,
            UserVerb::Rename { user, name, reason } => {
                let id = id_of(&api, user).await?;
                let body = with_reason(json!({ "display_name": name }), reason.as_deref());
                let answer = api.patch(&["admin", "users", &id], &body).await?;
                told(&api, answer, screen, |user| {
                    format!("{} is shown as {}.", words::plain(&user.email), words::plain(&user.display_name))
                })
            }
            UserVerb::Disable(act) => {
                let answer = ask(&api, &act.user, "disable", act.reason.as_deref()).await?;
                told(&api, answer, screen, |user| format!("{} may sign in no more.", words::plain(&user.email)))
            }
            UserVerb::Enable(act) => {
                let answer = ask(&api, &act.user, "enable", act.reason.as_deref()).await?;
                told(&api, answer, screen, |user| format!("{} may sign in.", words::plain(&user.email)))
            }
            UserVerb::SignOut(act) => {
                let answer = ask(&api, &act.user, "sign-out", act.reason.as_deref()).await?;
                signed_out(&answer, screen)
            }
            UserVerb::Roles { user, roles, reason } => {
                let id = id_of(&api, user).await?;
                let body = with_reason(json!({ "roles": roles }), reason.as_deref());
                let answer = api.put(&["admin", "users", &id, "roles"], &body).await?;
                told(&api, answer, screen, |user| {
                    format!("{} is {}.", words::plain(&user.email), words::plain(&user.roles.join(", ")))
                })
            }
        }
    };
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn list(api: &Api, args: &UserList, screen: &Screen) -> Result<Outcome, Error> {
    let mut filter = Vec::new();
    let optional = [("search", &args.search), ("role", &args.role)];
    filter.extend(optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    if args.disabled || args.enabled {
        filter.push(("disabled", if args.disabled { "true" } else { "false" }));
    }
    let table = |users: &[User]| table(users, api.clock().now());
    lists::page(api, &["admin", "users"], &filter, &args.page, screen, table, |user: &User| &user.id).await
}

/// Without the ids, which are long: every command here takes the address as well, and `--quiet` tells the ids alone.
fn table(users: &[User], now: DateTime<Utc>) -> Table {
    let columns = [
        Column::flexible("email"),
        Column::flexible("name"),
        Column::left("roles"),
        Column::left("is"),
        Column::left("made"),
    ];
    let mut table = Table::new(columns);
    for user in users {
        let is = match user.disabled_at {
            Some(_) => Cell::new("disabled", Tone::Odd),
            None => Cell::new("enabled", Tone::Dim),
        };
        let made = user.created_at.map(|at| words::age(at, now)).unwrap_or_default();
        let (email, name, roles) = (&user.email, &user.display_name, user.roles.join(", "));
        table.row([email.into(), name.into(), roles.into(), is, Cell::new(made, Tone::Dim)]);
    }
    table
}

async fn show(api: &Api, id: &str, screen: &Screen) -> Result<Outcome, Error> {
    let answer: Value = api.get(&["admin", "users", id], &[]).await?;
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Quiet => screen.print(&words::plain(id)),
        Manner::Told => {
            let user: User = lists::parse(api, answer)?;
            let at = |time: Option<DateTime<Utc>>| {
                time.map(|at| format!("{} ({})", at.format("%Y-%m-%d %H:%M:%S UTC"), words::age(at, api.clock().now())))
            };
            screen.print_pairs(&[
                ("id", Some(user.id)),
                ("email", Some(user.email)),
                ("name", Some(user.display_name)),
                ("roles", Some(user.roles.join(", "))),
                ("created", at(user.created_at)),
                ("disabled", at(user.disabled_at)),
            ]);
        }
    }
    Ok(Outcome::Done)
}

async fn ask(api: &Api, user: &str, verb: &str, reason: Option<&str>) -> Result<Value, Error> {
    let id = id_of(api, user).await?;
    api.post(&["admin", "users", &id, verb], &with_reason(json!({}), reason), None).await
}

fn with_reason(mut body: Value, reason: Option<&str>) -> Value {
    if let Some(reason) = reason {
        body["reason"] = json!(reason);
    }
    body
}

fn told(api: &Api, answer: Value, screen: &Screen, sentence: impl FnOnce(&User) -> String) -> Result<Outcome, Error> {
    match screen.manner {
        Manner::Json => screen.print_json(&answer),
        Manner::Told => screen.print_wrapped(&sentence(&lists::parse(api, answer)?)),
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

fn signed_out(answer: &Value, screen: &Screen) -> Result<Outcome, Error> {
    match screen.manner {
        Manner::Json => screen.print_json(answer),
        Manner::Told => {
            let ended = answer["ended"].as_u64().unwrap_or_default();
            screen.print(&format!("Ended {}.", words::counted(ended, "session")));
        }
        Manner::Quiet => {}
    }
    Ok(Outcome::Done)
}

/// The id of the user who is named so.
pub(super) async fn id_of(api: &Api, user: &str) -> Result<String, Error> {
    if !user.contains('@') {
        let is_id = uuid::Uuid::parse_str(user).is_ok();
        let wrong = || Error::Usage(format!("{} is no id and no address.", words::plain(user)));
        return is_id.then(|| user.to_owned()).ok_or_else(wrong);
    }
    let page: Page<User> = api.get(&["admin", "users"], &[("email", user)]).await?;
    let found = page.items.into_iter().next().map(|user| user.id);
    found.ok_or_else(|| Error::Failed(format!("There is no user with the address {}.", words::plain(user))))
}
