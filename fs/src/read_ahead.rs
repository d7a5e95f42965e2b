//! Read-ahead arithmetic: which blocks one open file should have at hand. Pure. The kernel sends
//! a sequential reader's requests slightly out of order, so a little disorder counts as
//! sequential; a far seek begins anew.

use std::ops::RangeInclusive;

/// The unit of fetching: large enough for the wire, small enough that a stray one costs little.
pub(crate) const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks fetched ahead of a steady reader: 8 MiB covers 60 ms at 1 Gbit/s and 6 ms at 10.
pub(crate) const WINDOW_BLOCKS_MAX: u64 = 8;
/// Sequential bytes before whole blocks are fetched: a probe of a header must not cost a block.
const WARM_UP_BYTES: u64 = 256 << 10;
/// How far a request may jump ahead, or lie behind, and still be the kernel's own disorder.
const FORWARD_BYTES: u64 = 4 << 20;
const BACKWARD_BYTES: u64 = 4 << 20;

/// How to satisfy one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Fetch exactly what was asked for.
    Exact,
    /// Take it from blocks, and have those up to the last one on their way.
    Blocks { needed: RangeInclusive<u64>, ahead_to: u64 },
}

/// What one open file has read so far.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// One past the furthest byte of the sequential run.
    end: u64,
    run_bytes: u64,
}

impl Window {
    /// Plans a read of `len > 0` bytes at `start`.
    pub(crate) fn plan(&mut self, start: u64, len: u64) -> Plan {
        let sequential = start <= self.end.saturating_add(FORWARD_BYTES)
            && start.saturating_add(BACKWARD_BYTES) >= self.end;
        if !sequential {
            *self = Self::default();
        }
        self.run_bytes = self.run_bytes.saturating_add(len);
        self.end = if sequential { self.end.max(start + len) } else { start + len };
        if self.run_bytes <= WARM_UP_BYTES {
            return Plan::Exact;
        }
        let needed = start / BLOCK_BYTES..=(start + len - 1) / BLOCK_BYTES;
        // Doubles with each block consumed, as mountpoint-s3's does.
        let consumed = u32::try_from(self.run_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        let window =
            1_u64.checked_shl(consumed).map_or(WINDOW_BLOCKS_MAX, |it| it.min(WINDOW_BLOCKS_MAX));
        Plan::Blocks { ahead_to: *needed.end() + window, needed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    #[test]
    fn a_probe_fetches_what_it_reads() {
        let mut window = Window::default();
        assert_eq!(window.plan(0, 4 * KIB), Plan::Exact);
        assert_eq!(window.plan(4 * KIB, 29 * KIB), Plan::Exact);
    }

    #[test]
    fn random_reads_stay_exact_however_many() {
        let mut window = Window::default();
        for n in 0..1000 {
            let start = (n * 7919 % 500) * 8 * MIB;
            assert_eq!(window.plan(start, 4 * KIB), Plan::Exact, "{n}");
        }
    }

    #[test]
    fn a_steady_reader_gets_a_growing_window_that_is_bounded() {
        let mut window = Window::default();
        let mut furthest = 0;
        for n in 0..512 {
            let start = n * 128 * KIB;
            if let Plan::Blocks { needed, ahead_to } = window.plan(start, 128 * KIB) {
                assert!(needed.contains(&(start / BLOCK_BYTES)));
                assert!(ahead_to - needed.end() <= WINDOW_BLOCKS_MAX);
                furthest = furthest.max(ahead_to - needed.end());
            }
        }
        assert_eq!(furthest, WINDOW_BLOCKS_MAX);
    }

    #[test]
    fn the_kernels_disorder_is_sequential_and_a_seek_is_not() {
        let mut window = Window::default();
        for start in [0, 256, 128, 512, 384] {
            window.plan(start * KIB, 128 * KIB);
        }
        assert!(matches!(window.plan(640 * KIB, 128 * KIB), Plan::Blocks { .. }));
        assert_eq!(window.plan(900 * MIB, 128 * KIB), Plan::Exact);
    }
}
