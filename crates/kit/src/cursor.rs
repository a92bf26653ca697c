//! Cursors of lists: where the last page ended, signed, so that a caller can only hand back what it was given. A cursor
//! is no secret and no permission: the list that takes it back narrows its rows to the caller as it did before.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::Fail;

/// Half of the MAC is kept: 128 bits cannot be guessed, and a cursor stands in URLs.
const TAG_BYTES: usize = 16;

/// Longest cursor that is looked at, in characters.
const CURSOR_MAX: usize = 1024;

/// Signs cursors. All processes of one service share a key, so that any of them continues a list that another began.
#[derive(Clone)]
pub struct CursorKey(Hmac<Sha256>);

impl CursorKey {
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// A cursor of the list called `purpose`, made of the last row's sort keys.
    pub fn encode(&self, purpose: &str, parts: &[&str]) -> String {
        let payload = serde_json::Value::from(parts).to_string();
        let mut bytes = self.mac(purpose, payload.as_bytes()).finalize().into_bytes()[..TAG_BYTES].to_vec();
        bytes.extend_from_slice(payload.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The sort keys that [`encode`](Self::encode) was given for the same `purpose`.
    ///
    /// # Errors
    /// `invalid_cursor` (400) for anything else than a cursor of this list.
    pub fn decode(&self, purpose: &str, cursor: &str) -> Result<Vec<String>, Fail> {
        self.verified(purpose, cursor)
            .ok_or_else(|| Fail::malformed("invalid_cursor", "The cursor does not belong to this list."))
    }

    fn verified(&self, purpose: &str, cursor: &str) -> Option<Vec<String>> {
        if cursor.len() > CURSOR_MAX {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (tag, payload) = bytes.split_at_checked(TAG_BYTES)?;
        self.mac(purpose, payload).verify_truncated_left(tag).ok()?;
        serde_json::from_slice(payload).ok()
    }

    /// The purpose is signed with its length before it, so that its end cannot be moved into the payload.
    fn mac(&self, purpose: &str, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(&(purpose.len() as u64).to_be_bytes());
        mac.update(purpose.as_bytes());
        mac.update(payload);
        mac
    }
}

impl fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CursorKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_cursor_gives_back_what_it_was_made_of() {
        let key = CursorKey::new(&[7; 32]);
        let cursor = key.encode("jobs", &["018f", "a \"quoted\" part", ""]);
        assert_eq!(key.decode("jobs", &cursor).expect("its own cursor"), ["018f", "a \"quoted\" part", ""]);
    }

    #[test]
    fn a_cursor_of_another_list_or_key_or_with_one_character_changed_is_refused() {
        let key = CursorKey::new(&[7; 32]);
        let cursor = key.encode("jobs", &["018f"]);
        let mut refused = vec![
            key.decode("files", &cursor),
            CursorKey::new(&[8; 32]).decode("jobs", &cursor),
            key.decode("jobs", ""),
            key.decode("jobs", "not base64!"),
            key.decode("jobs", &"A".repeat(CURSOR_MAX + 4)),
        ];
        for at in 0..cursor.len() {
            let mut changed = cursor.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            refused.push(key.decode("jobs", &String::from_utf8(changed).expect("ASCII")));
        }
        for answer in refused {
            let fail = answer.expect_err("it is no cursor of this list");
            assert_eq!((fail.kind(), fail.code()), (Kind::Malformed, "invalid_cursor"));
        }
    }
}
