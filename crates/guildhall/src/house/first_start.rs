//! What a first start makes and later ones find: the first administrator, and the keys by which the other roles are known
//! to `auth`. In `up` each secret is made here, and on the disk before it is of any worth, so that a start that is cut short
//! loses none. Roles apart are told theirs.

use std::path::PathBuf;

use auth::Auth;
use kit::{Fail, Secret};

use super::data_dir::DataDir;
use crate::settings::Settings;

const ADMINISTRATOR: &str = "administrator";
/// The account of whatever a role asks for nobody but itself, and what its key is good for.
const SERVICE: (&str, &[&str]) = ("service", &["revocations:watch", "events:replay", "health:report:any"]);
/// The account of workers, who tell how they fare themselves.
const WORKER: (&str, &[&str]) = ("worker", &["workers:connect", "health:report"]);

/// Who can let everyone else in.
#[derive(Debug)]
pub(crate) struct Administrator {
    pub(crate) email: String,
    /// Set when the account was made at this start.
    pub(crate) new_password: Option<Secret>,
    /// Where a password that was made here is kept. Whoever has noted it may delete the file.
    pub(crate) file: Option<PathBuf>,
    /// None, where nobody has said a password and none may be made: replicas that start at once would each make one.
    pub(crate) is_missing: bool,
}

/// Makes the first administrator where there is none, with the password of the settings or one made here.
///
/// # Errors
/// As [`Auth::ensure_first_admin`] and [`DataDir::keep_secret`].
pub(super) async fn administrator(auth: &Auth, settings: &Settings, data_dir: &DataDir) -> Result<Administrator, Fail> {
    let path = data_dir.secret_path(ADMINISTRATOR);
    let email = settings.auth.admin_email.clone();
    if auth.has_admin().await? {
        let file = path.exists().then_some(path);
        return Ok(Administrator { email, new_password: None, file, is_missing: false });
    }
    let (password, file) = match &settings.auth.admin_password {
        Some(password) => (password.clone(), None),
        // One that is there was kept by a start that ended before the account was made.
        None => match data_dir.secret(ADMINISTRATOR)? {
            Some(password) => (password, Some(path)),
            None => {
                let password = auth::new_password()?;
                data_dir.keep_secret(ADMINISTRATOR, &password)?;
                (password, Some(path))
            }
        },
    };
    // None when another process was first, on a database that is shared: then the file here opens nothing.
    let first = auth.ensure_first_admin(&password).await?;
    let file = if first.is_some() { file } else { data_dir.forget_secret(ADMINISTRATOR).map(|()| None)? };
    Ok(Administrator { email, new_password: first.map(|first| first.password), file, is_missing: false })
}

/// As [`administrator`], with the password of the settings alone: however many replicas start at once, they make one
/// account, and all of them know its password.
///
/// # Errors
/// As [`Auth::ensure_first_admin`].
pub(super) async fn administrator_of_settings(auth: &Auth, settings: &Settings) -> Result<Administrator, Fail> {
    let email = settings.auth.admin_email.clone();
    let mut administrator = Administrator { email, new_password: None, file: None, is_missing: false };
    if auth.has_admin().await? {
        return Ok(administrator);
    }
    match &settings.auth.admin_password {
        Some(password) => {
            let first = auth.ensure_first_admin(password).await?;
            administrator.new_password = first.map(|first| first.password);
        }
        None => {
            tracing::warn!("there is no administrator yet: start auth once with GUILDHALL_ADMIN_PASSWORD");
            administrator.is_missing = true;
        }
    }
    Ok(administrator)
}

/// The keys by which the other roles are known to `auth`.
#[derive(Debug)]
pub(super) struct Keys {
    service: Option<Secret>,
    worker: Option<Secret>,
}

impl Keys {
    /// As the settings say them.
    pub(super) fn of(settings: &Settings) -> Self {
        Self { service: settings.process.service_key.clone(), worker: settings.process.worker_key.clone() }
    }

    /// Those that no setting says are made at the first start, and kept.
    ///
    /// # Errors
    /// As [`DataDir::keep_secret`].
    pub(super) fn kept(settings: &Settings, data_dir: &DataDir) -> Result<Self, Fail> {
        let kept = |said: Option<Secret>, name: &str| match said {
            Some(key) => Ok(key),
            None => key(name, data_dir),
        };
        let Self { service, worker } = Self::of(settings);
        Ok(Self { service: Some(kept(service, SERVICE.0)?), worker: Some(kept(worker, WORKER.0)?) })
    }

    /// Has `auth` know them.
    ///
    /// # Errors
    /// As [`Auth::ensure_service_key`].
    pub(super) async fn make_good(&self, auth: &Auth) -> Result<(), Fail> {
        for (key, (account, scopes)) in [(&self.service, SERVICE), (&self.worker, WORKER)] {
            if let Some(key) = key {
                auth.ensure_service_key(account, scopes, key).await?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// `internal` where the settings were not held to it.
    pub(super) fn service(&self) -> Result<Secret, Fail> {
        self.service.clone().ok_or_else(|| Fail::internal("this role was opened without the service key"))
    }

    /// # Errors
    /// `internal` where the settings were not held to it.
    pub(super) fn worker(&self) -> Result<Secret, Fail> {
        self.worker.clone().ok_or_else(|| Fail::internal("this role was opened without the worker key"))
    }
}

fn key(name: &str, data_dir: &DataDir) -> Result<Secret, Fail> {
    if let Some(key) = data_dir.secret(name)? {
        return Ok(key);
    }
    let key = auth::new_service_key()?;
    data_dir.keep_secret(name, &key)?;
    Ok(key)
}
