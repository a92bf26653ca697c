//! The log: a line an event, on standard error, as text on a terminal and as JSON elsewhere. Every line tells the ids of
//! the request or attempt it was written in, under the same names in all roles: see [`Ids`].
//!
//! A line holds no address, secret or body. Values that are one are types that print nothing ([`crate::Secret`],
//! [`crate::Personal`]), and what libraries write at `trace`, which is bytes on the wire, is never written at all.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt::{self, Write as _},
    io::{IsTerminal as _, Write as _},
    sync::OnceLock,
};

use serde_json::Value;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{format::Writer, time::FormatTime as _},
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

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
    let is_terminal = std::io::stderr().is_terminal();
    let shape = match format {
        LogFormat::Auto if is_terminal => Shape::Coloured,
        LogFormat::Text if is_terminal => Shape::Coloured,
        LogFormat::Text => Shape::Text,
        LogFormat::Auto | LogFormat::Json => Shape::Json,
    };
    let log = Log { shape, out: Box::new(to_standard_error) };
    stacked(filter, log).try_init().map_err(Fail::internal)
}

/// The filter is one for the whole process. A layer's own would keep what it has last said of any callsite for the next:
/// whoever asks whether a level is on and then writes nothing, as sqlx does, would take the next line away.
fn stacked(filter: EnvFilter, log: Log) -> impl Subscriber + Send + Sync {
    // The ids are wanted in whatever is written, also by a filter that lets warnings through alone.
    let filter = match format!("{IDS}=error").parse() {
        Ok(ids) => filter.add_directive(ids),
        Err(_) => filter,
    };
    tracing_subscriber::registry().with(filter).with(log)
}

/// Says in every line from now on which role writes it: `up`, `jobs`, `auth jobs`. The first to say so is believed.
pub fn set_role(role: &str) {
    let _said_before = ROLE.set(role.to_owned());
}

/// What work belongs to. Lines written within [`span`](Self::span) carry what is known of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids<'a> {
    pub request: Option<&'a str>,
    pub trace: Option<&'a str>,
    /// The caller, or the owner of what is worked on.
    pub user: Option<&'a str>,
    pub job: Option<&'a str>,
    /// Of the job, counted from 1.
    pub attempt: Option<u32>,
}

impl Ids<'_> {
    /// To be entered, or put around a future with [`tracing::Instrument`]. What becomes known later is recorded under the
    /// names given here.
    #[must_use]
    pub fn span(&self) -> tracing::Span {
        // The level is no more than what no filter is above.
        tracing::error_span!(
            target: IDS,
            "ids",
            request.id = self.request,
            trace.id = self.trace,
            user.id = self.user,
            job.id = self.job,
            job.attempt = self.attempt,
        )
    }
}

const IDS: &str = "guildhall::ids";
/// Where lines of ours come from.
const OURS: [&str; 10] = ["kit", "auth", "jobs", "admin", "gateway", "worker", "tasks", "guildhall", "apart", "bench"];

static ROLE: OnceLock<String> = OnceLock::new();

/// Of libraries, what they trace is bytes on the wire; and what the SDK of OpenTelemetry says of a collector that is away,
/// `traces` says once. The client of RabbitMQ writes out messages that come back, bodies and all; what it has to say of a
/// connection `bus` says.
fn may_be_written(target: &str, level: Level) -> bool {
    let crate_name = target.split("::").next().unwrap_or_default();
    let is_mute = crate_name.starts_with("opentelemetry") || crate_name == "lapin";
    (OURS.contains(&crate_name) || level < Level::TRACE) && !is_mute
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Text,
    Coloured,
}

/// Where lines go.
type Out = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The layer that writes.
struct Log {
    shape: Shape,
    out: Out,
}

fn to_standard_error(line: &[u8]) {
    // There is nowhere to say that standard error is gone.
    let _gone = std::io::stderr().lock().write_all(line);
}

/// What a span of ids knows; innermost spans win.
struct Known(Vec<Pair>);

