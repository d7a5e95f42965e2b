//! Memory for what comes from hosts. A block's worth of fresh memory costs the kernel as much work
//! as the bytes themselves, so blocks are used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isotope_proto::channel::{HEAD_BYTES, PROOF_BYTES_MAX, RANGE_BYTES_MAX};

/// Below so many bytes the allocator has memory at hand.
const SMALL_BYTES: usize = 64 << 10;
/// What is larger has room for the longest answer that an agent may give, whatever its length: to
/// make a block larger is to copy it. Pages that were never written to cost nothing.
const LARGE_BYTES: usize = HEAD_BYTES + (PROOF_BYTES_MAX + RANGE_BYTES_MAX) as usize;
/// Free blocks kept: as many as a few steady readers have under way.
const KEPT_MAX: usize = 32;

/// Blocks that are free.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// Some memory, empty at first; it goes back where it came from.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for so many bytes.
    pub(crate) fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        let mut bytes = match capacity {
            SMALL_BYTES..=LARGE_BYTES => {
                let free = self.lock().pop();
                free.unwrap_or_else(|| Vec::with_capacity(LARGE_BYTES))
            }
            _ => Vec::with_capacity(capacity),
        };
        bytes.clear();
        Buffer { bytes, home: Arc::clone(self) }
    }

    /// Lets go of all that is free.
    pub(crate) fn rest(&self) {
        *self.lock() = Vec::new();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() >= LARGE_BYTES {
            let mut free = self.home.lock();
            if free.len() < KEPT_MAX {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_block_is_used_again_once_nobody_reads_it() {
        let buffers = Arc::<Buffers>::default();
        let mut first = buffers.take(SMALL_BYTES);
        first.bytes.resize(LARGE_BYTES, 7);
        let at = first.bytes.as_ptr();
        let part = Bytes::from_owner(first).slice(1..2);
        assert_ne!(buffers.take(LARGE_BYTES).bytes.as_ptr(), at, "it is still read");
        assert_eq!(part[..], [7]);
        drop(part);
        let again = buffers.take(LARGE_BYTES);
        assert_eq!((again.bytes.as_ptr(), again.bytes.len()), (at, 0));
    }

    #[test]
    fn no_more_is_kept_than_is_used() {
        let buffers = Arc::<Buffers>::default();
        let taken: Vec<Buffer> = (0..2 * KEPT_MAX).map(|_| buffers.take(SMALL_BYTES)).collect();
        drop(taken);
        drop(buffers.take(1));
        assert_eq!(buffers.lock().len(), KEPT_MAX);
        buffers.rest();
        assert!(buffers.lock().is_empty());
    }
}
