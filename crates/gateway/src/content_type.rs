//! What a file is, by looking at it. What the client says of it is not asked: a page that calls itself a picture would
//! be believed by whoever opens it.

/// How many of a file's first bytes are looked at.
pub(crate) const HEAD_BYTES: usize = 8 * 1024;

const UNKNOWN: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// The media type of a file that begins with `head`; `is_whole` says that there is no more of it.
pub(crate) fn of(head: &[u8], is_whole: bool) -> &'static str {
    if let Some(kind) = infer::get(head) {
        return kind.mime_type();
    }
    if head.starts_with(b"glTF") {
        return "model/gltf-binary";
    }
    if !head.is_empty() && is_text(head, is_whole) { TEXT } else { UNKNOWN }
}

fn is_text(head: &[u8], is_whole: bool) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The last character may go on behind what is looked at.
        Err(error) if !is_whole && error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_what_they_are() {
        assert_eq!(of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", false), "image/png");
        assert_eq!(of(&[0xff, 0xd8, 0xff, 0xe0, 0, 16], false), "image/jpeg");
        assert_eq!(of(b"glTF\x02\0\0\0", false), "model/gltf-binary");
        assert_eq!(of(b"", true), UNKNOWN);
        assert_eq!(of(b"a\0b", true), UNKNOWN);
    }

    #[test]
    fn text_cut_within_a_character_is_text_still() {
        let text = "größe".as_bytes();
        assert_eq!(of(&text[..3], false), TEXT);
        assert_eq!(of(&text[..3], true), UNKNOWN);
        assert_eq!(of(text, true), TEXT);
    }
}
