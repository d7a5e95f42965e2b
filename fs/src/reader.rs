//! Reading one image: by range, within a deadline, from whichever hosts have its bytes; its beginning
//! from what is kept of it on this host, where no host is to be reckoned with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::id::Ino;
use isotope_proto::range::ByteRange;
use tokio::sync::Semaphore;

use crate::error::FsError;
use crate::fetch::Content;
use crate::headers::{Claim, Headers, header_range};
use crate::mirror::Mirror;
use crate::prefetch::{BLOCKS_AHEAD_MAX, Begun, Fetch, Prefetcher};
use crate::remote::Hosts;
use crate::replicas::{Route, any_well, routes};
use crate::tally::Tally;
use crate::tree::{ImageNode, Inode, Tree};

/// The kernel's second try comes at once; a person's comes later than this.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Where all hosts have been away for longer than a read waits, the next ones wait only so long: a
/// program that looks at a hundred images is not to wait for each.
const FORLORN_WAIT: Duration = Duration::from_secs(1);

/// How often somebody who waits for hosts looks whether any is left to be reckoned with.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where bytes come from, for all that is read in a mount.
pub(crate) struct Source {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) hosts: Arc<Hosts>,
    /// This host's name: its own files are near.
    pub(crate) host: String,
    /// All replicas together have so long to deliver one read.
    pub(crate) read_timeout: Duration,
    headers: Headers,
    tally: Tally,
    budget: Arc<Semaphore>,
}

/// Who asks for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// The kernel, which reads ahead for its page cache: for what fails it asks again, page by page,
    /// as far as a program wants it.
    PageCache,
    /// A program, which hears of each failure.
    Program,
}

/// A read, as far as it comes without waiting for others.
pub(crate) enum Reading {
    Done(Bytes),
    Waiting(Waiting),
}

/// A read that waits for something.
pub(crate) struct Waiting {
    range: ByteRange,
    kept: Kept,
    /// None where it waits for the header that is kept.
    begun: Option<Begun>,
}

/// What can be done for a range where no host is to be reckoned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// It lies in the header that is kept.
    Whole,
    /// It begins there, and may fail early: of its pages those that are wanted are asked for one by
    /// one, and lie there.
    Part,
    No,
}

/// One image being read.
pub(crate) struct Reader {
    bytes: Arc<Prefetcher<ImageSource>>,
    /// How and when the last read failed.
    failed: Mutex<Option<(Instant, FsError)>>,
    /// What was last given up early, and when.
    given_up: Mutex<Option<(Instant, ByteRange)>>,
}

/// One image's bytes, on the hosts that have them.
#[derive(Clone)]
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
        headers: Headers,
        tally: Tally,
    ) -> Self {
        let budget = Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX));
        Self { mirror, hosts, host, read_timeout, headers, tally, budget }
    }
}

impl Reader {
    pub(crate) fn new(ino: Ino, image: ImageNode, source: Arc<Source>) -> Self {
        let (size_bytes, budget) = (image.size_bytes, Arc::clone(&source.budget));
        let buffers = Arc::clone(source.hosts.channels().buffers());
        let bytes = ImageSource { ino, image, source };
        let bytes = Prefetcher::new(size_bytes, bytes, budget, buffers);
        Self { bytes: Arc::new(bytes), failed: Mutex::default(), given_up: Mutex::default() }
    }

    pub(crate) fn image(&self) -> &ImageNode {
        &self.bytes.source().image
    }

    pub(crate) fn ino(&self) -> Ino {
        self.bytes.source().ino
    }

