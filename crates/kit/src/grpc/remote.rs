//! A role across the network, of which there may be several replicas. One HTTP/2 connection is kept to each address; a call
//! goes to a connected replica, to the one with the fewest calls at work. A call that certainly reached none is sent to
//! another; one that may have reached its replica is not, since nobody knows what it did there.

mod line;
mod origin;
mod reach;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use tokio::{sync::watch, time::Instant};
use tonic::{Status, body::Body};
use tower::BoxError;

use super::deadline;
use crate::{Fail, tasks::Tasks, tls::Tls};
use line::{Flight, Line, Unsent};
pub(super) use origin::Origin;

/// How long a call waits for any replica to be there.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// The replicas of one role.
#[derive(Debug)]
pub(super) struct Remote {
    /// The role's name, for the log.
    name: &'static str,
    tls: Option<Tls>,
    /// The connections that take calls.
    lines: watch::Sender<Vec<Arc<Line>>>,
    /// Where the next search begins, so that replicas which are equally busy take turns.
    next: AtomicUsize,
}

impl Remote {
    pub(super) fn open(name: &'static str, origins: Vec<Origin>, tls: Option<Tls>, tasks: &Tasks) -> Arc<Self> {
        let remote = Arc::new(Self { name, tls, lines: watch::Sender::new(Vec::new()), next: AtomicUsize::new(0) });
        for origin in origins {
            reach::follow(remote.clone(), Arc::new(origin), tasks);
        }
        remote
    }

    /// Whether a replica is there.
    pub(super) fn is_connected(&self) -> bool {
        self.lines.borrow().iter().any(|line| line.is_open())
    }

    pub(super) async fn connected(&self) {
        let is_there = |lines: &Vec<Arc<Line>>| lines.iter().any(|line| line.is_open());
        // The sender lives as long as this does.
        drop(self.lines.subscribe().wait_for(is_there).await);
    }

    pub(super) fn call(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>> {
        Box::pin(async move {
            let deadline = deadline::read(request.headers());
            let response = deadline::within(deadline, self.send(request, deadline)).await??;
            Ok(deadline::cut(response, deadline))
        })
    }

    async fn send(&self, request: Request<Body>, deadline: Option<Instant>) -> Result<Response<Body>, Status> {
        let give_up = Instant::now() + WAIT_MAX;
        let mut request = request;
        loop {
            let flight = self.flight(give_up).await?;
            if let Some(deadline) = deadline {
                deadline::write(request.headers_mut(), deadline);
            }
            match flight.send(request).await {
                Ok(response) => return Ok(response),
                Err(Unsent::Whole(whole)) => request = *whole,
                Err(Unsent::Lost(status)) => {
                    tracing::debug!(peer.role = self.name, error = %status, "a call was lost on its way");
                    return Err(status);
                }
            }
        }
    }

    /// A place on the connection with the fewest calls at work.
    async fn flight(&self, give_up: Instant) -> Result<Flight, Status> {
        let mut lines = self.lines.subscribe();
        loop {
            if let Some(line) = self.idlest(&lines.borrow_and_update()) {
                return Ok(line.take_off());
            }
            match tokio::time::timeout_at(give_up, lines.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::debug!(peer.role = self.name, "a call found no replica");
                    return Err(Fail::unavailable("unavailable", "A part of the system is away for the moment.")
                        .retry_after(Duration::from_secs(1))
                        .into());
                }
            }
        }
    }

    fn idlest<'a>(&self, lines: &'a [Arc<Line>]) -> Option<&'a Arc<Line>> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let turned = (0..lines.len()).map(|at| &lines[first.wrapping_add(at) % lines.len()]);
        turned.filter(|line| line.is_open()).min_by_key(|line| line.calls())
    }

    fn add(&self, line: Arc<Line>) {
        self.lines.send_modify(|lines| lines.push(line));
    }

    fn remove(&self, line: &Arc<Line>) {
        self.lines.send_modify(|lines| lines.retain(|other| !Arc::ptr_eq(other, line)));
    }
}
