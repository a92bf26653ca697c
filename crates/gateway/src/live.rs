//! Live streams: what happens to a job or batch, as server-sent events (WHATWG HTML, section 9.2).
//!
//! A stream is opened with an access token and may outlive it, for as long as its session lives: it ends within a second
//! of the session's end, when the process drains, and after an hour in any case, so that roles are looked at again.
//! Except after `end` the client comes back by itself, with a fresh token and `Last-Event-ID`, and misses nothing.

use std::{fmt::Write as _, future::Future, pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use kit::Fail;
use proto::jobs::{LiveEvent, WatchRequest};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    door::Door,
    places::Place,
    route::{Ask, Events, Fails, Id},
};

pub(crate) const FAILS: Fails = Fails(&[(400, "live.malformed_event_id"), (404, "jobs.job_not_found"), (503, "busy")]);

const COMMENT_EVERY: Duration = Duration::from_secs(15);
const LIVES_AT_MOST: Duration = Duration::from_secs(60 * 60);
/// How long a client waits before it comes back; after a drain it is spread, so that not all come at once.
const BACK_AFTER_MS: u64 = 1_000;
const BACK_SPREAD_MS: u64 = 4_000;

/// Opens the stream of the job or batch in the path, after the event that `Last-Event-ID` names.
pub(crate) async fn follow<O>(ask: Ask<Id>, open: O) -> Result<Events, Fail>
where
    O: AsyncFnOnce(&Door, Request<WatchRequest>) -> Result<Response<Streaming<LiveEvent>>, Status>,
{
    let Ask { door, call, headers, path: Id(id), .. } = ask;
    // What bounds the answer's head does not bound the stream that follows.
    let call = call.with_deadline(None);
    let after_offset = match headers.get("last-event-id") {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Fail::malformed("live.malformed_event_id", "`Last-Event-ID` must be the `id` of an event of this stream.")
        })?,
    };
    let place = door
        .live_streams
        .take(call.caller()?.subject)
        .ok_or_else(|| Fail::unavailable("busy", "Too many live streams are open: try again shortly."))?;
    let request = call.request(WatchRequest { id: id.to_string(), after_offset });
    let events = open(&door, request).await?.into_inner();

    let stopping = door.tasks.stopping();
    let session = {
        let door = door.clone();
        async move { door.revocations.ended(call, || door.sessions()).await }
    };
    let mut comments = tokio::time::interval_at(Instant::now() + COMMENT_EVERY, COMMENT_EVERY);
    comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let live = Live {
        door,
        events,
        session_ended: Box::pin(session),
        stopping: Box::pin(stopping.cancelled_owned()),
        too_old: Box::pin(tokio::time::sleep(LIVES_AT_MOST)),
        comments,
        is_over: false,
        _place: place,
    };
    // The first bytes tell the client how soon to come back, and that the stream stands.
    let opening = stream::iter([Ok::<_, std::convert::Infallible>(retry(BACK_AFTER_MS))]);
    let rest = stream::unfold(live, |mut live| async move { Some((Ok(live.next().await?), live)) });
    Ok(Events(Body::from_stream(futures::StreamExt::chain(opening, rest))))
}

/// One open stream. It holds one event at a time: a reader that is slow slows the role's stream down, no more.
struct Live {
    door: Arc<Door>,
    events: Streaming<LiveEvent>,
    session_ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
    too_old: Pin<Box<Sleep>>,
    comments: Interval,
    is_over: bool,
    _place: Place,
}

impl Live {
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        tokio::select! {
            // What ends the stream goes before what is still to be told.
            biased;
            () = &mut self.session_ended => None,
            () = &mut self.stopping => {
                self.is_over = true;
                // The last bytes of an id are random.
                let spread = u64::from(u16::from_be_bytes([self.door.clock.new_id().as_bytes()[14], self.door.clock.new_id().as_bytes()[15]]));
                Some(retry(BACK_AFTER_MS + spread % BACK_SPREAD_MS))
            }
            () = &mut self.too_old => None,
            told = self.events.message() => match told {
                Ok(Some(event)) => {
                    self.is_over = event.event == "end";
                    Some(written(&event))
                }
                Ok(None) => None,
                Err(status) => {
                    tracing::warn!(error = %Fail::from(status), "a live stream broke off");
                    None
                }
            },
            _ = self.comments.tick() => Some(Bytes::from_static(b":\n\n")),
        }
    }
}

fn retry(ms: u64) -> Bytes {
    format!("retry: {ms}\n\n").into()
}

fn written(event: &LiveEvent) -> Bytes {
    let mut text = String::with_capacity(event.data_json.len() + 64);
    let _ = writeln!(text, "id: {}\nevent: {}", event.offset, event.event);
    for line in event.data_json.lines() {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_several_lines_stays_one_event() {
        let event = LiveEvent { offset: 7, event: "log".into(), data_json: "{\n\"a\": 1}".into() };
        assert_eq!(written(&event), "id: 7\nevent: log\ndata: {\ndata: \"a\": 1}\n\n");
    }
}
