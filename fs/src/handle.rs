//! Open files: who has what open, and what for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use isotope_proto::id::{ImageId, Ino};

use crate::error::FsError;
use crate::modes::Slot;
use crate::passthrough::Mode;
use crate::reader::{Reader, Source};
use crate::tally::Opened;
use crate::tree::Inode;
use crate::upload::Upload;
use crate::writer::Writer;

/// The open files of a mount, and what they share.
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Held>>,
    next: AtomicU64,
    source: Arc<Source>,
}

/// What is kept for an open file until its release.
struct Held {
    open: Open,
    /// Of an image that is open for reading.
    _reading: Option<Reading>,
}

/// The mode of its inode, which lasts as long as somebody has it open; and that it is open.
pub(crate) type Reading = (Arc<Slot<Mode>>, Opened);

/// What a file was opened for.
#[derive(Clone)]
pub(crate) enum Open {
    /// Of what is passed through the kernel asks nothing.
    Reading(Arc<Reader>),
    Writing(Arc<Writer>),
    /// Reading a file that is being written here: its closes mean nothing.
    Looking(Arc<Upload>),
}

impl Handles {
    pub(crate) fn new(source: Source) -> Self {
        let source = Arc::new(source);
        Self { open: RwLock::default(), next: AtomicU64::new(1), source }
    }

    /// Opens an image for reading; needs no host.
    pub(crate) fn open(&self, reader: Arc<Reader>, reading: Reading) -> u64 {
        self.add(Open::Reading(reader), Some(reading))
    }

    pub(crate) fn open_for_looking(&self, upload: Arc<Upload>) -> u64 {
        self.add(Open::Looking(upload), None)
    }

    /// Reads an image without being listed as open.
    pub(crate) fn reader(&self, ino: Ino) -> Result<Arc<Reader>, FsError> {
        let image = self.source.mirror.with(ino, |inode| match inode {
            Inode::Image(image) => Ok(image.clone()),
            Inode::Folder(_) => Err(FsError::IsAFolder),
        });
        let image = image.ok_or(FsError::Stale)??;
        Ok(Arc::new(Reader::new(ino, image, Arc::clone(&self.source))))
    }

    pub(crate) fn open_for_writing(&self, writer: Writer) -> u64 {
        self.add(Open::Writing(Arc::new(writer)), None)
    }

    fn add(&self, open: Open, reading: Option<Reading>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Held { open, _reading: reading });
        id
    }

    fn lock(&self) -> RwLockWriteGuard<'_, HashMap<u64, Held>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> RwLockReadGuard<'_, HashMap<u64, Held>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: u64) -> Result<Open, FsError> {
        self.look().get(&id).map(|held| held.open.clone()).ok_or(FsError::BadHandle)
    }

    pub(crate) fn writer(&self, id: u64) -> Result<Arc<Writer>, FsError> {
        match self.get(id)? {
            Open::Writing(writer) => Ok(writer),
            Open::Reading(_) | Open::Looking(_) => Err(FsError::BadHandle),
        }
    }

    pub(crate) fn close(&self, id: u64) -> Option<Open> {
        let held = self.lock().remove(&id)?;
        Some(held.open)
    }

    /// The open file that a truncation by `opener` is about: the last one it opened for writing.
    pub(crate) fn unbegun_writer(&self, ino: Ino, opener: u32) -> Option<Arc<Writer>> {
        let open = self.look();
        let unbegun = open.iter().filter_map(|(id, held)| match &held.open {
            Open::Writing(it) if it.ino == ino && it.opener == opener && it.upload().is_none() => {
                Some((id, it))
            }
            Open::Writing(_) | Open::Reading(_) | Open::Looking(_) => None,
        });
        unbegun.max_by_key(|(id, _)| **id).map(|(_, writer)| Arc::clone(writer))
    }

    pub(crate) fn is_read(&self, ino: Ino) -> bool {
        let reads = |held: &Held| matches!(&held.open, Open::Reading(it) if it.ino() == ino);
        self.look().values().any(reads)
    }

    /// Frees what paused readers keep.
    pub(crate) fn rest(&self) {
        for held in self.look().values() {
            if let Open::Reading(reader) = &held.open {
                reader.rest();
            }
        }
    }

    /// The images that are open, each once: also those opened for writing, which can be read.
    pub(crate) fn images(&self) -> Vec<ImageId> {
        let id = |inode: &Inode| match inode {
            Inode::Image(image) => Some(image.id),
            Inode::Folder(_) => None,
        };
        let image = |ino| self.source.mirror.with(ino, id).flatten();
        let open: Vec<Open> = self.look().values().map(|held| held.open.clone()).collect();
        let images = open.iter().filter_map(|open| match open {
            Open::Reading(it) => Some(it.image().id),
            Open::Writing(it) => image(it.ino),
            Open::Looking(it) => image(it.draft.ino),
        });
        let images = images.collect::<std::collections::BTreeSet<_>>();
        images.into_iter().collect()
    }
}
