//! A volume held open: every open stays beneath its root, whatever its names and links say.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use isotope_proto::cluster::{Space, VolumeState};
use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::report::OfferedVolume;
use isotope_proto::time::Timestamp;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, accessat, fstat, fstatfs, fstatvfs,
    openat2,
};
use rustix::io::Errno;

use crate::index::{self, Index};
use crate::marker::{self, Found};
use crate::writable::Writable;

/// Where images lie in a volume.
pub(crate) const IMAGE_DIR: &str = "iso";
/// `FUSE_SUPER_MAGIC` of statfs(2).
const FUSE_MAGIC: u64 = 0x6573_5546;
/// openat2 answers EAGAIN when a rename raced with it; more than a few in a row is something else.
const RACES_MAX: usize = 8;

/// Why a directory cannot be used as a pool at all.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("the pool directory {0} does not exist; make it, or correct --pool")]
    Missing(PathBuf),
    #[error("{0} is not a directory; a pool is one")]
    NotADirectory(PathBuf),
    #[error("{0} lies on a mount of Isotope; a pool must be a real directory")]
    OnOurMount(PathBuf),
    #[error("{path} is not ours: {reason}; move that file away, or choose another directory")]
    NotOurs { path: PathBuf, reason: String },
    #[error("cannot use {path} as a pool: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("cannot mark {path} as a pool: {error}; make it writable for the first use")]
    Mark { path: PathBuf, error: io::Error },
}

/// A directory of a pool.
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) pool_name: String,
    pub(crate) path: PathBuf,
    root: RwLock<Root>,
    /// Held from a rename of ours until it is durable; taken before the index.
    moving: Mutex<()>,
    index: RwLock<Index>,
    /// Images being written through this process.
    writing: Mutex<HashSet<ImageId>>,
    /// Whether it was scanned since this process began: until then the index may lag behind what
    /// a killed one had done.
    settled: AtomicBool,
    /// Its directory does not answer; who asked it for anything would wait with it.
    silent: AtomicBool,
    pub(crate) writable: Writable,
}

const SILENT: &str = "its directory does not answer";

/// The directory, open; or why it cannot be used now.
#[derive(Clone)]
enum Root {
    Open(Arc<OwnedFd>),
    Offline(String),
}

/// A directory found fit to be a volume. Nothing has been written to it.
pub(crate) struct Checked {
    path: PathBuf,
    /// None: to be used for the first time.
    id: Option<VolumeId>,
    root: Root,
}

impl Checked {
    /// Looks whether a directory can be a volume. One that was used before (`remembered`) and has
    /// lost its marker is offline; only one never seen before is to be marked.
    pub(crate) fn look(dir: &Path, remembered: Option<VolumeId>) -> Result<Self, VolumeError> {
        let path = dir.to_owned();
        let (id, root) = match (open_marked(dir), remembered) {
            (Ok((root, Found::Marker(id))), None) => (Some(id), Root::Open(Arc::new(root))),
            (Ok((root, Found::None)), None) => {
                // A read-only file system; other reasons show when the marker is written.
                accessat(&root, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty()).map_err(
                    |error| VolumeError::Mark { path: path.clone(), error: error.into() },
                )?;
                (None, Root::Open(Arc::new(root)))
            }
            (Ok((_, Found::NotOurs(reason))), None) => {
                return Err(VolumeError::NotOurs { path, reason });
            }
            (Err(error), None) => return Err(error),
            (opened, Some(id)) => (Some(id), judge(opened, id)),
        };
        Ok(Self { path, id, root })
    }

