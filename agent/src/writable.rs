//! Whether a volume takes writes. A file system that found an error in itself may refuse them while
//! statvfs(3) and access(2) say that it takes them (ext4 in `emergency_ro`): once a write of ours
//! has failed, only a write that succeeds tells.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use isotope_proto::cluster::Access;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfs, StatVfsMountFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::marker::SIDECAR_DIR;

#[derive(Debug, Default)]
pub(crate) struct Writable {
    /// A write has failed as on a disk that refuses them all, and none has succeeded since.
    doubted: AtomicBool,
}

impl Writable {
    /// A write of ours has failed.
    pub(crate) fn failed(&self, error: &io::Error) {
        if refuses_writes(error) {
            self.doubted.store(true, Ordering::Relaxed);
        }
    }

    /// What can be done with the volume now. An idle disk that was never in doubt is not written to.
    pub(crate) fn access(&self, root: &OwnedFd, said: &StatVfs) -> Access {
        if said.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Access::ReadOnly;
        }
        if self.doubted.load(Ordering::Relaxed) {
            if probe(root).is_err_and(|error| refuses_writes(&error)) {
                return Access::ReadOnly;
            }
            self.doubted.store(false, Ordering::Relaxed);
        }
        Access::ReadWrite
    }
}

/// A full disk, say, is another matter: what fits is taken.
fn refuses_writes(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::ROFS | Errno::IO))
}

/// Writes to the disk, and leaves nothing there.
fn probe(root: &OwnedFd) -> io::Result<()> {
    // Of a shared volume several hosts may be trying it.
    let name = format!("{SIDECAR_DIR}/probe.{}", uuid::Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(root, &name, flags, Mode::from_raw_mode(0o600))?);
    unlinkat(root, &name, AtFlags::empty())?;
    file.write_all(name.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::fstatvfs;

    use super::*;

    #[test]
    fn a_write_that_succeeds_ends_the_doubt_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = dir.path().join(SIDECAR_DIR);
        fs::create_dir(&sidecar).expect("made");
        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        let said = fstatvfs(&root).expect("asked");
        let writable = Writable::default();
        for (errno, doubted) in [(Errno::NOSPC, false), (Errno::IO, true), (Errno::ROFS, true)] {
            writable.failed(&errno.into());
            assert_eq!(writable.doubted.load(Ordering::Relaxed), doubted, "{errno}");
            assert_eq!(writable.access(&root, &said), Access::ReadWrite);
            assert!(!writable.doubted.load(Ordering::Relaxed), "it was written to");
        }
        assert_eq!(fs::read_dir(sidecar).expect("listed").count(), 0);
    }
}
