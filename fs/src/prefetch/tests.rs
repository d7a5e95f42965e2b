//! The prefetcher against a model: whatever is read in whatever order, from a source that fails at
//! every n-th call, each answer is the image's bytes or the source's error.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Bytes that tell where they are from.
fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8 ^ (offset / 4099) as u8
}

fn bytes_of(range: ByteRange) -> Vec<u8> {
    (range.start()..range.end()).map(byte_at).collect()
}

#[derive(Default)]
struct Failing {
    size_bytes: u64,
    /// Every so manieth call fails; 0 for none.
    every: usize,
    calls: AtomicUsize,
    under_way: AtomicUsize,
    under_way_most: AtomicUsize,
    fetched_bytes: AtomicUsize,
    speed: Option<u64>,
}

impl Fetch for Arc<Failing> {
    async fn fetch(&self, range: ByteRange) -> Result<Bytes, FsError> {
        let (first, last) = (range.start() / BLOCK_BYTES, (range.end() - 1) / BLOCK_BYTES);
        assert_eq!(first, last, "of one block at most");
        assert_eq!(range, proof::widened(range, self.size_bytes), "in whole groups");
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.under_way_most.fetch_max(under_way, Ordering::Relaxed);
        for _ in 0..call % 3 {
            tokio::task::yield_now().await;
        }
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.every > 0 && call.is_multiple_of(self.every) {
            return Err(FsError::TimedOut);
        }
        self.fetched_bytes.fetch_add(range.len() as usize, Ordering::Relaxed);
        Ok(bytes_of(range).into())
    }

    fn speed(&self) -> Option<u64> {
        self.speed
    }

    fn fetch_quickly(&self, range: ByteRange) -> Option<Bytes> {
        assert_eq!(range, proof::widened(range, self.size_bytes), "in whole groups");
        // Now and then it would take too long.
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        (!call.is_multiple_of(3)).then(|| bytes_of(range).into())
    }
}

async fn read(bytes: &Arc<Prefetcher<Arc<Failing>>>, range: ByteRange) -> Result<Bytes, FsError> {
    let begun = bytes.begin(range);
    bytes.finish(begun).await
}

fn prefetcher(size_bytes: u64, every: usize, budget: usize) -> Arc<Prefetcher<Arc<Failing>>> {
    let source = Arc::new(Failing { size_bytes, every, ..Failing::default() });
    let budget = Arc::new(Semaphore::new(budget));
    Arc::new(Prefetcher::new(size_bytes, source, budget, Arc::default()))
}

fn within<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(test)
}

