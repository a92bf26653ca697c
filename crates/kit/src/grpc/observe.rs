//! What is told of a call at its two ends: a span each, and at the server its metrics and the ids for the log. A call ends
//! with the status in its trailers, so it is the body that is watched to its end, and a stream counts when it is over.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use proto::METHODS;
use tonic::{Code, Status, body::Body};

use super::Call;
use crate::telemetry::{Ids, Span, context::TRACEPARENT, span};

/// Of a call that arrived, until it has ended.
#[derive(Debug)]
pub(super) struct Served {
    span: Span,
    call: Ending,
}

impl Served {
    pub(super) fn begin(path: &str, headers: &http::HeaderMap) -> Self {
        let span = span::server(path, headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()));
        // An unknown path must not become a label: it is the caller's text.
        let method = METHODS.iter().find(|method| method.path == path).map_or("unknown", |method| method.path);
        Self { span, call: Ending::Served { method, started: tokio::time::Instant::now() } }
    }

    /// Where the answering of the call stands in its trace.
    pub(super) const fn span(&self) -> &Span {
        &self.span
    }

    /// Has the call go on from here, and gives the ids under which it is logged.
    pub(super) fn admitted(&self, call: &mut Call) -> tracing::Span {
        call.traceparent = self.span.traceparent().or(call.traceparent.take());
        let user = call.caller.as_ref().map(|caller| caller.subject.to_string());
        Ids {
            request: Some(call.request_id.as_str()).filter(|id| !id.is_empty()),
            trace: self.span.trace_id().as_deref(),
            user: user.as_deref(),
            ..Ids::default()
        }
        .span()
    }

    pub(super) fn end(self, response: http::Response<Body>) -> http::Response<Body> {
        watched(response, self.span, self.call)
    }
}

/// Of a call to another role, from its request on.
#[derive(Debug)]
pub(super) struct Sent(Span);

impl Sent {
    /// Begins below the present span, and has the other side go on from here.
    pub(super) fn begin(request: &mut http::Request<Body>) -> Self {
        let span = span::client(request.uri().path());
        let value = span.traceparent().and_then(|text| http::HeaderValue::from_str(&text).ok());
        if let Some(value) = value {
            request.headers_mut().insert(TRACEPARENT, value);
        }
        Self(span)
    }

    /// Whether anyone wants to know how the call ends.
    pub(super) fn is_told(&self) -> bool {
        self.0.is_recording()
    }

    pub(super) async fn until_answered<E>(
        self,
        answer: impl Future<Output = Result<http::Response<Body>, E>>,
    ) -> Result<http::Response<Body>, E> {
        match answer.await {
            Ok(response) => Ok(watched(response, self.0, Ending::Sent)),
            Err(error) => {
                Ending::Sent.tell(&self.0, Code::Unavailable);
                Err(error)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Served { method: &'static str, started: tokio::time::Instant },
    Sent,
}

impl Ending {
    fn tell(self, span: &Span, code: Code) {
        span.set("rpc.grpc.status_code", i64::from(code as i32));
        let is_failure = match self {
            Self::Sent => code != Code::Ok,
            // What the caller did wrong is no failure of the server (RPC conventions, "gRPC status").
            Self::Served { .. } => matches!(
                code,
                Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::Unimplemented
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            ),
        };
        if is_failure {
            span.fail((code as i32).to_string());
        }
        if let Self::Served { method, started } = self {
            let code = (code as i32).to_string();
            metrics::counter!("guildhall_grpc_requests_total", "method" => method, "code" => code).increment(1);
            metrics::histogram!("guildhall_grpc_request_duration_seconds", "method" => method)
                .record(started.elapsed().as_secs_f64());
        }
    }
}

fn watched(response: http::Response<Body>, span: Span, ending: Ending) -> http::Response<Body> {
    // A refusal has its status in its head, and no body.
    if let Some(status) = Status::from_header_map(response.headers()) {
        ending.tell(&span, status.code());
        return response;
    }
    response.map(|body| Body::new(Watched { body, pending: Some((span, ending)) }))
}

/// A body that tells how its call ended.
struct Watched {
    body: Body,
    pending: Option<(Span, Ending)>,
}

impl Watched {
    fn end(&mut self, code: Code) {
        if let Some((span, ending)) = self.pending.take() {
            ending.tell(&span, code);
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code()));
                }
            }
            Poll::Ready(Some(Err(status))) => self.end(status.code()),
            // Without trailers, nobody knows.
            Poll::Ready(None) => self.end(Code::Unknown),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    /// The caller went away before the end.
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// The page of metrics after a call with such an answer, which `take` reads.
    fn told(take: fn(Body)) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("5"));
            let frames = [Frame::data(Bytes::from_static(b"an answer")), Frame::trailers(trailers)];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Status>)));
            let served = Served::begin("/guildhall.jobs.v1.Jobs/Get", &http::HeaderMap::new());
            let response = served.end(http::Response::new(Body::new(body)));
            assert!(!page.render().contains("guildhall_grpc_requests_total{"), "it is counted before it has ended");
            take(response.into_body());
        });
        page.render()
    }

    #[test]
    fn a_call_counts_by_the_status_in_its_trailers() {
        let page = told(|body| drop(block_on(body.collect()).expect("a whole body")));
        let line = r#"guildhall_grpc_requests_total{method="/guildhall.jobs.v1.Jobs/Get",code="5"} 1"#;
        assert!(page.contains(line), "{page}");
    }

    #[test]
    fn a_call_whose_caller_goes_away_counts_as_cancelled() {
        let page = told(drop);
        let line = r#"guildhall_grpc_requests_total{method="/guildhall.jobs.v1.Jobs/Get",code="1"} 1"#;
        assert!(page.contains(line), "{page}");
    }
}
