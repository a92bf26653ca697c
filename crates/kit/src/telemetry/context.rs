//! Where work stands in a trace, as W3C `traceparent` text: what travels in a call's metadata, lies in a job's row and in
//! the outbox, and is read again by whoever goes on from there.
//!
//! The present context is the innermost [`Span`](super::Span) whose [`within`](super::Span::within) is being polled.
//! `tracestate` is not carried: Guildhall writes none, and a stranger's is text that we cannot answer for.

use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};

use super::Span;

/// The name of the header, and of the attribute of an event.
pub const TRACEPARENT: &str = "traceparent";

/// The present context, for a row or a message by which the work goes on elsewhere. `None` where there is none.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    Context::map_current(|context| traceparent_of(context.span().span_context()))
}

/// The context that a row or a message has kept, to go on from it. Nothing where it does not parse.
pub fn span_of(traceparent: Option<&str>) -> Span {
    Span::standing_in(remote(traceparent))
}

/// Whether a header is one: four parts in lower-case hexadecimal, neither id all zeros (W3C Trace Context, section 3.2).
/// A later version may add parts behind.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    parse(text).is_some()
}

pub(super) fn traceparent_of(span: &SpanContext) -> Option<String> {
    let (trace, parent, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
    span.is_valid().then(|| format!("00-{trace:032x}-{parent:016x}-{flags:02x}"))
}

pub(super) fn remote(traceparent: Option<&str>) -> Option<Context> {
    let span = traceparent.and_then(parse)?;
    Some(Context::new().with_remote_span_context(span))
}

pub(super) fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let version = hex::<2>(parts.next()?)?;
    let trace = TraceId::from_hex(hex::<32>(parts.next()?)?).ok()?;
    let parent = SpanId::from_hex(hex::<16>(parts.next()?)?).ok()?;
    let flags = u8::from_str_radix(hex::<2>(parts.next()?)?, 16).ok()?;
    let has_more = parts.next().is_some();
    if version == "ff" || (version == "00" && has_more) {
        return None;
    }
    let span = SpanContext::new(trace, parent, TraceFlags::new(flags), true, TraceState::NONE);
    span.is_valid().then_some(span)
}

fn hex<const LENGTH: usize>(part: &str) -> Option<&str> {
    let is_hex = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (part.len() == LENGTH && is_hex).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_read_is_written_as_it_was() {
        assert_eq!(traceparent_of(&parse(GOOD).expect("it is good")).as_deref(), Some(GOOD));
        assert!(is_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later"));
    }

    #[test]
    fn what_is_no_traceparent_is_not_taken_for_one() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(bad), "{bad} was taken");
        }
    }

    #[tokio::test]
    async fn a_context_is_present_within_its_span_and_nowhere_else() {
        let inside = span_of(Some(GOOD)).within(async { current_traceparent() }).await;
        assert_eq!(inside.as_deref(), Some(GOOD));
        assert_eq!(current_traceparent(), None);
    }
}
