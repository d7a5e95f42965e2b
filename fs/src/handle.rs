//! Open files. Each is one image, read by range; what a steady reader will want next is fetched
//! ahead, in blocks, within a bound for the whole mount.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use isotope_proto::id::Ino;
use isotope_proto::range::ByteRange;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::error::FsError;
use crate::mirror::Mirror;
use crate::read_ahead::{BLOCK_BYTES, Plan, Window};
use crate::remote::Hosts;
use crate::replicas::{Route, routes};
use crate::tree::{ImageNode, Inode};

/// Blocks on their way or unread, in the mount as a whole: 128 MiB.
const BLOCKS_AHEAD_MAX: usize = 128;
/// Blocks kept behind the reader, for the kernel's disorder.
const BLOCKS_BEHIND: u64 = 1;

/// The open files of a mount, and what they share.
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    source: Arc<Source>,
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
    window: Window,
    blocks: BTreeMap<u64, Arc<Block>>,
}

/// A block being fetched, or fetched: whoever comes first fetches, the others wait for it.
struct Block {
    range: ByteRange,
    bytes: OnceCell<Bytes>,
    /// Its place in the mount's budget; a block somebody waits for has none.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Handles {
    pub(crate) fn new(mirror: Arc<Mirror>, hosts: Arc<Hosts>) -> Self {
        let budget = Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX));
        let source = Arc::new(Source { mirror, hosts, budget });
        Self { open: RwLock::default(), next: AtomicU64::new(1), source }
    }

    /// Opens an image for reading; needs no host.
    pub(crate) fn open(&self, ino: Ino) -> Result<u64, FsError> {
        let image = self.source.mirror.with(ino, |inode| match inode {
            Inode::Image(image) => Ok(image.clone()),
            Inode::Folder(_) => Err(FsError::IsAFolder),
        });
        let image = image.ok_or(FsError::Stale)??;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let source = Arc::clone(&self.source);
        let handle = Handle { ino, image, source, ahead: Mutex::default() };
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(handle));
        Ok(id)
    }

    pub(crate) fn get(&self, id: u64) -> Result<Arc<Handle>, FsError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned().ok_or(FsError::BadHandle)
    }

    pub(crate) fn close(&self, id: u64) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl Handle {
    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `len` bytes from `start`, fewer only at the end of the image.
    pub(crate) async fn read(self: Arc<Self>, start: u64, len: u32) -> Result<Bytes, FsError> {
        let range = ByteRange::clamped(start, len.into(), self.image.size_bytes);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let plan = self.ahead().window.plan(range.start(), range.len());
        match plan {
            Plan::Exact => self.fetch(range).await,
            Plan::Blocks { needed, ahead_to } => {
                let blocks = self.line_up(*needed.start(), *needed.end(), ahead_to);
                self.gather(range, &blocks).await
            }
        }
    }

    /// The needed blocks; those ahead are set on their way, those behind let go.
    fn line_up(self: &Arc<Self>, first: u64, last: u64, ahead_to: u64) -> Vec<Arc<Block>> {
        let block_last = (self.image.size_bytes - 1) / BLOCK_BYTES;
        let mut ahead = self.ahead();
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
            let permit = Arc::clone(&self.source.budget).try_acquire_owned().ok();
            if permit.is_none() && index > last {
                break;
            }
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
        needed
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
        self.source.hosts.fetch_any(|| self.routes(), range).await
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
