//! The user that a private server runs as. A root's server runs as an ordinary user, everybody else's as themselves.
//! Nothing here changes our own process.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, geteuid};

use super::{PlaceError, Product};

/// Who a server runs as.
#[derive(Debug, Clone)]
pub enum Account {
    /// We are an ordinary user, and so is the server.
    Ourselves,
    /// We are root; the server is this user.
    Other { uid: u32, gid: u32, name: String },
}

impl Account {
    /// The user for new data: the one that packages make for the server, or the one that owns nothing.
    pub fn for_new(product: &Product) -> Result<Self, PlaceError> {
        if !geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        product
            .users
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())
            .map(|user| Self::Other { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name })
            .ok_or_else(|| PlaceError::NoOrdinaryUser { server: product.name, users: product.users.join(", ") })
    }

    /// The user for data that is there: its owner, whoever made it.
    pub fn of(dir: &Path, product: &Product) -> Result<Self, PlaceError> {
        let owner = fs::metadata(dir).map_err(PlaceError::io(format!("look at {}", dir.display())))?;
        let us = geteuid();
        if us.is_root() && owner.uid() != 0 {
            return Ok(Self::Other { uid: owner.uid(), gid: owner.gid(), name: user_name(owner.uid()) });
        }
        if !us.is_root() && owner.uid() == us.as_raw() {
            return Ok(Self::Ourselves);
        }
        Err(PlaceError::OtherOwner {
            server: product.name,
            dir: dir.to_owned(),
            owner: user_name(owner.uid()),
            us: if us.is_root() { "an ordinary user".to_owned() } else { user_name(us.as_raw()) },
        })
    }

    pub fn name(&self) -> String {
        match self {
            Self::Ourselves => user_name(geteuid().as_raw()),
            Self::Other { name, .. } => name.clone(),
        }
    }

    pub fn uid(&self) -> u32 {
        match self {
            Self::Ourselves => geteuid().as_raw(),
            Self::Other { uid, .. } => *uid,
        }
    }

    /// Gives `path` to the user.
    pub fn own(&self, path: &Path) -> Result<(), PlaceError> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid, name } => chown(path, Some(*uid), Some(*gid))
                .map_err(PlaceError::io(format!("give {} to the user {name}", path.display()))),
        }
    }

    /// Makes `command` run as the user, without our groups.
    pub fn apply(&self, command: &mut Command) {
        if let Self::Other { uid, gid, .. } = self {
            // `uid` also drops the supplementary groups when we are root.
            command.gid(*gid).uid(*uid);
        }
    }

    /// Whether the user can search `dir` or run the program `path`. The kernel is asked, as that user, since mode bits
    /// alone do not tell: there are access lists, and mounts.
    pub fn can_reach(&self, path: &Path) -> bool {
        let mut test = Command::new("/bin/sh");
        test.args(["-c", "test -x \"$1\"", "sh"])
            .arg(path)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.apply(&mut test);
        test.status().is_ok_and(|status| status.success())
    }
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => format!("with the id {uid}"),
    }
}
