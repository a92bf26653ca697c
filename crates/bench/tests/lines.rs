//! `./dev bench --json` with counts so small that nothing is measured: that it runs from end to end, tells its lines as
//! the contract has them, proves them from the database, and leaves nothing behind.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

const KEYS: [&str; 7] = ["bench", "metric", "ratio", "unit", "value", "yardstick", "yardstick_value"];

#[test]
fn each_figure_is_a_line_beside_its_yardstick_and_proven_from_the_database() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // A root's Postgres is an ordinary user, who has to pass through.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).expect("it is ours");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["engine", "pickup", "--json", "--rounds", "1", "--jobs", "60", "--slots", "8", "--pickups", "3"])
        .arg("--guildhall")
        .arg(guildhall())
        .env("TMPDIR", folder.path())
        .env_remove("GUILDHALL_BENCH_TOOLS")
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let (told, proven) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{proven}");

    let mut metrics = Vec::new();
    for line in told.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let mut keys: Vec<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, KEYS, "{line}");
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no number `{key}`: {line}"));
        if !line["yardstick"].is_null() {
            let quotient = number("value") / number("yardstick_value");
            assert!((number("ratio") / quotient - 1.0).abs() < 0.001, "{line}");
        }
        if line["bench"] == "engine" {
            assert!(number("value") > 0.0, "{line}");
        }
        let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        metrics.push(format!("{}/{} beside {}", text("bench"), text("metric"), text("yardstick")));
    }
    // Without graphile-worker, which tests do not fetch.
    let expected = [
        "engine/bulk_submit beside plain SQL",
        "engine/drain beside plain SQL",
        "engine/drain beside plain SQL, own rows",
        "engine/drain_default_slots beside -",
        "engine/drain_in_children beside drain_default_slots",
        "pickup/from_commit_p50 beside -",
        "pickup/from_commit_p99 beside -",
        "pickup/from_call_p50 beside -",
        "pickup/from_call_p99 beside -",
    ];
    assert_eq!(metrics, expected);

    for sentence in ["fsync = on", "synchronous_commit = on", "jobs: 60 succeeded; attempts: 60", "WAL syncs"] {
        assert!(proven.contains(sentence), "`{sentence}` is not proven:\n{proven}");
    }
    let left: Vec<_> = folder.path().read_dir().expect("it can be read").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// The binary beside the tests'. `cargo test` builds it with the workspace; for this crate alone it is built here.
fn guildhall() -> PathBuf {
    let beside = std::env::current_exe().expect("a path");
    let binary = beside.ancestors().nth(2).expect("it lies in target/<profile>/deps").join("guildhall");
    if !binary.exists() {
        let built =
            Command::new(env!("CARGO")).args(["build", "--package", "guildhall"]).status().expect("cargo starts");
        assert!(built.success(), "guildhall does not build");
    }
    binary
}
