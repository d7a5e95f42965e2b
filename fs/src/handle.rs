//! Open files. Each is one image, read by range; what a steady reader will want next is fetched
//! ahead, in blocks, within a bound for the whole mount.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isotope_proto::id::{ImageId, Ino};
use isotope_proto::range::ByteRange;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::error::FsError;
use crate::mirror::Mirror;
use crate::read_ahead::{BLOCK_BYTES, Plan, Window};
use crate::remote::Hosts;
use crate::replicas::{Route, routes};
use crate::tree::{ImageNode, Inode};
use crate::upload::Upload;
use crate::writer::Writer;

/// Blocks on their way or unread, in the mount as a whole: 128 MiB.
const BLOCKS_AHEAD_MAX: usize = 128;
/// Blocks kept behind the reader, for the kernel's disorder.
const BLOCKS_BEHIND: u64 = 1;

/// A reader that pauses for so long gives up what was fetched ahead for it.
const IDLE_KEPT: Duration = Duration::from_secs(5);
/// The kernel's second try comes at once; a person's comes later than this.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// The open files of a mount, and what they share.
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Open>>,
    next: AtomicU64,
    source: Arc<Source>,
}

/// What a file was opened for.
#[derive(Clone)]
pub(crate) enum Open {
    Reading(Arc<Handle>),
    Writing(Arc<Writer>),
    /// Reading a file that is being written here: its closes mean nothing.
    Looking(Arc<Upload>),
}

/// Where bytes come from.
struct Source {
    mirror: Arc<Mirror>,
    hosts: Arc<Hosts>,
    budget: Arc<Semaphore>,
}

/// One open file.
pub(crate) struct Handle {
    ino: Ino,
    image: ImageNode,
    source: Arc<Source>,
    ahead: Mutex<Ahead>,
}

#[derive(Default)]
struct Ahead {
    /// When it was last read.
    used: Option<Instant>,
    /// How and when the last read failed.
    failed: Option<(Instant, FsError)>,
    window: Window,
    blocks: BTreeMap<u64, Arc<Block>>,
}

/// A block being fetched, or fetched: whoever comes first fetches, the others wait for it.
struct Block {
    range: ByteRange,
    bytes: OnceCell<Bytes>,
    /// Its place in the mount's budget.
    _permit: OwnedSemaphorePermit,
}

