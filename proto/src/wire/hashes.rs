//! What reading files whole found.

use prost::Message as _;

use super::{Malformed, required, time_in, time_out};
use crate::digest::{Blake3, Sha256};
use crate::id::ImageId;
use crate::image::{Checked, Hashes, Published};
use crate::pb;
use crate::report::HashedFile;

impl From<Checked> for pb::Checked {
    fn from(checked: Checked) -> Self {
        Self {
            read_time: time_out(checked.read),
            rotten: checked.rotten,
            published_agrees: checked.published.as_ref().is_some_and(|it| it.agrees),
            published_in: checked.published.map(|it| it.file),
        }
    }
}

impl TryFrom<pb::Checked> for Checked {
    type Error = Malformed;
    fn try_from(checked: pb::Checked) -> Result<Self, Malformed> {
        let agrees = checked.published_agrees;
        Ok(Self {
            read: time_in("checked.read_time", checked.read_time)?,
            rotten: checked.rotten,
            published: checked.published_in.map(|file| Published { file, agrees }),
        })
    }
}

/// Both, or neither.
pub(super) fn hashes_in(sha256: &[u8], blake3: &[u8]) -> Result<Option<Hashes>, Malformed> {
    if sha256.is_empty() && blake3.is_empty() {
        return Ok(None);
    }
    let whole = |bytes: &[u8]| {
        let length = bytes.len();
        let wrong = |_| Malformed::Undecodable(format!("a digest of {length} bytes"));
        <[u8; 32]>::try_from(bytes).map_err(wrong)
    };
    Ok(Some(Hashes {
        sha256: Sha256::from_bytes(whole(sha256)?),
        blake3: Blake3::from_bytes(whole(blake3)?),
    }))
}

/// As a database keeps it.
#[must_use]
pub fn encode_checked(checked: &Checked) -> Vec<u8> {
    pb::Checked::from(checked.clone()).encode_to_vec()
}

/// What [`encode_checked`] made.
///
/// # Errors
/// If it was made by something else.
pub fn decode_checked(bytes: &[u8]) -> Result<Checked, Malformed> {
    let checked =
        pb::Checked::decode(bytes).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    checked.try_into()
}

impl From<HashedFile> for pb::HashedFile {
    fn from(file: HashedFile) -> Self {
        Self {
            image_id: file.image.into(),
            stamp: Some(file.stamp.into()),
            sha256: file.hashes.sha256.as_bytes().to_vec(),
            blake3: file.hashes.blake3.as_bytes().to_vec(),
            checked: Some(file.checked.into()),
        }
    }
}

impl TryFrom<pb::HashedFile> for HashedFile {
    type Error = Malformed;
    fn try_from(file: pb::HashedFile) -> Result<Self, Malformed> {
        Ok(Self {
            image: ImageId::try_from(&*file.image_id)?,
            stamp: required("file.stamp", file.stamp)?.into(),
            hashes: required("file.sha256", hashes_in(&file.sha256, &file.blake3)?)?,
            checked: required("file.checked", file.checked)?.try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn what_is_stored_is_read_again_and_digests_have_one_length() {
        let published = Some(Published { file: "SHA256SUMS".to_owned(), agrees: true });
        for published in [published, None] {
            let checked = Checked { read: Timestamp(7), rotten: true, published };
            assert_eq!(decode_checked(&encode_checked(&checked)), Ok(checked));
        }
        assert_eq!(hashes_in(&[], &[]), Ok(None));
        assert!(hashes_in(&[1; 32], &[2; 32]).is_ok_and(|it| it.is_some()));
        for (sha256, blake3) in [(&[1; 31][..], &[2; 32][..]), (&[1; 32], &[])] {
            assert!(hashes_in(sha256, blake3).is_err());
        }
    }
}
