//! E-mail addresses as accounts are known by. An address is parsed once, at the edge of the service, into the one form
//! in which it is stored, compared and shown.

use kit::Personal;

/// Longest address (RFC 5321, section 4.5.3.1.3, without its angle brackets) and longest part before the `@`.
const CHARS_MAX: usize = 254;
const LOCAL_CHARS_MAX: usize = 64;
/// Longest label of a domain (RFC 1035, section 2.3.4).
const LABEL_CHARS_MAX: usize = 63;

/// An address in lower case. The part before the `@` could tell cases apart (RFC 5321, section 2.4), yet no provider of
/// note does, and people do not know which they once typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Email(Personal);

impl Email {
    /// Takes an address as a person types it. Quoted parts and letters beyond ASCII are refused: a domain of such
    /// letters has a form in ASCII, and two spellings that look alike must not be two accounts.
    ///
    /// # Errors
    /// A clause that says what the address must be.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.len() > CHARS_MAX {
            return Err("must be at most 254 characters");
        }
        let (local, domain) = text.rsplit_once('@').ok_or("must be an address such as `ada@example.com`")?;
        if !text.is_ascii() {
            return Err("must be in ASCII; write a domain of other letters in its `xn--` form");
        }
        let is_atom = |part: &str| !part.is_empty() && part.bytes().all(is_atom_byte);
        if local.len() > LOCAL_CHARS_MAX || !local.split('.').all(is_atom) || !domain.split('.').all(is_label) {
            return Err("must be an address such as `ada@example.com`");
        }
        Ok(Self(Personal::new(text.to_ascii_lowercase())))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.expose()
    }
}

impl From<Email> for Personal {
    fn from(email: Email) -> Self {
        email.0
    }
}

/// `atext` of RFC 5322, section 3.2.3.
fn is_atom_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_CHARS_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form_however_it_is_typed() {
        let email = Email::parse("  Ada.Lovelace+Test@Example.COM ").expect("a good address");
        assert_eq!(email.as_str(), "ada.lovelace+test@example.com");
        assert!(Email::parse("admin@guildhall.localhost").is_ok());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long_local = format!("{}@example.com", "a".repeat(65));
        let long = format!("a@{}.com", "b.".repeat(130));
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a b@example.com",
            ".ada@example.com",
            "ada.@example.com",
            "a..b@example.com",
            "a@b@example.com",
            "ada@-example.com",
            "ada@example..com",
            "ada@exam_ple.com",
            "\"ada\"@example.com",
            "ada@münchen.de",
            "аda@example.com",
            "ada@example.com\u{0}",
            &long_local,
            &long,
        ] {
            assert!(Email::parse(text).is_err(), "{text:?} must be refused");
        }
    }
}
