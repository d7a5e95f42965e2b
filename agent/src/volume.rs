//! A volume held open: every open stays beneath its root, whatever its names and links say.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use isotope_proto::cluster::{Access, Space, VolumeState};
use isotope_proto::id::{ImageId, LeaseId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::report::OfferedVolume;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatvfs, openat2};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::index_log::{self, IndexLog};
use crate::layout::Layout;
use crate::marker;
use crate::recognise::{Recognised, Remembered, Root, judge};
use crate::writable::Writable;

/// openat2 answers EAGAIN when a rename raced with it; more than a few in a row is something else.
const RACES_MAX: usize = 8;

/// A directory of a pool.
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) pool_name: String,
    pub(crate) path: PathBuf,
    remembered: Remembered,
    /// Where what we keep of a volume lies that nothing is written to.
    aside: PathBuf,
    root: RwLock<Root>,
    /// Held from a rename of ours until it is durable; taken before the log and the index.
    moving: Mutex<()>,
    /// Taken before the index.
    log: Mutex<IndexLog>,
    index: RwLock<Index>,
    /// Images being written through this process.
    writing: Mutex<HashSet<ImageId>>,
    /// Whether it was scanned since this process began: until then the index may lag behind what
    /// a killed one had done.
    settled: AtomicBool,
    /// Its directory does not answer; who asked it for anything would wait with it.
    silent: AtomicBool,
    /// Whether this agent keeps the volume: scans it, hashes it, writes its index.
    kept: AtomicBool,
    /// Under which lease; taken last.
    wanted: Mutex<Option<LeaseId>>,
    pub(crate) writable: Writable,
    /// Looks that have ended.
    looks: AtomicU64,
    /// There may be something to hash, or to tell of hashes.
    pub(crate) hashing: Arc<Notify>,
    /// Images whose trees are asked for and missing: `hasher.rs` makes them anew.
    pub(crate) treeless: Mutex<BTreeSet<ImageId>>,
    /// Cancelled when the volume is no longer this agent's.
    pub(crate) left: CancellationToken,
}

const SILENT: &str = "its directory does not answer";

impl Volume {
    /// `aside` is the state directory's place for the sidecars of volumes that nothing is written
    /// to.
    pub(crate) fn new(recognised: Recognised, pool_name: &str, aside: &Path) -> Self {
        let Recognised { path, remembered, root } = recognised;
        let volume = Self {
            id: remembered.volume,
            pool_name: pool_name.to_owned(),
            path,
            aside: aside.join(remembered.volume.to_string()),
            remembered,
            root: RwLock::new(root),
            moving: Mutex::default(),
            log: Mutex::default(),
            index: RwLock::default(),
            writing: Mutex::default(),
            settled: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            wanted: Mutex::default(),
            writable: Writable::default(),
            looks: AtomicU64::new(0),
            hashing: Arc::default(),
            treeless: Mutex::default(),
            left: CancellationToken::new(),
        };
        volume.read_index();
        volume
    }

    #[cfg(test)]
    pub(crate) fn open(
        dir: &Path,
        pool_name: &str,
        remembered: Option<&Remembered>,
        now: isotope_proto::time::Timestamp,
    ) -> Result<Self, crate::recognise::VolumeError> {
        let checked = crate::recognise::Checked::look(dir, remembered, None)?;
        let volume = Self::new(checked.settle(pool_name, now)?, pool_name, &dir.join("aside"));
        let lease = LeaseId::mint(now);
        volume.want(lease);
        volume.keep(lease, 1, || {});
        Ok(volume)
    }

    fn read_index(&self) {
        if let Ok(sidecar) = self.sidecar() {
            *self.index_mut() = index_log::read(&sidecar);
        }
    }

    /// The directory of what is kept of the volume: its own, or one of the agent's.
    pub(crate) fn sidecar(&self) -> io::Result<OwnedFd> {
        let root = self.root().map_err(io::Error::other)?;
        if self.remembered.unmarked.is_none() {
            return marker::sidecar(&root);
        }
        std::fs::create_dir_all(&self.aside)?;
        Ok(File::open(&self.aside)?.into())
    }

    /// Looks at the directory anew: a disk may have been mounted or unmounted.
    pub(crate) fn look(&self) -> OfferedVolume {
        let found = judge(&self.path, &self.remembered);
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        let came_back = matches!((&*root, &found), (Root::Offline(_), Root::Open(..)));
        root.clone_from(&found);
        drop(root);
        if came_back {
            self.lock_log().let_go();
            self.read_index();
        }
        let state = match found {
            Root::Offline(reason) => VolumeState::Offline(reason),
            Root::Open(root, layout) if self.has_lost_its_images(&root, &layout) => {
                let dir = layout.image_dir();
                VolumeState::Offline(format!(
                    "its {dir}/ is missing, although images are known in it; is a disk unmounted? \
                     If they are gone for good, make an empty {dir}/"
                ))
            }
            Root::Open(root, layout) => match space(&root, &layout, &self.writable) {
                Ok(space) => VolumeState::Online(space),
                Err(error) => VolumeState::Offline(format!("its disk does not answer: {error}")),
            },
        };
        self.offered(state)
    }

