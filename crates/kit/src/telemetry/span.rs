//! The steps of a trace, named as OpenTelemetry's semantic conventions name them (HTTP, RPC, database, messaging). Paths,
//! statements, arguments and bodies are left out everywhere: they hold what people wrote.
//!
//! Where traces are off a [`Span`] is only the context that came from outside, which is handed on as it came.

use std::{borrow::Cow, time::SystemTime};

use opentelemetry::{
    Context, KeyValue, Value,
    context::FutureExt as _,
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceState, Tracer as _},
};

use uuid::Uuid;

use super::{context, traces};

/// One step of a trace; it ends when this is dropped. Nothing where there is no trace to belong to.
#[derive(Debug, Default)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Context>);

impl Span {
    /// No span.
    pub const fn none() -> Self {
        Self(None)
    }

    pub(super) const fn standing_in(context: Option<Context>) -> Self {
        Self(context)
    }

    /// Whether it will be told to the collector.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Adds what was learnt since the start.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks the step as failed; `kind` is a stable word such as a failure's code, never a message.
    pub fn fail(&self, kind: impl Into<Cow<'static, str>>) {
        if let Some(context) = &self.0 {
            let kind = kind.into();
            context.span().set_attribute(KeyValue::new("error.type", kind.clone().into_owned()));
            context.span().set_status(Status::error(kind));
        }
    }

    /// What the next process goes on from.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().and_then(|context| context::traceparent_of(context.span().span_context()))
    }

    /// The id of the trace, for logs.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let trace = self.0.as_ref()?.span().span_context().trace_id();
        Some(format!("{trace:032x}"))
    }

    /// Makes this the present context while `future` runs.
    pub async fn within<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Some(context) => future.with_context(context.clone()).await,
            None => future.await,
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// A request at the public door. What a stranger's `traceparent` names is continued, since one trace is what the person in
/// front of the browser wants to see; but that it asks to be recorded binds nobody: see [`traces`].
pub fn request(method: &'static str, route: &str, traceparent: Option<&str>) -> Span {
    let parent = traceparent.and_then(context::parse).map(|came| {
        let is_sampled = came.is_sampled() && (traces::tracer().is_none() || traces::is_chosen(came.trace_id()));
        let flags = came.trace_flags().with_sampled(is_sampled);
        let came = SpanContext::new(came.trace_id(), came.span_id(), flags, true, TraceState::NONE);
        Context::new().with_remote_span_context(came)
    });
    start(SpanKind::Server, &parent.unwrap_or_default(), || {
        let attributes =
            vec![KeyValue::new("http.request.method", method), KeyValue::new("http.route", route.to_owned())];
        (format!("{method} {route}").into(), attributes)
    })
}

/// A gRPC call to another role; nothing outside a trace. `path` is `/package.Service/Method`.
pub fn client(path: &str) -> Span {
    continued(SpanKind::Client, &Context::current(), || rpc(path))
}

/// A gRPC call that arrived; nothing for a caller who brings no trace.
pub fn server(path: &str, traceparent: Option<&str>) -> Span {
    continued(SpanKind::Server, &context::remote(traceparent).unwrap_or_default(), || rpc(path))
}

fn rpc(path: &str) -> (Cow<'static, str>, Vec<KeyValue>) {
    let name = path.trim_start_matches('/').to_owned();
    let (service, method) = name.rsplit_once('/').unwrap_or_default();
    let attributes = vec![
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", service.to_owned()),
        KeyValue::new("rpc.method", method.to_owned()),
    ];
    (name.into(), attributes)
}

/// A transaction, or a group of statements, of one service; nothing outside a trace. `operation` is a word of ours, as
/// `auth.login`.
pub fn transaction(operation: &'static str) -> Span {
    continued(SpanKind::Client, &Context::current(), || (operation.into(), database(operation)))
}

/// Whether anyone hears of spans.
#[must_use]
pub fn is_on() -> bool {
    traces::tracer().is_some()
}

/// When a transaction began that writes for several callers at once.
#[derive(Debug, Clone, Copy)]
pub struct Shared(Option<SystemTime>);

impl Shared {
    /// Looks at the clock, where traces are on.
    #[must_use]
    pub fn begin() -> Self {
        Self(traces::tracer().map(|_| opentelemetry::time::now()))
    }

    /// Whether anyone will hear of it.
    #[must_use]
    pub const fn is_told(self) -> bool {
        self.0.is_some()
    }

