//! The marker: the file by which a volume is known, wherever it is mounted. Without it an empty
//! directory under an unmounted disk would look like a volume that lost all its images.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use isotope_proto::id::VolumeId;
use rustix::fs::{Mode, OFlags, mkdirat, openat, renameat};
use serde::{Deserialize, Serialize};

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
}

/// What was found where the marker should be.
#[derive(Debug)]
pub(crate) enum Found {
    Marker(VolumeId),
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
        Ok(id) => Found::Marker(id),
        Err(_) => Found::NotOurs(format!("{MARKER} names no volume")),
    })
}

/// Marks a directory as a volume, durably.
pub(crate) fn write(root: &OwnedFd, volume: VolumeId, pool: &str) -> io::Result<()> {
    match mkdirat(root, SIDECAR_DIR, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let marker = MarkerFile { format: FORMAT, volume: volume.to_string(), pool: pool.to_owned() };
    write_beneath(root, "volume.json", &serde_json::to_vec_pretty(&marker)?)
}

/// Replaces a file of the sidecar as a whole: after a crash it is the old one or the new one.
pub(crate) fn write_beneath(root: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let sidecar = openat(root, SIDECAR_DIR, directory, Mode::empty())?;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let temporary = format!("{name}.new");
    let mut file =
        std::fs::File::from(openat(&sidecar, &temporary, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(bytes)?;
    file.sync_all()?;
    renameat(&sidecar, &temporary, &sidecar, name)?;
    rustix::fs::fsync(sidecar.as_fd())?;
    Ok(())
}
