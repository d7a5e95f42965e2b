//! How a program asks an agent of its own host for a file's descriptor, over the agent's Unix
//! socket, and what it hears: both have a fixed number of bytes, and a descriptor comes along with
//! the answer. It does no IO, and does not know what is done with the file.

use std::time::Duration;

use crate::id::{ImageId, VolumeId};
use crate::image::Stamp;

/// An agent that has not answered by then is not waited for: whoever asked goes the ordinary way.
/// An answer takes some tens of microseconds; a busy processor may add some of its time slices.
pub const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Name of the abstract Unix socket at which the agent of an address answers programs of its own
/// host (unix(7): such names are each network namespace's own).
#[must_use]
pub fn socket(address: &str) -> String {
    format!("isotope-agent-{address}")
}

/// Which of an image's files is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one that is being written, to write through.
    Staged,
    /// The one that is stored, to read.
    Stored,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub kind: Kind,
    pub image: ImageId,
    pub volume: VolumeId,
}

impl Ask {
    /// A byte that says which kind, and two ids.
    pub const BYTES: usize = 33;

    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = match self.kind {
            Kind::Staged => 1,
            Kind::Stored => 2,
        };
        bytes[1..17].copy_from_slice(self.image.as_bytes());
        bytes[17..].copy_from_slice(self.volume.as_bytes());
        bytes
    }

    /// `None` for a kind that this version does not know.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let kind = match bytes[0] {
            1 => Kind::Staged,
            2 => Kind::Stored,
            _ => return None,
        };
        let id = |at: usize| bytes[at..].first_chunk::<16>().copied();
        let (image, volume) = (ImageId::from_bytes(id(1)?), VolumeId::from_bytes(id(17)?));
        Some(Self { kind, image, volume })
    }
}

/// Why a descriptor is not passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    #[error("the agent has no such file")]
    NotHere,
    #[error("the volume is offline, or is still being looked through")]
    Offline,
    #[error("the file is no longer the one that was catalogued")]
    Changed,
    #[error("something touched the file; it has yet to be hashed again")]
    Touched,
    #[error("the file's bytes have rotted")]
    Rotten,
    #[error("the volume's disk does not answer in time")]
    Busy,
    #[error("the file cannot be opened, or what was asked was not understood")]
    Failed,
}

impl Withheld {
    const ALL: [Self; 7] = [
        Self::NotHere,
        Self::Offline,
        Self::Changed,
        Self::Touched,
        Self::Rotten,
        Self::Busy,
        Self::Failed,
    ];

    /// Never 0, which is a passed descriptor's.
    fn code(self) -> u8 {
        match self {
            Self::NotHere => 1,
            Self::Offline => 2,
            Self::Changed => 3,
            Self::Touched => 4,
            Self::Rotten => 5,
            Self::Busy => 6,
            Self::Failed => 7,
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The descriptor comes along; the file has this stamp.
    Passed(Stamp),
    Withheld(Withheld),
}

impl Answer {
    /// A code, and a stamp's three numbers, little-endian.
    pub const BYTES: usize = 25;

    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        match self {
            Self::Passed(stamp) => {
                bytes[1..9].copy_from_slice(&stamp.inode.to_le_bytes());
                bytes[9..17].copy_from_slice(&stamp.size_bytes.to_le_bytes());
                bytes[17..].copy_from_slice(&stamp.mtime_ns.to_le_bytes());
            }
            Self::Withheld(why) => bytes[0] = why.code(),
        }
        bytes
    }

    /// What a later version answers, and this one does not know, is a failure.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |at: usize| bytes[at..].first_chunk::<8>().copied().unwrap_or_default();
        match bytes[0] {
            0 => Self::Passed(Stamp {
                inode: u64::from_le_bytes(number(1)),
                size_bytes: u64::from_le_bytes(number(9)),
                mtime_ns: i64::from_le_bytes(number(17)),
            }),
            code => {
                let known = Withheld::ALL.into_iter().find(|it| it.code() == code);
                Self::Withheld(known.unwrap_or(Withheld::Failed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_is_read_as_it_was_meant() {
        for kind in [Kind::Staged, Kind::Stored] {
            let (image, volume) = (ImageId::from_bytes([7; 16]), VolumeId::from_bytes([9; 16]));
            let ask = Ask { kind, image, volume };
            assert_eq!(Ask::decode(&ask.encode()), Some(ask));
        }
        let stamp = Stamp { inode: 1 << 40, size_bytes: u64::MAX, mtime_ns: -5 };
        let refused = Withheld::ALL.map(Answer::Withheld);
        for answer in refused.into_iter().chain([Answer::Passed(stamp)]) {
            assert_eq!(Answer::decode(&answer.encode()), answer);
        }
    }

    #[test]
    fn what_is_not_known_is_no_descriptor() {
        assert_eq!(Ask::decode(&[9; Ask::BYTES]), None);
        let answer = Answer::decode(&[200; Answer::BYTES]);
        assert_eq!(answer, Answer::Withheld(Withheld::Failed));
    }
}
