//! Inodes as stat(2) shows them: one table, stable and true.

use std::time::SystemTime;

use fuser::INodeNo;
pub(crate) use fuser::{FileAttr, FileType};
use isotope_proto::id::Ino;
use isotope_proto::time::Timestamp;

use crate::tree::Inode;
use crate::upload::{Shown, Upload};

/// `st_blocks` counts these whatever the file system's own.
const STAT_BLOCK_BYTES: u64 = 512;
/// What readers should ask for at once (`st_blksize`): the largest request the kernel makes.
const IO_BYTES: u32 = 128 << 10;

/// No file in the library is run as somebody else; a folder's setgid bit means something.
const NEVER_ON_FILES: u32 = 0o6000;
/// What a read-only mount shows of nothing.
const WRITE_BITS: u32 = 0o222;

/// Who owns everything in the mount, and which bits of modes are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    file_mask: u32,
    folder_mask: u32,
}

impl Owner {
    /// An owner of files without `file_mask` and folders without `folder_mask`.
    #[must_use]
    pub fn new((uid, gid): (u32, u32), file_mask: u32, folder_mask: u32) -> Self {
        Self { uid, gid, file_mask: file_mask | NEVER_ON_FILES, folder_mask }
    }

    /// The same where nothing can be written: files show 0444 and folders 0555 at most.
    #[must_use]
    pub fn reading_only(self) -> Self {
        Self {
            file_mask: self.file_mask | WRITE_BITS,
            folder_mask: self.folder_mask | WRITE_BITS | 0o7000,
            ..self
        }
    }

    fn mask(self, kind: FileType) -> u32 {
        if kind == FileType::Directory { self.folder_mask } else { self.file_mask }
    }

    /// The mode to store when somebody asks for `asked` and `before` is stored: bits that the mount
    /// hides keep their value, for whoever asks has not seen them. `None` where it is not possible.
    pub(crate) fn to_store(self, kind: FileType, asked: u32, before: u32) -> Option<u32> {
        if kind != FileType::Directory && asked & NEVER_ON_FILES != 0 {
            return None;
        }
        let hidden = self.mask(kind);
        Some((asked & 0o7777 & !hidden) | (before & hidden))
    }
}

pub(crate) fn of(ino: Ino, inode: &Inode, owner: Owner) -> FileAttr {
    let (kind, size, mode, nlink, modified, changed) = match inode {
        Inode::Folder(it) => {
            // Its name, its own dot, and the `..` of each folder in it.
            let links = if it.listed { 2 + it.subfolders } else { 0 };
            (FileType::Directory, 0, it.mode, links, it.modified, it.changed)
        }
        Inode::Image(it) => {
            let size = it.size_bytes;
            (FileType::RegularFile, size, it.mode, it.links, it.modified, it.changed)
        }
    };
    file_attr(ino, owner, kind, size, mode, nlink, [modified, changed])
}

pub(crate) fn kind_and_mode(inode: &Inode) -> (FileType, u32) {
    match inode {
        Inode::Folder(it) => (FileType::Directory, it.mode),
        Inode::Image(it) => (FileType::RegularFile, it.mode),
    }
}

/// A file that is being written, as its writer sees it under the inode that it opened.
pub(crate) fn of_upload(ino: Ino, upload: &Upload, owner: Owner) -> FileAttr {
    let Shown { size_bytes, mode, links, modified, changed } = upload.shown();
    let times = [modified, changed];
    file_attr(ino, owner, FileType::RegularFile, size_bytes, mode, links, times)
}

/// A folder of a view.
pub(crate) fn of_view(ino: Ino, writable: bool, since: Timestamp, owner: Owner) -> FileAttr {
    let mode = if writable { 0o775 } else { 0o755 };
    file_attr(ino, owner, FileType::Directory, 0, mode, 2, [since; 2])
}

/// What the kernel is shown where there is nothing: inode 0, to be cached as an absent name.
pub(crate) fn absent(owner: Owner) -> FileAttr {
    file_attr(Ino(0), owner, FileType::RegularFile, 0, 0, 0, [Timestamp(0); 2])
}

fn file_attr(
    ino: Ino,
    owner: Owner,
    kind: FileType,
    size: u64,
    mode: u32,
    nlink: u32,
    [modified, changed]: [Timestamp; 2],
) -> FileAttr {
    let time = |at: Timestamp| SystemTime::from(at);
    FileAttr {
        ino: INodeNo(ino.0),
        size,
        blocks: size.div_ceil(STAT_BLOCK_BYTES),
        atime: time(modified),
        mtime: time(modified),
        ctime: time(changed),
        crtime: time(modified),
        kind,
        perm: u16::try_from(mode & 0o7777 & !owner.mask(kind)).unwrap_or(0),
        nlink,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileType = FileType::RegularFile;
    const FOLDER: FileType = FileType::Directory;

    fn shown(owner: Owner, kind: FileType, mode: u32) -> u16 {
        file_attr(Ino(1), owner, kind, 0, mode, 1, [Timestamp(0); 2]).perm
    }

    #[test]
    fn masks_hide_bits() {
        for ((files, folders), (file, folder)) in [
            ((0, 0), (0o664, 0o2775)),
            ((0o27, 0o27), (0o640, 0o2750)),
            ((0o111, 0), (0o664, 0o2775)),
            ((0o777, 0o777), (0, 0o2000)),
        ] {
            let owner = Owner::new((1, 2), files, folders);
            assert_eq!(shown(owner, FILE, 0o664), file, "{files:o}");
            assert_eq!(shown(owner, FOLDER, 0o2775), folder, "{folders:o}");
        }
        assert_eq!(shown(Owner::new((0, 0), 0, 0), FILE, 0o6755), 0o755);
        let reading = Owner::new((0, 0), 0, 0).reading_only();
        assert_eq!(shown(reading, FILE, 0o664), 0o444);
        assert_eq!(shown(reading, FOLDER, 0o2775), 0o555);
    }

    #[test]
    fn what_a_mask_hides_is_not_changed() {
        let owner = Owner::new((0, 0), 0o27, 0);
        assert_eq!(owner.to_store(FILE, 0o740, 0o664), Some(0o764));
        assert_eq!(owner.to_store(FOLDER, 0o2700, 0o2775), Some(0o2700));
        assert_eq!(Owner::new((0, 0), 0, 0).to_store(FILE, 0o600, 0o664), Some(0o600));
    }

    #[test]
    fn no_file_is_set_to_run_as_its_owner() {
        let owner = Owner::new((0, 0), 0, 0);
        for mode in [0o4755, 0o2755, 0o6755] {
            assert_eq!(owner.to_store(FILE, mode, 0o755), None, "{mode:o}");
            assert_eq!(owner.to_store(FOLDER, mode, 0o755), Some(mode), "{mode:o}");
        }
    }
}
