//! One pass over a file: it is read block by block, and hashed on two threads. It knows nothing of
//! what is done with the results.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{Checkpoint, Seen};
use super::read::Reader;
use super::tree::{GROUP_BYTES, Pair, Tree, Value};
use super::{DigestError, Manner};

/// Read at once: large enough that a system call is nothing beside it, small enough that it is
/// still in the processor's cache when it is hashed.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks that wait for SHA-256, so that neither thread stops for a hiccup of the other.
const BLOCKS_AHEAD: usize = 3;
/// Those, the one being hashed by each thread, and one that is just being given back.
const BLOCKS: usize = BLOCKS_AHEAD + 3;
/// A stop is heard so soon while a slow pace has us wait.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What is to become of SHA-256.
pub(super) enum Sha {
    Compute,
    Resume(Sha256),
    Skip,
}

/// Where a pass begins.
pub(super) struct Begin {
    pub(super) sha: Sha,
    pub(super) tree: Tree,
}

impl Begin {
    pub(super) fn new(sha: Sha) -> Self {
        Self { sha, tree: Tree::new() }
    }
}

pub(super) enum Event<'a> {
    /// Inner nodes that became known, in post-order.
    Pairs(&'a [Pair]),
    Progress(u64),
    Checkpoint(&'a Checkpoint),
}

pub(super) enum Ended {
    /// SHA-256 is zeros if it was skipped.
    Done {
        sha256: Value,
        blake3: Value,
    },
    Changed,
    Stopped,
}

type OnEvent<'a> = dyn FnMut(Event<'_>) -> io::Result<()> + 'a;

/// Reads the file from where `begin` stands to its end.
pub(super) fn run(
    file: &File,
    seen: Seen,
    begin: Begin,
    manner: &Manner,
    on_event: &mut OnEvent<'_>,
) -> Result<Ended, DigestError> {
    thread::scope(|scope| {
        let sha = match begin.sha {
            Sha::Skip => None,
            Sha::Compute => Some(Lane::start(scope, Sha256::new())?),
            Sha::Resume(state) => Some(Lane::start(scope, state)?),
        };
        let pass = Pass { file, seen, tree: begin.tree, sha, pairs: Vec::new(), on_event };
        pass.run(manner)
    })
}

struct Pass<'a, 'scope> {
    file: &'a File,
    seen: Seen,
    tree: Tree,
    sha: Option<Lane<'scope>>,
    /// Known, and not told yet.
    pairs: Vec<Pair>,
    on_event: &'a mut OnEvent<'a>,
}

impl Pass<'_, '_> {
    fn run(mut self, manner: &Manner) -> Result<Ended, DigestError> {
        let mut reader = Reader::new(self.file);
        let mut blocks = Blocks::default();
        let mut pace = manner.pace;
        let mut kept = Instant::now();
        let mut only_group = None;
        let size = self.seen.size_bytes;
        let mut offset = self.tree.groups() * GROUP_BYTES;
        while offset < size {
            if manner.stop.is_cancelled() {
                return self.stop(offset);
            }
            let mut block = blocks.take(BLOCK_BYTES.min(size - offset));
            let read_error = |(offset, error)| DigestError::Read { offset, error };
            // Which block it is does not matter: it is nobody else's.
            let bytes = Arc::make_mut(&mut block);
            let whole = reader.fill(bytes, offset).map_err(read_error)?;
            if !whole || self.has_changed()? {
                return Ok(Ended::Changed);
            }
            if let Some(sha) = &self.sha {
                sha.send(Work::Block(Arc::clone(&block)))?;
            }
            if size <= GROUP_BYTES {
                only_group = Some(blake3::hash(&block).into());
            } else {
                self.grow(&block);
            }
            offset += block.len() as u64;
            let len = block.len() as u64;
            blocks.give_back(block);
            self.tell(offset)?;
            if offset < size && kept.elapsed() >= manner.checkpoint_every {
                self.keep()?;
                kept = Instant::now();
            }
            pause(pace.wait(len, Instant::now()), &manner.stop);
        }
        self.finish(only_group)
    }

    fn has_changed(&self) -> Result<bool, DigestError> {
        let now = Seen::of(self.file).map_err(DigestError::Stat)?;
        Ok(now != self.seen)
    }

    fn grow(&mut self, block: &[u8]) {
        // 64 of them at most in a block.
        for group in block.chunks(1 << GROUP_BYTES.trailing_zeros()) {
            self.tree.push(group, &mut |pair| self.pairs.push(pair));
        }
    }

