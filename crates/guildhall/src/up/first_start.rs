//! What a first start makes and later ones find: the first administrator, and the keys by which worker and gateway are
//! known to `auth`. Each secret is on the disk before it is of any worth, so that a start that is cut short loses none.

use std::path::PathBuf;

use auth::Auth;
use kit::{Fail, Secret};

use super::data_dir::DataDir;
use crate::settings::Settings;

const ADMINISTRATOR: &str = "administrator";

/// Who can let everyone else in.
#[derive(Debug)]
pub(super) struct Administrator {
    pub(super) email: String,
    /// Set when the account was made at this start.
    pub(super) new_password: Option<Secret>,
    /// Where a password that was made here is kept. Whoever has noted it may delete the file.
    pub(super) file: Option<PathBuf>,
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
        return Ok(Administrator { email, new_password: None, file });
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
    Ok(Administrator { email, new_password: first.map(|first| first.password), file })
}

/// The key of the service account `name`, made at the first start.
///
/// # Errors
/// As [`Auth::ensure_service_key`] and [`DataDir::keep_secret`].
pub(super) async fn service_key(auth: &Auth, name: &str, scope: &str, data_dir: &DataDir) -> Result<Secret, Fail> {
    let key = match data_dir.secret(name)? {
        Some(key) => key,
        None => {
            let key = auth::new_service_key()?;
            data_dir.keep_secret(name, &key)?;
            key
        }
    };
    auth.ensure_service_key(name, &[scope], &key).await?;
    Ok(key)
}
