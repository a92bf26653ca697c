//! The metrics of one process, in a Prometheus registry that the operations port prints; and the one table of what each
//! means, from which the page's help and `docs/reference/metrics.md` are printed.

use std::fmt::Write as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::Fail;

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As on the page.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// What a metric counts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// In seconds, over [`SECONDS`].
    Histogram,
}

impl Kind {
    /// As on the page.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Upper bounds, in seconds, of every histogram: from a millisecond to a quarter of an hour.
pub const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0];

/// Every metric there is, in the order of the reference.
pub const METRICS: &[Metric] = &[
    counter("guildhall_http_requests_total", &["method", "route", "status"], "Requests answered by the gateway."),
    histogram(
        "guildhall_http_request_duration_seconds",
        &["method", "route"],
        "From a request's head to its answer's.",
    ),
    counter("guildhall_rate_limited_total", &["limit"], "Requests refused by a limit."),
    counter(
        "guildhall_grpc_requests_total",
        &["method", "code"],
        "Calls ended at a role's guard, by their gRPC status; streams when they end.",
    ),
    histogram(
        "guildhall_grpc_request_duration_seconds",
        &["method"],
        "From a call's arrival to its end; of a stream, as long as it stood.",
    ),
    counter("guildhall_jobs_enqueued_total", &["queue", "task"], "Jobs taken in."),
    histogram("guildhall_job_wait_seconds", &["queue"], "From when a job might run to its claim."),
    histogram("guildhall_task_duration_seconds", &["queue", "task", "outcome"], "Attempts, from assignment to end."),
    counter(
        "guildhall_task_failures_total",
        &["queue", "task", "kind"],
        "Attempts that failed; a kind that is a task's own counts as `own`.",
    ),
    counter("guildhall_task_retries_total", &["task"], "Jobs scheduled again after a failed attempt."),
    counter("guildhall_late_outcomes_total", &[], "Outcomes refused because their attempt was fenced."),
    gauge(
        "guildhall_queue_depth",
        &["queue", "state"],
        "Live jobs. Told by the replica that leads; so are the two below.",
    ),
    gauge("guildhall_queue_oldest_seconds", &["queue"], "How long the oldest job of a queue that may run has waited."),
    counter(
        "guildhall_queue_held_up_seconds_total",
        &["queue", "reason"],
        "For how long something kept jobs of a queue, or some of them, from starting; the reasons are those of a job's \
         `waited`.",
    ),
    counter("guildhall_dead_letters_total", &["queue", "task"], "Jobs that have failed or expired for good."),
    gauge("guildhall_workers", &["profile", "state"], "Connected workers, `ready` or `draining`."),
    gauge("guildhall_jobs_leads", &[], "1 on the replica of `jobs` that does the common work, 0 on the others."),
    gauge("guildhall_batch_drift", &[], "Batches whose counters the reconciler found wrong in its last round."),
    counter(
        "guildhall_schedule_fires_total",
        &["outcome"],
        "Occurrences of schedules: `submitted`, `waiting` for a run before, `skipped` for it, `refused` as the job cannot be \
         submitted any more, or `existing` as it was submitted before.",
    ),
    counter("guildhall_schedule_missed_total", &[], "Occurrences that came due unnoticed and are not made up for."),
    histogram("guildhall_schedule_lag_seconds", &[], "From an occurrence to the submission of its job."),
    counter(
        "guildhall_storage_swept_total",
        &["kind"],
        "Objects removed from storage that no row names, and writes that were never finished.",
    ),
    gauge(
        "guildhall_file_usage_drifted_owners",
        &[],
        "Owners whose stored bytes do not add up to what is counted for them.",
    ),
    gauge(
        "guildhall_db_pool_connections",
        &["role", "state"],
        "Connections of a role's pool to Postgres, `idle` or `used`.",
    ),
    counter(
        "guildhall_events_published_total",
        &["type"],
        "Events that the bus has confirmed, and those that nobody within the process wants.",
    ),
    counter(
        "guildhall_events_unroutable_total",
        &["type"],
        "Events sent while the queue of a consumer that wants them was missing; it asks for them once it has made it.",
    ),
    gauge("guildhall_outbox_lag_seconds", &["service"], "Age of the oldest event that is not published."),
    gauge("guildhall_events_parked", &[], "Events parked and not replayed."),
    gauge(
        "guildhall_bus_state",
        &["connection", "state"],
        "1 for the state that a connection to the bus is in, 0 for the others.",
    ),
    counter("guildhall_audit_entries_total", &[], "Acts written to the audit log."),
    counter(
        "guildhall_audit_refusals_omitted_total",
        &["service"],
        "Refusals that were not recorded, since one caller had too many.",
    ),
    counter(
        "guildhall_spans_total",
        &["outcome"],
        "Spans sent to the collector of traces: `exported`, or `lost` when it did not take them.",
    ),
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}

/// Installs the process's metrics registry. The handle's `render` is the page that the operations port serves.
///
/// # Errors
/// `internal` when one was installed before.
pub fn init_metrics() -> Result<PrometheusHandle, Fail> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .map_err(Fail::internal)?
        .install_recorder()
        .map_err(Fail::internal)?;
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => ::metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    Ok(handle)
}

/// The table as a reference page has it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from("| metric | kind | labels | |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in METRICS {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        // A string takes all that is written to it.
        let _never = writeln!(page, "| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(" "));
    }
    page
}
