//! The health service of every gRPC port (`grpc.health.v1`). It tells whether calls may be sent here, to orchestrators and
//! to [`Peer`](super::Peer)s: yes, until the role is asked to stop. It stands beside the guard, since it tells nothing else.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

/// Where calls of the health service begin.
pub(super) const PATH: &str = "/grpc.health.v1.Health/";

/// The health of one port.
#[derive(Debug, Clone)]
pub(super) struct PortHealth {
    pub(super) stopping: CancellationToken,
}

impl PortHealth {
    fn status(&self) -> HealthCheckResponse {
        let is_stopping = self.stopping.is_cancelled();
        let status = if is_stopping { ServingStatus::NotServing } else { ServingStatus::Serving };
        HealthCheckResponse { status: status.into() }
    }
}

/// The port is one thing: the empty name. Of others it knows nothing.
fn whole(request: &Request<HealthCheckRequest>) -> Result<(), Status> {
    match request.get_ref().service.as_str() {
        "" => Ok(()),
        _ => Err(Status::not_found("only the whole is told of: leave the service's name empty")),
    }
}

#[tonic::async_trait]
impl Health for PortHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        whole(&request)?;
        Ok(Response::new(self.status()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Ends after it has told that the port is stopping, so that nobody who watches holds up the drain.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        whole(&request)?;
        let now = stream::iter([Ok(self.status())]);
        let port = self.clone();
        let then = stream::once(async move {
            port.stopping.cancelled().await;
            Ok(port.status())
        });
        let is_over = self.stopping.is_cancelled();
        Ok(Response::new(if is_over { now.boxed() } else { now.chain(then).boxed() }))
    }
}
