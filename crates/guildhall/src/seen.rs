//! A process that can be seen while it lives: its role in every line of its log, and its traces on the way to the
//! collector, where the settings name one.

use std::process::ExitCode;

use kit::{
    Clock, Fail,
    telemetry::{Traces, Tracing, logs},
};

use crate::settings::Settings;

/// Lives as `role`: `up`, or the roles of a process that runs apart, with spaces between. The last spans leave when `live`
/// has ended, within a bound.
///
/// # Errors
/// As `live`; `config.otlp_endpoint`.
pub(crate) async fn seen(
    settings: &Settings,
    role: &str,
    live: impl Future<Output = Result<ExitCode, Fail>>,
) -> Result<ExitCode, Fail> {
    logs::set_role(role);
    let traces = match &settings.process.otlp_endpoint {
        Some(endpoint) => Some(Traces::start(Tracing {
            endpoint: endpoint.clone(),
            ratio: settings.process.trace_ratio,
            service_name: service_name(role),
            version: env!("CARGO_PKG_VERSION"),
            instance_id: Clock::system().new_id().to_string(),
        })?),
        None => None,
    };
    let ended = live.await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    ended
}

fn service_name(role: &str) -> String {
    match role {
        "up" => "guildhall".to_owned(),
        apart => format!("guildhall-{}", apart.replace(' ', "-")),
    }
}
