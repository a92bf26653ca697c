//! What a process tells of itself: [`logs`] to standard error, [`metrics`] for the operations port, and [`traces`] to a
//! collector. Each line of a log carries the ids of the request or attempt that it belongs to; each step of a trace hangs
//! on the one that asked for it, across processes by W3C `traceparent` ([`context`]).
//!
//! None of it may hold work up: what cannot be told in time is dropped, and said once.

pub mod context;
pub mod logs;
pub mod metrics;
pub mod span;
pub mod traces;

pub use logs::{Ids, LogFormat, init_logs};
pub use metrics::init_metrics;
pub use span::Span;
pub use traces::{Traces, Tracing};
