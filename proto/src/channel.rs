//! Frames of the content channel: how bytes are asked of an agent by programs that ask often. One
//! connection to the agent's own port, one request at a time, answered in order; with each range
//! its proof, where one is asked for. Integers are little-endian. Layout alone; no IO.
//! `docs/decisions/0006-content-channel.md` says why it is not gRPC.

use crate::digest::Blake3;
use crate::id::{ImageId, VolumeId};
use crate::range::ByteRange;
use crate::refusal::{Reason, Refusal};

/// The first bytes of a connection. Neither HTTP nor TLS begins with a zero.
pub const GREETING: [u8; 8] = *b"\0isotope";
/// Bytes of one request.
pub const REQUEST_BYTES: usize = 88;
/// Bytes of what comes before an answer's contents.
pub const HEAD_BYTES: usize = 12;
/// Bytes asked for at once: more makes whoever waits for the first byte wait for the last.
pub const RANGE_BYTES_MAX: u64 = 1 << 20;
/// Inner nodes on both sides of a range, for the largest content there can be: 2 × 50.
pub const PROOF_BYTES_MAX: u64 = 100 * 64;
/// A refusal's text.
pub const TEXT_BYTES_MAX: u64 = 1 << 10;

/// The version of requests, so that an agent can refuse what it does not know.
const VERSION: u8 = 1;
const PING: u8 = 0;
const READ: u8 = 1;
const READ_PROVED: u8 = 2;
const BYTES: u8 = 0;
const REFUSED: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Answered with no bytes, by whoever is alive.
    Ping,
    Read(Wanted),
}

/// A range of an image's file on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub image: ImageId,
    pub volume: VolumeId,
    /// At most [`RANGE_BYTES_MAX`]; of whole groups where it is to be proved.
    pub range: ByteRange,
    /// The content whose tree is to prove it.
    pub proved_by: Option<Blake3>,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A proof, and the bytes.
    Bytes { proof_bytes: u64, bytes: u64 },
    /// A reason's name, and the text.
    Refused { reason_bytes: u64, text_bytes: u64 },
}

/// What is no frame of this channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of the content channel: {0}")]
pub struct InvalidFrame(&'static str);

impl Request {
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut frame = [0; REQUEST_BYTES];
        frame[0] = VERSION;
        let Self::Read(wanted) = self else {
            frame[1] = PING;
            return frame;
        };
        frame[1] = if wanted.proved_by.is_some() { READ_PROVED } else { READ };
        frame[8..24].copy_from_slice(wanted.image.as_bytes());
        frame[24..40].copy_from_slice(wanted.volume.as_bytes());
        frame[40..48].copy_from_slice(&wanted.range.start().to_le_bytes());
        frame[48..56].copy_from_slice(&wanted.range.len().to_le_bytes());
        if let Some(root) = wanted.proved_by {
            frame[56..88].copy_from_slice(root.as_bytes());
        }
        frame
    }

    /// # Errors
    /// [`InvalidFrame`] for another version, and for a range that is none or too long.
    pub fn decode(frame: &[u8; REQUEST_BYTES]) -> Result<Self, InvalidFrame> {
        if frame[0] != VERSION {
            return Err(InvalidFrame("another version"));
        }
        let proved_by = match frame[1] {
            PING => return Ok(Self::Ping),
            READ => None,
            READ_PROVED => Some(Blake3::from_bytes(array(&frame[56..88]))),
            _ => return Err(InvalidFrame("an unknown request")),
        };
        let [start, len] = [40, 48].map(|at| u64::from_le_bytes(array(&frame[at..at + 8])));
        let range = ByteRange::new(start, len).filter(|it| it.len() <= RANGE_BYTES_MAX);
        Ok(Self::Read(Wanted {
            image: ImageId::from_bytes(array(&frame[8..24])),
            volume: VolumeId::from_bytes(array(&frame[24..40])),
            range: range.ok_or(InvalidFrame("no range, or too long a one"))?,
            proved_by,
        }))
    }
}

