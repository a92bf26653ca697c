//! What a row of an outbox holds: one event, or several of one type that one transaction told. To Postgres a row costs the
//! same whatever is in it, once when it is written and once more when it is marked, and an engine that hands out and ends
//! a hundred jobs in a transaction tells hundreds of events at once.
//!
//! A row of one event has its `id` and `subject`, and the event's own `data`. In a bundle these two are null, and `data` is
//! a [`Bundle`]. The type is the row's in both, so that what is asked for by its type is found by the row; that also is
//! how a replica of the version before bundles finds them when it is asked to send again. Its relay cannot read one, gives
//! up the lead at it having sent nothing of it or of what is behind it, and leaves it to a replica that can.

use std::collections::HashMap;

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Event, source};
use crate::{Clock, Fail, bus};

/// Events and bytes of one bundle: marking it, sending it again and holding it in memory stay small things. An event that
/// is larger has a row to itself.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an event beside its parts: its id, tags and lengths.
const ENVELOPE_BYTES_MAX: usize = 48;

/// What [`unpack`] reads.
pub(super) const COLUMNS: &str = "seq, id, type, subject, data, traceparent, at";

/// Stored: the tags are never changed.
#[derive(Clone, PartialEq, Message)]
struct Bundle {
    #[prost(message, repeated, tag = "1")]
    events: Vec<Packed>,
}

#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
    #[prost(string, tag = "4")]
    traceparent: String,
}

/// A row to be written.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) id: Option<Uuid>,
    pub(super) kind: &'static str,
    pub(super) subject: Option<String>,
    pub(super) events: i32,
    pub(super) data: Vec<u8>,
    pub(super) traceparent: Option<String>,
}

/// The rows of `events`, in the order in which they are to be written. Events of one type share a row as far as it may hold
/// them, but none stands in a row before one that holds an earlier event of its subject. Ids are made in the given order.
pub(super) fn pack(events: &[Event], clock: &Clock, traceparent: Option<&str>) -> Vec<Row> {
    struct Open<'a> {
        events: Vec<(Uuid, &'a Event)>,
        bytes: usize,
    }
    let mut open: Vec<Open<'_>> = Vec::new();
    // Of those that have one behind the first row.
    let mut last_of: HashMap<&str, usize> = HashMap::new();
    for event in events {
        let bytes = bytes_max(event, traceparent);
        let from = last_of.get(event.subject.as_str()).copied().unwrap_or(0);
        let has_room = |row: &Open<'_>| {
            row.events[0].1.kind == event.kind && row.events.len() < EVENTS_MAX && row.bytes + bytes <= BYTES_MAX
        };
        let place = from + open[from..].iter().position(has_room).unwrap_or(open.len() - from);
        let one = (clock.new_id(), event);
        match open.get_mut(place) {
            Some(row) => {
                row.events.push(one);
                row.bytes += bytes;
            }
            None => open.push(Open { events: vec![one], bytes }),
        }
        if place > 0 {
            last_of.insert(&event.subject, place);
        }
    }
    open.into_iter().map(|row| to_row(&row.events, traceparent)).collect()
}

fn to_row(events: &[(Uuid, &Event)], traceparent: Option<&str>) -> Row {
    if let [(id, event)] = events {
        return Row {
            id: Some(*id),
            kind: event.kind,
            subject: Some(event.subject.clone()),
            events: 1,
            data: event.data.to_vec(),
            traceparent: event.traceparent.as_deref().or(traceparent).map(str::to_owned),
        };
    }
    Row {
        kind: events.first().map(|(_, event)| event.kind).unwrap_or_default(),
        // A bundle is bounded far below.
        events: i32::try_from(events.len()).unwrap_or(i32::MAX),
        data: encoded(events, traceparent),
        ..Row::default()
    }
}

/// The bytes of a [`Bundle`] of these events, which are not copied into one first.
fn encoded(events: &[(Uuid, &Event)], traceparent: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(events.iter().map(|(_, event)| bytes_max(event, traceparent)).sum());
    for (id, event) in events {
        let trace = event.traceparent.as_deref().or(traceparent).unwrap_or_default();
        let fields: [(u32, &[u8]); 4] =
            [(1, id.as_bytes()), (2, event.subject.as_bytes()), (3, &event.data), (4, trace.as_bytes())];
        // As protobuf has it, what is empty is left out.
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let length: usize = fields.clone().map(|(tag, value)| key_len(tag) + delimited_len(value.len())).sum();
        encode_key(1, WireType::LengthDelimited, &mut bytes);
        encode_varint(length as u64, &mut bytes);
        for (tag, value) in fields {
            encode_key(tag, WireType::LengthDelimited, &mut bytes);
            encode_varint(value.len() as u64, &mut bytes);
            bytes.extend_from_slice(value);
        }
    }
    bytes
}

fn delimited_len(length: usize) -> usize {
    encoded_len_varint(length as u64) + length
}

/// What an event takes of a bundle at most.
fn bytes_max(event: &Event, traceparent: Option<&str>) -> usize {
    let trace = event.traceparent.as_deref().or(traceparent).unwrap_or_default();
    event.data.len() + event.subject.len() + trace.len() + ENVELOPE_BYTES_MAX
}

