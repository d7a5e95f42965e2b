//! Whether a directory is the volume that it should be: by its marker, or, where nothing may be
//! written, by its place. It knows directories, not what is in them.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isotope_proto::id::VolumeId;
use isotope_proto::time::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags, accessat, fstat, fstatfs, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::marker::{self, Found};

/// `FUSE_SUPER_MAGIC` of statfs(2).
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Why a directory cannot be used as a pool at all.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("the pool directory {0} does not exist; make it, or correct its path")]
    Missing(PathBuf),
    #[error("{0} is not a directory; a pool is one")]
    NotADirectory(PathBuf),
    #[error("{0} lies on a mount of Isotope; a pool must be a real directory")]
    OnOurMount(PathBuf),
    #[error("{path} is not ours: {reason}; move that file away, or choose another directory")]
    NotOurs { path: PathBuf, reason: String },
    #[error(
        "{0} is a pool's directory already, and is used in another way than was asked for; leave \
         out --dir and --include"
    )]
    OtherLayout(PathBuf),
    #[error("{0} and the volume {1} lie in one another; keep them apart")]
    Overlaps(PathBuf, PathBuf),
    #[error("cannot use {path} as a pool: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "cannot mark {path} as a pool: {error}; make it writable for the first use, or use it \
         --read-only"
    )]
    Mark { path: PathBuf, error: io::Error },
}

/// What an agent remembers of a directory that it has used before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) volume: VolumeId,
    /// For one that is not marked, for nothing is written to it.
    pub(crate) unmarked: Option<Unmarked>,
}

/// How a directory without a marker is used and recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unmarked {
    pub(crate) layout: Layout,
    place: Place,
}

/// Device numbers change with every start of a host; these stay while the same file system is
/// mounted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    inode: u64,
    /// Whether something is mounted on the directory.
    mounted: bool,
}

impl Place {
    fn of(root: &OwnedFd) -> io::Result<Self> {
        let (stat, above) = (fstat(root)?, statat(root, "..", AtFlags::empty())?);
        Ok(Self { inode: stat.st_ino, mounted: stat.st_dev != above.st_dev })
    }
}

/// The directory, open; or why it cannot be used now.
#[derive(Clone)]
pub(crate) enum Root {
    Open(Arc<OwnedFd>, Arc<Layout>),
    Offline(String),
}

/// A directory found fit to be a volume. Nothing has been written to it.
pub(crate) struct Checked {
    path: PathBuf,
    /// None: to be used for the first time.
    id: Option<VolumeId>,
    unmarked: Option<Unmarked>,
    root: Root,
}

/// A directory that is a volume now.
pub(crate) struct Recognised {
    pub(crate) path: PathBuf,
    pub(crate) remembered: Remembered,
    pub(crate) root: Root,
}

impl Checked {
    /// Looks whether a directory can be a volume. One that was used before (`remembered`) and has
    /// lost its marker is offline; only one never seen before is to be marked, to be used as
    /// `asked`.
    pub(crate) fn look(
        dir: &Path,
        remembered: Option<&Remembered>,
        asked: Option<&Layout>,
    ) -> Result<Self, VolumeError> {
        let path = dir.to_owned();
        if let Some(remembered) = remembered {
            let root = judge(dir, remembered);
            let Remembered { volume, unmarked } = remembered.clone();
            return Ok(Self { path, id: Some(volume), unmarked, root });
        }
        let (root, found) = open_marked(dir)?;
        let (id, unmarked, layout) = match found {
            Found::NotOurs(reason) => return Err(VolumeError::NotOurs { path, reason }),
            Found::Marker(id, layout) if asked.is_none_or(|asked| *asked == layout) => {
                (Some(id), None, layout)
            }
            Found::Marker(..) => return Err(VolumeError::OtherLayout(path)),
            Found::None => {
                let layout = asked.cloned().unwrap_or_default();
                if layout.is_read_only() {
                    let place = Place::of(&root)
                        .map_err(|error| VolumeError::Io { path: path.clone(), error })?;
                    (None, Some(Unmarked { layout: layout.clone(), place }), layout)
                } else {
                    // A read-only file system; other reasons show when the marker is written.
                    accessat(&root, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty()).map_err(
                        |error| VolumeError::Mark { path: path.clone(), error: error.into() },
                    )?;
                    (None, None, layout)
                }
            }
        };
        Ok(Self { path, id, unmarked, root: Root::Open(Arc::new(root), Arc::new(layout)) })
    }

    /// Whether both are one volume: the same directory, or one marker.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let place = |root: &Root| match root {
            Root::Open(root, _) => fstat(root).ok().map(|stat| (stat.st_dev, stat.st_ino)),
            Root::Offline(_) => None,
        };
        let one_place = place(&self.root).is_some() && place(&self.root) == place(&other.root);
        one_place || (self.id.is_some() && self.id == other.id)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The volume that it is, if it was used before.
    pub(crate) fn id(&self) -> Option<VolumeId> {
        self.id
    }

    /// The directory, and how it is to be used.
    pub(crate) fn opened(&self) -> Result<(Arc<OwnedFd>, Arc<Layout>), String> {
        match &self.root {
            Root::Open(root, layout) => Ok((Arc::clone(root), Arc::clone(layout))),
            Root::Offline(reason) => Err(reason.clone()),
        }
    }

    /// Marks the directory if it is used for the first time.
    pub(crate) fn settle(self, pool: &str, now: Timestamp) -> Result<Recognised, VolumeError> {
        let Self { path, id, unmarked, root } = self;
        let volume = match (id, &root) {
            (Some(id), _) => id,
            (None, Root::Offline(_)) => return Err(VolumeError::Missing(path)),
            (None, Root::Open(dir, layout)) => {
                let id = VolumeId::mint(now);
                if unmarked.is_none() {
                    marker::write(dir, id, pool, layout)
                        .map_err(|error| VolumeError::Mark { path: path.clone(), error })?;
                }
                id
            }
        };
        Ok(Recognised { path, remembered: Remembered { volume, unmarked }, root })
    }
}

