//! What agents tell the catalogue: who they are, which volumes they see, what changed in them.

use crate::cluster::{Node, VolumeState};
use crate::facts::Facts;
use crate::id::{BootId, ImageId, VolumeId};
use crate::image::{Checked, Hashes, ImageFormat, Os, Stamp};
use crate::name::{FolderPath, VolumePath};
use crate::time::Timestamp;

/// An agent's first words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub node: Node,
    pub boot: BootId,
    pub version: String,
    pub volumes: Vec<OfferedVolume>,
}

/// A volume an agent sees, assigned or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedVolume {
    pub id: VolumeId,
    /// The pool to join when the catalogue does not know the volume yet.
    pub pool_name: String,
    /// Its directory on that host.
    pub path: String,
    pub state: VolumeState,
}

/// A file as its agent found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// The agent's proposal for a new file, the known id for an old one.
    pub image: ImageId,
    pub path: VolumePath,
    pub stamp: Stamp,
    pub format: ImageFormat,
    pub os: Os,
    pub facts: Option<Box<Facts>>,
    /// Folder the file's place in the pool asks for; `None` to go by family of OS.
    pub folder: Option<FolderPath>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileEvent {
    Created,
    /// Other bytes under the same path: a new image.
    Updated,
    Deleted,
    /// The same file under another path.
    Moved,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub event: FileEvent,
    pub file: FoundFile,
    /// What a moved file or one with other bytes was before.
    pub previous: Option<FormerFile>,
    /// When the agent found it, by its clock: for people, it orders nothing.
    pub found: Timestamp,
}

/// A file as it was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerFile {
    pub image: ImageId,
    pub path: VolumePath,
    pub stamp: Stamp,
}

/// What was learnt of a file by reading it whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedFile {
    pub image: ImageId,
    pub stamp: Stamp,
    pub hashes: Hashes,
    pub checked: Checked,
}

/// Most files in one report of hashes: some 200 bytes each.
pub const HASHED_FILES_MAX: usize = 500;

/// Most changes in one report: bounds a message (about 1 KiB each, and 3 where bytes say much) and a transaction.
pub const FILE_CHANGES_MAX: usize = 500;

/// What a file is taken for now, by bytes that have not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub image: ImageId,
    /// `None`: the same as before.
    pub format: Option<ImageFormat>,
    pub os: Os,
    pub facts: Box<Facts>,
}

/// Most files in one page of a volume's list, and most descriptions in one report: 2 KiB each.
pub const LISTED_FILES_MAX: usize = 500;

/// What a scan has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanCounts {
    pub files_seen: u64,
    pub created: u64,
    pub updated: u64,
    pub deleted: u64,
    /// Images that seem gone, too many at once to be believed before a second look.
    pub suspect: u64,
}

/// How one scan of one volume ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanOutcome {
    pub counts: ScanCounts,
    /// Files met but not taken, and why.
    pub problems: Vec<(String, String)>,
    /// Set when the scan failed; the counts are then of what was done before.
    pub failure: Option<String>,
}

/// Files of a volume that have yet to be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    pub files: u64,
    pub size_bytes: u64,
    /// Of late; 0 if nothing was read.
    pub bytes_per_second: u64,
}
