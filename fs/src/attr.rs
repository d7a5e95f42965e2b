//! Inodes as stat(2) shows them: one table, stable and true.

use std::time::SystemTime;

use fuser::INodeNo;
pub(crate) use fuser::{FileAttr, FileType};
use isotope_proto::id::Ino;
use isotope_proto::time::Timestamp;

use crate::tree::Inode;
use crate::upload::Upload;

/// `st_blocks` counts these whatever the file system's own.
const STAT_BLOCK_BYTES: u64 = 512;
/// What readers should ask for at once (`st_blksize`): the largest request the kernel makes.
const IO_BYTES: u32 = 128 << 10;

/// Who owns everything in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
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

/// A file that is being written, as its writer sees it under the inode that it opened.
pub(crate) fn of_upload(ino: Ino, upload: &Upload, owner: Owner) -> FileAttr {
    let (size, mode, modified) = upload.shown();
    let times = [modified; 2];
    file_attr(ino, owner, FileType::RegularFile, size, mode, 1, times)
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
        perm: u16::try_from(mode & 0o7777).unwrap_or(0),
        nlink,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}
