//! How the directories of a server's programs are looked for: patterns of where packages put them, and `PATH`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A variable that is the system's; none when unset or empty.
#[expect(clippy::disallowed_methods, reason = "PATH, HOME and XDG_CACHE_HOME are the system's and no settings of ours")]
pub fn system_variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The directories in which `program` of `PATH` really stands: links in `/usr/local/bin` and the like lead to the one
/// where the programs stand together.
pub fn in_path(program: &str) -> Vec<PathBuf> {
    env::split_paths(&system_variable("PATH").unwrap_or_default())
        .filter_map(|dir| dir.join(program).canonicalize().ok())
        .filter_map(|program| program.parent().map(Path::to_owned))
        .collect()
}

/// The directories that match a pattern with at most one `*` in each component, in the order of their names.
pub fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut matches = vec![PathBuf::new()];
    for component in pattern.components() {
        let component = component.as_os_str();
        matches = match component.to_str().and_then(|part| part.split_once('*')) {
            None => matches.into_iter().map(|dir| dir.join(component)).collect(),
            Some((before, after)) => matches.iter().flat_map(|dir| matching(dir, before, after)).collect(),
        };
    }
    matches.retain(|dir| dir.is_dir());
    matches
}

/// Without its repetitions, in the order of their first appearance.
pub fn distinct(mut dirs: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    dirs
}

fn matching(dir: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        })
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_directory_names() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["pgsql-15/bin", "pgsql-17/bin", "pgsql-18", "mysql-15/bin"] {
            fs::create_dir_all(root.path().join(name)).expect("a directory");
        }
        let found = expand(&root.path().join("pgsql-*/bin"));
        assert_eq!(found, [root.path().join("pgsql-15/bin"), root.path().join("pgsql-17/bin")]);
    }
}
