//! What the private servers (Postgres, RabbitMQ) have in common: real servers, found on the machine, each run as a child
//! in a directory of ours and ended with us. It knows no server; those who know one tell it by a [`Product`] and a
//! [`keeper::Server`]. `./dev apart` keeps the roles by it, too.
//!
//! | file | what it knows |
//! |---|---|
//! | `account` | the user a server runs as: ourselves, or an ordinary one when we are root |
//! | `search` | how directories of programs are looked for |
//! | `home` | which directory holds a server's state and its log, and who may use it now |
//! | `keeper` | the thread that runs a server and starts it again |
//! | `confine` | how a child is kept from our environment and terminal, and from outliving us |
//! | `leftovers` | processes of a server whose owner is gone |
//! | `log` | what a server says, within a bound |

pub mod account;
pub mod confine;
pub mod home;
pub mod keeper;
pub mod leftovers;
pub mod log;
pub mod search;

use std::path::PathBuf;

/// What a server is called, by people and by files.
#[derive(Debug)]
pub struct Product {
    /// In sentences: `Postgres`.
    pub name: &'static str,
    /// In file names: `postgres`.
    pub slug: &'static str,
    /// The users it may run as when we are root, best first.
    pub users: &'static [&'static str],
}

/// Why there is no place for a private server, or no end to an earlier one. Each sentence says the way out.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "{data_dir} is in use by the process {pid}. Stop that one first, or choose another directory with GUILDHALL_DATA_DIR"
    )]
    InUse { data_dir: PathBuf, pid: String },

    #[error(
        "{server}'s data in {dir} belongs to the user {owner}, not to {us}: start Guildhall as {owner}, or give it another GUILDHALL_DATA_DIR"
    )]
    OtherOwner { server: &'static str, dir: PathBuf, owner: String, us: String },

    #[error(
        "{server} must not run as root, and this machine has none of the users {users}: add one, or start Guildhall as an ordinary user"
    )]
    NoOrdinaryUser { server: &'static str, users: String },

    #[error(
        "{server} runs as the user {user}, who cannot reach {dir}: let others search the directories above it (`chmod o+x`), or give another GUILDHALL_DATA_DIR"
    )]
    Unreachable { server: &'static str, dir: PathBuf, user: String },

    #[error("processes of an earlier {server} in {dir} do not end ({pids}): end them by hand and start again")]
    Leftovers { server: &'static str, dir: PathBuf, pids: String },

    #[error("the thread that starts {server} panicked; its message stands above")]
    Panicked { server: String },

    #[error("could not {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
}

impl PlaceError {
    /// For `map_err`: names what was being done, in words that follow "could not".
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
