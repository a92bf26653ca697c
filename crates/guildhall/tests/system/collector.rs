//! A collector of traces, as a tracing product's is: OTLP over gRPC, on a port of its own. It keeps what it is sent, and
//! can stop answering.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::wait::{SOON, until};

/// A running collector; it ends with this.
pub(crate) struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Vec<Seen>>>,
    is_stalled: watch::Sender<bool>,
    /// Batches that wait for a collector that does not answer.
    held: watch::Receiver<u32>,
    serving: JoinHandle<()>,
}

/// A span, with what is needed to find it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Of the process that made it.
    pub(crate) resource: BTreeMap<String, String>,
    /// In nanoseconds.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    /// All of it as text, for marks that must not be anywhere.
    pub(crate) text: String,
}

impl Collector {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let kept = Arc::default();
        let (is_stalled, stalled) = watch::channel(false);
        let (holding, held) = watch::channel(0);
        let service = Keeping { kept: Arc::clone(&kept), stalled, holding };
        let server = Server::builder().add_service(TraceServiceServer::new(service));
        #[expect(clippy::disallowed_methods, reason = "it ends with the collector")]
        let serving = tokio::spawn(async move {
            let served = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
            served.expect("the collector serves");
        });
        Self { address, kept, is_stalled, held, serving }
    }

    /// As a setting has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers nothing from now on.
    pub(crate) fn stall(&self) {
        self.is_stalled.send_replace(true);
    }

    /// Waits until a batch was sent that is not answered.
    pub(crate) async fn holds_a_batch(&self) {
        let mut held = self.held.clone();
        let waited = tokio::time::timeout(SOON, held.wait_for(|held| *held > 0)).await;
        waited.expect("a batch comes").expect("the collector is there");
    }

    /// Everything that came so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.kept.lock().clone()
    }

    /// The spans of one trace, once `is_whole` holds of them.
    pub(crate) async fn trace(&self, id: &str, is_whole: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let what = format!("all of trace {id}");
        until(&what, SOON, async || {
            let spans: Vec<_> = self.seen().into_iter().filter(|span| span.trace == id).collect();
            is_whole(&spans).then_some(spans)
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Keeping {
    kept: Arc<Mutex<Vec<Seen>>>,
    stalled: watch::Receiver<bool>,
    holding: watch::Sender<u32>,
}

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if *self.stalled.borrow() {
            self.holding.send_modify(|held| *held += 1);
            std::future::pending::<()>().await;
        }
        let mut kept = self.kept.lock();
        for process in request.into_inner().resource_spans {
            let resource = texts(&process.resource.map(|resource| resource.attributes).unwrap_or_default());
            for span in process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.push(Seen::new(span, resource.clone()));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Seen {
    fn new(span: Span, resource: BTreeMap<String, String>) -> Self {
        let text = format!("{span:?} {resource:?}");
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            kind: span.kind(),
            attributes: texts(&span.attributes),
            name: span.name,
            resource,
            began: span.start_time_unix_nano,
            ended: span.end_time_unix_nano,
            text,
        }
    }

    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}
