//! Files on their way into the library, and what is to be done with files on disk.

use std::fmt;

use crate::facts::Facts;
use crate::id::{ImageId, Ino, NodeId, UploadId, VolumeId};
use crate::image::{Image, ImageFormat, Os, Stamp};
use crate::name::VolumePath;
use crate::time::Timestamp;
use crate::tree::Place;

/// What somebody wants to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRequest {
    pub id: UploadId,
    pub place: Place,
    pub mode: u32,
    /// Name of a pool; `None` to let the catalogue choose.
    pub pool: Option<String>,
    /// Name of the writer's host, whose own volumes are preferred.
    pub host: String,
    pub existing: Existing,
    /// 0 if not known.
    pub size_bytes: u64,
}

/// What an upload does with an image of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    /// It gives up the name when the upload is published.
    Replace,
    /// It gives up all its names then: its bytes are changed, and not one of its names.
    Rewrite,
}

/// A reserved upload, and where its bytes are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub id: UploadId,
    pub image: ImageId,
    pub ino: Ino,
    pub volume: VolumeId,
    pub node: NodeId,
}

/// A staged file, whole and durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub stamp: Stamp,
    /// The place it is to have in its volume.
    pub path: VolumePath,
    pub format: ImageFormat,
    pub os: Os,
    pub facts: Option<Box<Facts>>,
}

/// What is to be done with a file; decided by the catalogue, durable there, and idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileTaskKind {
    /// From staging to its place.
    Finish,
    /// From its place to the trash.
    Trash,
    /// From the trash to its place.
    Restore,
    /// From the trash into nothing.
    Purge,
}

impl fmt::Display for FileTaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finish => "finish",
            Self::Trash => "trash",
            Self::Restore => "restore",
            Self::Purge => "purge",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTask {
    pub kind: FileTaskKind,
    pub image: ImageId,
    /// Its place in the volume.
    pub path: VolumePath,
    pub stamp: Stamp,
}

/// A task that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDone {
    pub task: FileTask,
    /// Where the file is now, if its place was taken.
    pub path: Option<VolumePath>,
}

/// A deleted image that can still be had back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    pub image: Image,
    /// The names it had: folder and name.
    pub paths: Vec<String>,
    pub deleted: Timestamp,
    pub expires: Timestamp,
}

/// Most tasks in one message and one transaction.
pub const TASKS_MAX: usize = 500;
