//! Where a pass stands, small enough to be written down, and of which file. It knows nothing of
//! where it is kept.

use std::fs::File;
use std::io;

use isotope_proto::image::Stamp;
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use super::pass::{BLOCK_BYTES, Begin, Sha};
use super::tree::{GROUP_BYTES, PAIR_BYTES, Tree, Value};
use crate::volume::stamp_of;

/// A file's state: while it is the same, so are its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    inode: u64,
    pub(super) size_bytes: u64,
    mtime_ns: i64,
    /// Moves with each write, whatever a program then sets the mtime to; and with a rename, after
    /// which hashing begins anew, for nobody can tell the two apart.
    ctime_ns: i64,
}

impl Seen {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let stat = fstat(file)?;
        let Stamp { inode, size_bytes, mtime_ns } = stamp_of(&stat);
        let nanos = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
        let ctime_ns = stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(nanos);
        Ok(Self { inode, size_bytes, mtime_ns, ctime_ns })
    }

    pub(super) fn stamp(&self) -> Stamp {
        let Self { inode, size_bytes, mtime_ns, .. } = *self;
        Stamp { inode, size_bytes, mtime_ns }
    }
}

/// Where a pass over one state of one file can be taken up again: about 5 KB in JSON for the
/// largest file there can be. The state of SHA-256 is that of the sha2 crate, which keeps its form
/// within 0.11.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    file: Seen,
    offset: u64,
    #[serde(with = "hex")]
    sha256: Vec<u8>,
    /// The chaining values that [`Tree`] holds, one after the other.
    #[serde(with = "hex")]
    blake3: Vec<u8>,
}

impl Checkpoint {
    /// After whole blocks.
    pub(super) fn new(file: Seen, sha256: &Sha256, tree: &Tree) -> Self {
        Self {
            file,
            offset: tree.groups() * GROUP_BYTES,
            sha256: sha256.serialize().to_vec(),
            blake3: tree.values().flatten().collect(),
        }
    }

    /// Bytes from the file's beginning that need not be read again.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the outboard that had been told by then.
    #[must_use]
    pub fn outboard_bytes(&self) -> u64 {
        Tree::pairs(self.offset / GROUP_BYTES) * PAIR_BYTES
    }

    /// None if the file is in another state, or this is damaged.
    pub(super) fn resume(&self, seen: &Seen) -> Option<Begin> {
        let (values, rest) = self.blake3.as_chunks::<{ size_of::<Value>() }>();
        // There is always something left, for the end needs the last group.
        let inside = self.offset < seen.size_bytes && self.offset.is_multiple_of(BLOCK_BYTES);
        if self.file != *seen || !rest.is_empty() || !inside {
            return None;
        }
        let state = SerializedState::<Sha256>::try_from(self.sha256.as_slice()).ok()?;
        let sha = Sha::Resume(Sha256::deserialize(&state).ok()?);
        let tree = Tree::restore(self.offset / GROUP_BYTES, values)?;
        Some(Begin { sha, tree })
    }
}

/// Bytes as text.
mod hex {
    use std::fmt::Write;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let text = bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string never fails.
            let _ = write!(text, "{byte:02x}");
            text
        });
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        let byte = |digits: &[u8]| match digits {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.ok_or_else(|| D::Error::custom("not hexadecimal digits in pairs"))
    }
}
