//! Inodes as stat(2) shows them: one table, stable and true.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};
use isotope_proto::id::Ino;
use isotope_proto::time::Timestamp;

use crate::tree::Inode;

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
    let (kind, size, mode, nlink, modified, changed, created) = match inode {
        Inode::Folder(it) => {
            let links = 2 + it.subfolders;
            (FileType::Directory, 0, it.mode, links, it.modified, it.changed, it.created)
        }
        Inode::Image(it) => {
            let size = it.size_bytes;
            (FileType::RegularFile, size, it.mode, it.links, it.modified, it.changed, it.created)
        }
    };
    let time = |at: Timestamp| SystemTime::from(at);
    FileAttr {
        ino: INodeNo(ino.0),
        size,
        blocks: size.div_ceil(STAT_BLOCK_BYTES),
        atime: time(modified),
        mtime: time(modified),
        ctime: time(changed),
        crtime: time(created),
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
