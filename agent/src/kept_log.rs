//! A log in a volume's sidecar that one process at a time keeps. Whoever takes the volume over
//! writes the log anew, as another file of its name: an earlier keeper that was stopped for a while
//! sees that, and writes no more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, fstat, openat};

use crate::marker::write_whole;

/// It is not kept open: a disk on which something is open for writing can be neither unmounted nor
/// made read-only.
#[derive(Debug)]
pub(crate) struct KeptLog {
    name: &'static str,
    /// The file that was written here; none: to be written anew.
    ours: Option<FileId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(file: &OwnedFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

impl KeptLog {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, ours: None }
    }

    /// Makes some bytes durable at the log's end.
    ///
    /// # Errors
    /// The disk's, or that somebody else has written the log since: then nothing is appended. After
    /// either it is to be written anew, for perhaps half of the bytes are there.
    pub(crate) fn append(&mut self, sidecar: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let appended = self.open_ours(sidecar).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        appended.inspect_err(|_| self.let_go())
    }

    fn open_ours(&self, sidecar: &OwnedFd) -> io::Result<File> {
        let file = self.open(sidecar, OFlags::WRONLY | OFlags::APPEND)?;
        match Some(FileId::of(&file)?) == self.ours {
            true => Ok(File::from(file)),
            false => Err(io::Error::other(format!("another agent has written {}", self.name))),
        }
    }

    /// Puts these bytes in the place of all that there are.
    pub(crate) fn rewrite(&mut self, sidecar: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        self.let_go();
        write_whole(sidecar, self.name, bytes)?;
        self.ours = Some(FileId::of(&self.open(sidecar, OFlags::RDONLY)?)?);
        Ok(())
    }

    pub(crate) fn is_written(&self) -> bool {
        self.ours.is_some()
    }

    /// Whether what is read there is what was written here.
    pub(crate) fn is_of(&self, sidecar: &OwnedFd) -> bool {
        let there = self.open(sidecar, OFlags::RDONLY);
        self.is_written() && there.and_then(|file| FileId::of(&file)).ok() == self.ours
    }

    /// Another keeps the volume now, its disk has gone, or the log is no longer what it should be.
    pub(crate) fn let_go(&mut self) {
        self.ours = None;
    }

    fn open(&self, sidecar: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(sidecar, self.name, flags, Mode::empty())?)
    }
}