    fn failed(&self) -> Option<FsError> {
        let failed = lock(&self.failed);
        failed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < FAILURE_KEPT)
            .map(|(_, error)| error.clone())
    }

    /// Begins to read up to `len` bytes from `start`, fewer only at the end of the image; waits for
    /// a moment at most.
    ///
    /// # Errors
    /// On the heels of a read that failed by the deadline, at once: the kernel asks again, page by
    /// page, for what its read-ahead did not get. So does read-ahead from the image's beginning,
    /// where only that can be had.
    pub(crate) fn begin(&self, start: u64, len: u32, asker: Asker) -> Result<Reading, FsError> {
        let range = ByteRange::clamped(start, len.into(), self.bytes.size_bytes());
        if range.is_empty() {
            return Ok(Reading::Done(Bytes::new()));
        }
        let (failed, source) = (self.failed(), self.bytes.source());
        let kept = self.kept(range, asker);
        match kept {
            Kept::Whole if failed.is_some() || !source.any_well() => {
                return Ok(Reading::Waiting(Waiting { range, kept, begun: None }));
            }
            Kept::Part if !source.any_well() => return Err(self.give_up(range)),
            Kept::Whole | Kept::Part | Kept::No => {}
        }
        if let Some(error) = failed {
            return Err(error);
        }
        match self.bytes.begin(range) {
            Begun::Done(bytes) => {
                self.bytes.source().source.tally.read(&Ok(bytes.clone()));
                Ok(Reading::Done(bytes))
            }
            begun => Ok(Reading::Waiting(Waiting { range, kept, begun: Some(begun) })),
        }
    }

    /// The bytes of what was begun, within the read deadline.
    pub(crate) async fn finish(&self, waiting: Waiting) -> Result<Bytes, FsError> {
        let Waiting { range, kept, begun } = waiting;
        let source = self.bytes.source();
        let result = match begun {
            Some(begun) => tokio::select! {
                biased;
                result = self.bytes.finish(begun) => Some(result),
                () = source.lost(), if kept != Kept::No => None,
            },
            None => None,
        };
        match (kept, &result) {
            (Kept::Whole, None | Some(Err(FsError::Unreachable(_)))) => {
                if let Some(header) = source.header().await {
                    return Ok(part(&header, range));
                }
            }
            (Kept::Part, None) => return Err(self.give_up(range)),
            (Kept::Whole | Kept::Part | Kept::No, _) => {}
        }
        let result = match (result, self.failed()) {
            (Some(result), _) => result,
            (None, Some(error)) => return Err(error),
            // What was kept is of no use: the hosts may yet deliver.
            (None, None) => self.bytes.finish(self.bytes.begin(range)).await,
        };
        source.source.tally.read(&result);
        *lock(&self.failed) = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        result
    }

    /// Both, for a program, where waiting holds up nobody.
    pub(crate) async fn read(&self, start: u64, len: u32) -> Result<Bytes, FsError> {
        match self.begin(start, len, Asker::Program)? {
            Reading::Done(bytes) => Ok(bytes),
            Reading::Waiting(waiting) => self.finish(waiting).await,
        }
    }

    /// The image's beginning, as it is kept, if that is all that can be reckoned with.
    pub(crate) async fn header_alone(&self) -> Option<Bytes> {
        self.bytes.source().header().await
    }

    /// Whether the image's beginning is all that can be reckoned with.
    pub(crate) fn has_header_alone(&self) -> bool {
        let source = self.bytes.source();
        source.source.headers.has(source.image.id) && !source.any_well()
    }

    /// Has the image's beginning kept, where it is not yet, from a file of this host.
    pub(crate) fn keep_beginning<B>(&self, of_file: impl FnOnce(usize) -> B)
    where
        B: FnOnce() -> Option<Bytes> + Send + 'static,
    {
        let source = self.bytes.source();
        if let Some(claim) = source.claim() {
            let len = usize::try_from(source.header_range().len()).unwrap_or(0);
            source.source.headers.keep(claim, of_file(len));
        }
    }

    fn kept(&self, range: ByteRange, asker: Asker) -> Kept {
        let source = self.bytes.source();
        let header = source.header_range();
        if range.start() >= header.end() || !source.source.headers.has(source.image.id) {
            return Kept::No;
        }
        if range.end() <= header.end() {
            return Kept::Whole;
        }
        let again =
            lock(&self.given_up).is_some_and(|(at, it)| it == range && at.elapsed() < FAILURE_KEPT);
        match asker {
            // Not twice running, in case it is just these pages together that the kernel wants.
            Asker::PageCache if !again => Kept::Part,
            Asker::PageCache | Asker::Program => Kept::No,
        }
    }

    fn give_up(&self, range: ByteRange) -> FsError {
        *lock(&self.given_up) = Some((Instant::now(), range));
        let text = "no host answers, and only the image's beginning is kept here";
        FsError::Unreachable(text.to_owned())
    }

    /// Lets go of what is kept for a reader that has paused.
    pub(crate) fn rest(&self) {
        self.bytes.rest();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of an image's beginning lies in a range.
fn part(beginning: &Bytes, range: ByteRange) -> Bytes {
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    beginning.slice(index(range.start())..index(range.end()))
}

impl Fetch for ImageSource {
    async fn fetch(&self, range: ByteRange) -> Result<Bytes, FsError> {
        let fetched = self.fetch_in_time(range).await;
        if let Ok(bytes) = &fetched {
            self.keep_beginning(range, bytes);
        }
        fetched
    }

    fn fetch_quickly(&self, range: ByteRange) -> Option<Bytes> {
        let (routes, content) = self.plan();
        let bytes = self.source.hosts.fetch_quickly(&routes, content, range)?;
        self.keep_beginning(range, &bytes);
        Some(bytes)
    }

    fn speed(&self) -> Option<u64> {
        let (routes, _) = self.plan();
        let first = routes.first()?;
        self.source.hosts.with_health(|health| health.speed(&first.address, Instant::now()))
    }
}

impl ImageSource {
    async fn fetch_in_time(&self, range: ByteRange) -> Result<Bytes, FsError> {
        if self.has_no_sound_file() {
            return Err(FsError::WrongBytes("no file of it is sound".to_owned()));
        }
        let deadline = Instant::now() + self.patience();
        let fetched = self.source.hosts.fetch_any(|| self.plan(), range, deadline).await;
        match fetched {
            // Its bytes have gone with it, rather than out of reach.
            Err(FsError::Unreachable(_)) if self.source.mirror.tree().get(self.ino).is_none() => {
                Err(FsError::Replaced)
            }
            fetched => fetched,
        }
    }

    fn header_range(&self) -> ByteRange {
        header_range(self.image.size_bytes)
    }

    /// As it was opened: what was read since was compared with a hash that was known by then.
    fn content(&self) -> Content {
        let blake3 = self.image.hashes.map(|hashes| hashes.blake3);
        Content { size_bytes: self.image.size_bytes, blake3 }
    }

    fn claim(&self) -> Option<Claim> {
        self.source.headers.claim(self.image.id, self.content())
    }

    /// The image's beginning, if it is kept here.
    async fn header(&self) -> Option<Bytes> {
        self.source.headers.read(self.image.id, self.content()).await
    }

    /// Keeps the beginning of an image that somebody reads from there; what is missing of it is
    /// fetched for that, once.
    fn keep_beginning(&self, range: ByteRange, bytes: &Bytes) {
        if range.start() != 0 {
            return;
        }
        let Some(claim) = self.claim() else { return };
        let header = self.header_range();
        if header.end() <= range.end() {
            // Alone, not with the block that it came in.
            let header = Bytes::copy_from_slice(&part(bytes, header));
            return self.source.headers.keep(claim, || Some(header));
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Ok(header) = this.fetch_in_time(header).await {
                this.source.headers.keep(claim, || Some(header));
            }
        });
    }

    /// All that there were have rotted or are gone for good: there is nothing to wait for.
    fn has_no_sound_file(&self) -> bool {
        let tree = self.source.mirror.tree();
        let Some(Inode::Image(image)) = tree.get(self.ino) else { return false };
        image.volumes.is_empty() && tree.twins(image).all(|twin| twin.volumes.is_empty())
    }

    /// The image as the catalogue knows it now, or as it was opened, if it has gone since.
    fn known<'a>(&'a self, tree: &'a Tree) -> &'a ImageNode {
        match tree.get(self.ino) {
            Some(Inode::Image(image)) if image.id == self.image.id => image,
            Some(Inode::Image(_) | Inode::Folder(_)) | None => &self.image,
        }
    }

    /// The ways to the image, and what it is to be checked against.
    fn plan(&self) -> (Vec<Route>, Content) {
        let Source { mirror, hosts, host, .. } = &*self.source;
        let tree = mirror.tree();
        let image = self.known(&tree);
        let blake3 = image.hashes.map(|hashes| hashes.blake3);
        let content = Content { size_bytes: image.size_bytes, blake3 };
        let now = Instant::now();
        (hosts.with_health(|health| routes(&tree, image, health, host, now)), content)
    }

    fn any_well(&self) -> bool {
        let now = Instant::now();
        let Source { mirror, hosts, .. } = &*self.source;
        let tree = mirror.tree();
        let image = self.known(&tree);
        hosts.with_health(|health| any_well(&tree, image, health, now))
    }

    /// Returns once no host is known to be well.
    async fn lost(&self) {
        while self.any_well() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
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
