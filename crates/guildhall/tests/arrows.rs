//! The arrows between the rooms run one way: `guildhall` to the services, the worker and the tasks, those to `kit`, and
//! `kit` to `proto`. No service names another; they meet through gRPC and events alone.

#![allow(clippy::unwrap_used, reason = "what a test prepares works, or the test fails")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{Metadata, MetadataCommand};

/// For every room, the rooms that it may name. A room that is missing here fails the test, so that a new one is placed.
const ARROWS: [(&str, &[&str]); 11] = [
    ("proto", &[]),
    ("kit", &["proto"]),
    ("auth", &["kit", "proto"]),
    ("jobs", &["kit", "proto"]),
    ("admin", &["kit", "proto"]),
    ("gateway", &["kit", "proto"]),
    ("worker", &["kit", "proto"]),
    // No part of what is shipped: it runs the binary, and names no room of the product.
    ("apart", &["kit"]),
    // The tasks are built on the worker's runtime, as anyone's could be.
    ("tasks", &["worker", "kit", "proto"]),
    ("guildhall", &["apart", "gateway", "auth", "jobs", "admin", "worker", "tasks", "kit", "proto"]),
    // No part of what is shipped: it measures the binary, and wires some roles where it has to look within.
    ("bench", &["auth", "jobs", "worker", "tasks", "kit", "proto"]),
];

#[test]
fn no_arrow_between_the_rooms_runs_the_wrong_way() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(room, may_name)| (*room, may_name.iter().copied().collect())).collect();

    let mut wrong = Vec::new();
    for (room, names) in rooms(&workspace()) {
        match allowed.get(room.as_str()) {
            None => wrong.push(format!("{room} has no place among the arrows")),
            Some(may_name) => wrong.extend(
                names.iter().filter(|name| !may_name.contains(name.as_str())).map(|name| format!("{room} -> {name}")),
            ),
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A version in a member's manifest would be a second truth beside the workspace's.
#[test]
fn every_version_stands_in_the_workspace_manifest() {
    let mut wrong = Vec::new();
    for package in workspace().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        let is_version = |line: &&str| {
            let line = line.trim();
            !line.starts_with('#') && !line.starts_with("version.workspace") && line.contains("version =")
        };
        wrong.extend(manifest.lines().filter(is_version).map(|line| format!("{}: {line}", package.name)));
        if !manifest.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{} does not take the workspace's lints", package.name));
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn workspace() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .unwrap()
}

/// Every room with the rooms that its manifest names, for building and for tests alike.
fn rooms(workspace: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let packages = workspace.workspace_packages();
    let is_room = |name: &str| packages.iter().any(|package| package.name.as_str() == name);
    packages
        .iter()
        .map(|package| {
            // A room that names itself turns a feature of its own on for its tests.
            let names = package.dependencies.iter().map(|dependency| dependency.name.clone());
            (package.name.to_string(), names.filter(|name| is_room(name) && *name != *package.name).collect())
        })
        .collect()
}
