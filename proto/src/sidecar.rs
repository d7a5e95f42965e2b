//! What a volume's sidecar keeps of the library, so that it can be had back without the catalogue.

use crate::change::{Change, Record};
use crate::id::{EntryId, Incarnation, Ino, Revision, VolumeId};

/// Up to where a copy of the library is true, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LibraryMark {
    pub volume: VolumeId,
    pub incarnation: Incarnation,
    pub revision: Revision,
    /// The largest numbers seen, whatever became of what they were given to.
    pub ino_max: Ino,
    pub entry_max: EntryId,
}

/// One piece of a log.
// Records and changes are the many, and as large.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LibraryFrame {
    /// At the beginning so many records follow it; later, what stands before it is true up to it.
    Mark {
        mark: LibraryMark,
        records: u64,
    },
    Record(Record),
    Change(Change),
}

/// The copy of the library in one sidecar: all folders and their names, and the images, with their
/// names, that have a file on the volume, with these files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryCopy {
    pub mark: LibraryMark,
    pub records: Vec<Record>,
}