impl Head {
    #[must_use]
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        let (kind, first, second) = match self {
            Self::Bytes { proof_bytes, bytes } => (BYTES, proof_bytes, bytes),
            Self::Refused { reason_bytes, text_bytes } => (REFUSED, reason_bytes, text_bytes),
        };
        let mut frame = [0; HEAD_BYTES];
        frame[0] = kind;
        // Bounded by what may be sent, far below 4 GiB.
        for (at, count) in [(4, first), (8, second)] {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            frame[at..at + 4].copy_from_slice(&count.to_le_bytes());
        }
        frame
    }

    /// # Errors
    /// [`InvalidFrame`] for what is longer than its bound, whoever sends it.
    pub fn decode(frame: &[u8; HEAD_BYTES]) -> Result<Self, InvalidFrame> {
        let [first, second] = [4, 8].map(|at| u32::from_le_bytes(array(&frame[at..at + 4])).into());
        match frame[0] {
            BYTES if first <= PROOF_BYTES_MAX && second <= RANGE_BYTES_MAX => {
                Ok(Self::Bytes { proof_bytes: first, bytes: second })
            }
            REFUSED if first <= TEXT_BYTES_MAX && second <= TEXT_BYTES_MAX => {
                Ok(Self::Refused { reason_bytes: first, text_bytes: second })
            }
            _ => Err(InvalidFrame("an unknown answer, or too long a one")),
        }
    }
}

/// A whole answer that refuses.
#[must_use]
pub fn refused(refusal: &Refusal) -> Vec<u8> {
    let reason = refusal.reason.as_str();
    let most = usize::try_from(TEXT_BYTES_MAX).unwrap_or(usize::MAX);
    let text = &refusal.text[..refusal.text.floor_char_boundary(most)];
    let count = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
    let head = Head::Refused { reason_bytes: count(reason), text_bytes: count(text) };
    [&head.encode()[..], reason.as_bytes(), text.as_bytes()].concat()
}

/// What an agent said: reasons of a newer one are failures of its storage.
#[must_use]
pub fn refusal(reason: &[u8], text: &[u8]) -> Refusal {
    let known = Reason::ALL.iter().copied().find(|it| it.as_str().as_bytes() == reason);
    Refusal::new(known.unwrap_or(Reason::Storage), String::from_utf8_lossy(text))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("as long as its place in the frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(start: u64, len: u64, proved_by: Option<Blake3>) -> Wanted {
        Wanted {
            image: ImageId::from_bytes([1; 16]),
            volume: VolumeId::from_bytes([2; 16]),
            range: ByteRange::new(start, len).expect("a range"),
            proved_by,
        }
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let root = Some(Blake3::from_bytes([3; 32]));
        for request in [
            Request::Ping,
            Request::Read(wanted(0, 0, None)),
            Request::Read(wanted(1 << 40, RANGE_BYTES_MAX, root)),
        ] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for head in [
            Head::Bytes { proof_bytes: PROOF_BYTES_MAX, bytes: RANGE_BYTES_MAX },
            Head::Refused { reason_bytes: 3, text_bytes: TEXT_BYTES_MAX },
        ] {
            assert_eq!(Head::decode(&head.encode()), Ok(head));
        }
        for &reason in Reason::ALL {
            let said = Refusal::new(reason, "reading /a");
            let frame = refused(&said);
            let (head, rest) = frame.split_first_chunk().expect("a head");
            let Ok(Head::Refused { reason_bytes, text_bytes }) = Head::decode(head) else {
                panic!("no refusal");
            };
            assert_eq!(rest.len() as u64, reason_bytes + text_bytes);
            let (reason, text) = rest.split_at(reason_bytes as usize);
            assert_eq!(refusal(reason, text), said);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut long = Request::Read(wanted(0, RANGE_BYTES_MAX, None)).encode();
        long[48] = 1;
        let mut past_the_end = Request::Read(wanted(0, 1, None)).encode();
        past_the_end[40..48].fill(0xFF);
        let mut newer = Request::Ping.encode();
        newer[0] = 2;
        let mut unknown = Request::Ping.encode();
        unknown[1] = 9;
        for frame in [long, past_the_end, newer, unknown] {
            assert!(Request::decode(&frame).is_err());
        }
        let head = Head::Bytes { proof_bytes: PROOF_BYTES_MAX + 1, bytes: 0 }.encode();
        assert!(Head::decode(&head).is_err());
        assert!(Head::decode(&[7; HEAD_BYTES]).is_err());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let frame = refused(&Refusal::new(Reason::Storage, "ä".repeat(4000)));
        let (head, _) = frame.split_first_chunk().expect("a head");
        assert!(Head::decode(head).is_ok());
    }
}
