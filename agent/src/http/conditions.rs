//! What a request's conditions come to (RFC 9110 §13), and then what of the image is to be sent.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderName, Method, header};
use isotope_proto::range::ByteRange;

use super::headers::Representation;
use super::ranges::{self, Asked};

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Whole,
    Part(ByteRange),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not what the client has.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// The order of §13.2.2.
pub(crate) fn answer(method: &Method, headers: &HeaderMap, it: &Representation) -> Answer {
    let date = |name: HeaderName| date_of(headers, &name);
    let matched = match tags(headers, header::IF_MATCH) {
        Some(tags) => tags.iter().any(|tag| *tag == "*" || it.has_tag(tag)),
        None => date(header::IF_UNMODIFIED_SINCE).is_none_or(|date| it.modified() <= date),
    };
    if !matched {
        return Answer::PreconditionFailed;
    }
    let known = match tags(headers, header::IF_NONE_MATCH) {
        // Whether a tag is weak is nothing to a cache (§13.1.2).
        Some(tags) => tags.iter().any(|tag| {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || it.has_tag(tag)
        }),
        // Exactly: under a library's path an older file may follow a newer one.
        None => date(header::IF_MODIFIED_SINCE) == Some(it.modified()),
    };
    if known {
        return Answer::NotModified;
    }
    // Ranges are defined for GET alone (§14.2).
    let asked = match one(headers, &header::RANGE) {
        Some(range) if method == Method::GET && goes_on(headers, it) => {
            ranges::asked(range, it.size_bytes)
        }
        _ => Asked::Whole,
    };
    match asked {
        Asked::Whole => Answer::Whole,
        Asked::Part(range) => Answer::Part(range),
        Asked::Unsatisfiable => Answer::Unsatisfiable,
    }
}

/// Whether what the client has a part of is this (§13.1.5). A date proves nothing: two images may
/// be of one second, and whoever has an entity tag must send that.
fn goes_on(headers: &HeaderMap, it: &Representation) -> bool {
    !headers.contains_key(header::IF_RANGE)
        || one(headers, &header::IF_RANGE).is_some_and(|tag| it.has_tag(tag))
}

/// The value of a header that is sent once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok().map(str::trim) }
}

fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(one(headers, name)?).ok()
}

/// The entity tags of a list, quotes and all; `None` where there is no such header. No tag of ours
/// has a comma in it.
fn tags(headers: &HeaderMap, name: HeaderName) -> Option<Vec<&str>> {
    let values = headers.get_all(name);
    values.iter().next()?;
    let texts = values.iter().filter_map(|value| value.to_str().ok());
    Some(texts.flat_map(|text| text.split(',')).map(str::trim).collect())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::super::headers::tests::{HASH_TAG, ID_TAG, MODIFIED, hashed};
    use super::*;

    fn check(method: &Method, lines: &[(&'static str, &str)], expected: Answer) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        assert_eq!(answer(method, &headers, &hashed()), expected, "{method} {lines:?}");
    }

    #[test]
    fn conditions_are_looked_at_in_their_order() {
        let later = "Thu, 01 Jan 2026 00:00:00 GMT";
        let earlier = "Mon, 01 Jan 1990 00:00:00 GMT";
        let several = format!("\"a\", W/\"b\", {HASH_TAG}");
        let weak = format!("W/{HASH_TAG}");
        for (lines, expected) in [
            (&[][..], Answer::Whole),
            (&[("if-match", HASH_TAG)], Answer::Whole),
            (&[("if-match", ID_TAG)], Answer::Whole),
            (&[("if-match", "*")], Answer::Whole),
            (&[("if-match", &several)], Answer::Whole),
            (&[("if-match", &weak)], Answer::PreconditionFailed),
            (&[("if-match", "\"other\"")], Answer::PreconditionFailed),
            (&[("if-match", "")], Answer::PreconditionFailed),
            (&[("if-match", "\"a\""), ("if-match", HASH_TAG)], Answer::Whole),
            (&[("if-unmodified-since", later)], Answer::Whole),
            (&[("if-unmodified-since", MODIFIED)], Answer::Whole),
            (&[("if-unmodified-since", earlier)], Answer::PreconditionFailed),
            (&[("if-unmodified-since", "nonsense")], Answer::Whole),
            (&[("if-match", HASH_TAG), ("if-unmodified-since", earlier)], Answer::Whole),
            (&[("if-none-match", HASH_TAG)], Answer::NotModified),
            (&[("if-none-match", &weak)], Answer::NotModified),
            (&[("if-none-match", &several)], Answer::NotModified),
            (&[("if-none-match", "*")], Answer::NotModified),
            (&[("if-none-match", "\"other\"")], Answer::Whole),
            (&[("if-none-match", "\"other\""), ("if-modified-since", MODIFIED)], Answer::Whole),
            (&[("if-modified-since", MODIFIED)], Answer::NotModified),
            (&[("if-modified-since", later)], Answer::Whole),
            (&[("if-match", "\"a\""), ("if-none-match", "*")], Answer::PreconditionFailed),
            (&[("if-none-match", "*"), ("range", "bytes=0-1")], Answer::NotModified),
        ] {
            check(&Method::GET, lines, expected);
            check(&Method::HEAD, lines, expected);
        }
    }

    #[test]
    fn a_range_counts_while_the_image_is_the_same() {
        let part = Answer::Part(ByteRange::new(1, 2).expect("a range"));
        let weak = format!("W/{HASH_TAG}");
        for (lines, expected) in [
            (&[("range", "bytes=1-2")][..], part),
            (&[("range", "bytes=1-2"), ("range", "bytes=1-2")], Answer::Whole),
            (&[("range", "bytes=99999-")], Answer::Unsatisfiable),
            (&[("range", "bytes=1-2"), ("if-range", HASH_TAG)], part),
            (&[("range", "bytes=1-2"), ("if-range", ID_TAG)], part),
            (&[("range", "bytes=1-2"), ("if-range", "\"other\"")], Answer::Whole),
            (&[("range", "bytes=1-2"), ("if-range", &weak)], Answer::Whole),
            (&[("range", "bytes=1-2"), ("if-range", MODIFIED)], Answer::Whole),
            (&[("range", "bytes=99999-"), ("if-range", "\"other\"")], Answer::Whole),
            (&[("range", "bytes=1-2"), ("if-match", HASH_TAG)], part),
        ] {
            check(&Method::GET, lines, expected);
            check(&Method::HEAD, lines, Answer::Whole);
        }
    }
}