    /// Ends it, and gives each caller's trace a span of it: their rows were written by it together.
    pub fn end<'a>(self, operation: &'static str, callers: impl IntoIterator<Item = Option<&'a str>>) {
        let (Some(started), Some(tracer)) = (self.0, traces::tracer()) else { return };
        let ended = opentelemetry::time::now();
        let callers: Vec<_> = callers.into_iter().collect();
        let size = i64::try_from(callers.len()).unwrap_or(i64::MAX);
        for parent in callers.into_iter().filter_map(context::remote) {
            let mut attributes = database(operation);
            // The convention has it for two and more.
            if size > 1 {
                attributes.push(KeyValue::new("db.operation.batch.size", size));
            }
            let builder = SpanBuilder::from_name(operation)
                .with_kind(SpanKind::Client)
                .with_start_time(started)
                .with_attributes(attributes);
            let mut span = tracer.build_with_context(builder, &parent);
            span.end_with_timestamp(ended);
        }
    }
}

fn database(operation: &'static str) -> Vec<KeyValue> {
    let schema = operation.split_once('.').map_or(operation, |(schema, _)| schema);
    vec![
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.namespace", schema),
        KeyValue::new("db.operation.name", operation),
    ]
}

/// Jobs being handed in: the context that their rows keep, and that their attempts go on from.
pub fn submit() -> Span {
    continued(SpanKind::Producer, &Context::current(), || {
        let mut attributes = messaging("guildhall.jobs", "send");
        attributes.push(KeyValue::new("messaging.destination.name", "jobs"));
        ("send jobs".into(), attributes)
    })
}

/// An attempt of a job. The conventions would let it begin a trace of its own with a link to the submission's; it goes on
/// in the submission's, since whoever asks what became of a request wants one answer (ADR 19).
pub fn attempt(task: &str, queue: &str, job: &str, number: u32, traceparent: Option<&str>) -> Span {
    let parent = context::remote(traceparent).unwrap_or_default();
    start(SpanKind::Consumer, &parent, || {
        let mut attributes = messaging("guildhall.jobs", "process");
        attributes.extend([
            KeyValue::new("messaging.destination.name", queue.to_owned()),
            KeyValue::new("messaging.message.id", job.to_owned()),
            KeyValue::new("guildhall.task", task.to_owned()),
            KeyValue::new("guildhall.attempt", i64::from(number)),
        ]);
        (format!("process {task}").into(), attributes)
    })
}

/// An event on its way from the outbox to the bus. `traceparent` is what its row kept.
pub fn publish(kind: &str, id: Uuid, traceparent: &str) -> Span {
    event(SpanKind::Producer, "publish", kind, id, None, Some(traceparent))
}

/// An event in the hands of a consumer, which is its queue's name. `traceparent` is what came with it.
pub fn process(kind: &str, id: Uuid, consumer: &str, traceparent: Option<&str>) -> Span {
    event(SpanKind::Consumer, "process", kind, id, Some(consumer), traceparent)
}

fn event(
    kind: SpanKind,
    operation: &'static str,
    event: &str,
    id: Uuid,
    consumer: Option<&str>,
    traceparent: Option<&str>,
) -> Span {
    continued(kind, &context::remote(traceparent).unwrap_or_default(), || {
        let queue = consumer.map(|consumer| format!(":guildhall.{consumer}")).unwrap_or_default();
        let mut attributes = messaging("guildhall.events", operation);
        attributes.extend([
            // Exchange, routing key and queue, as the conventions have it for RabbitMQ.
            KeyValue::new("messaging.destination.name", format!("guildhall.events:{event}{queue}")),
            KeyValue::new("messaging.message.id", id.to_string()),
        ]);
        (format!("{operation} {event}").into(), attributes)
    })
}

fn messaging(system: &'static str, operation: &'static str) -> Vec<KeyValue> {
    vec![KeyValue::new("messaging.system", system), KeyValue::new("messaging.operation.type", operation)]
}

type Described = (Cow<'static, str>, Vec<KeyValue>);

/// A span below `parent`; nothing where `parent` belongs to no trace.
fn continued(kind: SpanKind, parent: &Context, describe: impl FnOnce() -> Described) -> Span {
    if !parent.span().span_context().is_valid() {
        return Span::none();
    }
    start(kind, parent, describe)
}

/// A span below `parent`, or a first one. What is not recorded is not described either.
fn start(kind: SpanKind, parent: &Context, describe: impl FnOnce() -> Described) -> Span {
    let is_remote = parent.span().span_context().is_valid();
    let Some(tracer) = traces::tracer() else { return Span(is_remote.then(|| parent.clone())) };
    if is_remote && !parent.span().span_context().is_sampled() {
        return Span(Some(parent.clone()));
    }
    let (name, attributes) = describe();
    let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
    Span(Some(parent.with_span(tracer.build_with_context(builder, parent))))
}
