//! One act and its entry: what is known of it from the call, and what its service adds.

use std::{collections::BTreeMap, fmt::Display};

use chrono::{DateTime, Utc};
use proto::events::ActRecorded;
use serde_json::Value;
use uuid::Uuid;

use super::Action;
use crate::{clock::to_timestamp, grpc::Call, identity::Role, outbox::Event};

/// Longest reason and longest id of a request that are kept, in characters.
const REASON_CHARS_MAX: usize = 1000;
const REQUEST_ID_CHARS_MAX: usize = 128;

/// What before and after may say of a field. Text that somebody typed fits nowhere: words are the code's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    Flag(bool),
    Count(u64),
    Id(Uuid),
    Word(&'static str),
    Words(Vec<&'static str>),
}

impl From<bool> for Fact {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
impl From<u64> for Fact {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}
impl From<Uuid> for Fact {
    fn from(id: Uuid) -> Self {
        Self::Id(id)
    }
}
impl From<&'static str> for Fact {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}
impl From<Vec<&'static str>> for Fact {
    fn from(words: Vec<&'static str>) -> Self {
        Self::Words(words)
    }
}

impl From<Fact> for Value {
    fn from(fact: Fact) -> Self {
        match fact {
            Fact::Flag(flag) => flag.into(),
            Fact::Count(count) => count.into(),
            Fact::Id(id) => id.to_string().into(),
            Fact::Word(word) => word.into(),
            Fact::Words(words) => words.into(),
        }
    }
}

/// What somebody showed who was not signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    Password,
    RefreshToken,
}

impl Credential {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::RefreshToken => "refresh_token",
        }
    }
}

/// An act on its way into the audit log.
#[derive(Debug, Clone)]
pub struct Act {
    action: &'static Action,
    /// All but the facts and the time.
    entry: ActRecorded,
    before: BTreeMap<&'static str, Fact>,
    after: BTreeMap<&'static str, Fact>,
    pub(super) traceparent: Option<String>,
}

impl Act {
    /// An act by who calls, on the thing that has this id.
    pub fn of(call: &Call, action: &'static Action, target: impl Display) -> Self {
        let (actor_kind, actor_id, credential) = match &call.caller {
            None => ("anonymous", String::new(), "none".to_owned()),
            Some(caller) if caller.roles.contains(&Role::Service) => {
                ("service", caller.subject.to_string(), "service_key".to_owned())
            }
            Some(caller) => {
                let session = caller.session.map(|session| format!("session:{session}"));
                ("user", caller.subject.to_string(), session.unwrap_or_else(|| "none".to_owned()))
            }
        };
        let entry = ActRecorded {
            actor_id,
            credential,
            remote_address: call.remote_address.clone(),
            user_agent: call.user_agent.clone(),
            request_id: plain(&call.request_id, REQUEST_ID_CHARS_MAX),
            ..Self::entry(action, actor_kind, target)
        };
        Self { traceparent: call.traceparent.clone(), ..Self::new(action, entry) }
    }

    /// An act of Guildhall itself, which nobody asked for.
    pub fn by_system(action: &'static Action, target: impl Display) -> Self {
        let entry = ActRecorded { credential: "none".to_owned(), ..Self::entry(action, "system", target) };
        Self::new(action, entry)
    }

    fn entry(action: &Action, actor_kind: &str, target: impl Display) -> ActRecorded {
        ActRecorded {
            actor_kind: actor_kind.to_owned(),
            action: action.name.to_owned(),
            target_kind: action.target.to_owned(),
            target_id: target.to_string(),
            outcome: "done".to_owned(),
            ..ActRecorded::default()
        }
    }

    fn new(action: &'static Action, entry: ActRecorded) -> Self {
        Self { action, entry, before: BTreeMap::new(), after: BTreeMap::new(), traceparent: None }
    }

    /// What was shown in place of an access token. It proves nothing yet: a wrong password was shown, too.
    #[must_use]
    pub fn showing(mut self, credential: Credential) -> Self {
        credential.as_str().clone_into(&mut self.entry.credential);
        self
    }

    /// Who it was, once what they showed has proved it.
    #[must_use]
    pub fn by_user(mut self, user: Uuid) -> Self {
        "user".clone_into(&mut self.entry.actor_kind);
        self.entry.actor_id = user.to_string();
        self
    }

    /// Whose thing it is: told where it is not the actor's own.
    #[must_use]
    pub fn owned_by(mut self, owner: Uuid) -> Self {
        let owner = owner.to_string();
        self.entry.on_behalf_of = if owner == self.entry.actor_id { String::new() } else { owner };
        self
    }

