//! A file's bytes on their way out: whole, in part (RFC 9110, section 14), or not at all because the client has them.

use std::ops::Range;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use futures::TryStreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kit::{Fail, storage::Storage};
use proto::jobs::File;

use crate::{problem::Refusal, route::Content};

/// Answers a request for `file` with what its headers ask for.
///
/// # Errors
/// `storage_unavailable`, and `storage.object_not_found` for a file that was removed this moment.
pub(crate) async fn answer(storage: &Storage, file: &File, asked: &HeaderMap) -> Result<Content, Fail> {
    let etag = format!("\"{}\"", file.sha256);
    let mut headers = HeaderMap::new();
    set(&mut headers, header::ETAG, &etag);
    set(&mut headers, header::ACCEPT_RANGES, "bytes");
    // The bytes of an id never change, but who may see them does: a cache asks again.
    set(&mut headers, header::CACHE_CONTROL, "private, no-cache");
    set(&mut headers, header::CONTENT_DISPOSITION, &disposition(&file.name));
    set(&mut headers, header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox; frame-ancestors 'none'");

    if all(asked, &header::IF_NONE_MATCH).any(|tags| lists(tags, &etag)) {
        return Ok(Content((StatusCode::NOT_MODIFIED, headers).into_response()));
    }
    // With a validator that is not ours, a part would not fit what the client has: it gets the whole.
    let may_be_part = asked.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let range = asked.get(header::RANGE).filter(|_| may_be_part).and_then(|value| value.to_str().ok());
    let (status, range) = match range.map_or(Asked::Whole, |text| parse(text, file.size_bytes)) {
        Asked::Whole => (StatusCode::OK, None),
        Asked::Part(range) => {
            let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, file.size_bytes);
            set(&mut headers, header::CONTENT_RANGE, &shown);
            (StatusCode::PARTIAL_CONTENT, Some(range))
        }
        Asked::Beyond => return Ok(Content(beyond(file.size_bytes))),
    };
    set(&mut headers, header::CONTENT_TYPE, &file.content_type);
    let length = range.as_ref().map_or(file.size_bytes, |range| range.end - range.start);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let bytes = storage.read(&file.storage_key, range).await?;
    let bytes = bytes.inspect_err(|error| tracing::warn!(%error, "a download broke off"));
    Ok(Content((status, headers, Body::from_stream(bytes)).into_response()))
}

fn beyond(size: u64) -> Response {
    let fail =
        Fail::invalid("files.range_not_satisfiable", format!("The file has {size} bytes: the range lies behind them."));
    let mut response = Refusal(fail).into_response();
    set(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// None of it is there.
    Beyond,
}

/// One range of bytes. Several at once, other units and what does not parse are answered with the whole, as section
/// 14.2 lets a server do.
fn parse(text: &str, size: u64) -> Asked {
    let Some((unit, range)) = text.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Asked::Whole;
    }
    let Some((first, last)) = range.trim().split_once('-') else { return Asked::Whole };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first, last) {
        // The last so many bytes.
        ("", last) => match number(last) {
            None => Asked::Whole,
            Some(0) => Asked::Beyond,
            Some(_) if size == 0 => Asked::Beyond,
            Some(count) => Asked::Part(size.saturating_sub(count)..size),
        },
        (first, last) => {
            let Some(first) = number(first) else { return Asked::Whole };
            let last = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match last {
                Some(last) if last < first => Asked::Whole,
                Some(_) if first >= size => Asked::Beyond,
                Some(last) => Asked::Part(first..last.saturating_add(1).min(size)),
                None => Asked::Whole,
            }
        }
    }
}

fn all<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Whether a list of entity tags names this one. `If-None-Match` compares weakly (section 13.1.2).
fn lists(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// RFC 6266: a plain name for old readers, and the true one in UTF-8 (RFC 8187).
fn disposition(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !r#""\%;"#.contains(c) || c == ' ' { c } else { '_' })
        .collect();
    let mut full = String::new();
    for byte in name.bytes() {
        // `attr-char` of RFC 8187, section 3.2.1.
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            full.push(char::from(byte));
        } else {
            full.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{full}")
}

/// What is set here is ASCII; a media type from a row that is not is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_to_the_file() {
        assert_eq!(parse("bytes=0-0", 10), Asked::Part(0..1));
        assert_eq!(parse("bytes=2-5", 10), Asked::Part(2..6));
        assert_eq!(parse("bytes=2-", 10), Asked::Part(2..10));
        assert_eq!(parse("bytes=8-99", 10), Asked::Part(8..10));
        assert_eq!(parse("bytes=-3", 10), Asked::Part(7..10));
        assert_eq!(parse("bytes=-99", 10), Asked::Part(0..10));
    }

    #[test]
    fn a_range_behind_the_end_is_refused_and_one_that_makes_no_sense_is_not_there() {
        assert_eq!(parse("bytes=10-", 10), Asked::Beyond);
        assert_eq!(parse("bytes=-0", 10), Asked::Beyond);
        assert_eq!(parse("bytes=0-", 0), Asked::Beyond);
        for text in ["bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "lines=1-2", "bytes", "bytes=--1", "bytes=+1-2"] {
            assert_eq!(parse(text, 10), Asked::Whole, "{text}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        assert_eq!(
            disposition("a\"b\r\nx: y;é.png"),
            "attachment; filename=\"a_b__x: y__.png\"; filename*=UTF-8''a%22b%0D%0Ax%3A%20y%3B%C3%A9.png"
        );
    }

    #[test]
    fn entity_tags_are_compared_weakly_and_within_a_list() {
        assert!(lists("\"a\", W/\"b\"", "\"b\""));
        assert!(lists("*", "\"b\""));
        assert!(!lists("\"a\"", "\"b\""));
    }
}
