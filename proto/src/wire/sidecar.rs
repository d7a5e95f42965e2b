//! The copy of the library in a sidecar; also its stored form, which is the wire form.

use prost::Message as _;

use super::{Malformed, required};
use crate::id::{EntryId, Incarnation, Ino, Revision, VolumeId};
use crate::pb;
use crate::sidecar::{LibraryFrame, LibraryMark};
use pb::library_frame::Frame as F;

fn mark_out(mark: LibraryMark, records: u64) -> pb::LibraryMark {
    pb::LibraryMark {
        volume_id: mark.volume.into(),
        incarnation: mark.incarnation.into(),
        revision: mark.revision.0,
        ino_max: mark.ino_max.0,
        entry_id_max: mark.entry_max.0,
        records,
    }
}

impl From<LibraryMark> for pb::LibraryMark {
    fn from(mark: LibraryMark) -> Self {
        mark_out(mark, 0)
    }
}

impl TryFrom<pb::LibraryMark> for LibraryMark {
    type Error = Malformed;
    fn try_from(mark: pb::LibraryMark) -> Result<Self, Malformed> {
        Ok(Self {
            volume: VolumeId::try_from(&*mark.volume_id)?,
            incarnation: Incarnation::try_from(&*mark.incarnation)?,
            revision: Revision(mark.revision),
            ino_max: Ino(mark.ino_max),
            entry_max: EntryId(mark.entry_id_max),
        })
    }
}

/// A frame as bytes, for a log.
#[must_use]
pub fn encode_frame(frame: LibraryFrame) -> Vec<u8> {
    let frame = match frame {
        LibraryFrame::Mark { mark, records } => F::Mark(mark_out(mark, records)),
        LibraryFrame::Record(record) => F::Record(record.into()),
        LibraryFrame::Change(change) => F::Change(change.into()),
    };
    pb::LibraryFrame { frame: Some(frame) }.encode_to_vec()
}

/// The inverse of [`encode_frame`].
///
/// # Errors
/// As [`Malformed`] has them: the bytes are no frame, or one of a newer program.
pub fn decode_frame(bytes: &[u8]) -> Result<LibraryFrame, Malformed> {
    let frame = pb::LibraryFrame::decode(bytes)
        .map_err(|error| Malformed::Undecodable(error.to_string()))?;
    Ok(match required("frame", frame.frame)? {
        F::Mark(mark) => {
            let records = mark.records;
            LibraryFrame::Mark { mark: mark.try_into()?, records }
        }
        F::Record(record) => LibraryFrame::Record(record.try_into()?),
        F::Change(change) => LibraryFrame::Change(change.try_into()?),
    })
}
