//! The session file: who is signed in where, kept between commands. It owns the file, its permissions and its lock; what
//! the tokens mean and when they are exchanged is `tokens.rs`.
//!
//! `$XDG_CONFIG_HOME/guildhall/session.json` (or `~/.config/guildhall/session.json`) maps an address to its session, so that
//! one can be signed in at several places at once. It is 0600 and replaced by rename; `session.lock` beside it is what
//! two commands that refresh at the same time wait on, since a lock on a file that is replaced would guard nothing.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::error::Error;

/// Longer than any exchange of a token takes; a lock held beyond it belongs to a command that was stopped.
const LOCK_WAIT: Duration = Duration::from_secs(30);
const LOCK_LOOK: Duration = Duration::from_millis(25);

/// The tokens of one sign-in.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) email: String,
    pub(super) access_token: String,
    pub(super) access_expires_at: DateTime<Utc>,
    pub(super) refresh_token: String,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("email", &self.email).finish_non_exhaustive()
    }
}

/// One address's entry in the session file.
#[derive(Debug, Clone)]
pub(super) struct SessionFile {
    directory: PathBuf,
    address: String,
}

/// Held while a token is exchanged and the file replaced. Let go of when dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "kept open: closing it is what unlocks")] File);

impl SessionFile {
    /// The entry of `address` in the session file of the person whose process this is.
    ///
    /// # Errors
    /// [`Error::Usage`] when neither `XDG_CONFIG_HOME` nor `HOME` says where that is.
    pub(super) fn of_user(address: &str) -> Result<Self, Error> {
        let absolute = |name| super::environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let directory = directory.ok_or_else(|| {
            Error::Usage("Neither XDG_CONFIG_HOME nor HOME is set, so there is no place to keep a session in.".into())
        })?;
        Ok(Self::within(directory.join("guildhall"), address))
    }

    fn within(directory: PathBuf, address: &str) -> Self {
        Self { directory, address: address.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("session.json")
    }

    /// The session kept for this address.
    ///
    /// # Errors
    /// [`Error::Local`] when the file is there and cannot be read.
    pub(super) fn load(&self) -> Result<Option<Session>, Error> {
        Ok(self.all()?.remove(&self.address))
    }

    /// Keeps `session` for this address, leaving those of other addresses as they are.
    ///
    /// # Errors
    /// [`Error::Local`] when the file cannot be written.
    pub(super) fn store(&self, session: Session, _held: &Lock) -> Result<(), Error> {
        let mut all = self.all()?;
        all.insert(self.address.clone(), session);
        self.replace(&all)
    }

    /// Forgets the session of this address.
    ///
    /// # Errors
    /// [`Error::Local`] when the file cannot be written.
    pub(super) fn forget(&self, _held: &Lock) -> Result<(), Error> {
        let mut all = self.all()?;
        if all.remove(&self.address).is_none() {
            return Ok(());
        }
        self.replace(&all)
    }

    /// Waits until no other command changes the file.
    ///
    /// # Errors
    /// [`Error::Local`] when the lock cannot be had within 30 s.
    pub(super) async fn lock(&self) -> Result<Lock, Error> {
        let path = self.directory.join("session.lock");
        let failed = |source| Error::Local { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(Error::local(&self.directory))?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => tokio::time::sleep(LOCK_LOOK).await,
                Err(TryLockError::WouldBlock) => {
                    return Err(failed(std::io::Error::new(ErrorKind::TimedOut, "another command holds it")));
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }

    fn all(&self) -> Result<BTreeMap<String, Session>, Error> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|fault| {
                let sentence = format!("not a session file ({fault}); remove it and sign in again");
                Error::Local { path, source: std::io::Error::new(ErrorKind::InvalidData, sentence) }
            }),
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(source) => Err(Error::Local { path, source }),
        }
    }

    fn replace(&self, all: &BTreeMap<String, Session>) -> Result<(), Error> {
        let written = self.directory.join("session.json.new");
        write_private(
            &written,
            &serde_json::to_vec_pretty(all).map_err(std::io::Error::from).map_err(Error::local(&written))?,
        )
        .map_err(Error::local(&written))?;
        fs::rename(&written, self.path()).map_err(Error::local(self.path()))
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // A file left by a command that died could have any mode: made anew, it has ours.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn session(token: &str) -> Session {
        Session {
            email: "ada@example.org".into(),
            access_token: token.into(),
            access_expires_at: DateTime::UNIX_EPOCH,
            refresh_token: format!("refresh-{token}"),
        }
    }

    #[tokio::test]
    async fn two_addresses_keep_their_own_sessions_in_a_file_only_the_owner_reads() {
        let place = tempfile::tempdir().unwrap();
        let here = SessionFile::within(place.path().join("guildhall"), "http://here");
        let there = SessionFile::within(place.path().join("guildhall"), "http://there");
        here.store(session("one"), &here.lock().await.unwrap()).unwrap();
        there.store(session("two"), &there.lock().await.unwrap()).unwrap();
        here.forget(&here.lock().await.unwrap()).unwrap();
        assert_eq!(here.load().unwrap(), None);
        assert_eq!(there.load().unwrap(), Some(session("two")));
        assert_eq!(fs::metadata(here.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&here.directory).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn the_lock_is_held_by_one_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let file = SessionFile::within(place.path().into(), "http://here");
        let held = file.lock().await.unwrap();
        let mut second = Box::pin(file.lock());
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        second.await.unwrap();
    }

    #[test]
    fn a_spoilt_file_is_named_and_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let file = SessionFile::within(place.path().into(), "http://here");
        fs::write(file.path(), "{").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("sign in again"));
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "{");
    }

    #[test]
    fn a_session_shows_no_token_when_printed() {
        assert!(!format!("{:?}", session("one")).contains("one"));
    }
}