/// Whether the directory is now the volume that is expected there.
pub(crate) fn judge(dir: &Path, expected: &Remembered) -> Root {
    let open = |root, layout| Root::Open(Arc::new(root), Arc::new(layout));
    match (open_marked(dir), &expected.unmarked) {
        (Ok((root, Found::None)), Some(unmarked)) => match Place::of(&root) {
            Ok(place) if place == unmarked.place => open(root, unmarked.layout.clone()),
            Ok(_) => Root::Offline(
                "another file system than before is in its place; is the disk mounted?".into(),
            ),
            Err(error) => Root::Offline(error.to_string()),
        },
        (Ok((root, Found::Marker(id, layout))), None) if id == expected.volume => {
            open(root, layout)
        }
        (Ok((_, Found::Marker(id, _))), _) => {
            Root::Offline(format!("another volume ({id}) is in its place"))
        }
        (Ok((_, Found::None)), None) => {
            Root::Offline("its marker .isotope/volume.json is missing; is the disk mounted?".into())
        }
        (Ok((_, Found::NotOurs(reason))), _) => Root::Offline(reason),
        (Err(error), _) => Root::Offline(error.to_string()),
    }
}

fn open_marked(dir: &Path) -> Result<(OwnedFd, Found), VolumeError> {
    let failed = |error: io::Error| VolumeError::Io { path: dir.to_owned(), error };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => VolumeError::Missing(dir.to_owned()),
        Errno::NOTDIR => VolumeError::NotADirectory(dir.to_owned()),
        error => failed(error.into()),
    })?;
    // Serving our own mount's files would have the agent wait for itself.
    let kind = fstatfs(&root).map_err(|error| failed(error.into()))?.f_type;
    if u64::try_from(kind).is_ok_and(|kind| kind == FUSE_MAGIC) && on_our_mount(dir) {
        return Err(VolumeError::OnOurMount(dir.to_owned()));
    }
    let found = marker::read(&root).map_err(failed)?;
    Ok((root, found))
}

fn on_our_mount(dir: &Path) -> bool {
    let Ok(dir) = dir.canonicalize() else { return false };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    our_mounts(&mounts).any(|mount| dir.starts_with(mount))
}

/// Where Isotope is mounted, of the lines of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn our_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    let ours = mounts.lines().filter(|line| line.contains(" - fuse.isotope "));
    ours.filter_map(|line| line.split(' ').nth(4)).map(unescaped)
}

/// The kernel writes blanks, tabs, line ends and backslashes in paths as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.split_at_checked(3).map(|(code, rest)| (u8::from_str_radix(code, 8), rest)) {
            Some((Ok(byte), rest)) => {
                path.push(byte);
                path.extend_from_slice(rest.as_bytes());
            }
            Some((Err(_), _)) | None => {
                path.push(b'\\');
                path.extend_from_slice(part.as_bytes());
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_known_by_their_real_paths() {
        let mounts = "36 35 98:0 / /mnt/my\\040iso\\134s rw,noatime shared:1 - fuse.isotope isotope rw\n\
                      37 35 98:0 / /mnt/other rw - ext4 /dev/sda rw\n\
                      38 35 98:0 / /mnt/\\xyz\\0 rw - fuse.isotope isotope rw\n";
        let found: Vec<_> = our_mounts(mounts).collect();
        assert_eq!(found, [Path::new("/mnt/my iso\\s"), Path::new("/mnt/\\xyz\\0")]);
    }

    #[test]
    fn a_read_only_directory_is_left_as_it_is_and_known_by_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("isos");
        std::fs::create_dir(&at).expect("made");
        let layout = Layout::new("template/iso", &[], true).expect("a layout");
        let checked = Checked::look(&at, None, Some(&layout)).expect("fit");
        let known = checked.settle("isos", Timestamp(1)).expect("settled").remembered;
        assert_eq!(std::fs::read_dir(&at).expect("listed").count(), 0, "nothing was written");
        assert!(matches!(judge(&at, &known), Root::Open(_, it) if *it == layout));
        std::fs::rename(&at, dir.path().join("aside")).expect("moved away");
        assert!(matches!(judge(&at, &known), Root::Offline(why) if why.contains("not exist")));
        std::fs::create_dir(&at).expect("another directory");
        assert!(matches!(judge(&at, &known), Root::Offline(why) if why.contains("mounted?")));
    }

    #[test]
    fn a_marked_directory_is_used_as_its_marker_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new("template/iso", &[], false).expect("a layout");
        let checked = Checked::look(dir.path(), None, Some(&layout)).expect("fit");
        let first = checked.settle("isos", Timestamp(1)).expect("marked").remembered;
        let again = Checked::look(dir.path(), None, None).expect("recognised");
        assert_eq!(again.id(), Some(first.volume));
        assert_eq!(again.opened().expect("open").1.image_dir(), "template/iso");
        let other = Checked::look(dir.path(), None, Some(&Layout::default()));
        assert!(matches!(other.err(), Some(VolumeError::OtherLayout(_))));
    }
}
