//! Hashes of contents: fixed sizes, written as hexadecimal digits. Computes none.

use std::fmt;
use std::str::FromStr;

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest has 64 hexadecimal digits, and not {0:?}")]
pub struct InvalidDigest(String);

/// Longest part of an invalid text that is repeated in the error.
const SHOWN_MAX: usize = 80;

impl InvalidDigest {
    fn of(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(SHOWN_MAX)].to_owned())
    }
}

macro_rules! digest {
    ($($(#[$doc:meta])* $name:ident),+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            #[must_use]
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// In digits of either case.
        impl FromStr for $name {
            type Err = InvalidDigest;
            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                bytes_of(text).map(Self).ok_or_else(|| InvalidDigest::of(text))
            }
        }
    )+};
}

digest! {
    /// SHA-256 (FIPS 180-4), the hash that vendors publish.
    Sha256,
    /// The root hash of BLAKE3.
    Blake3
}

fn bytes_of(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_either_case_are_read_and_small_ones_written() {
        let check = |text: &str, expected: Option<&str>| {
            let read = text.parse::<Sha256>().ok().map(|it| it.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        let digits = "0123456789abcdef".repeat(4);
        check(&digits, Some(&digits));
        check(&digits.to_uppercase(), Some(&digits));
        check(&digits[1..], None);
        check(&format!("{digits}0"), None);
        check(&format!("{digits}00"), None);
        check(&digits.replace('0', "g"), None);
        check(&digits.replace('0', "+"), None);
        check("", None);
        check(&"é".repeat(32), None);
        check(&"é".repeat(100), None);
    }

    #[test]
    fn bytes_stand_in_the_order_of_the_digits() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[31]) = (0x12, 0xef);
        let text = Blake3::from_bytes(bytes).to_string();
        assert!(text.starts_with("1200") && text.ends_with("00ef"), "{text}");
        assert_eq!(text.parse::<Blake3>().map(|it| *it.as_bytes()), Ok(bytes));
    }
}
