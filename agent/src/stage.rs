//! A file on its way into the library: written aside, made durable with the intent to publish it,
//! and brought to its place only once the catalogue has published it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use isotope_proto::crash_point;
use isotope_proto::id::{ImageId, NodeId};
use isotope_proto::image::Stamp;
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::upload::Sealed;
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, fallocate, fstat, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use tracing::warn;

use crate::identify::{Databases, identify};
use crate::marker::SIDECAR_DIR;
use crate::volume::{Volume, open_beneath, open_file, stamp_of};
use crate::writeback::Writeback;

/// Ends the name of the file beside a staged one that says it is whole.
const INTENT: &str = "intent";
/// Images are readable by all; QEMU runs as somebody else.
const FILE_MODE: u32 = 0o644;

/// Directory of a node's staged files: a shared volume has one for each of its nodes.
pub(crate) fn staging_dir(node: NodeId) -> String {
    format!("{SIDECAR_DIR}/staging/{node}")
}

/// A staged file that is whole.
pub(crate) fn open_sealed(
    root: &OwnedFd,
    node: NodeId,
    image: ImageId,
) -> io::Result<(File, Stamp)> {
    let path = format!("{}/{image}", staging_dir(node));
    statat(root, format!("{path}.{INTENT}"), AtFlags::SYMLINK_NOFOLLOW)?;
    open_file(root, &path)
}

/// Makes a directory beneath the root, with those above it.
pub(crate) fn make_dirs(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let mut at = 0;
    loop {
        let end = path[at..].find('/').map_or(path.len(), |next| at + next);
        match mkdirat(root, &path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if end == path.len() {
            return Ok(open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?);
        }
        at = end + 1;
    }
}

/// What a writer is told when the disk refuses; the volume is looked at then.
fn refused(volume: &Volume, error: &io::Error) -> Refusal {
    volume.writable.failed(error);
    let reason = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC) => Reason::NoSpace,
        Some(Errno::ROFS) => Reason::ReadOnly,
        Some(Errno::DQUOT) => Reason::QuotaExceeded,
        Some(Errno::FBIG) => Reason::TooLarge,
        _ => Reason::Storage,
    };
    Refusal::new(reason, format!("storing failed: {error}"))
}

/// A file being written. Dropped before it is sealed, nothing of it remains.
pub(crate) struct Staged {
    volume: Arc<Volume>,
    image: ImageId,
    dir: OwnedFd,
    dir_path: String,
    file: File,
    writeback: Writeback,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Sealed,
}

