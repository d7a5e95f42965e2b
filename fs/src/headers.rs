//! The beginnings of images, kept on this host's disk: hypervisors look at the first 33 KiB of every
//! image of a pool, and give the whole pool up for one that cannot be read. Written by a thread of
//! its own, never waited for; what is of no use is a miss and goes. When a reader takes what is here
//! is `reader.rs`'s to say.

mod form;
mod index;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::id::ImageId;
use isotope_proto::range::ByteRange;
use rustix::fs::{CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, statvfs, utimensat};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info};

use self::index::Index;
use crate::fetch::Content;

/// libvirt reads 0x8200 bytes (`VIR_STORAGE_MAX_HEADER`); in groups of 16 KiB, which come with a
/// proof, that is three.
pub(crate) const HEADER_BYTES: u64 = 48 << 10;
/// With all of them it is 192 MiB. A pool of more images is refreshed from hosts alone.
const FILES_MAX: usize = 4096;
/// Headers that wait for the disk: 6 MiB. Where it is slower than that they are kept another time.
const QUEUE_MAX: usize = 128;
/// Of the file system so many hundredths are left to others.
const LEFT_PERCENT: u64 = 5;
/// Headers being read at once, of which each may wait for a disk that hangs.
const READING_MAX: usize = 8;
/// A disk that takes longer has nothing to offer: readers have a deadline.
const READ_MAX: Duration = Duration::from_millis(500);
/// What was being written when a process was killed ends with this.
const UNFINISHED: &str = "new";

/// Of an image of that size, what is kept.
pub(crate) fn header_range(size_bytes: u64) -> ByteRange {
    ByteRange::clamped(0, HEADER_BYTES, size_bytes)
}

/// The headers that are kept. Clones share them; by default none are.
#[derive(Clone, Default)]
pub(crate) struct Headers {
    open: Option<(Arc<Shared>, SyncSender<Work>)>,
}

struct Shared {
    dir: PathBuf,
    index: Mutex<Index>,
    reading: Arc<Semaphore>,
}

/// Where a header comes from: called on the thread that writes it, and may wait for a disk.
type Bring = Box<dyn FnOnce() -> Option<Bytes> + Send>;

enum Work {
    Keep(Claim, Bring),
    /// Its file is to show that it was used.
    Touch(ImageId),
}

/// An image whose header is not kept yet, and that somebody has undertaken to bring it.
pub(crate) struct Claim {
    shared: Arc<Shared>,
    image: ImageId,
    content: Content,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.index().arrived(self.image);
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, image: ImageId) -> PathBuf {
        self.dir.join(image.to_string())
    }

    fn forget(&self, image: ImageId, why: &dyn std::fmt::Display) {
        self.index().remove(image);
        let path = self.path(image);
        debug!(path = %path.display(), %why, "a header is not kept any more");
        // It may be gone already, or its disk.
        let _ = fs::remove_file(path);
    }

    /// From the disk, and checked.
    fn read(&self, image: ImageId, content: Content) -> Option<Bytes> {
        let mut file = Vec::new();
        let read = File::open(self.path(image))
            .and_then(|it| it.take(form::FILE_BYTES_MAX + 1).read_to_end(&mut file));
        if let Err(error) = read {
            self.forget(image, &error);
            return None;
        }
        let header = form::decode(&file.into(), image, content);
        if header.is_none() {
            self.forget(image, &"it is damaged, or of another image");
        }
        header
    }

    fn work(&self, queue: Receiver<Work>) {
        for work in queue {
            match work {
                Work::Touch(image) => self.touch(image),
                Work::Keep(claim, bring) => {
                    let Some(header) = bring() else { continue };
                    let Claim { image, content, .. } = claim;
                    match self.write(image, content, &header) {
                        Ok(()) => self.index().add(image, content.blake3.is_some()),
                        Err(error) => debug!(%image, %error, "its header is not kept"),
                    }
                }
            }
        }
    }

    fn write(&self, image: ImageId, content: Content, header: &[u8]) -> io::Result<()> {
        if is_full(&self.dir)? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        loop {
            // Its lock is not held while the disk is at work.
            let Some(oldest) = self.index().in_the_way_of(image) else { break };
            self.forget(oldest, &"others are used more");
        }
        let path = self.path(image);
        let unfinished = path.with_extension(UNFINISHED);
        let options =
            || File::options().write(true).create(true).truncate(true).mode(0o600).clone();
        let written = options().open(&unfinished).and_then(|mut file| {
            file.write_all(&form::encode(image, content, header))?;
            fs::rename(&unfinished, &path)
        });
        // Not synced: what a failing machine leaves of it is found to be damaged.
        written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    /// The order of use outlives the process as that of times.
    fn touch(&self, image: ImageId) {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times =
            Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
        // Where it cannot be noted it goes a little early.
        let _ = utimensat(CWD, self.path(image), &times, rustix::fs::AtFlags::empty());
    }
}

