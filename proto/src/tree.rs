//! The namespace's records: entries lead to inodes; an inode is a folder or an image.

use crate::id::{EntryId, Ino, PoolId};
use crate::name::{EntryName, FolderPath};
use crate::time::Timestamp;

/// Permission bits of folders and images unless somebody sets others.
pub const FOLDER_MODE: u32 = 0o2775;
pub const IMAGE_MODE: u32 = 0o664;

/// Folders that exist from the start, by family of operating system.
pub const DEFAULT_FOLDERS: [&str; 3] = ["windows", "linux", "other"];

/// A name in a folder. Several may lead to one image, one only to a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    pub parent: Ino,
    pub name: EntryName,
    pub ino: Ino,
}

/// A virtual folder. It has no directory on any disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    pub ino: Ino,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    pub created: Timestamp,
    /// When an entry was last made, removed or renamed in it.
    pub modified: Timestamp,
    pub changed: Timestamp,
    /// For what is stored in it and below; `None` to go by the folder above.
    pub default_pool: Option<PoolId>,
}

/// A folder as callers name it: the mount by inode number, people by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderRef {
    Ino(Ino),
    Path(FolderPath),
}

/// A name in a folder, existing or to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub folder: FolderRef,
    pub name: EntryName,
}

/// What somebody sets on a folder or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits.
    pub mode: Option<u32>,
    pub modified: Option<Timestamp>,
}

/// What a rename does with an entry already at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// An empty folder gives way to a folder, an image to an image.
    Replace,
    NoReplace,
    /// The two change places, whatever they are; both must exist.
    Exchange,
}
