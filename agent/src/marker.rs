//! The marker: the file by which a volume is known, wherever it is mounted. Without it an empty
//! directory under an unmounted disk would look like a volume that lost all its images.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use isotope_proto::id::VolumeId;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Everything of ours in a volume lies in here.
pub(crate) const SIDECAR_DIR: &str = ".isotope";
const MARKER: &str = ".isotope/volume.json";
/// A marker of another format was written by a newer program.
const FORMAT: u32 = 1;
/// A marker is a line of text; more than this is none.
const MARKER_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct MarkerFile {
    format: u32,
    volume: String,
    /// The pool the volume was first put into; the catalogue knows better afterwards.
    pool: String,
    #[serde(default)]
    layout: Layout,
}

/// What was found where the marker should be.
#[derive(Debug)]
pub(crate) enum Found {
    Marker(VolumeId, Layout),
    None,
    /// Something that is no marker of ours, and why.
    NotOurs(String),
}

pub(crate) fn read(root: &OwnedFd) -> io::Result<Found> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(root, MARKER, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(Found::None),
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(Found::NotOurs(format!("{MARKER} is not a file of Isotope's")));
        }
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MARKER_BYTES_MAX).read_to_end(&mut bytes)?;
    let Ok(marker) = serde_json::from_slice::<MarkerFile>(&bytes) else {
        return Ok(Found::NotOurs(format!("{MARKER} cannot be understood")));
    };
    if marker.format != FORMAT {
        return Ok(Found::NotOurs(format!(
            "{MARKER} was written by a newer isotope (format {})",
            marker.format
        )));
    }
    Ok(match marker.volume.parse() {
        Ok(id) => Found::Marker(id, marker.layout),
        Err(_) => Found::NotOurs(format!("{MARKER} names no volume")),
    })
}

/// Marks a directory as a volume, durably.
pub(crate) fn write(
    root: &OwnedFd,
    volume: VolumeId,
    pool: &str,
    layout: &Layout,
) -> io::Result<()> {
    match mkdirat(root, SIDECAR_DIR, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let marker = MarkerFile {
        format: FORMAT,
        volume: volume.to_string(),
        pool: pool.to_owned(),
        layout: layout.clone(),
    };
    write_whole(&sidecar(root)?, "volume.json", &serde_json::to_vec_pretty(&marker)?)
}

/// The directory of ours in a volume.
pub(crate) fn sidecar(root: &OwnedFd) -> io::Result<OwnedFd> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(root, SIDECAR_DIR, directory, Mode::empty())?)
}

/// Replaces a file of a sidecar as a whole: after a crash it is the old one or the new one.
pub(crate) fn write_whole(sidecar: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Of a shared volume several hosts may be writing the same file.
    let temporary = format!("{name}.{}.new", uuid::Uuid::new_v4());
    let written = (|| {
        let mode = Mode::from_raw_mode(0o644);
        let mut file = std::fs::File::from(openat(sidecar, &temporary, flags, mode)?);
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(sidecar, &temporary, sidecar, name)?;
        Ok(())
    })();
    if written.is_err() {
        // It may not even have been made.
        let _ = unlinkat(sidecar, &temporary, AtFlags::empty());
        return written;
    }
    rustix::fs::fsync(sidecar.as_fd())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn writers_of_a_shared_directory_do_not_meet_in_a_half_written_file() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(SIDECAR_DIR)).expect("made");
        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        let sidecar = sidecar(&root).expect("made");
        let (short, long) = (vec![b'a'; 10], vec![b'b'; 100_000]);
        std::thread::scope(|scope| {
            for bytes in [&short, &long] {
                scope.spawn(|| {
                    for _ in 0..50 {
                        write_whole(&sidecar, "one.json", bytes).expect("written");
                        let found = fs::read(dir.path().join(".isotope/one.json"));
                        let found = found.expect("always there");
                        assert!(found == short || found == long, "{} bytes", found.len());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path().join(SIDECAR_DIR)).expect("listed").count(), 1);
        // What fails leaves nothing behind.
        fs::create_dir(dir.path().join(".isotope/taken")).expect("made");
        write_whole(&sidecar, "taken", &short).expect_err("a directory is in its place");
        assert_eq!(fs::read_dir(dir.path().join(SIDECAR_DIR)).expect("listed").count(), 2);
    }
}