    fn tell(&mut self, offset: u64) -> Result<(), DigestError> {
        let mut tell =
            |event| (self.on_event)(event).map_err(|error| DigestError::Keep { offset, error });
        if !self.pairs.is_empty() {
            tell(Event::Pairs(&self.pairs))?;
        }
        tell(Event::Progress(offset))?;
        self.pairs.clear();
        Ok(())
    }

    /// Only with both hashes is there something to go on from.
    fn keep(&mut self) -> Result<(), DigestError> {
        let Some(sha) = &self.sha else { return Ok(()) };
        let checkpoint = Checkpoint::new(self.seen, &sha.state()?, &self.tree);
        let offset = checkpoint.offset();
        let kept = (self.on_event)(Event::Checkpoint(&checkpoint));
        kept.map_err(|error| DigestError::Keep { offset, error })
    }

    fn stop(mut self, offset: u64) -> Result<Ended, DigestError> {
        if offset > 0 {
            self.keep()?;
        }
        Ok(Ended::Stopped)
    }

    fn finish(mut self, only_group: Option<Value>) -> Result<Ended, DigestError> {
        let sha256 = match self.sha.take() {
            Some(sha) => sha.finish()?,
            None => Value::default(),
        };
        if self.has_changed()? {
            return Ok(Ended::Changed);
        }
        let tree = std::mem::replace(&mut self.tree, Tree::new());
        let root = tree.finish(&mut |pair| self.pairs.push(pair));
        self.tell(self.seen.size_bytes)?;
        let blake3 = root.or(only_group).unwrap_or_else(|| blake3::hash(&[]).into());
        Ok(Ended::Done { sha256, blake3 })
    }
}

/// The buffers, used in turn: none is made anew while the pass runs.
#[derive(Default)]
struct Blocks {
    used: std::collections::VecDeque<Arc<Vec<u8>>>,
}

impl Blocks {
    /// One that nobody else holds, for so many bytes.
    fn take(&mut self, len: u64) -> Arc<Vec<u8>> {
        let oldest = if self.used.len() < BLOCKS { None } else { self.used.pop_front() };
        let mut block = oldest.filter(|it| Arc::strong_count(it) == 1).unwrap_or_default();
        // At most BLOCK_BYTES.
        Arc::make_mut(&mut block).resize(usize::try_from(len).unwrap_or(0), 0);
        block
    }

    fn give_back(&mut self, block: Arc<Vec<u8>>) {
        self.used.push_back(block);
    }
}

enum Work {
    Block(Arc<Vec<u8>>),
    /// To be told the state after all the blocks before.
    State(SyncSender<Sha256>),
}

/// SHA-256 on a thread of its own: it takes three times as long as all the rest, and cannot itself
/// be divided.
struct Lane<'scope> {
    work: SyncSender<Work>,
    thread: ScopedJoinHandle<'scope, Sha256>,
}

impl<'scope> Lane<'scope> {
    fn start(scope: &'scope Scope<'scope, '_>, state: Sha256) -> Result<Self, DigestError> {
        let (work, queue) = sync_channel(BLOCKS_AHEAD);
        let thread = thread::Builder::new().name("sha256".to_owned());
        let thread = thread
            .spawn_scoped(scope, move || compute(state, &queue))
            .map_err(DigestError::Thread)?;
        Ok(Self { work, thread })
    }

    fn send(&self, work: Work) -> Result<(), DigestError> {
        self.work.send(work).map_err(|_| ended_early())
    }

    fn state(&self) -> Result<Sha256, DigestError> {
        let (reply, answer) = sync_channel(1);
        self.send(Work::State(reply))?;
        answer.recv().map_err(|_| ended_early())
    }

    fn finish(self) -> Result<Value, DigestError> {
        drop(self.work);
        let state = self.thread.join().map_err(|_| ended_early())?;
        Ok(state.finalize().into())
    }
}

fn compute(mut state: Sha256, queue: &Receiver<Work>) -> Sha256 {
    for work in queue {
        match work {
            Work::Block(block) => state.update(block.as_slice()),
            // Who asked may have given up.
            Work::State(reply) => drop(reply.send(state.clone())),
        }
    }
    state
}

fn ended_early() -> DigestError {
    DigestError::Thread(io::Error::other("the thread for SHA-256 ended early"))
}

fn pause(wait: Duration, stop: &CancellationToken) {
    let until = Instant::now() + wait;
    while !stop.is_cancelled() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(PAUSE_MAX));
    }
}
