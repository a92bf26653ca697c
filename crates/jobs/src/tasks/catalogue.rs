//! The schemas of known tasks, compiled once and kept, arguments checked against them, and the queues there are. What a
//! worker offers for the first time is known at once, a change of what it offered before within a second. Lists are made
//! from memory, of what the shelf keeps for a second.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use jsonschema::{Draft, PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use kit::{Fail, fail::Violation};
use parking_lot::RwLock;
use serde_json::Value;
use sqlx::PgPool;
use tokio::time::Instant;

use super::shelf::{self, Shelf, Shown};

/// How long a schema is used before its row is read again.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Most faults that are told of one job's arguments.
const VIOLATIONS_MAX: usize = 10;
/// Arguments of up to so many values are told all their faults, larger ones the first: to collect millions of faults, of
/// which a few are told, would hold a core for seconds.
const ALL_FAULTS_VALUES_MAX: usize = 2_000;
/// Longest message of one fault, in bytes.
const MESSAGE_BYTES_MAX: usize = 300;
/// Largest compiled regular expression, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// What a submission needs to know of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskInfo {
    /// Where its jobs go when the submission names no queue.
    pub(crate) queue: String,
}

/// Known tasks and queues, as this process last saw them.
#[derive(Default)]
pub(crate) struct Catalogue {
    tasks: RwLock<HashMap<String, Arc<Known>>>,
    /// A queue is never removed, so one that was seen once is there.
    queues: RwLock<HashSet<String>>,
    listed: Shelf<Vec<Shown>>,
}

struct Known {
    queue: String,
    schema_json: String,
    validator: Arc<Validator>,
    read_at: Instant,
}

impl Catalogue {
    /// Checks `args` against the schema of `task`. Faults are told at `pointer`, the place of the job in the request
    /// (`/jobs/3`): `jobs.unknown_task` at `/jobs/3/task`, and the schema's own keyword, such as `required`, at
    /// `/jobs/3/args/file_id`.
    ///
    /// # Errors
    /// As the database; faults of the input are the inner result.
    pub(crate) async fn check(
        &self,
        pool: &PgPool,
        task: &str,
        args: &Value,
        pointer: &str,
    ) -> Result<Result<TaskInfo, Vec<Violation>>, Fail> {
        let Some(known) = self.find(pool, task).await? else {
            return Ok(Err(vec![Violation {
                pointer: format!("{pointer}/task"),
                code: "jobs.unknown_task".to_owned(),
                message: "is no task that a worker has offered".to_owned(),
            }]));
        };
        let violations = faults(&known.validator, args, &format!("{pointer}/args"));
        Ok(if violations.is_empty() { Ok(TaskInfo { queue: known.queue.clone() }) } else { Err(violations) })
    }

    /// Whether there is a queue of this name.
    ///
    /// # Errors
    /// As the database.
    pub(crate) async fn has_queue(&self, pool: &PgPool, name: &str) -> Result<bool, Fail> {
        if !super::is_name(name) {
            return Ok(false);
        }
        if self.queues.read().contains(name) {
            return Ok(true);
        }
        let is_there =
            sqlx::query_scalar!(r#"select exists (select from jobs.queue where name = $1) as "is_there!""#, name)
                .fetch_one(pool)
                .await?;
        if is_there {
            self.queues.write().insert(name.to_owned());
        }
        Ok(is_there)
    }

    /// All tasks by name, with who offers them: as they were less than a second ago, and after what this replica was told.
    ///
    /// # Errors
    /// As the database.
    pub(super) async fn listed(&self, pool: &PgPool) -> Result<Arc<Vec<Shown>>, Fail> {
        self.listed.get(async || shelf::read(pool).await).await
    }

    /// A worker of this replica has said what it offers, or that it leaves: the next list shows it.
    pub(crate) fn workers_changed(&self) {
        self.listed.forget();
    }

    async fn find(&self, pool: &PgPool, task: &str) -> Result<Option<Arc<Known>>, Fail> {
        if !super::is_name(task) {
            return Ok(None);
        }
        let cached = self.tasks.read().get(task).cloned();
        if let Some(known) = cached.as_ref().filter(|known| known.read_at.elapsed() < FRESH_FOR) {
            return Ok(Some(Arc::clone(known)));
        }
        let read_at = Instant::now();
        let row =
            sqlx::query!("select queue, schema_json from jobs.task where name = $1", task).fetch_optional(pool).await?;
        let Some(row) = row else {
            self.tasks.write().remove(task);
            return Ok(None);
        };
        let validator = match cached.filter(|known| known.schema_json == row.schema_json) {
            Some(known) => Arc::clone(&known.validator),
            // It was compiled before it was stored, perhaps by another version of this program.
            None => Arc::new(compile(&row.schema_json).map_err(|why| {
                Fail::internal(format!("the stored schema of the task `{task}` cannot be used: {why}"))
            })?),
        };
        let known = Arc::new(Known { queue: row.queue, schema_json: row.schema_json, validator, read_at });
        self.tasks.write().insert(task.to_owned(), Arc::clone(&known));
        Ok(Some(known))
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalogue").field("tasks", &self.tasks.read().len()).finish()
    }
}

/// Compiles a schema of draft 2020-12 that stands for itself: nothing is fetched, neither from the network nor from
/// disk, and its patterns run in time linear to the text.
pub(super) fn compile(schema_json: &str) -> Result<Validator, String> {
    let schema: Value = serde_json::from_str(schema_json).map_err(|error| error.to_string())?;
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
        .offline()
        .build(&schema)
        .map_err(|error| cut(error.to_string()))
}

/// The faults of arguments that stand at `pointer`, at most [`VIOLATIONS_MAX`].
fn faults(validator: &Validator, args: &Value, pointer: &str) -> Vec<Violation> {
    let Err(first) = validator.validate(args) else { return Vec::new() };
    let mut values_left = ALL_FAULTS_VALUES_MAX;
    let mut told = if has_at_most(args, &mut values_left) {
        validator.iter_errors(args).flat_map(|error| violations(&error, pointer)).take(VIOLATIONS_MAX).collect()
    } else {
        violations(&first, pointer)
    };
    told.truncate(VIOLATIONS_MAX);
    told
}

/// Whether there are no more than `left` values in `value`; looks at no more than that.
fn has_at_most(value: &Value, left: &mut usize) -> bool {
    let Some(fewer) = left.checked_sub(1) else { return false };
    *left = fewer;
    match value {
        Value::Array(items) => items.iter().all(|item| has_at_most(item, left)),
        Value::Object(fields) => fields.values().all(|field| has_at_most(field, left)),
        _ => true,
    }
}

/// A fault as a person reads it. Values of the caller's are not repeated: they may be long, and they know them. A property
/// that is missing or too many is told at its own place.
fn violations(error: &ValidationError<'_>, pointer: &str) -> Vec<Violation> {
    let at = format!("{pointer}{}", error.instance_path().as_str());
    let code = error.kind().keyword();
    let fault = |pointer: String, message: String| Violation { pointer, code: code.to_owned(), message: cut(message) };
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            vec![fault(format!("{at}/{}", escaped(name)), "is required".to_owned())]
        }
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => unexpected
            .iter()
            .map(|name| fault(format!("{at}/{}", escaped(name)), "is no argument of this task".to_owned()))
            .collect(),
        _ => {
            let message = error.masked().to_string();
            vec![fault(at, message.strip_prefix("value ").map(str::to_owned).unwrap_or(message))]
        }
    }
}