impl Staged {
    pub(crate) fn create(
        volume: Arc<Volume>,
        node: NodeId,
        image: ImageId,
    ) -> Result<Self, Refusal> {
        let offline = |reason| Refusal::new(Reason::Unavailable, reason);
        let root = volume.root().map_err(offline)?;
        let dir_path = staging_dir(node);
        let dir = make_dirs(&root, &dir_path).map_err(|error| refused(&volume, &error))?;
        volume.set_writing(image, true);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&dir, image.to_string(), flags, Mode::from_raw_mode(FILE_MODE)) {
            Ok(file) => File::from(file),
            Err(error) => {
                volume.set_writing(image, false);
                return Err(refused(&volume, &error.into()));
            }
        };
        crash_point!("agent.stage.created");
        let writeback = Writeback::default();
        Ok(Self { volume, image, dir, dir_path, file, writeback, state: State::Open })
    }

    /// No write follows a seal: the bytes are what is about to be published.
    fn open(&self) -> Result<&File, Refusal> {
        match self.state {
            State::Open => Ok(&self.file),
            State::Sealed => Err(Refusal::new(Reason::NotPermitted, "the file is finished")),
        }
    }

    fn refused(&self, error: &io::Error) -> Refusal {
        refused(&self.volume, error)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        self.open()?.write_all_at(data, offset).map_err(|error| self.refused(&error))?;
        self.wrote(u64::try_from(data.len()).unwrap_or(u64::MAX))
    }

    /// Bytes have been written, by us or through a descriptor of the file that we passed on.
    pub(crate) fn wrote(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.open()?;
        let begun = self.writeback.wrote(&self.file, bytes);
        begun.map_err(|error| self.refused(&error))?;
        crash_point!("agent.stage.written");
        Ok(())
    }

    /// Another descriptor of the file, for a program of this host to write through.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    pub(crate) fn truncate(&self, size_bytes: u64) -> Result<(), Refusal> {
        self.open()?.set_len(size_bytes).map_err(|error| self.refused(&error))
    }

    pub(crate) fn allocate(&self, range: ByteRange) -> Result<(), Refusal> {
        let done = fallocate(self.open()?, FallocateFlags::empty(), range.start(), range.len());
        done.map_err(|error| self.refused(&error.into()))
    }

    /// Fewer bytes than asked for only at the end of the file.
    pub(crate) fn read(&self, range: ByteRange) -> Result<Bytes, Refusal> {
        let size = self.file.metadata().map_err(|error| self.refused(&error))?.len();
        let range = ByteRange::clamped(range.start(), range.len(), size);
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, range.start()).map_err(|error| self.refused(&error))?;
        Ok(bytes.into())
    }

    pub(crate) fn sync(&mut self) -> Result<(), Refusal> {
        self.writeback.sync_data(&self.file).map_err(|error| self.refused(&error))
    }

    /// Makes the bytes durable, then the intent to publish them.
    pub(crate) fn seal(&mut self, filename: &str) -> Result<Sealed, Refusal> {
        let name = EntryName::parse(filename)?;
        let done = (|| {
            self.writeback.sync_all(&self.file)?;
            crash_point!("agent.seal.synced");
            let intent = format!("{}.{INTENT}", self.image);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(FILE_MODE);
            let mut intent = File::from(openat(&self.dir, intent, flags, mode)?);
            crash_point!("agent.seal.begun");
            intent.write_all(filename.as_bytes())?;
            intent.sync_all()?;
            rustix::fs::fsync(&self.dir)?;
            crash_point!("agent.seal.done");
            Ok(stamp_of(&fstat(&self.file)?))
        })();
        let stamp: Stamp = done.map_err(|error| self.refused(&error))?;
        self.state = State::Sealed;
        let at = format!("{}/{}", self.dir_path, self.image);
        self.volume.index_mut().put_aside(self.image, VolumePath::parse(&at)?, stamp);
        let identity =
            identify(&self.file, stamp.size_bytes, filename, &Databases::of_this_machine());
        Ok(Sealed {
            stamp,
            path: VolumePath::parse(&format!("{}/{name}", self.volume.layout().image_dir()))?,
            format: identity.format,
            os: identity.os,
            facts: Some(Box::new(identity.facts)),
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.state == State::Open
            && let Err(error) = unlinkat(&self.dir, self.image.to_string(), AtFlags::empty())
        {
            warn!(image = %self.image, %error, "an unfinished file could not be removed; it is tried again");
        }
        self.volume.set_writing(self.image, false);
    }
}

/// Staged files that nobody is writing: those with an intent are returned, for the catalogue to be
/// asked; those without were never whole and are removed.
pub(crate) fn left_behind(volume: &Volume, node: NodeId) -> io::Result<Vec<ImageId>> {
    let Ok(root) = volume.root() else { return Ok(Vec::new()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = match open_beneath(&root, &*staging_dir(node), flags) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let names = crate::walk::names(&dir)?;
    let texts: Vec<&str> = names.iter().filter_map(|it| std::str::from_utf8(it).ok()).collect();
    let mut whole = Vec::new();
    for name in &texts {
        let Ok(image) = name.parse::<ImageId>() else { continue };
        if volume.is_writing(image) {
            continue;
        }
        // Asked for now, not of the listing: it may have been sealed since, and its intent is
        // durable before its writer is gone.
        match statat(&dir, format!("{image}.{INTENT}"), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => whole.push(image),
            Err(Errno::NOENT) => match unlinkat(dir.as_fd(), *name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(whole)
}

/// Removes a staged file that was given up, or the intent of one that has been brought to its place.
pub(crate) fn clear(root: &OwnedFd, node: NodeId, image: ImageId) -> io::Result<()> {
    let dir = staging_dir(node);
    // The file first: an intent without a file means nothing.
    for name in [format!("{dir}/{image}"), format!("{dir}/{image}.{INTENT}")] {
        crash_point!("agent.clear.step");
        match unlinkat(root, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
