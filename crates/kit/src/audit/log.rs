//! A service's part of the audit log: entries of acts in the acts' own transactions, and entries of refusals, bounded.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use sqlx::{PgConnection, PgPool};

use super::Act;
use crate::{Clock, Fail, Kind, db::Schema, outbox};

/// Refusals of one action that one actor can have written down in a minute, and all of them together. A process writes no
/// more, and counts what it leaves out: who is refused a thousand times is known after ten.
const BY_ONE_MAX: u32 = 10;
const IN_ALL_MAX: u32 = 600;

/// Where a service's acts are written down: its outbox.
#[derive(Debug)]
pub struct Log {
    schema: Schema,
    kind: &'static str,
    clock: Clock,
    refusals: Mutex<Refusals>,
}

/// What was refused in one minute, by whom it was asked and which action it was.
#[derive(Debug, Default)]
struct Refusals {
    minute: i64,
    in_all: u32,
    by_one: HashMap<(String, &'static str), u32>,
}

impl Refusals {
    /// Whether one more is written down.
    fn take(&mut self, act: &Act, minute: i64) -> bool {
        if self.minute != minute {
            *self = Self { minute, ..Self::default() };
        }
        if self.in_all >= IN_ALL_MAX {
            return false;
        }
        let by_one = self.by_one.entry((act.actor().to_owned(), act.action())).or_default();
        let is_taken = *by_one < BY_ONE_MAX;
        if is_taken {
            *by_one += 1;
            self.in_all += 1;
        }
        is_taken
    }
}

impl Log {
    /// `kind` is the type of the entries' events, `<service>.act.recorded`.
    pub fn new(schema: Schema, kind: &'static str, clock: Clock) -> Self {
        Self { schema, kind, clock, refusals: Mutex::default() }
    }

    /// Writes an act down, in its own transaction.
    ///
    /// # Errors
    /// As the database.
    pub async fn record(&self, transaction: &mut PgConnection, act: Act) -> Result<(), Fail> {
        let traceparent = act.traceparent.clone();
        let event = act.into_event(self.kind, self.clock.now());
        outbox::write(transaction, self.schema, &[event], &self.clock, traceparent.as_deref()).await
    }

    /// Passes on what an act came to. A refusal that says something of who asked is written down first, in a transaction
    /// of its own: the act is forbidden (403), the thing's state is against it (409), or the thing is another's, which
    /// is answered as if it were not there (404). An id of nothing is a slip of the pen and leaves no entry, and what
    /// failed on our side was no refusal.
    ///
    /// # Errors
    /// What the act failed with; as the database, when the refusal could not be written down.
    pub async fn witness<T>(&self, pool: &PgPool, act: Act, came_to: Result<T, Fail>) -> Result<T, Fail> {
        let Err(fail) = came_to else { return came_to };
        let is_told = match fail.kind() {
            Kind::Forbidden | Kind::Conflict => true,
            Kind::NotFound => act.is_on_anothers(),
            _ => false,
        };
        if !is_told {
            return Err(fail);
        }
        let minute = self.clock.now().timestamp().div_euclid(60);
        let is_taken = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(&act, minute);
        if is_taken {
            self.record(&mut *pool.acquire().await?, act.refused(fail.code())).await?;
        } else {
            metrics::counter!("guildhall_audit_refusals_omitted_total", "service" => self.schema.name()).increment(1);
        }
        Err(fail)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::audit::Action;

    static CANCEL: Action = Action { name: "job.cancel", target: "job", fields: &[], when: "" };
    static RETRY: Action = Action { name: "job.retry", target: "job", fields: &[], when: "" };

    fn by(user: u32, action: &'static Action) -> Act {
        Act::by_system(action, "1").by_user(Uuid::from_u128(user.into()))
    }

    #[test]
    fn one_actors_flood_of_refusals_is_cut_off_by_action_and_begins_anew_with_the_minute() {
        let mut refusals = Refusals::default();
        let mut taken = |act: &Act, minute| (0..50).filter(|_| refusals.take(act, minute)).count();
        assert_eq!(taken(&by(1, &CANCEL), 7), 10);
        assert_eq!(taken(&by(1, &RETRY), 7), 10);
        assert_eq!(taken(&by(2, &CANCEL), 7), 10);
        assert_eq!(taken(&by(1, &CANCEL), 8), 10);
    }

    #[test]
    fn the_refusals_of_many_actors_are_bounded_together() {
        let mut refusals = Refusals::default();
        assert_eq!((0..2000).filter(|user| refusals.take(&by(*user, &CANCEL), 7)).count(), 600);
        assert!(refusals.by_one.len() <= 600);
    }
}