/// One part of a JSON pointer (RFC 6901, section 3), cut where a name is overlong.
fn escaped(name: &str) -> String {
    cut(name.replace('~', "~0").replace('/', "~1"))
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(schema: &Value, args: &Value) -> Vec<(String, String, String)> {
        let validator = compile(&schema.to_string()).expect("a schema");
        validator
            .iter_errors(args)
            .flat_map(|error| violations(&error, "/jobs/3/args"))
            .map(|violation| (violation.pointer, violation.code, violation.message))
            .collect()
    }

    #[test]
    fn a_fault_is_told_at_its_place_with_the_schemas_keyword() {
        let schema = json!({
            "type": "object",
            "required": ["file_id"],
            "additionalProperties": false,
            "properties": {
                "file_id": { "type": "string", "format": "uuid" },
                "params": { "type": "object", "properties": { "samples": { "type": "integer", "maximum": 1024 } } },
            },
        });
        let pointers_and_codes = |args: &Value| {
            told(&schema, args).into_iter().map(|(pointer, code, _)| format!("{pointer} {code}")).collect::<Vec<_>>()
        };
        assert_eq!(pointers_and_codes(&json!({})), ["/jobs/3/args/file_id required"]);
        assert_eq!(pointers_and_codes(&json!({ "file_id": "7" })), ["/jobs/3/args/file_id format"]);
        assert_eq!(pointers_and_codes(&json!([])), ["/jobs/3/args type"]);
        let id = "0190a0b0-0000-7000-8000-000000000000";
        assert_eq!(
            pointers_and_codes(&json!({ "file_id": id, "params": { "samples": 4096 } })),
            ["/jobs/3/args/params/samples maximum"]
        );
        assert_eq!(
            pointers_and_codes(&json!({ "file_id": id, "a/b~c": 1, "z": 2 })),
            ["/jobs/3/args/a~1b~0c additionalProperties", "/jobs/3/args/z additionalProperties"]
        );
        assert_eq!(pointers_and_codes(&json!({ "file_id": id })), [""; 0]);
    }

    #[test]
    fn a_message_says_what_is_wrong_and_does_not_repeat_the_value() {
        let long = "x".repeat(10_000);
        let faults = told(
            &json!({ "properties": { "a": { "maximum": 5 }, "b": { "enum": ["y"] } } }),
            &json!({ "a": 6, "b": long }),
        );
        assert_eq!(faults[0].2, "is greater than the maximum of 5");
        assert!(faults[1].2.len() <= MESSAGE_BYTES_MAX + 4 && !faults[1].2.contains("xxx"), "{}", faults[1].2);
    }

    #[test]
    fn small_arguments_are_told_their_faults_and_large_ones_the_first() {
        let validator = compile(r#"{ "items": { "type": "string" } }"#).expect("a schema");
        let told = |count: usize| {
            let faults = faults(&validator, &json!(vec![0; count]), "/args");
            faults.into_iter().map(|fault| fault.pointer).collect::<Vec<_>>()
        };
        assert_eq!(told(2), ["/args/0", "/args/1"]);
        assert_eq!(told(100).len(), VIOLATIONS_MAX);
        assert_eq!(told(1_000_000), ["/args/0"]);
        assert_eq!(faults(&validator, &json!(vec!["a"; 10_000]), "/args").len(), 0);
    }

    #[test]
    fn a_schema_that_refers_elsewhere_or_has_a_costly_pattern_is_not_taken() {
        for schema in [
            json!({ "$ref": "https://example.com/schema.json" }),
            json!({ "$ref": "file:///etc/hostname" }),
            json!({ "pattern": "(a{1000}){1000}" }),
            json!({ "pattern": "(a)\\1" }),
            json!({ "type": "nothing" }),
        ] {
            assert!(compile(&schema.to_string()).is_err(), "{schema}");
        }
        assert!(compile("not json").is_err());
    }
}