type Pair = (&'static str, Value);

impl<S> Layer<S> for Log
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        may_be_written(metadata.target(), *metadata.level())
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if attributes.metadata().target() != IDS {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Known(fields.pairs));
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Known(pairs)) = span.extensions_mut().get_mut() {
            let mut fields = Fields::default();
            values.record(&mut fields);
            pairs.extend(fields.pairs);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            let Some(Known(pairs)) = extensions.get() else { continue };
            for (name, value) in pairs.iter().rev() {
                if !fields.pairs.iter().any(|(known, _)| known == name) {
                    fields.pairs.push((name, value.clone()));
                }
            }
        }
        let line = Line {
            level: *event.metadata().level(),
            target: fields.target.map_or(Cow::Borrowed(event.metadata().target()), Cow::Owned),
            message: &fields.message,
            fields: &fields.pairs,
        };
        self.write(&line);
    }
}

impl Log {
    fn write(&self, line: &Line<'_>) {
        thread_local! {
            static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
        }
        BUFFER.with(|buffer| {
            let Ok(mut buffer) = buffer.try_borrow_mut() else { return };
            buffer.clear();
            let put = match self.shape {
                Shape::Json => json(&mut buffer, line),
                Shape::Text | Shape::Coloured => text(&mut buffer, line, self.shape == Shape::Coloured),
            };
            if put.is_ok() {
                buffer.push('\n');
                (self.out)(buffer.as_bytes());
            }
        });
    }
}

/// The fields of one event or span.
#[derive(Default)]
struct Fields {
    message: String,
    pairs: Vec<Pair>,
    /// Where it comes from, for a library that logs with the `log` crate.
    target: Option<String>,
}

impl Fields {
    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            ("log.target", Value::String(text)) => self.target = Some(text),
            ("log.module_path" | "log.file" | "log.line", _) => {}
            (name, value) => self.pairs.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, Value::from(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, Value::from(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, Value::from(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, Value::from(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, Value::from(value));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, Value::from(format!("{value:?}")));
    }
}

struct Line<'a> {
    level: Level,
    target: Cow<'a, str>,
    message: &'a str,
    fields: &'a [Pair],
}

fn json(buffer: &mut String, line: &Line<'_>) -> fmt::Result {
    buffer.push_str("{\"timestamp\":\"");
    now(buffer)?;
    write!(buffer, "\",\"level\":\"{}\",\"target\":{}", line.level, Value::from(&*line.target))?;
    if let Some(role) = ROLE.get() {
        write!(buffer, ",\"role\":{}", Value::from(role.as_str()))?;
    }
    write!(buffer, ",\"message\":{}", Value::from(line.message))?;
    for (name, value) in line.fields {
        write!(buffer, ",\"{name}\":{value}")?;
    }
    buffer.push('}');
    Ok(())
}

fn text(buffer: &mut String, line: &Line<'_>, is_coloured: bool) -> fmt::Result {
    let (dim, bold, plain) = if is_coloured { ("\x1b[2m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
    let colour = match line.level {
        _ if !is_coloured => "",
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    };
    buffer.push_str(dim);
    now(buffer)?;
    write!(buffer, "{plain} {colour}{:>5}{plain} {dim}{}:{plain} {bold}", line.level, line.target)?;
    push_escaped(buffer, line.message);
    buffer.push_str(plain);
    for (name, value) in line.fields {
        write!(buffer, " {dim}{name}={plain}")?;
        match value {
            // Words stand as they are; what has spaces or could act on a terminal stands quoted.
            Value::String(word) if !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && c != '"') => {
                buffer.push_str(word);
            }
            Value::String(words) => {
                buffer.push('"');
                push_escaped(buffer, &words.replace('"', "\\\""));
                buffer.push('"');
            }
            other => write!(buffer, "{other}")?,
        }
    }
    Ok(())
}

/// Without what would act on a terminal or begin a line that looks like another.
fn push_escaped(buffer: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { buffer.extend(c.escape_default()) } else { buffer.push(c) }
    }
}

