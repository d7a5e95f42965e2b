//! Reading one image: by range, within a deadline, from whichever hosts have its bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::id::Ino;
use isotope_proto::range::ByteRange;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::FsError;
use crate::fetch::Content;
use crate::mirror::Mirror;
use crate::prefetch::{BLOCKS_AHEAD_MAX, Begun, Fetch, Prefetcher};
use crate::remote::Hosts;
use crate::replicas::{Route, routes};
use crate::tally::Tally;
use crate::tree::{ImageNode, Inode};

/// The kernel's second try comes at once; a person's comes later than this.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Where all hosts have been away for longer than a read waits, the next ones wait only so long: a
/// program that looks at a hundred images is not to wait for each.
const FORLORN_WAIT: Duration = Duration::from_secs(1);

/// Where bytes come from, for all that is read in a mount.
pub(crate) struct Source {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) hosts: Arc<Hosts>,
    /// This host's name: its own files are near.
    pub(crate) host: String,
    /// All replicas together have so long to deliver one read.
    pub(crate) read_timeout: Duration,
    tally: Tally,
    budget: Arc<Semaphore>,
}

/// One image being read.
pub(crate) struct Reader {
    bytes: Arc<Prefetcher<ImageSource>>,
    /// How and when the last read failed.
    failed: Mutex<Option<(Instant, FsError)>>,
}

/// One image's bytes, on the hosts that have them.
struct ImageSource {
    ino: Ino,
    /// As it was opened.
    image: ImageNode,
    source: Arc<Source>,
}

impl Source {
    pub(crate) fn new(
        mirror: Arc<Mirror>,
        hosts: Arc<Hosts>,
        host: String,
        read_timeout: Duration,
        tally: Tally,
    ) -> Self {
        let budget = Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX));
        Self { mirror, hosts, host, read_timeout, tally, budget }
    }
}

impl Reader {
    pub(crate) fn new(ino: Ino, image: ImageNode, source: Arc<Source>) -> Self {
        let (size_bytes, budget) = (image.size_bytes, Arc::clone(&source.budget));
        let buffers = Arc::clone(source.hosts.channels().buffers());
        let bytes = ImageSource { ino, image, source };
        let bytes = Prefetcher::new(size_bytes, bytes, budget, buffers);
        Self { bytes: Arc::new(bytes), failed: Mutex::default() }
    }

    pub(crate) fn image(&self) -> &ImageNode {
        &self.bytes.source().image
    }

    pub(crate) fn ino(&self) -> Ino {
        self.bytes.source().ino
    }

    fn failed(&self) -> MutexGuard<'_, Option<(Instant, FsError)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read up to `len` bytes from `start`, fewer only at the end of the image; waits for
    /// a moment at most.
    ///
    /// # Errors
    /// On the heels of a read that failed by the deadline, at once: the kernel asks again, page by
    /// page, for what its read-ahead did not get.
    pub(crate) fn begin(&self, start: u64, len: u32) -> Result<Begun, FsError> {
        let range = ByteRange::clamped(start, len.into(), self.bytes.size_bytes());
        if range.is_empty() {
            return Ok(Begun::Done(Bytes::new()));
        }
        if let Some((at, error)) = &*self.failed()
            && at.elapsed() < FAILURE_KEPT
        {
            return Err(error.clone());
        }
        let begun = self.bytes.begin(range);
        if let Begun::Done(bytes) = &begun {
            self.bytes.source().source.tally.read(&Ok(bytes.clone()));
        }
        Ok(begun)
    }

    /// The bytes of what was begun, within the read deadline.
    pub(crate) async fn finish(&self, begun: Begun) -> Result<Bytes, FsError> {
        let result = self.bytes.finish(begun).await;
        self.bytes.source().source.tally.read(&result);
        *self.failed() = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        result
    }

    /// Both, where waiting holds up nobody.
    pub(crate) async fn read(&self, start: u64, len: u32) -> Result<Bytes, FsError> {
        let begun = self.begin(start, len)?;
        self.finish(begun).await
    }

    /// Lets go of what is kept for a reader that has paused.
    pub(crate) fn rest(&self) {
        self.bytes.rest();
    }
}

impl Fetch for ImageSource {
    async fn fetch(&self, range: ByteRange) -> Result<Bytes, FsError> {
        let hosts = &self.source.hosts;
        let fetched = timeout(self.patience(), hosts.fetch_any(|| self.plan(), range)).await;
        let late = |_| Err(FsError::Unreachable("no host delivered in time".to_owned()));
        match fetched.unwrap_or_else(late) {
            // Its bytes have gone with it, rather than out of reach.
            Err(FsError::Unreachable(_)) if self.source.mirror.tree().get(self.ino).is_none() => {
                Err(FsError::Replaced)
            }
            fetched => fetched,
        }
    }

    fn fetch_quickly(&self, range: ByteRange) -> Option<Bytes> {
        let (routes, content) = self.plan();
        self.source.hosts.fetch_quickly(&routes, content, range)
    }

    fn speed(&self) -> Option<u64> {
        let (routes, _) = self.plan();
        let first = routes.first()?;
        self.source.hosts.with_health(|health| health.speed(&first.address, Instant::now()))
    }
}

impl ImageSource {
    /// The ways to the image as the catalogue knows it now, or as it was opened, if it has gone
    /// since; and what it is to be checked against.
    fn plan(&self) -> (Vec<Route>, Content) {
        let Source { mirror, hosts, host, .. } = &*self.source;
        let tree = mirror.tree();
        let image = match tree.get(self.ino) {
            Some(Inode::Image(image)) if image.id == self.image.id => image,
            Some(Inode::Image(_) | Inode::Folder(_)) | None => &self.image,
        };
        let blake3 = image.hashes.map(|hashes| hashes.blake3);
        let content = Content { size_bytes: image.size_bytes, blake3 };
        let now = Instant::now();
        (hosts.with_health(|health| routes(&tree, image, health, host, now)), content)
    }

    fn patience(&self) -> Duration {
        let most = self.source.read_timeout;
        let long_bad = |since: Option<Instant>| since.is_some_and(|at| at.elapsed() > most);
        let (routes, _) = self.plan();
        let forlorn = !routes.is_empty()
            && self.source.hosts.with_health(|health| {
                routes.iter().all(|route| long_bad(health.bad_since(&route.address)))
            });
        if forlorn { FORLORN_WAIT.min(most) } else { most }
    }
}