    /// Whether the directory is gone in which images are known: it was on another disk, or will be
    /// back.
    fn has_lost_its_images(&self, root: &OwnedFd, layout: &Layout) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let missing = || matches!(open_beneath(root, layout.image_dir(), flags), Err(Errno::NOENT));
        !self.index().files().is_empty() && missing()
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
            Root::Open(root, _) => Ok(Arc::clone(root)),
            Root::Offline(reason) => Err(reason.clone()),
        }
    }

    /// How the directory is used, as far as that is known while it is offline.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        match &*self.root.read().unwrap_or_else(PoisonError::into_inner) {
            Root::Open(_, layout) => Arc::clone(layout),
            Root::Offline(_) => Arc::default(),
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// This agent is the volume's keeper from now on. Where another was since we were, its index
    /// takes the place of ours: what we alone know, the next scan finds. A catalogue that knows of no
    /// image on it is told everything: its pool may have been taken out of the library.
    ///
    /// Reading that index takes a while. If the lease is no longer the one that is wanted by then,
    /// nothing is kept, and `kept` is not called.
    pub(crate) fn keep(&self, lease: LeaseId, images_known: u64, kept: impl FnOnce()) {
        let mut log = self.lock_log();
        if let Ok(sidecar) = self.sidecar()
            && !log.is_of(&sidecar)
        {
            log.let_go();
            let mut written = index_log::read(&sidecar);
            let mut index = self.index_mut();
            written.adopt_aside(&index);
            *index = written;
        }
        if images_known == 0 && !self.index().files().is_empty() {
            self.index_mut().begin_introduction();
        }
        let wanted = self.lock_wanted();
        if *wanted == Some(lease) {
            self.kept.store(true, Ordering::Relaxed);
            kept();
        }
    }

    /// The catalogue wants this agent to keep the volume, under this lease.
    pub(crate) fn want(&self, lease: LeaseId) {
        *self.lock_wanted() = Some(lease);
    }

    /// Another agent may be the volume's keeper from now on.
    pub(crate) fn let_go(&self) {
        let mut wanted = self.lock_wanted();
        *wanted = None;
        self.kept.store(false, Ordering::Relaxed);
    }

    fn lock_wanted(&self) -> MutexGuard<'_, Option<LeaseId>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_log(&self) -> MutexGuard<'_, IndexLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// A scan has ended well.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.hashing.notify_one();
    }

    /// Scans that ended well.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
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

    /// Writes what changed in the index, if this agent keeps the volume. It may lag behind what
    /// happened: whatever is missing in it after a crash is found by scanning, and known to the
    /// catalogue.
    pub(crate) fn save_index(&self) -> io::Result<()> {
        if !self.is_kept() || self.root().is_err() {
            // Whoever keeps it writes it down.
            if !self.lock_log().is_written() {
                self.index_mut().take_pending();
            }
            return Ok(());
        }
        let (mut log, lines, stale) = {
            let _durable = self.moving();
            let log = self.lock_log();
            let mut index = self.index_mut();
            let (pending, stale) = (index.take_pending(), log.is_stale(&index));
            // Taken over, or never written: everything.
            let lines = if stale { index.lines() } else { pending };
            (log, lines, stale)
        };
        if lines.is_empty() {
            return Ok(());
        }
        let written = self.sidecar().and_then(|sidecar| match stale {
            true => log.rewrite(&sidecar, &lines),
            false => log.append(&sidecar, &lines),
        });
        written.inspect_err(|error| {
            self.writable.failed(error);
            log.let_go();
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

fn space(root: &OwnedFd, layout: &Layout, writable: &Writable) -> io::Result<Space> {
    let (stat, vfs) = (fstat(root)?, fstatvfs(root)?);
    // One host's device numbers mean nothing on another; the machine id tells hosts apart.
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Ok(Space {
        filesystem: format!("{}:{:x}", machine.trim(), stat.st_dev),
        capacity_bytes: vfs.f_blocks.saturating_mul(vfs.f_frsize),
        free_bytes: vfs.f_bfree.saturating_mul(vfs.f_frsize),
        available_bytes: vfs.f_bavail.saturating_mul(vfs.f_frsize),
        access: match layout.is_read_only() {
            true => Access::ReadOnly,
            false => writable.access(root, &vfs),
        },
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
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::recognise::VolumeError;

    fn open(dir: &Path, remembered: Option<VolumeId>) -> Result<Volume, VolumeError> {
        let remembered = remembered.map(|volume| Remembered { volume, unmarked: None });
        Volume::open(dir, "isos", remembered.as_ref(), Timestamp(1))
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
    fn without_its_images_directory_it_is_offline_once_images_are_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = open(dir.path(), None).expect("marked");
        assert!(
            matches!(volume.look().state, VolumeState::Online(_)),
            "nothing was put into it yet"
        );
        let stamp = Stamp { inode: 1, size_bytes: 1, mtime_ns: 1 };
        let image = ImageId::from_bytes([1; 16]);
        let path = isotope_proto::name::VolumePath::parse("iso/a.iso").expect("a path");
        volume.index_mut().insert(path, crate::index::Known { image, stamp });
        assert!(
            matches!(volume.look().state, VolumeState::Offline(why) if why.contains("make an empty iso/"))
        );
        std::fs::create_dir(dir.path().join("iso")).expect("made");
        assert!(matches!(volume.look().state, VolumeState::Online(_)));
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
