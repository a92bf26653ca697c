//! Cursors of lists: where the last page ended, signed, so that a caller can only hand back what it was given. A cursor
//! is no secret and no permission: the list that takes it back narrows its rows to the caller as it did before.
//!
//! A list asks for one row more than it shows, to know whether a page follows:
//!
//! ```no_run
//! # fn example(key: &kit::cursor::CursorKey, cursor: &str) -> Result<(), kit::Fail> {
//! let rows_max = kit::cursor::page_rows(0);
//! let after: Option<i64> = key.place("numbers", cursor)?;
//! let mut rows: Vec<i64> = Vec::new(); // select ... where number > after order by number limit rows_max + 1
//! let next_cursor = key.close_page("numbers", &mut rows, rows_max, i64::to_string);
//! # Ok(()) }
//! ```

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use sqlx::{AssertSqlSafe, PgPool};

use crate::{Fail, db::Schema};

/// Half of the MAC is kept: 128 bits cannot be guessed, and a cursor stands in URLs.
const TAG_BYTES: usize = 16;

/// Longest cursor that is looked at, in characters.
const CURSOR_MAX: usize = 1024;

/// Rows on one page of a list: as many as were asked for, 50 when none were (0), and never more than 200.
pub fn page_rows(asked: u32) -> i64 {
    match asked {
        0 => 50,
        asked => i64::from(asked.min(200)),
    }
}

/// Signs cursors. All processes of one service share a key, so that any of them continues a list that another began.
#[derive(Clone)]
pub struct CursorKey(Hmac<Sha256>);

impl CursorKey {
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// The key of a service, from the table `secret (name text primary key, value bytea not null)` of its schema. Whichever
    /// process comes first makes it.
    ///
    /// # Errors
    /// As the database.
    pub async fn ensure(pool: &PgPool, schema: Schema) -> Result<Self, Fail> {
        const NAME: &str = "cursors";
        let mut fresh = [0_u8; 32];
        getrandom::fill(&mut fresh).map_err(|error| Fail::internal(error.to_string()))?;
        let table = schema.name();
        sqlx::query(AssertSqlSafe(format!(
            "insert into {table}.secret (name, value) values ($1, $2) on conflict (name) do nothing"
        )))
        .bind(NAME)
        .bind(&fresh[..])
        .execute(pool)
        .await?;
        let key: Vec<u8> =
            sqlx::query_scalar(AssertSqlSafe(format!("select value from {table}.secret where name = $1")))
                .bind(NAME)
                .fetch_one(pool)
                .await?;
        let key = <[u8; 32]>::try_from(key).map_err(|_| Fail::internal("the cursor key is not of 32 bytes"))?;
        Ok(Self::new(&key))
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
        self.verified(purpose, cursor).ok_or_else(foreign)
    }

    /// The one sort key of the row that the last page ended with; none for an empty cursor, which is the first page's.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn place<T: FromStr>(&self, purpose: &str, cursor: &str) -> Result<Option<T>, Fail> {
        if cursor.is_empty() {
            return Ok(None);
        }
        match self.decode(purpose, cursor)?.as_slice() {
            [part] => part.parse().map(Some).map_err(|_| foreign()),
            _ => Err(foreign()),
        }
    }

    /// Cuts `rows` to a page of `rows_max`, and makes the cursor that goes on after it, with its last row's sort key as
    /// `place` tells it; empty when these are all the rows there are.
    pub fn close_page<T>(
        &self,
        purpose: &str,
        rows: &mut Vec<T>,
        rows_max: i64,
        place: impl Fn(&T) -> String,
    ) -> String {
        let rows_max = usize::try_from(rows_max).unwrap_or(0);
        if rows.len() <= rows_max {
            return String::new();
        }
        rows.truncate(rows_max);
        rows.last().map(|row| self.encode(purpose, &[&place(row)])).unwrap_or_default()
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

fn foreign() -> Fail {
    Fail::malformed("invalid_cursor", "The cursor does not belong to this list.")
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

    #[test]
    fn a_page_that_is_followed_by_another_says_where_it_begins() {
        let key = CursorKey::new(&[7; 32]);
        let mut rows = vec![10, 20, 30];
        let cursor = key.close_page("numbers", &mut rows, 2, i64::to_string);
        assert_eq!(rows, [10, 20]);
        assert_eq!(key.place::<i64>("numbers", &cursor).expect("its own cursor"), Some(20));
        assert_eq!(key.close_page("numbers", &mut rows, 2, i64::to_string), "");
        assert_eq!(key.place::<i64>("numbers", "").expect("the first page"), None);
    }
}