/// UTC, RFC 3339, microseconds. Not from a [`crate::Clock`]: a log tells when a line was written, also where a test has
/// stopped the time.
fn now(buffer: &mut String) -> fmt::Result {
    tracing_subscriber::fmt::time::SystemTime.format_time(&mut Writer::new(buffer))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What `work` writes.
    fn written(shape: Shape, work: impl FnOnce()) -> String {
        written_through("info", shape, work)
    }

    fn written_through(filter: &str, shape: Shape, work: impl FnOnce()) -> String {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let out = move |line: &[u8]| kept.lock().expect("nobody panics holding it").extend_from_slice(line);
        let filter = EnvFilter::try_new(filter).expect("a filter");
        tracing::subscriber::with_default(stacked(filter, Log { shape, out: Box::new(out) }), work);
        let lines = lines.lock().expect("nobody panics holding it").clone();
        String::from_utf8(lines).expect("UTF-8")
    }

    #[test]
    fn a_line_of_json_is_one_flat_object_in_utc() {
        let written = written(Shape::Json, || tracing::info!(duration_ms = 7, why = "a \"b\"\n", "answered\u{1b}[2J"));
        let line: Value = serde_json::from_str(&written).expect("it is JSON");
        assert_eq!((&line["level"], &line["duration_ms"]), (&"INFO".into(), &7.into()));
        assert_eq!((&line["message"], &line["why"]), (&"answered\u{1b}[2J".into(), &"a \"b\"\n".into()));
        let at = line["timestamp"].as_str().expect("a time");
        assert!(chrono::DateTime::parse_from_rfc3339(at).is_ok_and(|at| at.offset().local_minus_utc() == 0), "{at}");
        assert_eq!(written.matches('\n').count(), 1, "{written}");
    }

    #[test]
    fn text_cannot_act_on_a_terminal_or_begin_a_line() {
        let written = written(Shape::Text, || tracing::info!(one = "word", two = "a \"b\"\n", "answered\u{1b}[2J"));
        assert!(written.ends_with("answered\\u{1b}[2J one=word two=\"a \\\"b\\\"\\n\"\n"), "{written}");
    }

    #[test]
    fn a_line_tells_the_innermost_ids_and_each_once() {
        let written = written(Shape::Json, || {
            let outer = Ids { request: Some("outer"), trace: Some("t-1"), ..Ids::default() }.span();
            let inner = outer.in_scope(|| Ids { request: Some("inner"), ..Ids::default() }.span());
            inner.record("user.id", "ada");
            outer.in_scope(|| inner.in_scope(|| tracing::warn!(user.id = "bob", "here")));
        });
        assert_eq!(written.matches("request.id").count(), 1, "{written}");
        let line: Value = serde_json::from_str(&written).expect("it is JSON");
        assert_eq!((&line["request.id"], &line["trace.id"]), (&"inner".into(), &"t-1".into()));
        // What the line itself says comes before what it belongs to.
        assert_eq!(line["user.id"], "bob");
    }

    #[test]
    fn ids_are_told_through_a_filter_that_lets_errors_through_alone() {
        let written = written_through("error", Shape::Json, || {
            Ids { job: Some("j-1"), ..Ids::default() }.span().in_scope(|| tracing::error!("here"));
        });
        assert!(written.contains(r#""job.id":"j-1""#), "{written}");
    }

    #[test]
    fn who_asks_whether_a_level_is_on_takes_no_line_away() {
        let written = written(Shape::Json, || {
            let asked = tracing::debug_span!(target: "sqlx::query", "asked");
            let metadata = asked.metadata().expect("a span that is off has one, too");
            assert!(!tracing::dispatcher::get_default(|dispatch| dispatch.enabled(metadata)));
            let ids = Ids { request: Some("r-1"), ..Ids::default() }.span();
            ids.in_scope(|| tracing::info!("here"));
        });
        assert!(written.contains("here") && written.contains("r-1"), "{written}");
    }

    #[test]
    fn what_libraries_trace_is_never_written() {
        assert!(may_be_written("h2::codec", Level::DEBUG) && !may_be_written("h2::codec", Level::TRACE));
        assert!(may_be_written("jobs::engine", Level::TRACE) && !may_be_written("opentelemetry_sdk", Level::ERROR));
    }
}
