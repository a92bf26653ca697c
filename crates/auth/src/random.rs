//! Randomness for keys and tokens, from the operating system alone, and the SHA-256 under which tokens are stored.

use kit::Fail;
use sha2::{Digest as _, Sha256};

/// Unpredictable bytes.
///
/// # Errors
/// `internal` when the operating system has none to give.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Fail> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Fail::internal)?;
    Ok(bytes)
}

/// SHA-256. Enough for what holds 128 random bits or more, and for nothing that a person chose.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of several parts, each preceded by its length so that no two lists of parts meet.
pub(crate) fn sha256_of_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
