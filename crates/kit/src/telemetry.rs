//! Logs and metrics of one process: logs to standard error, as text on a terminal and as JSON lines elsewhere; metrics
//! in a Prometheus registry that the operations port prints.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::Fail;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `auto`, `text` or `json`".into()),
        }
    }
}

/// Starts logging. `filter` is a directive list such as `info,jobs=debug`.
///
/// # Errors
/// `config.log_filter` for a filter that does not parse.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), Fail> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Fail::invalid("config.log_filter", format!("The log filter does not parse: {error}.")))?;
    let is_json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let writer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let done = if is_json {
        registry.with(writer.json().flatten_event(true).with_current_span(true).with_span_list(false)).try_init()
    } else {
        registry.with(writer.with_ansi(std::io::stderr().is_terminal())).try_init()
    };
    done.map_err(Fail::internal)
}

/// Upper bounds, in seconds, of every `_seconds` histogram: from a millisecond to a quarter of an hour.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0];

/// Installs the process's metrics registry. The handle's `render` is the page that the operations port serves.
///
/// # Errors
/// `internal` when one was installed before.
pub fn init_metrics() -> Result<PrometheusHandle, Fail> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .map_err(Fail::internal)?
        .install_recorder()
        .map_err(Fail::internal)
}
