//! A kept header as a file: its form, made and checked. It knows neither where files lie nor which
//! are kept.
//!
//! In this order, integers little endian: [`FORM`] (8 bytes), the image's id (16), its size (8),
//! whether its BLAKE3 was known (1) and that or zeros (32), the BLAKE3 of everything but itself (32),
//! and the header.

use bytes::Bytes;
use isotope_proto::id::ImageId;

use super::{HEADER_BYTES, header_range};
use crate::fetch::Content;

/// A program that writes another form gives it another number.
const FORM: &[u8; 8] = b"isohead1";
const CHECK_AT: usize = 8 + 16 + 8 + 1 + 32;
const HEAD_BYTES: usize = CHECK_AT + 32;
/// No file is longer.
pub(super) const FILE_BYTES_MAX: u64 = HEAD_BYTES as u64 + HEADER_BYTES;

/// What stands before the check.
fn said(image: ImageId, content: Content) -> [u8; CHECK_AT] {
    let mut said = [0; CHECK_AT];
    said[..8].copy_from_slice(FORM);
    said[8..24].copy_from_slice(image.as_bytes());
    said[24..32].copy_from_slice(&content.size_bytes.to_le_bytes());
    if let Some(hash) = content.blake3 {
        said[32] = 1;
        said[33..].copy_from_slice(hash.as_bytes());
    }
    said
}

fn check(said: &[u8], header: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(said).update(header);
    hasher.finalize()
}

pub(super) fn encode(image: ImageId, content: Content, header: &[u8]) -> Vec<u8> {
    let said = said(image, content);
    [&said[..], check(&said, header).as_bytes(), header].concat()
}

/// The header in a file's bytes, if it is whole and of that image. Where either did not know the
/// hash the id alone says that: under one id there are never other bytes.
pub(super) fn decode(file: &Bytes, image: ImageId, content: Content) -> Option<Bytes> {
    let (said, rest) = file.split_at_checked(CHECK_AT)?;
    let (checked, header) = rest.split_at_checked(32)?;
    let hashed = self::said(image, content);
    let same = said == hashed
        || said == self::said(image, Content { blake3: None, ..content })
        || (content.blake3.is_none() && said[..32] == hashed[..32] && said[32] == 1);
    let whole = u64::try_from(header.len()).ok() == Some(header_range(content.size_bytes).end());
    let sound = same && whole && check(said, header) == *<&[u8; 32]>::try_from(checked).ok()?;
    sound.then(|| file.slice(HEAD_BYTES..))
}

#[cfg(test)]
mod tests {
    use isotope_proto::digest::Blake3;

    use super::*;

    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    fn content(size_bytes: u64, hash: Option<u8>) -> Content {
        Content { size_bytes, blake3: hash.map(|n| Blake3::from_bytes([n; 32])) }
    }

    #[test]
    fn it_is_given_back_for_the_image_it_is_of() {
        let header = vec![5; 100];
        let other = ImageId::from_bytes([8; 16]);
        for (kept, asked, image, expected) in [
            (content(100, Some(1)), content(100, Some(1)), IMAGE, true),
            (content(100, None), content(100, Some(1)), IMAGE, true),
            (content(100, Some(1)), content(100, None), IMAGE, true),
            (content(100, None), content(100, None), IMAGE, true),
            (content(100, Some(1)), content(100, Some(2)), IMAGE, false),
            (content(100, Some(1)), content(101, Some(1)), IMAGE, false),
            (content(100, Some(1)), content(99, None), IMAGE, false),
            (content(100, Some(1)), content(100, Some(1)), other, false),
        ] {
            let file = Bytes::from(encode(IMAGE, kept, &header));
            let found = decode(&file, image, asked);
            assert_eq!(found.is_some(), expected, "{kept:?} {asked:?}");
            assert!(found.is_none_or(|it| it == header));
        }
    }

    #[test]
    fn a_header_of_another_length_than_the_image_asks_for_is_none() {
        let long = content(1 << 30, None);
        let len = usize::try_from(HEADER_BYTES).expect("small");
        for (len, expected) in [(len, true), (len - 1, false), (len + 1, false), (0, false)] {
            let file = Bytes::from(encode(IMAGE, long, &vec![1; len]));
            assert_eq!(decode(&file, IMAGE, long).is_some(), expected, "{len}");
        }
    }

    #[test]
    fn a_cut_file_and_a_flipped_bit_are_told() {
        let content = content(300, Some(1));
        let whole = encode(IMAGE, content, &[9; 300]);
        for cut in 0..whole.len() {
            let file = Bytes::copy_from_slice(&whole[..cut]);
            assert_eq!(decode(&file, IMAGE, content), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert_eq!(decode(&flipped.into(), IMAGE, content), None, "byte {at}");
        }
    }
}
