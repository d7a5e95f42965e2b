//! Where the trees of hashed contents lie in a volume's sidecar: one file a content, by its BLAKE3
//! root, and for a file whose hashing was interrupted what it takes to go on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use isotope_proto::id::ImageId;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::digest::Checkpoint;
use crate::marker::write_whole;
use crate::walk::names;

const DIR: &str = "hashes";

/// The directory of a sidecar that holds them.
pub(crate) struct Outboards {
    dir: OwnedFd,
}

impl Outboards {
    /// Makes the directory where it is missing.
    pub(crate) fn open(sidecar: &OwnedFd) -> io::Result<Self> {
        match mkdirat(sidecar, DIR, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { dir: openat(sidecar, DIR, flags, Mode::empty())? })
    }

    /// What an interrupted hashing of an image left, if it can be gone on with.
    pub(crate) fn resume(&self, image: ImageId) -> Option<(Checkpoint, Part)> {
        let text = self.read(&format!("{image}.json")).ok()?;
        let checkpoint: Checkpoint = serde_json::from_reader(text).ok()?;
        let file = self.open_part(image, OFlags::empty()).ok()?;
        // What was appended after the checkpoint is told again.
        file.set_len(checkpoint.outboard_bytes()).ok()?;
        Some((checkpoint, Part { image, file }))
    }

    pub(crate) fn begin(&self, image: ImageId) -> io::Result<Part> {
        let file = self.open_part(image, OFlags::CREATE | OFlags::TRUNC)?;
        Ok(Part { image, file })
    }

    fn open_part(&self, image: ImageId, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        Ok(File::from(openat(&self.dir, format!("{image}.part"), flags, mode)?))
    }

    /// Makes it durable that hashing can go on from a checkpoint.
    pub(crate) fn keep(&self, part: &Part, checkpoint: &Checkpoint) -> io::Result<()> {
        part.file.sync_data()?;
        write_whole(&self.dir, &format!("{}.json", part.image), &serde_json::to_vec(checkpoint)?)
    }

    /// The tree is whole.
    pub(crate) fn finish(&self, part: Part, blake3: &[u8; 32]) -> io::Result<()> {
        part.file.sync_data()?;
        let (from, to) = (format!("{}.part", part.image), name(blake3));
        renameat(&self.dir, from, &self.dir, to)?;
        self.drop_part(part.image)?;
        Ok(rustix::fs::fsync(self.dir.as_fd())?)
    }

    /// Nothing is to be gone on with.
    pub(crate) fn drop_part(&self, image: ImageId) -> io::Result<()> {
        for name in [format!("{image}.json"), format!("{image}.part")] {
            match unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The tree of a content, if it is there.
    pub(crate) fn tree(&self, blake3: &[u8; 32]) -> Option<File> {
        self.read(&name(blake3)).ok()
    }

    /// Removes what is of no image and no content any more.
    pub(crate) fn keep_only(&self, is_wanted: impl Fn(&Of) -> bool) -> io::Result<()> {
        for name in names(&self.dir)? {
            let Some(of) = std::str::from_utf8(&name).ok().and_then(Of::parse) else { continue };
            if !is_wanted(&of) {
                unlinkat(&self.dir, &*name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.dir, name, flags, Mode::empty())?))
    }
}

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Interrupted hashing.
    Image(ImageId),
    /// A tree, by its root.
    Content([u8; 32]),
}

impl Of {
    fn parse(name: &str) -> Option<Self> {
        let (stem, kind) = name.split_once('.')?;
        match kind {
            "part" | "json" => stem.parse().ok().map(Self::Image),
            "obao" => blake3::Hash::from_hex(stem).ok().map(|it| Self::Content(*it.as_bytes())),
            _ => None,
        }
    }
}

fn name(blake3: &[u8; 32]) -> String {
    format!("{}.obao", blake3::Hash::from_bytes(*blake3).to_hex())
}

/// A tree that is being written.
pub(crate) struct Part {
    image: ImageId,
    file: File,
}

impl Part {
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_wants_any_more_is_removed_and_other_files_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = OwnedFd::from(File::open(dir.path()).expect("opened"));
        let outboards = Outboards::open(&sidecar).expect("made");
        let [kept, gone] = [1, 2].map(|n| ImageId::from_bytes([n; 16]));
        for (image, root) in [(kept, [1; 32]), (gone, [2; 32])] {
            let mut part = outboards.begin(image).expect("begun");
            part.append(b"tree").expect("appended");
            outboards.finish(part, &root).expect("finished");
            drop(outboards.begin(image).expect("begun again"));
        }
        std::fs::write(dir.path().join("hashes/notes.txt"), "").expect("written");
        let wanted =
            |of: &Of| matches!(of, Of::Image(it) if *it == kept) || *of == Of::Content([1; 32]);
        outboards.keep_only(wanted).expect("kept");
        assert!(outboards.tree(&[1; 32]).is_some() && outboards.tree(&[2; 32]).is_none());
        assert_eq!(names(&outboards.dir).expect("listed").len(), 3);
    }
}
