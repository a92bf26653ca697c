//! Rows of the outbox that were read together, as the messages that they are sent as, and which of them are done once the bus
//! has said what it took.

use std::collections::HashMap;

use sqlx::{Row as _, postgres::PgRow};

use super::bundle;
use crate::{
    Fail,
    bus::{self, Bus, Message},
    telemetry::{Span, span},
};

/// Rows as they were read together, and the generation that they were read in.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) generation: i64,
    pub(super) seqs: Vec<i64>,
    /// Of each row, how many of the messages are its own.
    counts: Vec<usize>,
    pub(super) messages: Vec<Message>,
    /// Events that nobody wants, by type: they are sent to nobody, and none is made a message of.
    untaken: HashMap<String, u64>,
    /// Of those that belong to a trace: they end with the group, when the bus has said what became of it.
    spans: Vec<Span>,
}

impl Group {
    /// Adds a row with the columns [`bundle::COLUMNS`], its `events` and its `generation`. Of a type among `untaken` it may
    /// lack the data; others that nobody wants are added to those.
    ///
    /// # Errors
    /// `internal` for a row that is none of an outbox.
    pub(super) fn add(&mut self, row: &PgRow, service: &str, bus: &Bus, untaken: &mut Vec<String>) -> Result<(), Fail> {
        self.generation = row.try_get("generation")?;
        self.seqs.push(row.try_get("seq")?);
        let kind: &str = row.try_get("type")?;
        let is_known = untaken.iter().any(|known| known == kind);
        if is_known || is_untaken(kind, bus) {
            if !is_known {
                untaken.push(kind.to_owned());
            }
            let events: i32 = row.try_get("events")?;
            self.counts.push(0);
            *self.untaken.entry(kind.to_owned()).or_default() += u64::from(events.unsigned_abs());
            return Ok(());
        }
        let events = bundle::unpack(row, service)?;
        self.counts.push(events.len());
        for mut event in events {
            if let Some(traceparent) = &mut event.traceparent {
                let span = span::publish(&event.kind, event.id, traceparent);
                // Consumers go on from the publishing.
                *traceparent = span.traceparent().unwrap_or(std::mem::take(traceparent));
                self.spans.push(span);
            }
            self.messages.push(Message {
                id: event.id,
                body: event.to_bytes(),
                kind: event.kind,
                subject: event.subject,
                generation: self.generation,
            });
        }
        Ok(())
    }

    /// How many events it has.
    pub(super) fn events(&self) -> usize {
        let untaken = self.untaken.values().sum::<u64>();
        self.messages.len() + usize::try_from(untaken).unwrap_or(usize::MAX)
    }

    /// Counts those that nobody wants, which the bus has not seen.
    pub(super) fn count_untaken(&self) {
        for (kind, count) in &self.untaken {
            bus::count_published(kind, *count);
        }
    }

    /// The rows of which every event was confirmed, of which there is a word for each message.
    pub(super) fn confirmed(&self, messages: &[bool]) -> Vec<i64> {
        let mut rest = messages;
        let rows = self.seqs.iter().zip(&self.counts).filter(|(_, count)| {
            let (own, behind) = rest.split_at(**count);
            rest = behind;
            own.iter().all(|is_confirmed| *is_confirmed)
        });
        rows.map(|(seq, _)| *seq).collect()
    }
}

/// Whether events of this type need not be sent at all. Where traces are on each sending is a step of one.
pub(super) fn is_untaken(kind: &str, bus: &Bus) -> bool {
    !bus.may_be_taken(kind) && !span::is_on()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_confirmed_when_each_of_its_events_is() {
        let group = Group { seqs: vec![1, 2, 5, 6], counts: vec![2, 1, 3, 1], ..Group::default() };
        assert_eq!(group.confirmed(&[true; 7]), [1, 2, 5, 6]);
        assert_eq!(group.confirmed(&[true, true, false, true, true, false, true]), [1, 6]);
        assert_eq!(group.confirmed(&[false, true, true, false, true, true, true]), [2, 6]);
    }
}