    /// Why, as the actor says.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.entry.reason = plain(reason, REASON_CHARS_MAX);
        self
    }

    /// What a field of the act's table line was.
    #[must_use]
    pub fn before(mut self, field: &'static str, was: impl Into<Fact>) -> Self {
        if self.may_tell(field) {
            self.before.insert(field, was.into());
        }
        self
    }

    /// What a field of the act's table line is now.
    #[must_use]
    pub fn after(mut self, field: &'static str, is: impl Into<Fact>) -> Self {
        if self.may_tell(field) {
            self.after.insert(field, is.into());
        }
        self
    }

    fn may_tell(&self, field: &str) -> bool {
        let is_listed = self.action.fields.contains(&field);
        debug_assert!(is_listed, "the table has no field `{field}` for `{}`", self.action.name);
        is_listed
    }

    /// The same act, refused for the reason that has this stable code.
    #[must_use]
    pub fn refused(mut self, code: &str) -> Self {
        "refused".clone_into(&mut self.entry.outcome);
        code.clone_into(&mut self.entry.reason);
        self
    }

    /// Who did it, for counting: a user, a service account, or nobody who is known.
    pub(super) fn actor(&self) -> &str {
        &self.entry.actor_id
    }

    pub(super) fn action(&self) -> &'static str {
        self.action.name
    }

    /// Whether it touches another's thing.
    pub(super) fn is_on_anothers(&self) -> bool {
        !self.entry.on_behalf_of.is_empty()
    }

    pub(super) fn into_event(self, kind: &'static str, at: DateTime<Utc>) -> Event {
        let entry = ActRecorded {
            before_json: to_json(self.before),
            after_json: to_json(self.after),
            at: Some(to_timestamp(at)),
            ..self.entry
        };
        Event::new(kind, entry.target_id.clone(), &entry)
    }
}

fn to_json(facts: BTreeMap<&'static str, Fact>) -> String {
    if facts.is_empty() {
        return String::new();
    }
    Value::from_iter(facts).to_string()
}

/// Text that fits into a line of a log and into every database.
fn plain(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    static PAUSE: Action =
        Action { name: "queue.pause", target: "queue", fields: &["is_paused", "depth"], when: "A queue is paused." };

    fn entry(act: Act) -> ActRecorded {
        let event = act.into_event("tests.act.recorded", DateTime::UNIX_EPOCH);
        assert_eq!((event.kind, event.subject.as_str()), ("tests.act.recorded", "default"));
        ActRecorded::decode(event.data).expect("an entry")
    }

    #[test]
    fn an_entry_says_who_asked_from_where_and_what_has_changed() {
        let call = Call::anonymous("request-1").with_origin("192.0.2.7", "a browser");
        let act = Act::of(&call, &PAUSE, "default").because("too\0 full\n").before("is_paused", false);
        let told = entry(act.after("is_paused", true).after("depth", 7_u64));
        assert_eq!((told.actor_kind.as_str(), told.credential.as_str()), ("anonymous", "none"));
        assert_eq!((told.remote_address.as_str(), told.user_agent.as_str()), ("192.0.2.7", "a browser"));
        assert_eq!((told.action.as_str(), told.outcome.as_str()), ("queue.pause", "done"));
        assert_eq!((told.target_kind.as_str(), told.target_id.as_str()), ("queue", "default"));
        assert_eq!((told.reason.as_str(), told.request_id.as_str()), ("too full", "request-1"));
        assert_eq!(told.before_json, r#"{"is_paused":false}"#);
        assert_eq!(told.after_json, r#"{"depth":7,"is_paused":true}"#);
    }

    #[test]
    fn a_refusal_says_its_code_in_place_of_what_the_actor_said() {
        let act = Act::by_system(&PAUSE, "default").because("too full");
        let told = entry(act.refused("forbidden"));
        assert_eq!((told.outcome.as_str(), told.reason.as_str()), ("refused", "forbidden"));
        assert_eq!((told.before_json.as_str(), told.after_json.as_str()), ("", ""));
        assert_eq!((told.actor_kind.as_str(), told.actor_id.as_str()), ("system", ""));
    }

    #[test]
    fn whose_thing_it_is_is_told_of_anothers_alone() {
        let (me, you) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let act = Act::by_system(&PAUSE, "default").by_user(me);
        assert_eq!(entry(act.clone().owned_by(me)).on_behalf_of, "");
        assert_eq!(entry(act.owned_by(you)).on_behalf_of, you.to_string());
    }

    #[test]
    #[should_panic(expected = "no field `name`")]
    fn what_the_table_does_not_list_is_not_told() {
        let _act = Act::by_system(&PAUSE, "default").after("name", "default");
    }
}
