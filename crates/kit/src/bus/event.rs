//! An event as it travels: a CloudEvent 1.0 in the protobuf format, one a message.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message as _;
use proto::cloudevents::{
    CloudEvent,
    cloud_event::{Data, Value, value::Attr},
};
use uuid::Uuid;

use crate::{
    Fail,
    clock::{from_timestamp, to_timestamp},
};

const SPEC_VERSION: &str = "1.0";
/// What the data is; the message's name follows from the event's type (`proto/events.proto`).
const DATA_CONTENT_TYPE: &str = "application/protobuf";

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Recognises a repeat.
    pub id: Uuid,
    /// As `jobs.job.succeeded`.
    pub kind: String,
    /// Who tells: `/guildhall/<service>`.
    pub source: String,
    /// The id of what it happened to. Events of one subject are in order.
    pub subject: String,
    pub at: DateTime<Utc>,
    /// The W3C trace context of the change, where it had one.
    pub traceparent: Option<String>,
    /// The encoded message that `proto/events.proto` gives for the type.
    pub data: Bytes,
}

impl Event {
    /// The message that the event carries.
    ///
    /// # Errors
    /// `event.undecodable` for data of another shape.
    pub fn message<M: prost::Message + Default>(&self) -> Result<M, Fail> {
        M::decode(self.data.clone()).map_err(|error| undecodable("The data does not decode.").caused_by(error))
    }

    /// The encoded CloudEvent.
    pub fn to_bytes(&self) -> Bytes {
        let mut attributes = HashMap::from([
            ("subject".to_owned(), text(&self.subject)),
            ("time".to_owned(), Value { attr: Some(Attr::CeTimestamp(to_timestamp(self.at))) }),
            ("datacontenttype".to_owned(), text(DATA_CONTENT_TYPE)),
        ]);
        if let Some(traceparent) = &self.traceparent {
            attributes.insert("traceparent".to_owned(), text(traceparent));
        }
        let event = CloudEvent {
            id: self.id.to_string(),
            source: self.source.clone(),
            spec_version: SPEC_VERSION.to_owned(),
            r#type: self.kind.clone(),
            attributes,
            data: Some(Data::BinaryData(self.data.clone())),
        };
        event.encode_to_vec().into()
    }

    /// Reads an encoded CloudEvent.
    ///
    /// # Errors
    /// `event.undecodable` for what is none of ours.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Fail> {
        let event = CloudEvent::decode(bytes)
            .map_err(|error| undecodable("The body is no CloudEvent in protobuf.").caused_by(error))?;
        let attribute = |name: &str| event.attributes.get(name).and_then(|value| value.attr.as_ref());
        let string = |name: &str| match attribute(name) {
            Some(Attr::CeString(text)) => Some(text.clone()),
            _ => None,
        };
        let at = match attribute("time") {
            Some(Attr::CeTimestamp(at)) => from_timestamp(at),
            _ => None,
        };
        let data = match &event.data {
            Some(Data::BinaryData(data)) => data.clone(),
            Some(Data::ProtoData(any)) => Bytes::from(any.value.clone()),
            _ => return Err(undecodable("The event has no binary data.")),
        };
        Ok(Self {
            id: event.id.parse().map_err(|error| undecodable("The event's id is no UUID.").caused_by(error))?,
            subject: string("subject").ok_or_else(|| undecodable("The event has no subject."))?,
            at: at.ok_or_else(|| undecodable("The event has no time."))?,
            traceparent: string("traceparent"),
            kind: event.r#type,
            source: event.source,
            data,
        })
    }
}

fn text(value: &str) -> Value {
    Value { attr: Some(Attr::CeString(value.to_owned())) }
}

fn undecodable(message: &'static str) -> Fail {
    Fail::invalid("event.undecodable", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;

    #[test]
    fn an_event_crosses_the_wire_without_loss() {
        let clock = Clock::frozen(DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap());
        let event = Event {
            id: clock.new_id(),
            kind: "auth.user.registered".into(),
            source: "/guildhall/auth".into(),
            subject: "a user".into(),
            at: clock.now(),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            data: Bytes::from_static(b"\x0a\x01x"),
        };
        assert_eq!(Event::from_bytes(&event.to_bytes()).unwrap(), event);
    }

    #[test]
    fn what_is_no_event_of_ours_is_refused_for_good() {
        for bytes in [&b"\xff\xff"[..], b""] {
            let fail = Event::from_bytes(bytes).unwrap_err();
            assert_eq!(fail.code(), "event.undecodable");
            assert!(!fail.is_transient());
        }
    }
}
