//! What one open file has at hand of its image: a steady reader finds the next blocks fetched
//! ahead, within a bound for the whole mount; a seeking one the groups it has just read. It knows
//! neither hosts nor images, only something to fetch ranges from.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isotope_proto::proof;
use isotope_proto::range::ByteRange;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::buffers::Buffers;
use crate::error::FsError;
use crate::read_ahead::{BLOCK_BYTES, Plan, Window};

/// Blocks on their way or unread, in the mount as a whole: 128 MiB.
pub(crate) const BLOCKS_AHEAD_MAX: usize = 128;
/// Blocks kept behind the reader, for the kernel's disorder.
const BLOCKS_BEHIND: u64 = 4;
/// Of what was fetched for a seeking reader so much is kept: programs that read a CD-ROM's 2 KiB
/// sectors come back to the group that they have just read from.
const RECENT_BYTES_MAX: u64 = 1 << 20;
/// What is longer is in the page cache, and its answer in a whole block's memory (`buffers.rs`).
const RECENT_EACH_MAX: u64 = 48 << 10;
/// What is fetched ahead is no more than comes in so long.
const AHEAD_MAX: Duration = Duration::from_secs(1);
/// A reader that pauses for so long gives up what was kept for it.
const IDLE_KEPT: Duration = Duration::from_secs(5);

/// Where ranges come from: hosts, and in tests something that fails.
pub(crate) trait Fetch: Send + Sync + 'static {
    /// Exactly these bytes, within some deadline. Of one block at most, and in whole groups.
    fn fetch(&self, range: ByteRange) -> impl Future<Output = Result<Bytes, FsError>> + Send;

    /// The same for a small range, on this thread and in a moment, or not at all.
    fn fetch_quickly(&self, range: ByteRange) -> Option<Bytes>;

    /// Bytes per second that one fetch got lately; none if nobody knows.
    fn speed(&self) -> Option<u64>;
}

/// A read, as far as it comes without waiting for others.
pub(crate) enum Begun {
    Done(Bytes),
    /// Blocks that are on their way.
    Blocks(ByteRange, Vec<Arc<Block>>),
    /// Nothing is on its way yet.
    Exact(ByteRange),
}

/// One open file's.
pub(crate) struct Prefetcher<F> {
    size_bytes: u64,
    source: F,
    budget: Arc<Semaphore>,
    buffers: Arc<Buffers>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When it was last read.
    used: Option<Instant>,
    window: Window,
    blocks: BTreeMap<u64, Arc<Block>>,
    /// The newest last.
    recent: VecDeque<(ByteRange, Bytes)>,
}

/// A block being fetched, or fetched: whoever comes first fetches, the others wait for it.
pub(crate) struct Block {
    range: ByteRange,
    bytes: OnceCell<Bytes>,
    /// Its place in the mount's budget.
    _permit: OwnedSemaphorePermit,
}

impl<F: Fetch> Prefetcher<F> {
    pub(crate) fn new(
        size_bytes: u64,
        source: F,
        budget: Arc<Semaphore>,
        buffers: Arc<Buffers>,
    ) -> Self {
        Self { size_bytes, source, budget, buffers, state: Mutex::default() }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn source(&self) -> &F {
        &self.source
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read a range that is not empty and lies within the image. What is at hand is taken
    /// from there, and a small range fetched at once if that is a matter of a moment.
    pub(crate) fn begin(self: &Arc<Self>, range: ByteRange) -> Begun {
        let mut state = self.state();
        state.used = Some(Instant::now());
        let blocks = match state.window.plan(range.start(), range.len()) {
            Plan::Exact => {
                state.blocks.clear();
                None
            }
            Plan::Blocks { needed, ahead_to } => {
                state.recent.clear();
                let in_time = self.source.speed().map_or(u64::MAX, blocks_in_time);
                let ahead_to = ahead_to.min(needed.end().saturating_add(in_time));
                self.line_up(&mut state, &needed, ahead_to)
            }
        };
        drop(state);
        match blocks {
            Some(blocks) => match &blocks[..] {
                [block] if let Some(bytes) = block.bytes.get() => {
                    Begun::Done(part(range, block.range, bytes))
                }
                _ => Begun::Blocks(range, blocks),
            },
            None => self.quickly(range).map_or(Begun::Exact(range), Begun::Done),
        }
    }

    pub(crate) async fn finish(&self, begun: Begun) -> Result<Bytes, FsError> {
        match begun {
            Begun::Done(bytes) => Ok(bytes),
            Begun::Blocks(range, blocks) => self.gather(range, &blocks).await,
            Begun::Exact(range) => self.read_exactly(range).await,
        }
    }

    fn quickly(&self, range: ByteRange) -> Option<Bytes> {
        if range.start() / BLOCK_BYTES != (range.end() - 1) / BLOCK_BYTES {
            return None;
        }
        let groups = proof::widened(range, self.size_bytes);
        if let Some((known, bytes)) = self.recent(groups) {
            return Some(part(range, known, &bytes));
        }
        let bytes = self.source.fetch_quickly(groups)?;
        self.remember(groups, &bytes);
        Some(part(range, groups, &bytes))
    }

    /// Lets go of what was kept for a reader that has paused.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        if state.used.is_some_and(|at| at.elapsed() > IDLE_KEPT) {
            state.blocks.clear();
            state.recent.clear();
        }
    }