    /// Whether both are one volume: the same directory, or one marker.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let place = |root: &Root| match root {
            Root::Open(root) => fstat(root).ok().map(|stat| (stat.st_dev, stat.st_ino)),
            Root::Offline(_) => None,
        };
        let one_place = place(&self.root).is_some() && place(&self.root) == place(&other.root);
        one_place || (self.id.is_some() && self.id == other.id)
    }

    /// Marks the directory if it is used for the first time, and reads its index.
    pub(crate) fn into_volume(
        self,
        pool_name: &str,
        now: Timestamp,
    ) -> Result<Volume, VolumeError> {
        let Self { path, id, root } = self;
        let id = match (id, &root) {
            (None, Root::Open(dir)) => {
                let id = VolumeId::mint(now);
                marker::write(dir, id, pool_name)
                    .map_err(|error| VolumeError::Mark { path: path.clone(), error })?;
                id
            }
            (None, Root::Offline(_)) => return Err(VolumeError::Missing(path)),
            (Some(id), _) => id,
        };
        let index = match &root {
            Root::Open(root) => Index::read(root),
            Root::Offline(_) => Index::default(),
        };
        Ok(Volume {
            id,
            pool_name: pool_name.to_owned(),
            path,
            root: RwLock::new(root),
            moving: Mutex::default(),
            index: RwLock::new(index),
            writing: Mutex::default(),
            settled: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            writable: Writable::default(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Volume {
    #[cfg(test)]
    pub(crate) fn open(
        dir: &Path,
        pool_name: &str,
        remembered: Option<VolumeId>,
        now: Timestamp,
    ) -> Result<Self, VolumeError> {
        Checked::look(dir, remembered)?.into_volume(pool_name, now)
    }

    /// Looks at the directory anew: a disk may have been mounted or unmounted.
    pub(crate) fn look(&self) -> OfferedVolume {
        let found = judge(open_marked(&self.path), self.id);
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        let came_back = matches!((&*root, &found), (Root::Offline(_), Root::Open(_)));
        root.clone_from(&found);
        drop(root);
        if let (true, Root::Open(root)) = (came_back, &found) {
            *self.index_mut() = Index::read(root);
        }
        let state = match found {
            Root::Offline(reason) => VolumeState::Offline(reason),
            Root::Open(root) => match space(&root, &self.writable) {
                Ok(space) => VolumeState::Online(space),
                Err(error) => VolumeState::Offline(format!("its disk does not answer: {error}")),
            },
        };
        self.offered(state)
    }

    fn offered(&self, state: VolumeState) -> OfferedVolume {
        OfferedVolume {
            id: self.id,
            pool_name: self.pool_name.clone(),
            path: self.path.display().to_string(),
            state,
        }
    }

    pub(crate) fn offline(&self, reason: String) -> OfferedVolume {
        self.offered(VolumeState::Offline(reason))
    }

    /// A look has not come back: nobody else is to wait for the directory.
    pub(crate) fn fall_silent(&self) -> OfferedVolume {
        self.silent.store(true, Ordering::Relaxed);
        self.offline(SILENT.to_owned())
    }

    /// A look has come back.
    pub(crate) fn speak(&self) {
        self.silent.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// The directory, or why it is offline.
    pub(crate) fn root(&self) -> Result<Arc<OwnedFd>, String> {
        if self.is_silent() {
            return Err(SILENT.to_owned());
        }
        match &*self.root.read().unwrap_or_else(PoisonError::into_inner) {
            Root::Open(root) => Ok(Arc::clone(root)),
            Root::Offline(reason) => Err(reason.clone()),
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_writing(&self, image: ImageId) -> bool {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).contains(&image)
    }

    pub(crate) fn set_writing(&self, image: ImageId, writing: bool) {
        let mut all = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if writing {
            all.insert(image);
        } else {
            all.remove(&image);
        }
    }

    /// Writes the index if it changed. It may lag behind what happened: whatever is missing in it
    /// after a crash is found by scanning, and known to the catalogue.
    pub(crate) fn save_index(&self) -> io::Result<()> {
        let Ok(root) = self.root() else { return Ok(()) };
        let bytes = {
            let _durable = self.moving();
            if !self.index_mut().take_changed() {
                return Ok(());
            }
            self.index().to_bytes()
        };
        let written = bytes.and_then(|bytes| index::write(&root, &bytes));
        written.inspect_err(|error| {
            self.writable.failed(error);
            self.index_mut().mark_changed();
        })
    }

    /// While a file is brought to another place: the index that is in memory names the place at
    /// once, the one on the disk only when the file is sure to lie there after a power cut. A scan
    /// would report it gone.
    pub(crate) fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
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

/// Whether what was found is the volume that is expected there.
fn judge(opened: Result<(OwnedFd, Found), VolumeError>, expected: VolumeId) -> Root {
    match opened {
        Ok((root, Found::Marker(id))) if id == expected => Root::Open(Arc::new(root)),
        Ok((_, Found::Marker(id))) => {
            Root::Offline(format!("another volume ({id}) is in its place"))
        }
        Ok((_, Found::None)) => {
            Root::Offline("its marker .isotope/volume.json is missing; is the disk mounted?".into())
        }
        Ok((_, Found::NotOurs(reason))) => Root::Offline(reason),
        Err(error) => Root::Offline(error.to_string()),
    }
}

fn space(root: &OwnedFd, writable: &Writable) -> io::Result<Space> {
    let (stat, vfs) = (fstat(root)?, fstatvfs(root)?);
    // One host's device numbers mean nothing on another; the machine id tells hosts apart.
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Ok(Space {
        filesystem: format!("{}:{:x}", machine.trim(), stat.st_dev),
        capacity_bytes: vfs.f_blocks.saturating_mul(vfs.f_frsize),
        free_bytes: vfs.f_bfree.saturating_mul(vfs.f_frsize),
        available_bytes: vfs.f_bavail.saturating_mul(vfs.f_frsize),
        access: writable.access(root, &vfs),
    })
}

/// Opens something beneath a directory of a volume: no symlink is followed, no device waited for.
pub(crate) fn open_beneath(
    dir: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES_MAX {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// A regular file of a volume, open for reading, with its stamp.
pub(crate) fn open_file(root: &OwnedFd, path: &str) -> io::Result<(File, Stamp)> {
    let file = File::from(open_beneath(root, path, OFlags::RDONLY)?);
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((file, stamp_of(&stat)))
}

pub(crate) fn stamp_of(stat: &Stat) -> Stamp {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Stamp {
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, remembered: Option<VolumeId>) -> Result<Volume, VolumeError> {
        Volume::open(dir, "isos", remembered, Timestamp(1))
    }

    #[test]
    fn first_use_marks_and_later_uses_recognise() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path(), None).expect("marked").id;
        assert_eq!(open(dir.path(), None).expect("recognised").id, first);
        assert_eq!(open(dir.path(), Some(first)).expect("remembered").id, first);
    }

    #[test]
    fn a_remembered_directory_without_its_marker_is_offline_and_never_marked_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = open(dir.path(), None).expect("marked").id;
        std::fs::remove_dir_all(dir.path().join(".isotope")).expect("unmounted");
        let volume = open(dir.path(), Some(id)).expect("offline, not an error");
        assert!(volume.root().is_err_and(|reason| reason.contains("is the disk mounted?")));
        assert!(matches!(volume.look().state, VolumeState::Offline(_)));
        assert!(!dir.path().join(".isotope").exists());
        // The same for a directory that has gone altogether.
        let gone = open(&dir.path().join("gone"), Some(id)).expect("offline, not an error");
        assert!(gone.root().is_err_and(|reason| reason.contains("does not exist")));
    }

    #[test]
    fn it_comes_back_with_its_marker_and_not_with_anothers() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = open(dir.path(), None).expect("marked");
        let marker = dir.path().join(".isotope");
        let aside = dir.path().join("aside");
        std::fs::rename(&marker, &aside).expect("moved away");
        assert!(matches!(volume.look().state, VolumeState::Offline(_)));
        std::fs::rename(&aside, &marker).expect("moved back");
        assert!(matches!(volume.look().state, VolumeState::Online(_)));
        std::fs::remove_dir_all(&marker).expect("removed");
        open(dir.path(), None).expect("marked as another volume");
        assert!(volume.look().state != VolumeState::Offline(String::new()));
        assert!(volume.root().is_err_and(|reason| reason.contains("another volume")));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join(".isotope")).expect("made");
        for text in ["not json", r#"{"format":99,"volume":"x","pool":"p"}"#] {
            std::fs::write(dir.path().join(".isotope/volume.json"), text).expect("written");
            assert!(matches!(open(dir.path(), None), Err(VolumeError::NotOurs { .. })));
        }
        assert!(matches!(open(&dir.path().join("no"), None), Err(VolumeError::Missing(_))));
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert!(matches!(open(&file, None), Err(VolumeError::NotADirectory(_))));
    }

    #[test]
    fn our_mounts_are_known_by_their_real_paths() {
        let mounts = "36 35 98:0 / /mnt/my\\040iso\\134s rw,noatime shared:1 - fuse.isotope isotope rw\n\
                      37 35 98:0 / /mnt/other rw - ext4 /dev/sda rw\n\
                      38 35 98:0 / /mnt/\\xyz\\0 rw - fuse.isotope isotope rw\n";
        let found: Vec<_> = our_mounts(mounts).collect();
        assert_eq!(found, [Path::new("/mnt/my iso\\s"), Path::new("/mnt/\\xyz\\0")]);
    }

    #[test]
    fn nothing_outside_the_volume_can_be_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("iso")).expect("made");
        std::fs::write(dir.path().join("iso/a.iso"), "bytes").expect("written");
        std::os::unix::fs::symlink("/etc", dir.path().join("iso/etc")).expect("linked");
        std::os::unix::fs::symlink("a.iso", dir.path().join("iso/b.iso")).expect("linked");
        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        for (path, fine) in [
            ("iso/a.iso", true),
            ("iso/b.iso", false),
            ("iso/etc/passwd", false),
            ("../../etc/passwd", false),
            ("/etc/passwd", false),
            ("iso", false),
        ] {
            assert_eq!(open_file(&root, path).is_ok(), fine, "{path}");
        }
    }
}
