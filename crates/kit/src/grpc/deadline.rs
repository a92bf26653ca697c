//! How long a call may take, from one role to the next: as `grpc-timeout` on the wire, as a point in time in between. Where
//! it is over, the call ends with `timeout`, on whichever side notices first.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::time::Instant;
use tonic::{Status, body::Body};

use crate::{Fail, Kind};

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// When a call is over that came with these headers now. `None` where nothing is said, or nothing that can be understood.
pub(super) fn read(headers: &HeaderMap) -> Option<Instant> {
    let left = parse(headers.get(GRPC_TIMEOUT)?.to_str().ok()?)?;
    // One beyond all time is none.
    Instant::now().checked_add(left)
}

/// Says to the next role how long is left.
pub(super) fn write(headers: &mut HeaderMap, deadline: Instant) {
    // A deadline that has just passed is still said, since a call without one would go on for ever.
    let micros = left(deadline).as_micros().max(1);
    // Eight digits at most: from 100 s on milliseconds are exact enough, and from 27 hours on seconds.
    let (number, unit) = match micros {
        0..100_000_000 => (micros, 'u'),
        100_000_000..100_000_000_000 => (micros / 1_000, 'm'),
        _ => ((micros / 1_000_000).min(99_999_999), 'S'),
    };
    if let Ok(value) = HeaderValue::from_str(&format!("{number}{unit}")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// `answer`, unless the deadline comes first.
pub(super) async fn within<T>(deadline: Option<Instant>, answer: impl Future<Output = T>) -> Result<T, Status> {
    match deadline {
        None => Ok(answer.await),
        Some(deadline) => tokio::time::timeout_at(deadline, answer).await.map_err(|_| over()),
    }
}

/// Ends the answer's body at the deadline.
pub(super) fn cut(response: http::Response<Body>, deadline: Option<Instant>) -> http::Response<Body> {
    let Some(deadline) = deadline else { return response };
    let until = async move {
        tokio::time::sleep_until(deadline).await;
        over()
    };
    response.map(|body| Cut::off(body, until))
}

/// What a call ends with whose time is over.
fn over() -> Status {
    Fail::new(Kind::Timeout, "timeout", "It took too long.").into()
}

/// "At most 8 digits and a unit", says the protocol (gRPC over HTTP/2, "Timeout").
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// An answer's body that ends early, with a status, when `early` resolves before it has ended by itself.
pub(super) struct Cut {
    body: Body,
    /// None once it has ended.
    early: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl Cut {
    /// The body as it goes on meanwhile.
    pub(super) fn off(body: Body, early: impl Future<Output = Status> + Send + 'static) -> Body {
        Body::new(Self { body, early: Some(Box::pin(early)) })
    }
}

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(early) = self.early.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(status) = early.as_mut().poll(cx) {
            self.early = None;
            // What stands behind the body is done with.
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(match status.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(unsayable) => Err(unsayable),
            }));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.early.is_none() || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_survives_the_way_over_the_wire() {
        for left in [1, 1_500, 90_000_000, 3_600_000_000, 200_000_000_000_u64].map(Duration::from_micros) {
            let (mut headers, deadline) = (HeaderMap::new(), Instant::now() + left);
            write(&mut headers, deadline);
            assert_eq!(read(&headers), Some(deadline), "{headers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_is_said_and_what_is_not_understood_is_none() {
        let mut headers = HeaderMap::new();
        write(&mut headers, Instant::now());
        assert_eq!(headers["grpc-timeout"], "1u");
        for text in ["", "1", "u", "123456789S", "-1S", "1s", "é"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
    }
}
