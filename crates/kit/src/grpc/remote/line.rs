//! One connection to one replica: calls on their way over it, and whether a call that failed has left at all.

use std::{
    error::Error as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use super::Origin;
use crate::Fail;

/// A connection that takes calls until it is closed, by whichever side.
#[derive(Debug)]
pub(super) struct Line {
    sender: SendRequest<Held>,
    origin: Arc<Origin>,
    /// Calls at work on it, streams among them.
    calls: AtomicUsize,
    /// It takes no more calls. Those at work on it may end.
    pub(super) closing: CancellationToken,
}

/// Why a call has no answer.
pub(super) enum Unsent {
    /// It has certainly not reached the replica, and can be sent to another.
    Whole(Box<Request<Body>>),
    /// It may have.
    Lost(Status),
}

impl Line {
    pub(super) fn new(sender: SendRequest<Held>, origin: Arc<Origin>) -> Self {
        Self { sender, origin, calls: AtomicUsize::new(0), closing: CancellationToken::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.closing.is_cancelled() && !self.sender.is_closed()
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn take_off(self: &Arc<Self>) -> Flight {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Flight(self.clone())
    }
}

/// A call at work on a [`Line`], until its answer has been read or dropped.
#[derive(Debug)]
pub(super) struct Flight(Arc<Line>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flight {
    pub(super) async fn send(self, request: Request<Body>) -> Result<Response<Body>, Unsent> {
        let line = &self.0;
        let (mut parts, body) = request.into_parts();
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.scheme = Some(line.origin.scheme.clone());
        uri.authority = Some(line.origin.authority.clone());
        parts.uri = Uri::from_parts(uri).map_err(|error| Unsent::Lost(Fail::internal(error).into()))?;

        let held = Held::new(body);
        let unread = held.unread();
        let sent = line.sender.clone().try_send_request(Request::from_parts(parts.clone(), held)).await;
        let error = match sent {
            Ok(response) => return Ok(response.map(|body| Body::new(Landing { body, _flight: self }))),
            Err(error) => error,
        };
        let has_not_left = error.message().is_some() || is_refused(error.error());
        if has_not_left {
            // The replica is leaving: no other call need try.
            line.closing.cancel();
        }
        match unread.take() {
            Some(body) if has_not_left => Err(Unsent::Whole(Box::new(Request::from_parts(parts, body)))),
            _ => Err(Unsent::Lost(lost(error.into_error()))),
        }
    }
}

/// Whether the other side has said that it is leaving and that it did not take this call up (RFC 9113, section 6.8).
fn is_refused(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR))
}

/// A broken connection is a role that is away, whatever broke it.
fn lost(error: hyper::Error) -> Status {
    let mut status = Status::unavailable("the connection to another role broke");
    status.set_source(Arc::new(error));
    status
}

/// A request's body that can be had back for as long as nothing of it was read.
pub(super) struct Held {
    unread: Unread,
    reading: Option<Body>,
}

#[derive(Clone)]
struct Unread(Arc<Mutex<Option<Body>>>);

impl Unread {
    fn take(&self) -> Option<Body> {
        self.0.lock().take()
    }
}

impl Held {
    fn new(body: Body) -> Self {
        Self { unread: Unread(Arc::new(Mutex::new(Some(body)))), reading: None }
    }

    fn unread(&self) -> Unread {
        self.unread.clone()
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.reading.is_none() {
            this.reading = this.unread.take();
        }
        match &mut this.reading {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.reading {
            Some(body) => body.is_end_stream(),
            None => self.unread.0.lock().as_ref().is_none_or(http_body::Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reading {
            Some(body) => body.size_hint(),
            None => self.unread.0.lock().as_ref().map(http_body::Body::size_hint).unwrap_or_default(),
        }
    }
}

/// An answer's body, which keeps its call at work until it has been read or dropped.
struct Landing {
    body: Incoming,
    _flight: Flight,
}

impl http_body::Body for Landing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(lost)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
