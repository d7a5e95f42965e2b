//! What a `Range` header asks for (RFC 9110 §14), and nothing of when it counts.

use isotope_proto::range::ByteRange;

/// What is to be sent of a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it: nothing else was asked for, or nothing that makes sense.
    Whole,
    Part(ByteRange),
    /// No byte of it is in the range.
    Unsatisfiable,
}

/// Of several ranges in one header nothing is cut out: §14.2 lets a server answer with the whole.
pub(crate) fn asked(header: &str, size_bytes: u64) -> Asked {
    let Some((unit, set)) = header.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Asked::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Asked::Whole };
    let part = |start: u64, len: u64| match ByteRange::clamped(start, len, size_bytes) {
        range if range.is_empty() => Asked::Unsatisfiable,
        range => Asked::Part(range),
    };
    match (first, last) {
        ("", last) => match number(last) {
            Some(len) => part(size_bytes.saturating_sub(len), len),
            None => Asked::Whole,
        },
        (first, "") => number(first).map_or(Asked::Whole, |first| part(first, u64::MAX)),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                part(first, (last - first).saturating_add(1))
            }
            _ => Asked::Whole,
        },
    }
}

/// Digits alone; what no file can be long is the longest there is.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_to_the_size_and_nonsense_is_passed_over() {
        let part = |start, len| Asked::Part(ByteRange::new(start, len).expect("a range"));
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-9", part(0, 10)),
            ("bytes=5-99", part(5, 5)),
            ("bytes=9-9", part(9, 1)),
            ("bytes=5-", part(5, 5)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("BYTES=1-2", part(1, 2)),
            ("bytes= 1-2 ", part(1, 2)),
            ("bytes=1-99999999999999999999999", part(1, 9)),
            ("bytes=0-18446744073709551615", part(0, 10)),
            ("bytes=-99999999999999999999999", part(0, 10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=10-20", Asked::Unsatisfiable),
            ("bytes=99999999999999999999999-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=5-4", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=1--2", Asked::Whole),
            ("bytes=0-1,4-5", Asked::Whole),
            ("seconds=0-1", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(asked(header, 10), expected, "{header}");
        }
    }

    #[test]
    fn nothing_is_in_a_range_of_an_empty_file() {
        for header in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_eq!(asked(header, 0), Asked::Unsatisfiable, "{header}");
        }
    }
}