    /// The needed blocks; those ahead are set on their way, those behind let go. None when the
    /// mount has no room for the needed ones: then no more than was asked for is fetched.
    fn line_up(
        self: &Arc<Self>,
        state: &mut State,
        needed: &RangeInclusive<u64>,
        ahead_to: u64,
    ) -> Option<Vec<Arc<Block>>> {
        let block_last = (self.size_bytes - 1) / BLOCK_BYTES;
        let keep = needed.start().saturating_sub(BLOCKS_BEHIND)..=ahead_to;
        state.blocks.retain(|index, _| keep.contains(index));
        let mut blocks = Vec::new();
        for index in *needed.start()..=ahead_to.min(block_last) {
            let is_needed = needed.contains(&index);
            if let Some(block) = state.blocks.get(&index) {
                blocks.extend(is_needed.then(|| Arc::clone(block)));
                continue;
            }
            let Ok(permit) = Arc::clone(&self.budget).try_acquire_owned() else {
                return (!is_needed).then_some(blocks);
            };
            let range = self.block_range(index);
            let block = Arc::new(Block { range, bytes: OnceCell::new(), _permit: permit });
            state.blocks.insert(index, Arc::clone(&block));
            if is_needed {
                blocks.push(block);
            } else {
                let this = Arc::clone(self);
                // A failure shows when somebody needs the block, and is tried anew then.
                tokio::spawn(async move { drop(this.block(&block).await) });
            }
        }
        Some(blocks)
    }

    fn block_range(&self, index: u64) -> ByteRange {
        ByteRange::clamped(index * BLOCK_BYTES, BLOCK_BYTES, self.size_bytes)
    }

    async fn gather(&self, range: ByteRange, blocks: &[Arc<Block>]) -> Result<Bytes, FsError> {
        if let [block] = blocks {
            return Ok(part(range, block.range, &self.block(block).await?));
        }
        let mut all = self.buffers.take(usize::try_from(range.len()).unwrap_or(0));
        for block in blocks {
            all.bytes.extend_from_slice(&part(range, block.range, &self.block(block).await?));
        }
        Ok(Bytes::from_owner(all))
    }

    async fn block(&self, block: &Block) -> Result<Bytes, FsError> {
        block.bytes.get_or_try_init(|| self.source.fetch(block.range)).await.cloned()
    }

    /// The groups of a range, block by block.
    async fn read_exactly(&self, range: ByteRange) -> Result<Bytes, FsError> {
        let wide = proof::widened(range, self.size_bytes);
        let blocks = range.start() / BLOCK_BYTES..=(range.end() - 1) / BLOCK_BYTES;
        let mut all = BytesMut::new();
        for index in blocks.clone() {
            let block = self.block_range(index);
            let start = wide.start().max(block.start());
            let groups = ByteRange::clamped(start, wide.end().min(block.end()) - start, u64::MAX);
            let (known, bytes) = match self.recent(groups) {
                Some(known) => known,
                None => {
                    let fetched = self.source.fetch(groups).await?;
                    self.remember(groups, &fetched);
                    (groups, fetched)
                }
            };
            if blocks.start() == blocks.end() {
                return Ok(part(range, known, &bytes));
            }
            all.extend_from_slice(&part(range, groups, &part(groups, known, &bytes)));
        }
        Ok(all.freeze())
    }

    fn recent(&self, groups: ByteRange) -> Option<(ByteRange, Bytes)> {
        let holds = |it: &ByteRange| it.start() <= groups.start() && groups.end() <= it.end();
        let state = self.state();
        state.recent.iter().rev().find(|(it, _)| holds(it)).cloned()
    }

    fn remember(&self, groups: ByteRange, bytes: &Bytes) {
        if groups.len() > RECENT_EACH_MAX {
            return;
        }
        let recent = &mut self.state().recent;
        recent.push_back((groups, bytes.clone()));
        let mut kept: u64 = recent.iter().map(|(it, _)| it.len()).sum();
        while kept > RECENT_BYTES_MAX
            && let Some((oldest, _)) = recent.pop_front()
        {
            kept -= oldest.len();
        }
    }
}

/// How many blocks are fetched ahead at that speed: on a slow link those would keep the one that is
/// waited for from coming in time.
fn blocks_in_time(bytes_per_second: u64) -> u64 {
    bytes_per_second.saturating_mul(AHEAD_MAX.as_secs()) / BLOCK_BYTES
}

/// What of `wanted` lies in `known`, whose bytes these are.
fn part(wanted: ByteRange, known: ByteRange, bytes: &Bytes) -> Bytes {
    let from = wanted.start().max(known.start()) - known.start();
    let to = wanted.end().min(known.end()) - known.start();
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    bytes.slice(index(from)..index(to))
}

#[cfg(test)]
mod tests;
