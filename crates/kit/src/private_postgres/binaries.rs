//! Where on this machine a usable Postgres is. It looks and asks for versions; it never installs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{MAJOR_MIN, StartError};
use crate::private_server::account::Account;
use crate::private_server::search::{distinct, expand, in_path, system_variable};

/// Patterns of bin directories, best known first; `*` stands for one whole directory name's part, as in a shell.
const SYSTEM_DIRS: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
    "/usr/pgsql-*/bin",                  // the Postgres project's packages for Red Hat and SUSE
    "/usr/libexec/postgresql*",          // Alpine
    "/opt/homebrew/opt/postgresql*/bin", // Homebrew on ARM
    "/usr/local/opt/postgresql*/bin",    // Homebrew on Intel
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// A directory with `postgres` and `initdb` of one version.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn major(&self) -> u32 {
        self.major
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }
}

/// The binaries for the cluster: of its own major version when it exists, of the highest otherwise.
///
/// # Errors
/// None found, none of the cluster's version found, or `bin_dir` names no usable ones.
pub(super) fn find(
    bin_dir: Option<&Path>,
    cluster_major: Option<u32>,
    cluster: &Path,
    account: &Account,
) -> Result<Binaries, StartError> {
    let mut rejected = Vec::new();
    let mut usable = Vec::new();
    match bin_dir {
        Some(dir) => {
            // A relative one is meant from here, and Postgres is run from elsewhere.
            let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            let unusable = |reason| StartError::UnusableBinaries { dir: dir.to_owned(), reason };
            usable.push(probe(&absolute, account).map_err(unusable)?);
        }
        None => {
            for dir in candidates(account) {
                match probe(&dir, account) {
                    Ok(binaries) => usable.push(binaries),
                    Err(reason) => rejected.push(format!("{}: {reason}", dir.display())),
                }
            }
        }
    }

    let Some(wanted) = cluster_major else {
        // `max_by_key` takes the last of equals, and the best known places stand first.
        return usable.into_iter().rev().max_by_key(|binaries| binaries.major).ok_or_else(|| StartError::NoBinaries {
            looked: if rejected.is_empty() {
                "looked where packages put it, in the cache of `./dev` and in PATH".to_owned()
            } else {
                rejected.join("; ")
            },
        });
    };
    let found = usable.iter().map(|b| format!("found {} in {}", b.major, b.dir.display())).collect::<Vec<_>>();
    usable.into_iter().find(|binaries| binaries.major == wanted).ok_or_else(|| StartError::OtherMajor {
        cluster: cluster.to_owned(),
        cluster_major: wanted,
        found: if found.is_empty() { "no Postgres found".to_owned() } else { found.join(", ") },
    })
}

/// Asks the binaries in `dir` for their version.
///
/// # Errors
/// Why they cannot be used, in words.
fn probe(dir: &Path, account: &Account) -> Result<Binaries, String> {
    for program in ["postgres", "initdb"] {
        let path = dir.join(program);
        if !path.is_file() {
            return Err(format!("has no `{program}`"));
        }
        if !account.can_reach(&path) {
            return Err(format!("the user {} cannot run its `{program}`", account.name()));
        }
    }
    let binaries = Binaries { dir: dir.to_owned(), major: 0 };
    let mut command = Command::new(binaries.postgres());
    command.arg("--version").current_dir("/").env_clear().stdin(Stdio::null());
    account.apply(&mut command);
    let output = command.output().map_err(|error| format!("`postgres --version` does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("`postgres --version` says: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let major = major_of(&said).ok_or_else(|| format!("`postgres --version` says: {}", said.trim()))?;
    if major < MAJOR_MIN {
        return Err(format!("is version {major}, older than {MAJOR_MIN}"));
    }
    Ok(Binaries { major, ..binaries })
}

/// The 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` and of `postgres (PostgreSQL) 15devel`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Every directory worth a look: the packages', what `./dev` has unpacked, `PATH`.
fn candidates(account: &Account) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = SYSTEM_DIRS.iter().flat_map(|pattern| expand(Path::new(pattern))).collect();
    dirs.extend(expand(&dev_cache(account).join("postgres-*/bin")));
    dirs.extend(in_path("postgres"));
    distinct(dirs)
}

/// Where `./dev` unpacks Postgres when it may not install it: a root's copy must be readable by the user it runs as.
fn dev_cache(account: &Account) -> PathBuf {
    match account {
        Account::Other { .. } => PathBuf::from("/var/lib/guildhall"),
        Account::Ourselves => system_variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .or_else(|| system_variable("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/nonexistent"))
            .join("guildhall"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_every_packager_writes_them() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("postgres (PostgreSQL)"), None);
    }
}
