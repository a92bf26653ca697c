//! What a submission says of the jobs that its own are to run after.

use std::collections::{BTreeSet, HashSet};

use kit::{Fail, fail::Violation, identity::Caller};
use proto::jobs::JobSpec;
use sqlx::PgPool;
use uuid::Uuid;

/// Jobs that one may run after.
pub(crate) const AFTER_MAX: usize = 100;

/// How the jobs that another runs after have to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Needs {
    #[default]
    Succeeded,
    Ended,
}

impl Needs {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Ended => "ended",
        }
    }
}

/// The jobs that a job runs after.
#[derive(Debug, Clone, Default)]
pub(crate) struct After {
    pub(crate) jobs: BTreeSet<Uuid>,
    pub(super) needs: Needs,
}

/// What `after` in one call may name.
#[derive(Debug)]
pub(crate) struct Nameable {
    /// Of the call's own jobs, in order.
    pub(crate) own: Vec<Uuid>,
    /// Of jobs that were there before, those named that are there and that the caller may read.
    found: HashSet<Uuid>,
}

impl Nameable {
    /// # Errors
    /// As the database.
    pub(crate) async fn of(pool: &PgPool, caller: &Caller, specs: &[JobSpec], own: Vec<Uuid>) -> Result<Self, Fail> {
        let named: BTreeSet<Uuid> =
            specs.iter().flat_map(|spec| &spec.after).filter_map(|name| name.parse().ok()).collect();
        if named.is_empty() {
            return Ok(Self { own, found: HashSet::new() });
        }
        let found = sqlx::query_scalar!(
            r#"select id as "id!" from jobs.any_job where id = any($1) and ($2::uuid is null or owner_id = $2)"#,
            &named.into_iter().collect::<Vec<_>>(),
            caller.narrowed_to("jobs:read"),
        )
        .fetch_all(pool)
        .await?;
        Ok(Self { own, found: found.into_iter().collect() })
    }

    /// What a name stands for in the `n`-th job of the call.
    fn find(&self, name: &str, n: usize) -> Result<Uuid, (&'static str, String)> {
        if let Some(place) = name.strip_prefix('#') {
            let place = place.parse().ok().filter(|place: &usize| *place < n);
            return place.and_then(|place| self.own.get(place).copied()).ok_or_else(|| {
                let message = format!("`{name}` is not `#` and the place of a job before this one, counted from 0");
                ("reference", message)
            });
        }
        let id = name.parse().ok().filter(|id| self.found.contains(id));
        id.ok_or_else(|| ("jobs.unknown_job", format!("there is no job `{name}`")))
    }
}

impl After {
    /// Reads what the `n`-th job of a call asks for; `at` is where it stands.
    ///
    /// # Errors
    /// Every fault, at its pointer.
    pub(crate) fn parse(spec: &JobSpec, nameable: &Nameable, n: usize, at: &str) -> Result<Self, Vec<Violation>> {
        let mut faults = Vec::new();
        let mut fault = |pointer: String, code: &str, message: String| {
            faults.push(Violation { pointer, code: code.to_owned(), message });
        };
        let needs = match spec.after_needs.as_str() {
            "" | "succeeded" => Needs::Succeeded,
            "ended" => Needs::Ended,
            _ => {
                fault(format!("{at}/after_needs"), "enum", "must be `succeeded` or `ended`".to_owned());
                Needs::default()
            }
        };
        if spec.after.is_empty() && !spec.after_needs.is_empty() {
            fault(format!("{at}/after_needs"), "without_after", "says how the jobs of `after` end".to_owned());
        }
        let mut jobs = BTreeSet::new();
        if spec.after.len() > AFTER_MAX {
            fault(format!("{at}/after"), "max_items", format!("must have at most {AFTER_MAX} items"));
        } else {
            for (k, name) in spec.after.iter().enumerate() {
                match nameable.find(name, n) {
                    Ok(id) => drop(jobs.insert(id)),
                    Err((code, message)) => fault(format!("{at}/after/{k}"), code, message),
                }
            }
        }
        if faults.is_empty() { Ok(Self { jobs, needs }) } else { Err(faults) }
    }

    /// Of jobs that have to succeed.
    pub(crate) fn success_of(jobs: BTreeSet<Uuid>) -> Self {
        Self { jobs, needs: Needs::Succeeded }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}