/// The events of a row, in their order; it has the columns [`COLUMNS`].
///
/// # Errors
/// `internal` for a row that is neither of the two.
pub(super) fn unpack(row: &PgRow, service: &str) -> Result<Vec<bus::Event>, Fail> {
    let kind: String = row.try_get("type")?;
    let (at, data) = (row.try_get("at")?, Bytes::from(row.try_get::<Vec<u8>, _>("data")?));
    let id: Option<Uuid> = row.try_get("id")?;
    if let Some(id) = id {
        let (subject, traceparent) = (row.try_get("subject")?, row.try_get("traceparent")?);
        return Ok(vec![bus::Event { id, kind, source: source(service), subject, at, traceparent, data }]);
    }
    let bundle = Bundle::decode(data).map_err(Fail::internal)?;
    let event = |packed: Packed| {
        Ok(bus::Event {
            id: Uuid::from_slice(&packed.id).map_err(Fail::internal)?,
            kind: kind.clone(),
            source: source(service),
            subject: packed.subject,
            at,
            traceparent: Some(packed.traceparent).filter(|trace| !trace.is_empty()),
            data: packed.data,
        })
    };
    bundle.events.into_iter().map(event).collect()
}

#[cfg(test)]
mod tests {
    use proto::events::JobChanged;

    use super::*;

    fn event(kind: &'static str, subject: &str) -> Event {
        Event::new(kind, subject, &JobChanged::default())
    }

    /// The type of each row and the subjects in it.
    fn packed(events: &[Event]) -> Vec<(&'static str, Vec<String>)> {
        let rows = pack(events, &Clock::system(), None).into_iter();
        rows.map(|row| {
            let subjects: Vec<String> = match row.subject {
                Some(subject) => vec![subject],
                None => {
                    let bundle = Bundle::decode(row.data.as_slice()).expect("a bundle");
                    bundle.events.into_iter().map(|event| event.subject).collect()
                }
            };
            assert_eq!(usize::try_from(row.events), Ok(subjects.len()));
            (row.kind, subjects)
        })
        .collect()
    }

    #[test]
    fn a_bundle_is_encoded_as_protobuf_has_it() {
        let clock = Clock::system();
        let events: Vec<Event> = ["", "s", &"t".repeat(300)].map(|subject| event("a", subject)).into();
        let traced = event("a", "u").with_traceparent(Some("own".to_owned()));
        let events: Vec<(Uuid, &Event)> = events.iter().chain([&traced]).map(|event| (clock.new_id(), event)).collect();
        let packed = events.iter().map(|(id, event)| Packed {
            id: id.as_bytes().to_vec(),
            subject: event.subject.clone(),
            data: event.data.clone(),
            traceparent: event.traceparent.clone().unwrap_or_else(|| "all".to_owned()),
        });
        let bundle = Bundle { events: packed.collect() };
        assert_eq!(encoded(&events, Some("all")), bundle.encode_to_vec());
        assert_eq!(Bundle::decode(encoded(&events, None).as_slice()).expect("a bundle").events[1].traceparent, "");
    }

    #[test]
    fn each_type_has_a_row_and_one_event_is_itself() {
        let rows = packed(&[event("a", "1"), event("b", "2"), event("a", "3"), event("c", "4"), event("b", "5")]);
        let expected = [("a", vec!["1", "3"]), ("b", vec!["2", "5"]), ("c", vec!["4"])];
        assert_eq!(rows.len(), expected.len());
        for ((kind, subjects), (expected_kind, expected_subjects)) in rows.iter().zip(&expected) {
            assert_eq!((kind, subjects.len()), (expected_kind, expected_subjects.len()));
            assert!(subjects.iter().eq(expected_subjects));
        }
    }

    #[test]
    fn events_of_a_subject_keep_their_order_over_all_rows() {
        let kinds = ["a", "b", "c"];
        // Every way in which seven events of three types and two subjects may follow one another.
        for mut seed in 0..6_usize.pow(7) {
            let mut events = Vec::new();
            for n in 0..7_u32 {
                let (kind, subject) = (kinds[seed % 3], ["s", "t"][seed / 3 % 2]);
                seed /= 6;
                events.push(Event::new(kind, subject, &JobChanged { attempt: n, ..JobChanged::default() }));
            }
            let mut last: HashMap<String, u32> = HashMap::new();
            let mut count = 0;
            for row in pack(&events, &Clock::system(), None) {
                let inside: Vec<(String, Bytes)> = match row.subject {
                    Some(subject) => vec![(subject, row.data.into())],
                    None => {
                        let bundle = Bundle::decode(row.data.as_slice()).expect("a bundle");
                        bundle.events.into_iter().map(|event| (event.subject, event.data)).collect()
                    }
                };
                for (subject, data) in inside {
                    let n = JobChanged::decode(data).expect("its data").attempt;
                    count += 1;
                    assert!(last.insert(subject, n).is_none_or(|before| before < n), "{events:?}");
                }
            }
            assert_eq!(count, 7);
        }
    }

    #[test]
    fn a_row_has_a_bound_in_events_and_in_bytes() {
        let many: Vec<Event> = (0..EVENTS_MAX + 1).map(|n| event("a", &n.to_string())).collect();
        assert_eq!(packed(&many).iter().map(|(_, subjects)| subjects.len()).collect::<Vec<_>>(), [EVENTS_MAX, 1]);
        let long = |n: usize| Event { data: vec![0; BYTES_MAX / 4].into(), ..event("a", &n.to_string()) };
        let rows = pack(&(0..7).map(long).collect::<Vec<_>>(), &Clock::system(), None);
        assert_eq!(rows.iter().map(|row| row.events).collect::<Vec<_>>(), [3, 3, 1]);
        assert!(rows.iter().all(|row| row.data.len() <= BYTES_MAX));
        let longest = Event { data: vec![0; BYTES_MAX * 2].into(), ..event("a", "x") };
        assert_eq!(pack(&[event("a", "w"), longest, event("a", "y")], &Clock::system(), None).len(), 2);
    }
}
