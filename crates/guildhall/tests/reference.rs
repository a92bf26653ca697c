//! The references in `docs/` say what the code says. `GUILDHALL_TEST_WRITE=1 cargo test -p guildhall --test reference`
//! writes them anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kit::telemetry::metrics::{METRICS, markdown};

const PERMISSIONS: &str = "# Who may do what

Printed from `crates/kit/src/identity/roles.rs` and from what each gRPC method in `proto/` demands. `own` reaches one's own
rows, `any` everybody's; a stranger's row is not there (404) for who has `own` alone. A `service` is a program: it may do
what the scope of its key names.

";

const METRICS_PAGE: &str = "# What is counted

Printed from `crates/kit/src/telemetry/metrics.rs`. Each process serves its own on its operations port at `/metrics`.
Durations are histograms in seconds, told as `_bucket`, `_sum` and `_count`.

";

#[test]
fn the_permissions_are_those_of_the_code() {
    hold("permissions.md", &format!("{PERMISSIONS}{}", kit::identity::roles::markdown()));
}

const STATES: &str = "# The states of a job

Printed from `crates/jobs/src/engine/states.rs`. A job is submitted as `queued`, or as `scheduled` where its `run_at` is
later. `succeeded`, `failed`, `cancelled` and `expired` are final: only a retry by hand leaves the last three. Every write
about an attempt shows the attempt's fencing token, and changes nothing when it is not the one in the job's row.

";

#[test]
fn the_states_are_those_of_the_code() {
    hold("states.md", &format!("{STATES}{}", jobs::states_markdown()));
}

const AUDIT: &str = "# What the audit log tells

Printed from the tables of acts in `auth`, `jobs` and `admin`. Each entry says who (a user, a service, `system`, or nobody
who is known), on whose behalf where the thing is another's, by what credential, from where, what, on what, whether it was
done or refused and why, and in which request; before and after hold the fields named here and nothing else. An act that
changed nothing leaves no entry, and of one actor's refusals of one action ten a minute are kept. Why it is so:
[ADR 17](../adr/0017-what-is-audited.md).

";

#[test]
fn the_audited_acts_are_those_of_the_code() {
    let acts = kit::audit::markdown(&[("auth", &auth::ACTS), ("jobs", &jobs::ACTS), ("admin", &admin::ACTS)]);
    hold("audit.md", &format!("{AUDIT}{acts}"));
}

#[test]
fn the_default_settings_are_those_of_the_code() {
    let output = Command::new(env!("CARGO_BIN_EXE_guildhall")).args(["check-config", "--print-defaults"]).output();
    let output = output.expect("the binary starts");
    assert!(output.status.success());
    hold("guildhall.default.toml", &String::from_utf8(output.stdout).expect("UTF-8"));
}

#[test]
fn the_metrics_are_those_of_the_code() {
    hold("metrics.md", &format!("{METRICS_PAGE}{}", markdown()));
}

#[test]
fn every_metric_that_is_told_is_in_the_table_by_kind_and_labels() {
    let mut told = BTreeMap::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                told_in(&path, &mut told);
            }
        }
    }
    for metric in METRICS {
        let (kind, labels) = told.remove(metric.name).unwrap_or_else(|| panic!("nothing tells {}", metric.name));
        assert_eq!(kind, metric.kind.as_str(), "{}", metric.name);
        // Where a call takes its labels from a variable, none stand in it.
        let said: BTreeSet<_> = metric.labels.iter().map(|label| (*label).to_owned()).collect();
        assert!(labels.is_empty() || labels == said, "{} has {labels:?} and not {said:?}", metric.name);
    }
    assert!(told.is_empty(), "not in the table: {told:?}");
}

/// The metrics that a file tells: kind and labels by name.
fn told_in(path: &Path, told: &mut BTreeMap<String, (&'static str, BTreeSet<String>)>) {
    let text = fs::read_to_string(path).expect("a file of the tree");
    for (call, kind) in
        [("counter!(", "counter"), ("gauge!(", "gauge"), ("histogram!(", "histogram"), (".tell(", "gauge")]
    {
        for (at, _) in text.match_indices(call) {
            let call = text[at + call.len()..].split(';').next().unwrap_or_default();
            let quoted: Vec<&str> = call.split('"').collect();
            let Some(name) = quoted.get(1).filter(|name| name.starts_with("guildhall_")) else { continue };
            if !quoted[0].trim().is_empty() {
                continue;
            }
            let is_label = |pair: &[&str]| pair[1].trim_start().starts_with("=>");
            let labels = quoted[2..].windows(2).filter(|pair| is_label(pair)).map(|pair| pair[0].to_owned()).collect();
            told.insert((*name).to_owned(), (kind, labels));
        }
    }
}

fn hold(name: &str, printed: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    if is_to_be_written() {
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(&path, printed).expect("it is written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == printed,
        "docs/reference/{name} is not what the code prints: run\n\
         GUILDHALL_TEST_WRITE=1 cargo test -p guildhall --test reference"
    );
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variable, which no service knows")]
fn is_to_be_written() -> bool {
    std::env::var_os("GUILDHALL_TEST_WRITE").is_some()
}
