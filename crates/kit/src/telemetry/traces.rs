//! Traces: finished spans go to a collector over OTLP (gRPC), in batches, from a thread of the SDK's own. The queue is
//! bounded and never waited for: a collector that stalls or is away costs spans and nothing else.
//!
//! A trace begins at the gateway's request, or at an attempt whose job brought none. What a process does by itself, such as
//! sweeps and heartbeats, begins none.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, TraceId, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};

use crate::Fail;

/// Spans that wait for the collector; further ones are dropped. Some 10 MiB at most.
const QUEUE_MAX: usize = 8_192;
/// Spans that one message carries at most.
const BATCH_MAX: usize = 512;
/// A span waits at most this long for others to travel with.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take for one batch before it is given up.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
/// How long the last spans may hold up the end of the process.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

static TRACER: OnceLock<Started> = OnceLock::new();

#[derive(Debug)]
struct Started {
    tracer: SdkTracer,
    ratio: f64,
}

/// Where traces go, and whose they are.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// `http://host:4317`.
    pub endpoint: String,
    /// Share of traces that are recorded, 0 to 1.
    pub ratio: f64,
    /// `guildhall`, or `guildhall-jobs` for a role that runs apart.
    pub service_name: String,
    pub version: &'static str,
    /// Of this life of the process.
    pub instance_id: String,
}

/// The traces of this process, until they are [`stop`](Self::stop)ped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts to export. Needs a Tokio runtime around it, and does not ask whether the collector is there.
    ///
    /// # Errors
    /// `config.otlp_endpoint`; `internal` when the process has started traces before.
    pub fn start(tracing: Tracing) -> Result<Self, Fail> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&tracing.endpoint)
            .with_timeout(EXPORT_WITHIN)
            .build()
            .map_err(|error| {
                Fail::invalid("config.otlp_endpoint", format!("Traces cannot go to {}.", tracing.endpoint))
                    .caused_by(error)
            })?;
        let exporter = Telling { exporter, is_away: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_EVERY)
            .build();
        // Built from nothing: the variables of other products' SDKs are no settings of ours.
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", tracing.service_name),
                KeyValue::new("service.version", tracing.version),
                KeyValue::new("service.instance.id", tracing.instance_id),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(tracing.ratio))))
            .with_resource(resource)
            .build();
        let started = Started { tracer: provider.tracer("guildhall"), ratio: tracing.ratio };
        TRACER.set(started).map_err(|_| Fail::internal("traces were started twice"))?;
        Ok(Self(provider))
    }

    /// Sends what is left, for 3 s at most. Spans that end later are dropped.
    pub async fn stop(self) {
        // The SDK waits with a blocked thread.
        let flushed = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_WITHIN)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            ::tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

/// The tracer, where traces are on.
pub(super) fn tracer() -> Option<&'static SdkTracer> {
    TRACER.get().map(|started| &started.tracer)
}

/// Whether a trace is recorded that came from outside and asks to be. A stranger chooses the id of a trace but not what it
/// costs us: the choice hangs on a key of this process, so that all requests of one trace share it.
pub(super) fn is_chosen(trace: TraceId) -> bool {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let ratio = TRACER.get().map_or(0.0, |started| started.ratio);
    #[expect(clippy::cast_precision_loss, reason = "53 bits of chance are plenty")]
    let chance = KEY.hash_one(trace.to_bytes()) as f64 / u64::MAX as f64;
    ratio >= 1.0 || chance < ratio
}

/// An exporter that says once that the collector is away, and once that it is back, instead of at every batch.
#[derive(Debug)]
struct Telling {
    exporter: opentelemetry_otlp::SpanExporter,
    is_away: AtomicBool,
}

impl SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                ::metrics::counter!("guildhall_spans_total", "outcome" => "exported").increment(spans);
                if self.is_away.swap(false, Ordering::Relaxed) {
                    ::tracing::info!("the collector of traces is back");
                }
            }
            Err(error) => {
                ::metrics::counter!("guildhall_spans_total", "outcome" => "lost").increment(spans);
                if !self.is_away.swap(true, Ordering::Relaxed) {
                    ::tracing::warn!(
                        error = reason(&error),
                        "the collector of traces does not answer; spans are lost until it does"
                    );
                }
            }
        }
        // Told already: the SDK would log it again.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn reason(error: &OTelSdkError) -> String {
    match error {
        OTelSdkError::InternalFailure(reason) => reason.clone(),
        other => other.to_string(),
    }
}
