//! What a submission says of the jobs that its own are to run after.

use std::collections::{BTreeSet, HashMap, HashSet};

use kit::{Fail, fail::Violation, identity::Caller};
use proto::jobs::JobSpec;
use sqlx::PgPool;
use uuid::Uuid;

use super::super::{submit::NewJob, unique::OnConflict};

/// Jobs that one may run after.
pub(crate) const AFTER_MAX: usize = 100;
/// Jobs from before that one call may name in all.
const NAMED_MAX: usize = 10_000;

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
    /// Of jobs that will be `owner`'s: what the caller may read, and of another's jobs nothing that is not that other's.
    ///
    /// # Errors
    /// `jobs.too_many`; as the database.
    pub(crate) async fn of(
        pool: &PgPool,
        caller: &Caller,
        owner: Uuid,
        specs: &[JobSpec],
        own: Vec<Uuid>,
    ) -> Result<Self, Fail> {
        // Longer ones are refused where they stand.
        let specs = specs.iter().filter(|spec| spec.after.len() <= AFTER_MAX);
        let named: BTreeSet<Uuid> = specs.flat_map(|spec| &spec.after).filter_map(|name| name.parse().ok()).collect();
        if named.is_empty() {
            return Ok(Self { own, found: HashSet::new() });
        }
        if named.len() > NAMED_MAX {
            let message = format!("The jobs of one call run after at most {NAMED_MAX} others.");
            return Err(Fail::invalid("jobs.too_many", message));
        }
        let found = sqlx::query_scalar!(
            r#"select id as "id!" from jobs.any_job where id = any($1) and ($2::uuid is null or owner_id = $2)"#,
            &named.into_iter().collect::<Vec<_>>(),
            caller.narrowed_to("jobs:read").or((owner != caller.subject).then_some(owner)),
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

/// Where a job of a call runs after one whose unique key another of the call takes over: that other would stand for it, and
/// the first might wait for itself.
pub(crate) fn rings(jobs: &[NewJob]) -> Vec<Violation> {
    let places: HashMap<Uuid, usize> = jobs.iter().enumerate().map(|(n, job)| (job.id, n)).collect();
    let taken_over: HashSet<_> = jobs
        .iter()
        .filter_map(NewJob::key)
        .filter(|(_, unique)| unique.on_conflict == OnConflict::Replace)
        .map(|(name, _)| name)
        .collect();
    let mut rings = Vec::new();
    for (n, job) in jobs.iter().enumerate() {
        for place in job.after.jobs.iter().filter_map(|after| places.get(after)) {
            if jobs[*place].key().is_some_and(|(name, _)| taken_over.contains(&name)) {
                rings.push(Violation {
                    pointer: format!("/jobs/{n}/after"),
                    code: "reference".to_owned(),
                    message: format!("`#{place}` has a unique key that a job of the same call replaces the holder of"),
                });
            }
        }
    }
    rings
}
