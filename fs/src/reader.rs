//! Reading one image by range: what a steady reader will want next is fetched ahead, in blocks,
//! within a bound for the whole mount.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// A reader that pauses for so long gives up what was fetched ahead for it.
const IDLE_KEPT: Duration = Duration::from_secs(5);
/// The kernel's second try comes at once; a person's comes later than this.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// Where bytes come from.
pub(crate) struct Source {
    mirror: Arc<Mirror>,
    hosts: Arc<Hosts>,
    budget: Arc<Semaphore>,
}

/// One image being read.
pub(crate) struct Reader {
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

impl Source {
    pub(crate) fn new(mirror: Arc<Mirror>, hosts: Arc<Hosts>) -> Self {
        Self { mirror, hosts, budget: Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX)) }
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }
}

impl Reader {
    pub(crate) fn new(ino: Ino, image: ImageNode, source: Arc<Source>) -> Self {
        Self { ino, image, source, ahead: Mutex::default() }
    }

    pub(crate) fn image(&self) -> &ImageNode {
        &self.image
    }

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
    pub(crate) fn rest(&self) {
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
                let reader = Arc::clone(self);
                // A failure shows when somebody needs the block, and is tried anew then.
                tokio::spawn(async move {
                    let fetch = tokio::time::timeout(crate::READ_DEADLINE, reader.block(&block));
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
