//! The access token in use: handed out while it is good, exchanged when it is not. An access token lasts 5 minutes, a
//! watched batch may last hours, and two commands may share one session: the exchange happens under the session file's
//! lock, and whoever comes second takes what the first has got instead of exchanging a spent token again.

use chrono::{DateTime, Duration, Utc};
use kit::Clock;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    error::Error,
    session::{Session, SessionFile},
};

/// Exchanged this long before it ends, so that a request does not carry a token that dies on the way.
const EARLY_S: i64 = 20;

/// What `auth/login` and `auth/refresh` answer.
#[derive(Deserialize)]
pub(super) struct Granted {
    access_token: String,
    /// Seconds.
    expires_in: u32,
    refresh_token: String,
    pub(super) user: User,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    pub(super) email: String,
    pub(super) roles: Vec<String>,
}

impl Granted {
    pub(super) fn into_session(self, now: DateTime<Utc>) -> Session {
        Session {
            email: self.user.email,
            access_token: self.access_token,
            access_expires_at: now + Duration::seconds(self.expires_in.into()),
            refresh_token: self.refresh_token,
        }
    }
}

/// The tokens of one client, for any number of requests at once.
#[derive(Debug)]
pub(super) struct Tokens {
    /// None: the session lives and dies with this process.
    file: Option<SessionFile>,
    current: Mutex<Option<Session>>,
    clock: Clock,
}

impl Tokens {
    pub(super) fn of_file(file: SessionFile, clock: Clock) -> Self {
        Self { file: Some(file), current: Mutex::new(None), clock }
    }

    pub(super) fn in_memory(session: Session, clock: Clock) -> Self {
        Self { file: None, current: Mutex::new(Some(session)), clock }
    }

    /// An access token, or None when nobody is signed in. `rejected` is one that the server has just refused: another
    /// is got, unless that has happened meanwhile. `exchange` turns a refresh token into a new pair.
    ///
    /// # Errors
    /// Those of `exchange`; [`Error::Local`] of the session file.
    pub(super) async fn access(
        &self,
        rejected: Option<&str>,
        exchange: impl AsyncFnOnce(&str) -> Result<Granted, Error>,
    ) -> Result<Option<String>, Error> {
        let mut current = self.current.lock().await;
        if current.is_none()
            && let Some(file) = &self.file
        {
            *current = file.load()?;
        }
        let Some(session) = current.as_ref() else { return Ok(None) };
        if self.is_good(session, rejected) {
            return Ok(Some(session.access_token.clone()));
        }
        let Some(file) = &self.file else {
            let fresh = exchange(&session.refresh_token).await?.into_session(self.clock.now());
            return Ok(Some(current.insert(fresh).access_token.clone()));
        };
        let held = file.lock().await?;
        let Some(kept) = file.load()? else {
            *current = None;
            return Ok(None);
        };
        if self.is_good(&kept, rejected) {
            return Ok(Some(current.insert(kept).access_token.clone()));
        }
        match exchange(&kept.refresh_token).await {
            Ok(granted) => {
                let fresh = granted.into_session(self.clock.now());
                file.store(fresh.clone(), &held)?;
                Ok(Some(current.insert(fresh).access_token.clone()))
            }
            Err(error) if error.is_status(401) => {
                file.forget(&held)?;
                *current = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn is_good(&self, session: &Session, rejected: Option<&str>) -> bool {
        rejected != Some(session.access_token.as_str())
            && session.access_expires_at - Duration::seconds(EARLY_S) > self.clock.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(token: &str) -> Granted {
        Granted {
            access_token: token.into(),
            expires_in: 300,
            refresh_token: format!("refresh-{token}"),
            user: User::default(),
        }
    }

    #[tokio::test]
    async fn a_token_is_exchanged_once_when_it_nears_its_end_and_once_when_it_is_refused() {
        let clock = Clock::frozen(DateTime::UNIX_EPOCH);
        let tokens = Tokens::in_memory(granted("one").into_session(clock.now()), clock.clone());
        let never = async |_: &str| -> Result<Granted, Error> { panic!("exchanged a good token") };
        assert_eq!(tokens.access(None, never).await.unwrap().unwrap(), "one");
        clock.advance(std::time::Duration::from_secs(281));
        let second = async |refresh: &str| {
            assert_eq!(refresh, "refresh-one");
            Ok(granted("two"))
        };
        assert_eq!(tokens.access(None, second).await.unwrap().unwrap(), "two");
        assert_eq!(tokens.access(Some("one"), never).await.unwrap().unwrap(), "two", "someone else had refreshed");
        assert_eq!(tokens.access(Some("two"), async |_: &str| Ok(granted("three"))).await.unwrap().unwrap(), "three");
    }
}