#[derive(Debug, Clone)]
enum Step {
    /// The next bytes.
    On(u64),
    /// As the kernel's read-ahead may: the second half before the first.
    Disorder(u64),
    Seek(u64, u64),
    /// Two at once.
    Both(u64, u64),
    Rest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || prop_oneof![1..64 * KIB, Just(128 * KIB), Just(MIB)];
    let at = || 0..5 * MIB;
    let step = prop_oneof![
        4 => len().prop_map(Step::On),
        1 => len().prop_map(Step::Disorder),
        2 => (at(), len()).prop_map(|(at, len)| Step::Seek(at, len)),
        1 => (at(), at()).prop_map(|(one, other)| Step::Both(one, other)),
        1 => Just(Step::Rest),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_read_is_the_images_bytes_or_the_sources_error(
        size_bytes in 1..5 * MIB,
        every in prop_oneof![Just(0_usize), 2..9_usize],
        budget in prop_oneof![Just(1_usize), Just(3), Just(BLOCKS_AHEAD_MAX)],
        steps in steps(),
    ) {
        within(async {
            let bytes = prefetcher(size_bytes, every, budget);
            let try_read = async |start: u64, len: u64| {
                let range = ByteRange::clamped(start, len, size_bytes);
                if range.is_empty() {
                    return;
                }
                match read(&bytes, range).await {
                    Ok(read) => assert!(read == bytes_of(range), "{range:?} is others' bytes"),
                    Err(error) => assert!(every > 0 && error == FsError::TimedOut, "{error}"),
                }
            };
            let mut at = 0;
            for step in steps {
                match step {
                    Step::On(len) => {
                        try_read(at, len).await;
                        at += len;
                    }
                    Step::Disorder(len) => {
                        try_read(at + len, len).await;
                        try_read(at, len).await;
                        at += 2 * len;
                    }
                    Step::Seek(to, len) => {
                        try_read(to, len).await;
                        at = to + len;
                    }
                    Step::Both(one, other) => {
                        tokio::join!(try_read(one, 70 * KIB), try_read(other, 3 * KIB));
                    }
                    Step::Rest => bytes.rest(),
                }
            }
        });
    }
}

#[test]
fn a_steady_reader_fetches_each_byte_once_and_some_ahead() {
    within(async {
        let size_bytes = 20 * MIB;
        let bytes = prefetcher(size_bytes, 0, BLOCKS_AHEAD_MAX);
        for at in (0..10 * MIB).step_by(128 * KIB as usize) {
            let range = ByteRange::clamped(at, 128 * KIB, size_bytes);
            assert!(read(&bytes, range).await == Ok(bytes_of(range).into()));
        }
        let fetched = bytes.source().fetched_bytes.load(Ordering::Relaxed) as u64;
        // What the first reads, before it is steady, fetched by themselves is fetched again.
        let most = 10 * MIB + crate::read_ahead::WINDOW_BLOCKS_MAX * MIB + 2 * MIB;
        assert!((10 * MIB..=most).contains(&fetched), "{fetched}");
        assert!(bytes.source().under_way_most.load(Ordering::Relaxed) > 1, "none ahead");
    });
}

#[test]
fn no_more_is_under_way_than_the_mount_allows() {
    within(async {
        let bytes = prefetcher(40 * MIB, 0, 2);
        for at in (0..30 * MIB).step_by(MIB as usize) {
            let range = ByteRange::clamped(at, MIB, 40 * MIB);
            assert!(read(&bytes, range).await == Ok(bytes_of(range).into()));
        }
        // Two ahead, and the one that is waited for where those have taken the room.
        assert!(bytes.source().under_way_most.load(Ordering::Relaxed) <= 3);
    });
}

#[test]
fn on_a_slow_link_nothing_is_in_the_way_of_the_block_that_is_needed() {
    for (speed, most) in [(None, 9), (Some(MIB - 1), 1), (Some(2 * MIB), 3), (Some(1 << 40), 9)] {
        within(async {
            let size_bytes = 40 * MIB;
            let source = Arc::new(Failing { size_bytes, speed, ..Failing::default() });
            let budget = Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX));
            let bytes = Arc::new(Prefetcher::new(size_bytes, source, budget, Arc::default()));
            for at in (0..30 * MIB).step_by(MIB as usize) {
                let range = ByteRange::clamped(at, MIB, size_bytes);
                assert!(read(&bytes, range).await == Ok(bytes_of(range).into()));
            }
            let under_way = bytes.source().under_way_most.load(Ordering::Relaxed);
            assert!(under_way <= most, "{under_way} at {speed:?}");
        });
    }
}

#[test]
fn the_sectors_of_a_group_are_fetched_once() {
    within(async {
        let size_bytes = 64 * MIB;
        let bytes = prefetcher(size_bytes, 0, BLOCKS_AHEAD_MAX);
        // Two places by turns, as a boot loader reads its index and its files.
        for sector in 0..8 {
            for place in [10 * MIB, 40 * MIB] {
                let range = ByteRange::clamped(place + sector * 2 * KIB, 2 * KIB, size_bytes);
                assert!(read(&bytes, range).await == Ok(bytes_of(range).into()));
            }
        }
        assert_eq!(bytes.source().calls.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn what_is_long_is_not_kept_for_a_seeking_reader() {
    within(async {
        let bytes = prefetcher(64 * MIB, 0, BLOCKS_AHEAD_MAX);
        for (place, len, kept) in
            [(10 * MIB, RECENT_EACH_MAX, 1), (40 * MIB, RECENT_EACH_MAX + KIB, 1)]
        {
            let range = ByteRange::clamped(place, len, 64 * MIB);
            assert!(read(&bytes, range).await == Ok(bytes_of(range).into()));
            assert_eq!(bytes.state().recent.len(), kept);
        }
    });
}

#[test]
fn a_block_that_failed_ahead_is_fetched_when_it_is_needed() {
    within(async {
        let bytes = prefetcher(8 * MIB, 2, BLOCKS_AHEAD_MAX);
        let (mut failed, mut at) = (0, 0);
        while at < 8 * MIB {
            let range = ByteRange::clamped(at, 512 * KIB, 8 * MIB);
            match read(&bytes, range).await {
                Ok(read) => {
                    assert!(read == bytes_of(range));
                    at = range.end();
                }
                Err(_) => failed += 1,
            }
            assert!(failed < 50, "it never gets on");
        }
    });
}