impl Handles {
    pub(crate) fn new(mirror: Arc<Mirror>, hosts: Arc<Hosts>) -> Self {
        let budget = Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX));
        let source = Arc::new(Source { mirror, hosts, budget });
        Self { open: RwLock::default(), next: AtomicU64::new(1), source }
    }

    /// Opens an image for reading; needs no host.
    pub(crate) fn open(&self, ino: Ino) -> Result<u64, FsError> {
        Ok(self.add(Open::Reading(self.reader(ino)?)))
    }

    pub(crate) fn open_for_looking(&self, upload: Arc<Upload>) -> u64 {
        self.add(Open::Looking(upload))
    }

    /// Reads an image without being listed as open.
    pub(crate) fn reader(&self, ino: Ino) -> Result<Arc<Handle>, FsError> {
        let image = self.source.mirror.with(ino, |inode| match inode {
            Inode::Image(image) => Ok(image.clone()),
            Inode::Folder(_) => Err(FsError::IsAFolder),
        });
        let image = image.ok_or(FsError::Stale)??;
        let source = Arc::clone(&self.source);
        Ok(Arc::new(Handle { ino, image, source, ahead: Mutex::default() }))
    }

    pub(crate) fn open_for_writing(&self, writer: Writer) -> u64 {
        self.add(Open::Writing(Arc::new(writer)))
    }

    fn add(&self, open: Open) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, open);
        id
    }

    fn lock(&self) -> RwLockWriteGuard<'_, HashMap<u64, Open>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> RwLockReadGuard<'_, HashMap<u64, Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: u64) -> Result<Open, FsError> {
        self.look().get(&id).cloned().ok_or(FsError::BadHandle)
    }

    pub(crate) fn writer(&self, id: u64) -> Result<Arc<Writer>, FsError> {
        match self.get(id)? {
            Open::Writing(writer) => Ok(writer),
            Open::Reading(_) | Open::Looking(_) => Err(FsError::BadHandle),
        }
    }

    pub(crate) fn close(&self, id: u64) -> Option<Open> {
        self.lock().remove(&id)
    }

    /// The open file that a truncation by `opener` is about: the last one it opened for writing.
    pub(crate) fn unbegun_writer(&self, ino: Ino, opener: u32) -> Option<Arc<Writer>> {
        let open = self.look();
        let unbegun = open.iter().filter_map(|(id, open)| match open {
            Open::Writing(it) if it.ino == ino && it.opener == opener && it.upload().is_none() => {
                Some((id, it))
            }
            Open::Writing(_) | Open::Reading(_) | Open::Looking(_) => None,
        });
        unbegun.max_by_key(|(id, _)| **id).map(|(_, writer)| Arc::clone(writer))
    }

    pub(crate) fn is_read(&self, ino: Ino) -> bool {
        let reads = |open: &Open| matches!(open, Open::Reading(it) if it.ino == ino);
        self.look().values().any(reads)
    }

    /// Frees what paused readers keep.
    pub(crate) fn rest(&self) {
        for open in self.look().values() {
            if let Open::Reading(handle) = open {
                handle.rest();
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
        let open: Vec<Open> = self.look().values().cloned().collect();
        let images = open.iter().filter_map(|open| match open {
            Open::Reading(it) => Some(it.image.id),
            Open::Writing(it) => image(it.ino),
            Open::Looking(it) => image(it.draft.ino),
        });
        let images = images.collect::<std::collections::BTreeSet<_>>();
        images.into_iter().collect()
    }
}

impl Handle {
    pub(crate) fn ino(&self) -> Ino {
        self.ino
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `len` bytes from `start`, fewer only at the end of the image. Ends within the read
    /// deadline; a read that comes on the heels of one that failed by it fails at once, for the
    /// kernel asks again, page by page, for what its read-ahead did not get.
    pub(crate) async fn read(self: Arc<Self>, start: u64, len: u32) -> Result<Bytes, FsError> {
        let range = ByteRange::clamped(start, len.into(), self.image.size_bytes);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some((at, error)) = &self.ahead().failed
            && at.elapsed() < FAILURE_KEPT
        {
            return Err(error.clone());
        }
        let read = tokio::time::timeout(crate::READ_DEADLINE, Arc::clone(&self).read_now(range));
        let late = || FsError::Unreachable("no host delivered in time".to_owned());
        let result = read.await.unwrap_or_else(|_| Err(late()));
        let failure = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        self.ahead().failed = failure;
        result
    }

    async fn read_now(self: Arc<Self>, range: ByteRange) -> Result<Bytes, FsError> {
        let lined_up = {
            let mut ahead = self.ahead();
            ahead.used = Some(Instant::now());
            match ahead.window.plan(range.start(), range.len()) {
                Plan::Exact => {
                    ahead.blocks.clear();
                    None
                }
                Plan::Blocks { needed, ahead_to } => {
                    self.line_up(&mut ahead, *needed.start(), *needed.end(), ahead_to)
                }
            }
        };
        match lined_up {
            Some(blocks) => self.gather(range, &blocks).await,
            None => self.fetch(range).await,
        }
    }

    /// Lets go of what was fetched ahead for a reader that has paused.
    fn rest(&self) {
        let mut ahead = self.ahead();
        if ahead.used.is_some_and(|at| at.elapsed() > IDLE_KEPT) {
            ahead.blocks.clear();
        }
    }

    /// The needed blocks; those ahead are set on their way, those behind let go. None when the
    /// mount has no room for the needed ones: then exactly what was asked for is fetched.
    fn line_up(
        self: &Arc<Self>,
        ahead: &mut Ahead,
        first: u64,
        last: u64,
        ahead_to: u64,
    ) -> Option<Vec<Arc<Block>>> {
        let block_last = (self.image.size_bytes - 1) / BLOCK_BYTES;
        let keep = first.saturating_sub(BLOCKS_BEHIND)..=ahead_to;
        ahead.blocks.retain(|index, _| keep.contains(index));
        let mut needed = Vec::new();
        for index in first..=ahead_to.min(block_last) {
            if let Some(block) = ahead.blocks.get(&index) {
                if index <= last {
                    needed.push(Arc::clone(block));
                }
                continue;
            }
            let Ok(permit) = Arc::clone(&self.source.budget).try_acquire_owned() else {
                return (index > last).then_some(needed);
            };
            let start = index * BLOCK_BYTES;
            let range = ByteRange::clamped(start, BLOCK_BYTES, self.image.size_bytes);
            let block = Arc::new(Block { range, bytes: OnceCell::new(), _permit: permit });
            ahead.blocks.insert(index, Arc::clone(&block));
            if index <= last {
                needed.push(block);
            } else {
                let handle = Arc::clone(self);
                // A failure shows when somebody needs the block, and is tried anew then.
                tokio::spawn(async move {
                    let fetch = tokio::time::timeout(crate::READ_DEADLINE, handle.block(&block));
                    drop(fetch.await);
                });
            }
        }
        Some(needed)
    }

    async fn gather(&self, range: ByteRange, blocks: &[Arc<Block>]) -> Result<Bytes, FsError> {
        let part = |block: &Block, bytes: &Bytes| {
            let from = range.start().max(block.range.start()) - block.range.start();
            let to = range.end().min(block.range.end()) - block.range.start();
            let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            bytes.slice(index(from)..index(to))
        };
        if let [block] = blocks {
            return Ok(part(block, &self.block(block).await?));
        }
        let mut all = BytesMut::new();
        for block in blocks {
            all.extend_from_slice(&part(block, &self.block(block).await?));
        }
        Ok(all.freeze())
    }

    async fn block(&self, block: &Block) -> Result<Bytes, FsError> {
        block.bytes.get_or_try_init(|| self.fetch(block.range)).await.cloned()
    }

    async fn fetch(&self, range: ByteRange) -> Result<Bytes, FsError> {
        let fetched = self.source.hosts.fetch_any(|| self.routes(), range).await;
        match fetched {
            // Its bytes have gone with it, rather than out of reach.
            Err(FsError::Unreachable(_)) if self.source.mirror.tree().get(self.ino).is_none() => {
                Err(FsError::Replaced)
            }
            fetched => fetched,
        }
    }

    /// As the catalogue knows the image now; as it was opened, if it has gone since.
    fn routes(&self) -> Vec<Route> {
        let Source { mirror, hosts, .. } = &*self.source;
        let now = Instant::now();
        let standing = mirror.with(self.ino, |inode| match inode {
            Inode::Image(image) if image.id == self.image.id => Some(image.clone()),
            Inode::Image(_) | Inode::Folder(_) => None,
        });
        let image = standing.flatten().unwrap_or_else(|| self.image.clone());
        hosts.with_health(|health| routes(&mirror.tree(), &image, health, now))
    }
}