/// Whether the file system has no more room than what is left to others.
fn is_full(dir: &Path) -> io::Result<bool> {
    let room = statvfs(dir)?;
    Ok(room.f_bavail.saturating_mul(100) < room.f_blocks.saturating_mul(LEFT_PERCENT))
}

/// The headers in a directory, the longest unused first; what was not finished is removed.
fn found(dir: &Path) -> io::Result<Vec<ImageId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().map(str::parse::<ImageId>) {
            Some(Ok(image)) => found.push((entry.metadata()?.modified()?, image)),
            _ if Path::new(&name).extension() == Some(UNFINISHED.as_ref()) => {
                // Left by a process that was killed.
                fs::remove_file(entry.path())?;
            }
            _ => {}
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, image)| image).collect())
}

impl Headers {
    /// Those that are kept in a directory, which is made if need be; waits for the disk.
    ///
    /// # Errors
    /// Nothing can be kept there.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        Self::open_with(dir, FILES_MAX)
    }

    fn open_with(dir: &Path, files_max: usize) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let index = Index::new(files_max, found(dir)?);
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            index: Mutex::new(index),
            reading: Arc::new(Semaphore::new(READING_MAX)),
        });
        let (work, queue) = mpsc::sync_channel(QUEUE_MAX);
        let writing = Arc::clone(&shared);
        // Ends with the last that could bring something.
        std::thread::Builder::new()
            .name("headers".to_owned())
            .spawn(move || writing.work(queue))?;
        Ok(Self { open: Some((shared, work)) })
    }

    /// Those of a mount, in a directory beside its snapshot; none where there is none, or where
    /// nothing can be kept, for reading goes on without them.
    pub(crate) async fn of(dir: Option<PathBuf>) -> Self {
        let Some(dir) = dir else { return Self::default() };
        let opened = tokio::task::spawn_blocking(move || {
            Self::open(&dir).inspect_err(
                |error| info!(dir = %dir.display(), %error, "headers of images are not kept"),
            )
        });
        opened.await.ok().and_then(Result::ok).unwrap_or_default()
    }

    pub(crate) fn has(&self, image: ImageId) -> bool {
        self.open.as_ref().is_some_and(|(shared, _)| shared.index().has(image))
    }

    /// Somebody is about to read an image's beginning. None where its header is kept, and used by
    /// that, or is on its way.
    pub(crate) fn claim(&self, image: ImageId, content: Content) -> Option<Claim> {
        let (shared, work) = self.open.as_ref()?;
        if content.size_bytes == 0 {
            return None;
        }
        let mut index = shared.index();
        if index.wants(image, content.blake3.is_some()) {
            return Some(Claim { shared: Arc::clone(shared), image, content });
        }
        if index.used(image, Instant::now()) {
            // Without room it is noted another time.
            let _ = work.try_send(Work::Touch(image));
        }
        None
    }

    /// Has a header written; `bring` is called on the thread that does it, and may wait for a disk.
    pub(crate) fn keep(
        &self,
        claim: Claim,
        bring: impl FnOnce() -> Option<Bytes> + Send + 'static,
    ) {
        if let Some((_, work)) = &self.open {
            // Without room it is kept when it is read again.
            let _ = work.try_send(Work::Keep(claim, Box::new(bring)));
        }
    }

    /// A header that is kept, unless the disk takes too long.
    pub(crate) async fn read(&self, image: ImageId, content: Content) -> Option<Bytes> {
        let (shared, work) = self.open.as_ref()?;
        if !shared.index().has(image) {
            return None;
        }
        let header = timeout(READ_MAX, async {
            let permit = Arc::clone(&shared.reading).acquire_owned().await.ok()?;
            let shared = Arc::clone(shared);
            let read = tokio::task::spawn_blocking(move || {
                // One that hangs keeps it.
                let _permit = permit;
                shared.read(image, content)
            });
            read.await.ok().flatten()
        });
        let header = header.await.ok().flatten()?;
        if shared.index().used(image, Instant::now()) {
            let _ = work.try_send(Work::Touch(image));
        }
        Some(header)
    }
}

#[cfg(test)]
mod tests;
